"""What can be wrong with a file, as functions: each takes valid bytes and gives bytes that are damaged in one way."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from random import Random

from mlup_stream.formats.onnx.wire import encode_varint

__all__ = ["mutate"]

_MAX_BYTES = 1 << 18
"""Mutations that make a file longer do nothing from here on."""

_LIES = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
"""What a length is replaced by: nothing, and the ends of the integer types that somebody may have kept it in."""

_NUMBER = re.compile(rb"\d+")
_JUNK = re.compile(rb"PK\x01\x02|PK\x03\x04|\x95|\x8c|\n|\"[^\"]*\":?|[\[{(,}\])]")
"""What structure is made of in these formats: signatures of zip records, opcodes, keys and brackets."""

_NESTED = (b"[", b"{", b'{"a":', b"(", b"](", b"\x28", b"\x29\x85", b"[(", b"PK\5\6" + bytes(18))
"""Repeated, a bomb in one of the formats: JSON, pickle, a Python literal, zip."""

# Large ones are rare: each byte may be an opcode, and a walk over them takes as long as a thousand over small files.
_DEPTHS = (2, 9, 30, 200) * 12 + (5000,)
_FILLERS = (1, 2, 9, 30, 64, 300, 600) * 12 + (66_000,)


def mutate(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """`data` with one to four things wrong; `others` is what it may be spliced with."""
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        data = random.choice(_MUTATIONS)(random, data, others)
    return data


def _flip_bits(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    damaged = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        if damaged:
            damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
    return bytes(damaged)


def _set_byte(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = random.randrange(len(data) + 1)
    return data[:at] + bytes([random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))]) + data[at + 1 :]


def _truncate(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _cut_front(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data[random.randrange(len(data) + 1) :]


def _remove(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    start, stop = _range(random, data)
    return data[:start] + data[stop:]


def _duplicate(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    start, stop = _range(random, data)
    times = random.choice((1, 1, 2, 7))
    return data[:stop] + data[start:stop] * times + data[stop:] if len(data) * 8 < _MAX_BYTES else data


def _duplicate_part(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Repeats what lies between two marks of structure: a member, a key and its value, a frame."""
    marks = [match.start() for match in _JUNK.finditer(data, 0, 4096)]
    if len(marks) < 2 or len(data) * 2 > _MAX_BYTES:
        return data
    start, stop = sorted(random.sample(marks, 2))
    at = random.choice(marks)
    return data[:at] + data[start:stop] + data[at:]


def _splice(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = random.choice(others)
    start, stop = _range(random, other)
    at = random.randrange(len(data) + 1)
    end = random.choice((at, at + stop - start, len(data)))
    return data[:at] + other[start:stop] + data[end:] if len(data) + len(other) < _MAX_BYTES else data


def _lie_in_binary(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    value = _lie(random, data)
    width, letter = random.choice(((1, "B"), (2, "H"), (4, "I"), (8, "Q")))
    number = struct.pack(random.choice("<<<>") + letter, value & ((1 << 8 * width) - 1))
    at = random.randrange(len(data) + 1)
    return data[:at] + number + data[at + width :]


def _lie_in_varint(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = random.randrange(len(data) + 1)
    return data[:at] + encode_varint(_lie(random, data)) + data[at + 1 :]


def _lie_in_text(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    numbers = list(_NUMBER.finditer(data, 0, 4096))
    if not numbers:
        return data
    found = random.choice(numbers)
    lie = b"%d" % (random.choice((1, 1, -1)) * _lie(random, data))
    return data[: found.start()] + random.choice((lie, lie, b"1e999", b"9" * 5000, b"-0", b"null")) + data[found.end() :]


def _lie(random: Random, data: bytes) -> int:
    near = random.choice((len(data), random.randrange(len(data) + 1)))
    return random.choice((*_LIES, near, near + 1, max(near - 1, 0)))


def _nest(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    depth = random.choice(_DEPTHS)
    at = random.randrange(len(data) + 1)
    return data[:at] + random.choice(_NESTED) * depth + data[at:] if len(data) < _MAX_BYTES // 2 else data


def _nest_messages(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Puts protobuf messages around the rest, as graphs in attributes of nodes of graphs are."""
    start, stop = _range(random, data)
    inner = data[start:stop]
    for _ in range(random.choice((1, 3, 40)) if len(inner) < 4096 else 1):
        for number in (6, 5, 1):
            inner = encode_varint(number << 3 | 2) + encode_varint(len(inner)) + inner
    return data[:start] + inner + data[stop:]


def _grow(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    size_bytes = random.choice(_FILLERS)
    at = random.choice((0, len(data), random.randrange(len(data) + 1)))
    filler = random.choice((b"\0", b"\xff", b" ", b"N", b"\n", b"0"))
    return data[:at] + filler * size_bytes + data[at:] if len(data) < _MAX_BYTES // 2 else data


def _range(random: Random, data: bytes) -> tuple[int, int]:
    start = random.randrange(len(data) + 1)
    length = random.choice((1, 4, 8, 16, 64, len(data)))
    return start, min(start + random.randrange(length + 1), len(data))


_MUTATIONS: tuple[Callable[[Random, bytes, Sequence[bytes]], bytes], ...] = (
    _flip_bits,
    _flip_bits,
    _set_byte,
    _set_byte,
    _truncate,
    _cut_front,
    _remove,
    _duplicate,
    _duplicate_part,
    _splice,
    _lie_in_binary,
    _lie_in_binary,
    _lie_in_binary,
    _lie_in_varint,
    _lie_in_varint,
    _lie_in_text,
    _lie_in_text,
    _nest,
    _nest_messages,
    _grow,
)
