"""How much a compressed stream holds, where it says so, without unpacking it.

- gzip ends with the length, modulo 2^32 (RFC 1952, 2.3.1). Deflate makes nothing smaller than 1/1032 of it, so that is the length
  itself for files up to 4 MiB, and the least that it can be for others.
- xz ends with an index of its blocks (the .xz file format 1.2, 2.1.2 and 4): the sum of their lengths.
- lz4 frames and .lzma files have a place for it in their first bytes, which joblib leaves empty (LZ4 frame format 1.6.4; the
  .lzma header: properties, dictionary size, length).
- zlib and bz2 streams do not say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlup_stream.errors import CorruptModelError
from mlup_stream.formats.source import Source
from mlup_stream.units import MIB

__all__ = ["claimed_size_bytes"]

_MAX_INDEX_BYTES = 1 * MIB
_XZ_FOOTER_BYTES = 12
_HEAD_BYTES = 16


def claimed_size_bytes(given: Any, name: str | None = None) -> int | None:
    """The length that a compressed stream claims to hold, in bytes; for gzip the least; None if it claims none.

    Args:
        given: A path, a buffer or a seekable binary file.
        name: What to call it in a message.
    """
    with Source(given, name) as source:
        try:
            head = source.read(0, min(source.size_bytes, _HEAD_BYTES), "first bytes")
            for prefix, size_of in _SIZES:
                if head.startswith(prefix):
                    return size_of(source, head.ljust(_HEAD_BYTES, b"\0"))
        except CorruptModelError:  # whoever loads it will say so
            pass
    return None


def _gzip(source: Source, head: bytes) -> int | None:
    return int.from_bytes(source.read(source.size_bytes - 4, 4, "gzip length"), "little")


def _xz(source: Source, head: bytes) -> int | None:
    footer = source.read(source.size_bytes - _XZ_FOOTER_BYTES, _XZ_FOOTER_BYTES, "xz footer")
    index_bytes = (int.from_bytes(footer[4:8], "little") + 1) * 4
    if footer[-2:] != b"YZ" or index_bytes > _MAX_INDEX_BYTES:
        return None
    index = source.read(source.size_bytes - _XZ_FOOTER_BYTES - index_bytes, index_bytes, "xz index")
    records, at = _number(index, 1)  # behind the indicator, a zero
    total_bytes = 0
    for _ in range(min(records, index_bytes // 2)):
        _, at = _number(index, at)
        size_bytes, at = _number(index, at)
        total_bytes += size_bytes
    return total_bytes if index[:1] == b"\0" else None


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number of the xz format, seven bits a byte, and where it ends."""
    value = shift = 0
    while at < len(data) and shift < 63:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            break
    return value, at


def _lz4(source: Source, head: bytes) -> int | None:
    return int.from_bytes(head[6:14], "little") if head[4] & 0x08 else None


def _lzma(source: Source, head: bytes) -> int | None:
    return None if head[5:13] == b"\xff" * 8 else int.from_bytes(head[5:13], "little")


_SIZES: tuple[tuple[bytes, Callable[[Source, bytes], int | None]], ...] = (
    (b"\x1f\x8b", _gzip),
    (b"\xfd7zXZ", _xz),
    (b"\x04\x22\x4d\x18", _lz4),
    (b"\x5d\x00", _lzma),
)
