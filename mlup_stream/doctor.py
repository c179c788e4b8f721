"""What this machine lets a load have, measure and remember: `examine()`, which `mlup-stream doctor` prints.

Every finding is a line: good, worth knowing, or wrong with what to do. Nothing is imported and nothing is changed, but for a file
that is made in the cache folder and removed again.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mlup_stream.delivery.file_system import file_system_of
from mlup_stream.delivery.files import checked_stat
from mlup_stream.delivery.map_trouble import map_trouble, maps_in_use
from mlup_stream.entries import ENVIRONMENT, is_remembering
from mlup_stream.errors import LoadError
from mlup_stream.extras import LIBRARIES, is_too_old
from mlup_stream.memory import allocator, proc
from mlup_stream.memory.budget import available
from mlup_stream.memory.cgroup import memory_cgroups
from mlup_stream.memory.imports import KNOWN, estimate_of, to_import
from mlup_stream.memory.learned import LearnedStore
from mlup_stream.memory.outside import is_told_apart
from mlup_stream.memory.proc import number_after, read_file
from mlup_stream.units import MIB, format_bytes

__all__ = ["GOOD", "NOTE", "WRONG", "Finding", "as_dict", "examine"]

GOOD, NOTE, WRONG = "good", "to know", "wrong"
_LITTLE_BYTES = 64 * MIB
"""With less left no model with a library of its own can be loaded: importing NumPy and onnxruntime takes about as much."""
_FEW_MAPS = 1024


class Finding(NamedTuple):
    """One line.

    Attributes:
        about: What it is about: `limits`, `measuring`, `memory`, `cache`, `libraries` or `file`.
        state: `good`, `to know` or `wrong`.
        text: What was found.
        to_do: What to do about it; empty where there is nothing to do.
    """

    about: str
    state: str
    text: str
    to_do: str = ""


def examine(path: str | os.PathLike[str] | None = None) -> list[Finding]:
    """Everything, in the order in which a load meets it.

    Args:
        path: A model, for what is particular to where it lies.
    """
    found: list[Finding] = []
    parts: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("limits", _limits),
        ("measuring", _measuring),
        ("memory", _memory),
        ("cache", _cache),
        ("libraries", _libraries),
    ]
    if path is not None:
        parts.append(("file", lambda: _file(os.fspath(path))))
    for about, look in parts:
        try:
            found += look()
        except Exception as error:  # one thing that cannot be found out hides no other
            found.append(Finding(about, NOTE, f"could not be found out ({type(error).__name__}: {error})"))
    return found


def _limits() -> Iterator[Finding]:
    limits = available()
    for limit in limits.limits:
        left = f"{format_bytes(limit.available_bytes)} left of {limit}; counts {limit.counts.value}"
        if limit is limits.tightest and limit.available_bytes < _LITTLE_BYTES:
            yield Finding("limits", WRONG, left, "raise it, or free memory: NumPy and onnxruntime alone take that much")
        else:
            yield Finding("limits", GOOD, left + ("; the tightest" if limit is limits.tightest else ""))
    if limits.tightest is None:
        to_do = "set memory_budget, so that loads are refused before the machine swaps"
        yield Finding("limits", NOTE, "no limit was found", to_do)
    groups = memory_cgroups()
    if sys.platform.startswith("linux") and not groups:
        yield Finding(
            "limits",
            NOTE,
            "no memory control group can be seen from here, so a limit of a container would not be",
            "mount /sys/fs/cgroup, or set memory_budget",
        )
    for group in groups:
        text = f"control group of version {group.version}: {group.folders[0]}, {len(group.folders)} levels can be seen"
        yield Finding("limits", GOOD, text)


def _measuring() -> Iterator[Finding]:
    if not is_told_apart():
        text = "private memory and pages of files are not told apart here (/proc/self/status): reports know RSS alone"
        yield Finding("measuring", NOTE, text)
        return
    yield Finding("measuring", GOOD, "private memory, pages of files and shared memory are told apart (/proc/self/status)")
    if os.access("/proc/self/clear_refs", os.W_OK):
        yield Finding("measuring", GOOD, "the peak is the kernel's: VmHWM can be set back (/proc/self/clear_refs)")
    else:
        text = "VmHWM cannot be set back (/proc/self/clear_refs may not be written): peaks are what samples saw, at least"
        yield Finding("measuring", NOTE, text, "mount /proc writable")
    whole = bool(proc.smaps_rollup())
    text = "PSS can be read (/proc/self/smaps_rollup)" if whole else "PSS cannot be read (/proc/self/smaps_rollup)"
    yield Finding("measuring", GOOD if whole else NOTE, text)
    if not read_file("/proc/pressure/memory"):
        yield Finding("measuring", NOTE, "the kernel does not tell memory pressure (/proc/pressure/memory)")


def _memory() -> Iterator[Finding]:
    if allocator.find_trim() is None:
        yield Finding(
            "memory",
            NOTE,
            f"freed memory cannot be given back by hand: malloc lies in {allocator.name()}",
            "glibc, mimalloc, tcmalloc and jemalloc can",
        )
    else:
        yield Finding("memory", GOOD, f"freed memory is given back by {allocator.name()}")
    meminfo = read_file("/proc/meminfo")
    swap_kilobytes = number_after(meminfo, b"SwapTotal:")
    if swap_kilobytes:
        free_bytes = (number_after(meminfo, b"SwapFree:") or 0) * 1024
        text = f"{format_bytes(swap_kilobytes * 1024)} of swap, {format_bytes(free_bytes)} free; it is not counted as memory"
        yield Finding("memory", NOTE, text)
    overcommit = read_file("/proc/sys/vm/overcommit_memory").strip()
    if overcommit == b"2":
        text = "the system promises no more than it has (vm.overcommit_memory=2): copy-on-write maps count in full"
        yield Finding("memory", NOTE, text, 'mapping="read-only" counts nothing')
    huge = read_file("/sys/kernel/mm/transparent_hugepage/enabled").strip().decode()
    if "[always]" in huge:
        text = "transparent huge pages are on for all: a touched page may take 2 MiB"
        yield Finding("memory", NOTE, text, "madvise is enough")
    used, maps_limit = maps_in_use()
    if used is not None and maps_limit is not None and maps_limit - used < _FEW_MAPS:
        yield Finding("memory", WRONG, f"{used} of {maps_limit} maps are used (vm.max_map_count)", "raise it with sysctl")


def _cache() -> Iterator[Finding]:
    if not is_remembering():
        yield Finding("cache", NOTE, f"nothing is remembered between processes: {ENVIRONMENT} is set to 0")
        return
    store = LearnedStore(enabled=True)
    folder = os.path.dirname(store.folder)
    if not folder:
        text = "this user has no cache folder: nothing is remembered between processes"
        yield Finding("cache", NOTE, text, "set XDG_CACHE_HOME or HOME")
        return
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        text = f"{folder} cannot be written ({error.strerror}): estimates do not learn, checked files are checked again"
        yield Finding("cache", NOTE, text, "set XDG_CACHE_HOME to a folder that can be")
        return
    yield Finding("cache", GOOD, f"{folder} can be written; {len(store.remembered())} loads are remembered there")


def _libraries() -> Iterator[Finding]:
    store = LearnedStore()
    for library in sorted(LIBRARIES.values(), key=lambda each: each.module):
        name = library.distribution or library.module
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if is_too_old(version, library.minimum):
            wanted = ".".join(map(str, library.minimum))
            yield Finding("libraries", WRONG, f"{name} {version} is older than {wanted}", f"pip install {library.to_install}")
            continue
        text = f"{name} {version}"
        roots = to_import([library.module]) if library.module in KNOWN else ()
        if roots:
            estimate = estimate_of(roots, store)
            text += f"; importing it takes {format_bytes(estimate.peak_anon_bytes)} ({estimate.why})"
        yield Finding("libraries", GOOD, text)


def _file(path: str) -> Iterator[Finding]:
    try:
        checked_stat(path)
    except LoadError as error:
        yield Finding("file", WRONG, str(error), "")
        return
    kind = file_system_of(path)
    trouble = map_trouble(path)
    if trouble is not None:
        yield Finding("file", NOTE, f"{path}: {trouble}", "deliveries that copy are chosen; a copy on a local disk can be mapped")
    elif not kind:
        text = f"{path}: on which file system it lies cannot be told, so neither can whether a map of it is safe"
        yield Finding("file", NOTE, text, 'choose delivery="stream" if it is a network\'s or FUSE')
    else:
        yield Finding("file", GOOD, f"{path}: lies on {kind}, where a map is safe and shared by every process that maps it")
    if os.path.isfile(path) and os.access(path, os.W_OK) and not _is_root():
        text = f"{path}: this user may write to it in place, which a model that lives in its map would see"
        yield Finding("file", NOTE, text, "replace model files by renaming; make them read-only")


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def as_dict(findings: list[Finding]) -> dict[str, Any]:
    """For `--json`."""
    wrong = sum(each.state == WRONG for each in findings)
    return {"schema": 1, "wrong": wrong, "findings": [each._asdict() for each in findings]}
