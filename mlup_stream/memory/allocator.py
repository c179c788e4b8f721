"""Making the C library give large blocks back as soon as they are freed, for the time of a load.

glibc takes blocks above a threshold straight from the system, and returns them when they are freed. The threshold follows the
largest block that was ever freed, up to 32 MiB: after a framework has freed one weight, all others come from the heap, where what
is freed between two that stay is not returned. Measured: 256 MiB of Keras weights, each of 4 MiB and drawn at random before it is
read, peak at 2.1 times their size; with the threshold held at 1 MiB, at 1.05 times.

Source: mallopt(3), "Dynamic mmap threshold"; malloc/malloc.c of glibc (`DEFAULT_MMAP_THRESHOLD_MAX`).
"""

from __future__ import annotations

import contextlib
import functools
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

from mlup_stream.memory.overlapping import while_any_runs
from mlup_stream.units import MIB

__all__ = ["large_blocks_given_back"]

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
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):  # musl has a mallopt that does nothing
        return None
    return getattr(library, "mallopt", None)
