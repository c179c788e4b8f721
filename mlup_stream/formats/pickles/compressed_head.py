"""The first kilobytes of what a compressed stream holds, for every compressor that joblib writes.

Both ends are bounded: how much is read, and how much is unpacked (a stream of a few bytes may claim to hold petabytes). The
dictionary that an lzma stream asks for is bounded as well. lz4 is not in the standard library, so its blocks are unpacked here.
Sources: RFC 1950 and 1952 (zlib, gzip); the bzip2 magic, which ends in a level from 1 to 9; the .xz specification 1.2, 2.1.1,
and the .lzma header (properties, dictionary size, length); the LZ4 frame format 1.6.4 and block format; joblib's
`numpy_pickle_compat` for `ZF`, which it wrote before 0.10.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mlup_stream.formats.peek import Peek
from mlup_stream.units import KIB, MIB

__all__ = ["UnpackedHead", "unpacked_head"]

_WANTED_BYTES = 4 * KIB
_STEP_BYTES = 1 * KIB
_READ_AT_MOST_BYTES = 16 * KIB
# bzip2 gives nothing before it has a whole block, which is up to 900 kB unpacked and may not have become smaller.
_READ_AT_MOST_BZ2_BYTES = 1 * MIB
_LZMA_MEMORY_BYTES = 80 * MIB  # what level 9 needs; the allocator does not touch it before it is written to


class UnpackedHead(NamedTuple):
    """What a compressed stream begins with.

    Attributes:
        compressor: Its name in joblib.
        data: The first bytes that it holds, at most 4 KiB; fewer, or none, if the stream is damaged.
    """

    compressor: str
    data: bytes


def unpacked_head(peek: Peek) -> UnpackedHead | None:
    """What the stream begins with, or None if it does not begin like a compressed stream."""
    for name, begins, unpack in _COMPRESSORS:
        if begins.match(peek.head):
            data = b""
            try:
                for piece in unpack(peek):
                    data += piece
                    if len(data) >= _WANTED_BYTES:
                        break
            except Exception:  # each library has its own error for a damaged stream; what came before it may do
                pass
            return UnpackedHead(name, data[:_WANTED_BYTES])
    return None


def _steps(peek: Peek, at_most_bytes: int = _READ_AT_MOST_BYTES, start: int = 0) -> Iterator[bytes]:
    step_bytes = _STEP_BYTES
    position = start
    while position < at_most_bytes and (data := peek.at(position, step_bytes)):
        yield data
        position += len(data)
        step_bytes *= 2


def _zlib(peek: Peek, window_bits: int = 15, start: int = 0) -> Iterator[bytes]:
    import zlib

    stream = zlib.decompressobj(window_bits)
    for data in _steps(peek, start=start):
        yield stream.decompress(data, _WANTED_BYTES)


def _gzip(peek: Peek) -> Iterator[bytes]:
    return _zlib(peek, 31)


def _before_010(peek: Peek) -> Iterator[bytes]:
    # The length is padded with spaces, by one more in what Python 2 wrote; its "0x" has the only other x.
    return _zlib(peek, start=peek.head.index(b"\x78", len(b"ZF0x")))


def _bz2(peek: Peek) -> Iterator[bytes]:
    import bz2

    return _feed(bz2.BZ2Decompressor(), peek, _READ_AT_MOST_BZ2_BYTES)


def _lzma(peek: Peek) -> Iterator[bytes]:
    import lzma

    return _feed(lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=_LZMA_MEMORY_BYTES), peek, _READ_AT_MOST_BYTES)


def _feed(stream: Any, peek: Peek, at_most_bytes: int) -> Iterator[bytes]:
    for data in _steps(peek, at_most_bytes):
        yield stream.decompress(data, max_length=_WANTED_BYTES)


def _lz4(peek: Peek) -> Iterator[bytes]:
    data = peek.at(0, _READ_AT_MOST_BYTES)
    flags = data[4]
    # Signature, flags, block descriptor, then what the flags say: the content's size and a dictionary's id; a checksum byte.
    position = 6 + 8 * bool(flags & 0x08) + 4 * bool(flags & 0x01) + 1
    (length,) = struct.unpack_from("<I", data, position)
    block = data[position + 4 : position + 4 + (length & 0x7FFFFFFF)]
    yield block[:_WANTED_BYTES] if length & 0x80000000 else _lz4_block(block)


def _lz4_block(block: bytes) -> bytes:
    """The beginning of what a block holds: sequences of literals and of a match further back."""
    out = bytearray()
    position = 0
    while position < len(block) and len(out) < _WANTED_BYTES:
        token = block[position]
        literals, position = _lz4_length(block, position + 1, token >> 4)
        out += block[position : position + literals]
        position += literals
        if position + 2 > len(block):
            break
        distance = block[position] | block[position + 1] << 8
        length, position = _lz4_length(block, position + 2, token & 15)
        if not 0 < distance <= len(out):
            break
        for _ in range(min(length + 4, _WANTED_BYTES)):
            out.append(out[-distance])
    return bytes(out)


def _lz4_length(block: bytes, position: int, length: int) -> tuple[int, int]:
    """A length, of which 15 means that bytes follow to be added, and where it ends."""
    more = 255 if length == 15 else 0
    while more == 255 and position < len(block):
        more = block[position]
        length += more
        position += 1
    return length, position


_COMPRESSORS: tuple[tuple[str, re.Pattern[bytes], Callable[[Peek], Iterator[bytes]]], ...] = (
    ("zlib", re.compile(rb"\x78[\x01\x5e\x9c\xda]"), _zlib),
    ("gzip", re.compile(rb"\x1f\x8b\x08"), _gzip),
    ("bz2", re.compile(rb"BZh[1-9]1AY&SY"), _bz2),
    ("xz", re.compile(rb"\xfd7zXZ\0"), _lzma),
    ("lzma", re.compile(rb"\x5d\0\0.{2}", re.DOTALL), _lzma),
    ("lz4", re.compile(rb"\x04\x22\x4d\x18"), _lz4),
    ("zlib, as joblib before 0.10 wrote it", re.compile(rb"ZF0x[0-9a-f]+ *L? *\x78", re.DOTALL), _before_010),
)
