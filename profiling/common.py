"""What the profiling scripts share: children, files that are cold or cached, the machine, and tables.

Tables are Markdown, which a terminal shows as it is and `docs/measurements.md` holds as it was printed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fresh_process import call_fresh
from measurement import call_measured

from mlup_stream.memory.residency import cached_fraction
from mlup_stream.units import format_bytes, parse_bytes

HERE = Path(__file__).resolve().parent

# A child imports these scripts' modules by name, and TensorFlow tells what it found out about the machine unless told not to.
_ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
    # One load is not to change what the next one is estimated at, nor to leave anything behind.
    "MLUP_STREAM_LEARNED": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "KERAS_BACKEND": os.environ.get("KERAS_BACKEND", "tensorflow"),
}

LIBRARY = "library"
"""What stands in a delivery's place for the format's own library."""


def call(function: str, **arguments: Any) -> Any:
    """What a function of one of these scripts' modules returns in a fresh process; see `call_fresh`."""
    return call_fresh(function, environment=_ENVIRONMENT, **arguments)


def call_and_measure(function: str, **arguments: Any) -> dict[str, Any]:
    """The same for one that returns what `measured` returned; see `call_measured`."""
    return call_measured(function, environment=_ENVIRONMENT, **arguments)


def files_of(path: str) -> list[str]:
    """The file itself, or every file of a folder that is a model."""
    if not os.path.isdir(path):
        return [path]
    return sorted(os.path.join(root, name) for root, _, names in os.walk(path) for name in names)


def size_of(path: str) -> int:
    return sum(os.path.getsize(each) for each in files_of(path))


def evict(path: str) -> float:
    """Takes a model out of the page cache, as far as no process maps it. Needs no privilege.

    Returns:
        The largest share of any of its files that stayed there.
    """
    left = 0.0
    for each in files_of(path):
        fd = os.open(each, os.O_RDONLY)
        try:
            os.fsync(fd)  # pages that were not written back cannot be dropped
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            left = max(left, cached_fraction(fd) or 0.0)
        finally:
            os.close(fd)
    return left


def warm(path: str) -> None:
    """Reads a model into the page cache."""
    for each in files_of(path):
        with open(each, "rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def size_argument(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def machine(packages: Iterable[str] = ()) -> str:
    """One line: the system, its cores, memory and load, Python, and the versions of those packages that are installed."""
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {format_bytes(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))} of memory"
    versions = []
    for name in ("mlup-stream", *packages):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    # Seconds mean little on a machine that has other things to do.
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return f"{system}, {os.cpu_count()} cores{memory}{load}; Python {platform.python_version()}, {', '.join(versions)}."


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table whose columns line up; the first `left` of them to the left, the others to the right."""
    rows = [tuple(row) for row in rows]
    widths = [max(3, *(len(row[i]) for row in [tuple(headings), *rows])) for i in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.ljust(widths[i]) if i < left else cell.rjust(widths[i]) for i, cell in enumerate(cells))
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (width + 2) if i < left else "-" * (width + 1) + ":" for i, width in enumerate(widths))
    return "\n".join([line(headings), f"|{rule}|", *map(line, rows)])


def ratio(size_bytes: int | None, file_bytes: int) -> str:
    return "?" if size_bytes is None else f"{size_bytes / file_bytes:.2f}"


def note(text: str) -> None:
    """A line for whoever waits; the tables alone go to standard output."""
    print(text, file=sys.stderr, flush=True)
