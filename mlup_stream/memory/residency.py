"""How much of a file lies in the page cache: mincore(2), which asks without reading anything."""

from __future__ import annotations

import mmap
import os
import sys

__all__ = ["cached_fraction"]


def cached_fraction(fd: int) -> float | None:
    """The share, 0.0 to 1.0, of the open file's pages that lie in the page cache; None where it cannot be known.

    One byte per page is allocated for the answer: 512 KiB for a file of 2 GiB.

    Since Linux 5.2 mincore answers truthfully only for files that this user could write or owns; for others it says that
    every page is cached, which is the answer that makes callers leave the cache alone.
    """
    size_bytes = os.fstat(fd).st_size
    if not sys.platform.startswith("linux") or size_bytes == 0:
        return None
    import ctypes  # 2 MiB that only the one who asks should pay

    pages = -(-size_bytes // mmap.PAGESIZE)
    answer = (ctypes.c_ubyte * pages)()
    # Private and writable, because ctypes takes the address of writable buffers only; nothing is written, or even touched.
    with mmap.mmap(fd, size_bytes, flags=mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        try:
            failed = ctypes.CDLL(None, use_errno=True).mincore(
                ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size_bytes), answer
            )
        finally:
            del first  # an exported pointer would keep the map from closing
    return None if failed else bytes(answer).count(1) / pages
