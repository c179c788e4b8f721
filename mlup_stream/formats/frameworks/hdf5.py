"""The names of the attributes of an HDF5 file's root group, which tell a whole Keras model from any other HDF5 file.

Source: HDF5 File Format Specification 3.0, II.A (superblock), III.C (symbol table entry), IV.A.1 (object headers, both versions),
IV.A.2.m (attribute), IV.A.2.q (continuation). Attributes in dense storage are not seen: they go there when there are more than
eight, in files that were written with `libver="latest"`.

Bounded: at most `_MAX_MESSAGES` messages in `_MAX_BLOCKS` blocks are looked at, 64 bytes of each.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["MAGIC", "root_attributes"]

MAGIC = b"\x89HDF\r\n\x1a\n"

_MAX_BLOCKS = 32
_MAX_MESSAGES = 512
_LOOKED_BYTES = 64

_ATTRIBUTE, _CONTINUATION = 0x0C, 0x10

ReadAt = Callable[[int, int], bytes]


class _Header(NamedTuple):
    """How the messages of an object header are laid out, which differs by its version."""

    start: int
    end: int
    kind_and_size: struct.Struct
    message_header_bytes: int
    block_signature_bytes: int
    block_checksum_bytes: int


def root_attributes(read_at: ReadAt) -> frozenset[str]:
    """The names of the root group's attributes; what was found until there where the structure is damaged.

    Args:
        read_at: Gives at most so many bytes from an offset.
    """
    names: set[str] = set()
    try:
        header = _root_header(read_at)
        blocks = [(header.start, header.end)]
        seen = 0
        for position, end in blocks:
            while position + header.message_header_bytes <= end and seen < _MAX_MESSAGES:
                seen += 1
                data = read_at(position, _LOOKED_BYTES)
                kind, size = header.kind_and_size.unpack_from(data)
                body = data[header.message_header_bytes :]
                position += header.message_header_bytes + size
                if kind == _ATTRIBUTE:
                    names.add(_attribute_name(body))
                elif kind == _CONTINUATION and len(blocks) < _MAX_BLOCKS:
                    start, length = struct.unpack_from("<QQ", body)
                    blocks.append((start + header.block_signature_bytes, start + length - header.block_checksum_bytes))
    except (struct.error, IndexError):
        pass
    return frozenset(names)


def _root_header(read_at: ReadAt) -> _Header:
    superblock = read_at(0, 96)
    version = superblock[8]
    # Versions 0 and 1 end in the root group's symbol table entry, whose second field is the address; 2 and 3 in the address.
    (address,) = struct.unpack_from("<Q", superblock, 64 + 4 * version if version < 2 else 36)
    header = read_at(address, 32)
    if not header.startswith(b"OHDR"):
        (size,) = struct.unpack_from("<L", header, 8)
        return _Header(address + 16, address + 16 + size, struct.Struct("<HH"), 8, 0, 0)
    flags = header[5]
    at = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)  # times; when attributes move to dense storage
    width = 1 << (flags & 3)
    start = address + at + width
    size = int.from_bytes(header[at : at + width], "little")
    return _Header(start, start + size, struct.Struct("<BH"), 6 if flags & 4 else 4, 4, 4)


def _attribute_name(body: bytes) -> str:
    version, _, length = struct.unpack_from("<BBH", body)
    start = 9 if version == 3 else 8
    return body[start : start + length].split(b"\0")[0].decode("utf-8", "replace")
