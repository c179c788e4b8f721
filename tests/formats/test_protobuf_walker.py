"""The walk of protobuf's wire format: what it finds, and that no number in a file leads it beyond the file."""

from __future__ import annotations

import io
import itertools
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlup_stream.errors import CorruptModelError
from mlup_stream.formats.onnx import wire as protobuf
from mlup_stream.formats.onnx.wire import (
    FIXED32,
    FIXED64,
    LENGTH_DELIMITED,
    VARINT,
    WireReader,
    encode_field,
    encode_varint,
    signed,
)
from mlup_stream.formats.source import Source


def _fields(content: bytes) -> list[Any]:
    with Source(content, "test") as source:
        return list(WireReader(source).fields(0, len(content), "a message"))


class _CountingFile(io.BytesIO):
    """A file that says how much was read of it."""

    read_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self.read_bytes += len(content)
        return content


def test_fields_of_every_wire_type_are_found_where_they_lie() -> None:
    """Numbers, wire types, bodies and values are those that were written, one field after the other."""
    content = (
        encode_field(1, 300)
        + encode_varint(2 << 3 | FIXED64)
        + struct.pack("<Q", 1 << 63)
        + encode_field(3, b"text")
        + encode_varint(4 << 3 | FIXED32)
        + struct.pack("<I", 7)
        + encode_field((1 << 29) - 1, 0)
    )
    fields = _fields(content)
    assert [(each.number, each.wire_type, each.value) for each in fields] == [
        (1, VARINT, 300),
        (2, FIXED64, 1 << 63),
        (3, LENGTH_DELIMITED, 0),
        (4, FIXED32, 7),
        ((1 << 29) - 1, VARINT, 0),
    ]
    assert content[fields[2].body : fields[2].stop] == b"text"
    assert fields[0].start == 0
    assert fields[-1].stop == len(content)
    assert all(before.stop == after.start for before, after in itertools.pairwise(fields))


@given(st.integers(min_value=0, max_value=(1 << 64) - 1))
def test_a_number_comes_back_as_it_was_written(number: int) -> None:
    """Every unsigned 64-bit number survives a round trip, and stands for the right signed one."""
    (field,) = _fields(encode_field(5, number))
    assert field.value == number
    assert signed(field.value) == struct.unpack("<q", struct.pack("<Q", number))[0]


def test_a_payload_is_stepped_over_unread() -> None:
    """Walking past a field of 10 MB reads its header and a window, not the field."""
    content = encode_field(1, b"\0" * 10_000_000) + encode_field(2, 9)
    file = _CountingFile(content)
    with Source(file, "test") as source:
        fields = list(WireReader(source).fields(0, source.size_bytes, "a message"))
    assert [each.number for each in fields] == [1, 2]
    assert file.read_bytes <= 2 * protobuf._WINDOW_BYTES


def test_packed_and_single_numbers_read_alike() -> None:
    """A repeated integer field is the same list in both of its forms."""
    with Source(encode_field(1, b"".join(map(encode_varint, [1, 300, 1 << 40])))) as source:
        reader = WireReader(source)
        (field,) = reader.fields(0, source.size_bytes, "a message")
        assert reader.varints(field, "numbers") == [1, 300, 1 << 40]
        with pytest.raises(CorruptModelError, match="at most 2"):
            reader.varints(field, "numbers", limit=2)


HOSTILE = {
    "a length beyond the end": encode_varint(1 << 3 | 2) + encode_varint(5) + b"1234",
    "a length of 2^63": encode_varint(1 << 3 | 2) + encode_varint(1 << 63) + b"1234",
    "a length of 2^64 - 1": encode_varint(1 << 3 | 2) + encode_varint((1 << 64) - 1) + b"1234",
    "a number that does not end": encode_varint(1 << 3) + b"\xff\xff",
    "a number of 11 bytes": encode_varint(1 << 3) + b"\x80" * 10 + b"\x01",
    "a number above 2^64": encode_varint(1 << 3) + b"\xff" * 9 + b"\x7f",
    "a tag above 2^64": b"\xff" * 9 + b"\x7f",
    "the field number 0": encode_varint(0 << 3) + b"\x01",
    "the field number 2^29": encode_varint(1 << 29 << 3) + b"\x01",
    "the start of a group": encode_varint(1 << 3 | 3) + encode_varint(1 << 3 | 4),
    "the end of a group": encode_varint(1 << 3 | 4),
    "wire type 6": encode_varint(1 << 3 | 6) + b"\x01",
    "wire type 7": encode_varint(1 << 3 | 7) + b"\x01",
    "eight bytes that are seven": encode_varint(1 << 3 | FIXED64) + b"1234567",
    "four bytes that are three": encode_varint(1 << 3 | FIXED32) + b"123",
    "a tag alone": encode_varint(1 << 3 | 2),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_fields_are_typed_errors(content: bytes) -> None:
    """Each is damaged content, in one line that names the file; nothing else comes out."""
    with pytest.raises(CorruptModelError) as failed:
        _fields(content)
    assert "test" in str(failed.value)
    assert "\n" not in str(failed.value)


def test_a_length_is_bounded_by_its_parent_not_by_the_file() -> None:
    """A field that would reach into its parent's neighbour is refused, although the file has the bytes."""
    inner = encode_varint(1 << 3 | 2) + encode_varint(6)
    content = encode_field(1, inner) + encode_field(2, b"neighbour")
    with Source(content) as source:
        reader = WireReader(source)
        outer = next(reader.fields(0, source.size_bytes, "a message"))
        with pytest.raises(CorruptModelError, match="end of its message"):
            list(reader.fields(outer.body, outer.stop, "a message"))


def test_the_number_of_fields_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of nothing but empty fields ends in an error after as many as a model may have, over all its messages."""
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 1000)
    content = encode_field(1, b"") * 600
    with Source(content) as source:
        reader = WireReader(source)
        assert len(list(reader.fields(0, len(content), "a message"))) == 600
        with pytest.raises(CorruptModelError, match="at most 1000 fields"):
            list(reader.fields(0, len(content), "a message"))


@given(st.binary(max_size=200))
def test_any_bytes_are_fields_or_an_error(content: bytes) -> None:
    """Whatever the bytes: adjoining fields that fill them, or `CorruptModelError`."""
    try:
        fields = _fields(content)
    except CorruptModelError:
        return
    position = 0
    for each in fields:
        assert each.start == position
        assert each.start < each.body <= each.stop
        position = each.stop
    assert position == len(content)
