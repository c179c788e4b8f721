"""Memory limits for a child: a control group of its own, or RLIMIT_DATA where groups may not be made."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import resource
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mlup_stream.memory.cgroup import memory_cgroups

_REMOVE_SECONDS = 5.0


class Limiter(NamedTuple):
    """How children are limited.

    Attributes:
        name: What a table calls it.
        limited: Given a number of bytes, a context whose value is called in the child before it starts.
    """

    name: str
    limited: Callable[[int], contextlib.AbstractContextManager[Callable[[], None]]]


def find_limiter() -> Limiter:
    """A group below this process's own where one can be made, otherwise RLIMIT_DATA."""
    for group in memory_cgroups():
        files = _FILES[group.version]
        with contextlib.suppress(OSError):
            with _in_group(group.folders[0], files, 1 << 40):
                pass
            return Limiter(f"memory cgroup v{group.version}", functools.partial(_in_group, group.folders[0], files))
    return Limiter("RLIMIT_DATA: private memory only, no page cache", _under_rlimit)


class _Files(NamedTuple):
    limit: str
    swap: str
    swap_value: str | None  # what keeps swap out of it; None for the limit itself, where the file bounds both together


_FILES = {
    1: _Files("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", None),
    2: _Files("memory.max", "memory.swap.max", "0"),
}


@contextlib.contextmanager
def _in_group(parent: str, files: _Files, limit_bytes: int) -> Iterator[Callable[[], None]]:
    """A fresh group below `parent`, removed after. Version 2 allows it where `parent` passes the memory controller on."""
    group = os.path.join(parent, f"mlup-stream-profiling-{os.getpid()}")
    os.mkdir(group)
    try:
        _write(os.path.join(group, files.limit), str(limit_bytes))
        # Not there without swap accounting; there is no swap to be kept out of then, or it cannot be helped.
        if os.path.exists(os.path.join(group, files.swap)):
            _write(os.path.join(group, files.swap), files.swap_value or str(limit_bytes))
        # "0" is whoever writes it: the child, between fork and exec, so that all that it ever takes is charged here.
        yield lambda: _write(os.path.join(group, "cgroup.procs"), "0")
    finally:
        _remove(group)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _remove(group: str) -> None:
    """A group is busy until the kernel has done away with the last process in it."""
    deadline = time.monotonic() + _REMOVE_SECONDS
    while True:
        try:
            os.rmdir(group)
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextlib.contextmanager
def _under_rlimit(limit_bytes: int) -> Iterator[Callable[[], None]]:
    yield lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
