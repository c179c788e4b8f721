"""The protobuf wire format, walked without a schema and without reading what is skipped.

Source: https://protobuf.dev/programming-guides/encoding/. A message is a sequence of fields, each a tag (a varint: the field's
number times 8 plus its wire type) and a value. What makes a file of gigabytes cheap to walk is that a field of bytes or of a
sub-message is preceded by its length: the walk steps over it without touching it.

Hardened, in the order in which a hostile file would try:

- a length is compared with the end of the message that it lies in before anything is done with it, so that nothing is ever
  allocated or sought by a number that the file could not back, and no field overlaps its neighbour or leaves its parent;
- a varint ends after 10 bytes and below 2^64, a tag's field number lies in 1 to 2^29 - 1;
- groups (wire types 3 and 4, which no version of ONNX has used) and the unassigned types 6 and 7 are refused;
- a walk stops after `MAX_FIELDS` fields, counted over all messages of a file, so that its time is bounded.

How deep messages nest is for the caller to bound: nothing here recurses.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from mlup_stream.formats.source import Source
from mlup_stream.units import KIB

__all__ = [
    "FIXED32",
    "FIXED64",
    "LENGTH_DELIMITED",
    "MAX_FIELDS",
    "VARINT",
    "Field",
    "WireReader",
    "encode_field",
    "encode_varint",
    "signed",
]

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5

MAX_FIELDS = 5_000_000
"""About ten seconds of walking. The largest published graphs have some hundred thousand nodes, and a node is one field here
unless it is large itself."""

_WINDOW_BYTES = 16 * KIB
"""One read serves many small fields. After a payload was stepped over, the most that is read in vain."""

_MAX_VARINT_BYTES = 10
_MAX_HEADER_BYTES = 2 * _MAX_VARINT_BYTES
_FIXED = {FIXED64: struct.Struct("<Q"), FIXED32: struct.Struct("<I")}


class Field(NamedTuple):
    """One field where it lies in the file.

    Attributes:
        number: The field's number in its message.
        wire_type: `VARINT`, `FIXED64`, `LENGTH_DELIMITED` or `FIXED32`.
        start: Where its tag begins.
        body: Where its value begins.
        stop: Where it ends, exclusive; the next field begins there.
        value: The number of a varint or fixed field, unsigned; 0 for a length-delimited one.
    """

    number: int
    wire_type: int
    start: int
    body: int
    stop: int
    value: int

    @property
    def body_bytes(self) -> int:
        return self.stop - self.body


class WireReader:
    """Reads the fields of messages that lie anywhere in a source.

    Peak memory: one window (16 KiB), plus what `read` is asked for.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._window = b""
        self._window_start = 0
        self._fields_left = MAX_FIELDS

    @property
    def size_bytes(self) -> int:
        return self._source.size_bytes

    def fields(self, start: int, stop: int, what: str) -> Iterator[Field]:
        """The fields of the message that lies from `start` to `stop` (exclusive); `what` names it for a message.

        Raises:
            CorruptModelError: These bytes are not a message.
        """
        position = start
        while position < stop:
            field = self._field(position, stop, what)
            yield field
            position = field.stop

    def read(self, start: int, stop: int, what: str) -> bytes:
        """The bytes from `start` to `stop`, which a field of a walked message delimited."""
        offset = start - self._window_start
        if offset >= 0 and stop - self._window_start <= len(self._window):
            return self._window[offset : offset + stop - start]
        return self._source.read(start, stop - start, what)

    def text(self, field: Field, what: str, limit_bytes: int = 64 * KIB) -> str:
        """The string in a length-delimited field; what is longer than the limit is cut off, what is not UTF-8 is replaced."""
        return self.read(field.body, min(field.stop, field.body + limit_bytes), what).decode("utf-8", "replace")

    def varints(self, field: Field, what: str, limit: int = 1024) -> list[int]:
        """The numbers of a repeated integer field: one if it is a varint itself, all if it is packed.

        Raises:
            CorruptModelError: More than `limit` of them, or the packed form does not end where it says.
        """
        if field.wire_type == VARINT:
            return [field.value]
        numbers: list[int] = []
        position = field.body
        while position < field.stop:
            if len(numbers) == limit:
                raise self.corrupt(f"at most {limit} numbers in {what}", "more")
            number, position = self._varint(position, field.stop, what)
            numbers.append(number)
        return numbers

    def corrupt(self, expected: str, found: str) -> Exception:
        return self._source.corrupt(expected, found)

    def _field(self, start: int, stop: int, what: str) -> Field:
        self._fields_left -= 1
        if self._fields_left < 0:
            raise self.corrupt(f"a model of at most {MAX_FIELDS} fields", "more")
        tag, position = self._varint(start, stop, what)
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise self.corrupt(f"a field of {what} at byte {start}", f"the field number {number}")
        if wire_type == LENGTH_DELIMITED:
            length, body = self._varint(position, stop, what)
            if length > stop - body:
                raise self.corrupt(
                    f"field {number} of {what} at byte {start} to have {length} bytes",
                    f"only {stop - body} before the end of {'the file' if stop == self.size_bytes else 'its message'}",
                )
            return Field(number, wire_type, start, body, body + length, 0)
        if wire_type == VARINT:
            value, end = self._varint(position, stop, what)
            return Field(number, wire_type, start, position, end, value)
        layout = _FIXED.get(wire_type)
        if layout is None:
            raise self.corrupt(f"a field of {what} at byte {start}", f"the wire type {wire_type}, which no ONNX file has")
        end = position + layout.size
        if end > stop:
            raise self.corrupt(f"{layout.size} bytes for field {number} of {what} at byte {start}", f"only {stop - position}")
        (value,) = layout.unpack(self.read(position, end, what))
        return Field(number, wire_type, start, position, end, value)

    def _varint(self, position: int, stop: int, what: str) -> tuple[int, int]:
        """The varint at `position`, and where it ends."""
        offset = position - self._window_start
        if not 0 <= offset <= len(self._window) - _MAX_HEADER_BYTES:
            self._load(position)
            offset = 0
        window = self._window
        available = min(len(window) - offset, stop - position, _MAX_VARINT_BYTES)
        value = shift = 0
        for index in range(available):
            byte = window[offset + index]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> 64:
                    break
                return value, position + index + 1
            shift += 7
        if available < _MAX_VARINT_BYTES:
            raise self.corrupt(f"a number at byte {position} in {what}", "the end of it before the number's last byte")
        raise self.corrupt(f"a number of at most 64 bits at byte {position} in {what}", "a longer one")

    def _load(self, position: int) -> None:
        size_bytes = max(0, min(_WINDOW_BYTES, self.size_bytes - position))
        self._window = self._source.read(position, size_bytes, "the structure of the model")
        self._window_start = position


def signed(value: int) -> int:
    """The int64 that a varint's unsigned number stands for."""
    return value - (1 << 64) if value >= 1 << 63 else value


def encode_varint(value: int) -> bytes:
    """`value`, which is not negative, as a varint."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_field(number: int, value: int | bytes) -> bytes:
    """A whole field: a varint for an integer, a length-delimited one for bytes."""
    if isinstance(value, int):
        return encode_varint(number << 3 | VARINT) + encode_varint(value)
    return encode_varint(number << 3 | LENGTH_DELIMITED) + encode_varint(len(value)) + value
