"""The allocator that this process has: glibc's, or the one that was preloaded in its place; how it gives memory back.

glibc takes blocks above a threshold straight from the system, and returns them when they are freed. The threshold follows the
largest block that was ever freed, up to 32 MiB: after a framework has freed one weight, all others come from the heap, where what
is freed between two that stay is not returned. Measured: 256 MiB of Keras weights, each of 4 MiB and drawn at random before it is
read, peak at 2.1 times their size; with the threshold held at 1 MiB, at 1.05 times.

Sources: mallopt(3), "Dynamic mmap threshold"; malloc_trim(3); malloc/malloc.c of glibc (`DEFAULT_MMAP_THRESHOLD_MAX`); mi_collect
of mimalloc.h; `MallocExtension_ReleaseFreeMemory` of gperftools/malloc_extension_c.h; "arena.<i>.purge" in jemalloc(3).
"""

from __future__ import annotations

import contextlib
import functools
import os
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

from mlup_stream.memory.overlapping import while_any_runs
from mlup_stream.units import MIB

__all__ = ["find_trim", "large_blocks_given_back", "name"]

GLIBC = "glibc"
_JEMALLOC_PURGE = b"arena.4096.purge"  # MALLCTL_ARENAS_ALL

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

_LARGE_BYTES = 1 * MIB
# Where glibc's own adjustment ends, for a threshold once set is no longer adjusted: later large blocks are as quick as they would
# have become.
_USUAL_BYTES = 4 * MIB * struct.calcsize("l")


def _hold() -> Callable[[], None]:
    mallopt = _find_mallopt()
    if mallopt is None:
        return lambda: None
    mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)

    def release() -> None:
        mallopt(_M_MMAP_THRESHOLD, _USUAL_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * _USUAL_BYTES)

    return release


_held = while_any_runs(_hold)


@contextlib.contextmanager
def large_blocks_given_back() -> Iterator[None]:
    """Within the block, memory of 1 MiB and more goes back to the system when it is freed. Elsewhere than in glibc, nothing.

    It holds for the whole process, until the last of several such blocks, in whatever threads, ends.
    """
    with _held():
        yield


@functools.cache
def _find_mallopt() -> Callable[[int, int], Any] | None:
    return getattr(_library(), "mallopt", None) if _malloc_lies_in() == GLIBC else None


@functools.cache
def find_trim() -> Callable[[], Any] | None:
    """What makes the allocator return free pages to the system, also from inside its heap; None if nothing is known of it."""
    library = _library()
    if library is None:
        return None
    if _malloc_lies_in() == GLIBC:
        return functools.partial(library.malloc_trim, 0)
    if hasattr(library, "mi_collect"):
        return functools.partial(library.mi_collect, True)
    if hasattr(library, "MallocExtension_ReleaseFreeMemory"):
        return library.MallocExtension_ReleaseFreeMemory  # type: ignore[no-any-return]
    if hasattr(library, "mallctl"):
        return functools.partial(library.mallctl, _JEMALLOC_PURGE, None, None, None, 0)
    return None


def name() -> str:
    """The file that `malloc` lies in, for messages."""
    return _malloc_lies_in() or "this system's"


@functools.cache
def _library() -> Any:
    """What this process has loaded, as one library; None elsewhere than on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes  # 2 MiB that only the one who gives back pays

    return ctypes.CDLL(None)


@functools.cache
def _malloc_lies_in() -> str:
    """`GLIBC`, or the name of the file whose `malloc` comes first; glibc's own functions are there all the same."""
    library = _library()
    if library is None:
        return ""
    import ctypes

    class Found(ctypes.Structure):
        _fields_ = [("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("name", ctypes.c_char_p), ("at", ctypes.c_void_p)]

    found = Found()
    if not hasattr(library, "dladdr") or not library.dladdr(ctypes.cast(library.malloc, ctypes.c_void_p), ctypes.byref(found)):
        return ""
    file = os.path.basename(os.fsdecode(found.file or b""))
    return GLIBC if hasattr(library, "gnu_get_libc_version") and file.startswith("libc.so") else file
