"""How much of a file lies in the page cache: mincore(2), which asks without reading anything."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterator

from mlup_stream.units import KIB

__all__ = ["cached_fraction"]

_PIECE_BYTES = 256 * KIB
_PIECES = 16
"""So many pieces of a larger file are asked about: of 512 MiB the whole takes 14 ms, more than loading it in place."""


def cached_fraction(fd: int) -> float | None:
    """The share, 0.0 to 1.0, of the open file's pages that lie in the page cache; None where it cannot be known.

    Of a file of more than 4 MiB it is the share of 16 pieces that lie evenly in it, the first and the last among them.

    Since Linux 5.2 mincore answers truthfully only for files that this user could write or owns; for others it says that
    every page is cached, which is the answer that makes callers leave the cache alone.
    """
    size_bytes = os.fstat(fd).st_size
    if not sys.platform.startswith("linux") or size_bytes == 0:
        return None
    import ctypes  # 2 MiB that only the one who asks should pay

    mincore = ctypes.CDLL(None, use_errno=True).mincore
    answer = (ctypes.c_ubyte * (_PIECE_BYTES // mmap.PAGESIZE))()
    cached = pages = 0
    for start, length in _pieces(size_bytes):
        # Piece by piece: the whole may not fit into the address space that a limit leaves. Private and writable, because ctypes
        # takes the address of writable buffers only; nothing is written, or even touched.
        flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
        with mmap.mmap(fd, length, flags=flags, offset=start) as mapped:
            first = ctypes.c_char.from_buffer(mapped)
            failed = mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(length), answer)
            del first  # an exported pointer would keep the map from closing
        if failed:
            return None
        count = -(-length // mmap.PAGESIZE)
        pages += count
        cached += bytes(answer[:count]).count(1)
    return cached / pages


def _pieces(size_bytes: int) -> Iterator[tuple[int, int]]:
    """Where to look, and how many bytes from there."""
    every_bytes = _PIECE_BYTES
    if size_bytes > _PIECES * _PIECE_BYTES:
        every_bytes = (size_bytes - _PIECE_BYTES) // (_PIECES - 1) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    for start in range(0, size_bytes, every_bytes):
        yield start, min(_PIECE_BYTES, size_bytes - start)
