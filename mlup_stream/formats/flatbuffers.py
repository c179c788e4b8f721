"""A flatbuffer, read table by table from where its offsets lead, by whoever knows its schema.

A table begins with the distance back to its vtable, which says at which offset each field lies, 0 for one that is left out. Text,
vectors and tables in a field are a distance forward; a vector begins with its count. Numbers are little-endian. Source: the
FlatBuffers documentation, "FlatBuffer Binary Format".

Hardened: every offset is checked against the flatbuffer's end before anything is read there, a count against what is left before
anything is made by it, and offsets may lead to one place many times, so no more tables are made than the flatbuffer has room for.
Peak memory: a window of 4 KiB, and the text that is asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from mlup_stream.formats.source import Source
from mlup_stream.units import KIB

__all__ = ["FlatBuffer", "Table"]

_WINDOW_BYTES = 4 * KIB
_MAX_TEXT_BYTES = 64 * KIB
_MAX_VTABLE_BYTES = 512
_SMALLEST_TABLE_BYTES = 4


class FlatBuffer:
    """One flatbuffer within a file.

    Args:
        source: The file.
        what: What to call it in a message.
        start: Where it begins.
        size_bytes: How long it is; None up to the end of the file.
    """

    def __init__(self, source: Source, what: str, start: int = 0, size_bytes: int | None = None) -> None:
        self.source = source
        self.what = what
        self.start = start
        self.stop = source.size_bytes if size_bytes is None else start + size_bytes
        self._window, self._window_at = b"", 0
        # Two for each place, for tables that share their text; more is a graph that leads to the same places again and again.
        self._tables_left = 2 * (self.stop - start) // _SMALLEST_TABLE_BYTES

    def root(self) -> Table:
        """The table that the whole begins with.

        Raises:
            CorruptModelError: It does not lie within the flatbuffer.
        """
        return self.table(self.follow(self.start))

    def table(self, at: int) -> Table:
        """The table at a place in the file."""
        self._tables_left -= 1
        if self._tables_left < 0:
            raise self.source.corrupt(f"{self.what} whose tables are each there once", "offsets that lead to the same ones again")
        return Table(self, at)

    def take(self, at: int, size_bytes: int) -> bytes:
        """The bytes at a place in the file."""
        if at < self.start or at + size_bytes > self.stop:
            raise self.source.corrupt(f"{self.what} up to {self.stop}", f"an offset to {at}")
        position = at - self._window_at
        if not 0 <= position <= len(self._window) - size_bytes:
            first = at // _WINDOW_BYTES * _WINDOW_BYTES  # offsets lead back as often as forth
            last = max(at + size_bytes, min(first + _WINDOW_BYTES, self.stop))
            self._window, self._window_at = self.source.read(first, last - first, self.what), first
            position = at - first
        return self._window[position : position + size_bytes]

    def number(self, at: int, code: str) -> int:
        """A number of a `struct` code."""
        return int(struct.unpack("<" + code, self.take(at, struct.calcsize("<" + code)))[0])

    def follow(self, at: int) -> int:
        """Where the distance at a place leads."""
        return at + self.number(at, "I")

    def vector(self, at: int, item_bytes: int) -> tuple[int, int]:
        """Where the items of the vector at a place begin, and how many there are."""
        count = self.number(at, "I")
        if at + 4 + count * item_bytes > self.stop:
            raise self.source.corrupt(f"{count} items in {self.what}", f"{self.stop - at - 4} bytes left in it")
        return at + 4, count


class Table:
    """A table; fields are called by their numbers, in the order of the schema from 0 on."""

    def __init__(self, buffer: FlatBuffer, at: int) -> None:
        self._buffer = buffer
        self._at = at
        vtable_at = at - buffer.number(at, "i")
        size_bytes = buffer.number(vtable_at, "H")
        if not 4 <= size_bytes <= _MAX_VTABLE_BYTES or size_bytes % 2:
            raise buffer.source.corrupt(f"a vtable in {buffer.what}", f"one of {size_bytes} bytes at {vtable_at}")
        self._offsets = struct.unpack(f"<{size_bytes // 2}H", buffer.take(vtable_at, size_bytes))[2:]

    def _field(self, number: int) -> int | None:
        offset = self._offsets[number] if number < len(self._offsets) else 0
        return self._at + offset if offset else None

    def number(self, field: int, code: str, default: int = 0) -> int:
        """A number of a `struct` code."""
        at = self._field(field)
        return default if at is None else self._buffer.number(at, code)

    def vector(self, field: int, item_bytes: int) -> tuple[int, int]:
        """Where in the file the items of a vector begin, and how many there are; (0, 0) if it is left out."""
        at = self._field(field)
        return (0, 0) if at is None else self._buffer.vector(self._buffer.follow(at), item_bytes)

    def numbers(self, field: int, code: str, most: int) -> tuple[int, ...]:
        """A vector of numbers, of which there may be so many."""
        item_bytes = struct.calcsize("<" + code)
        start, count = self.vector(field, item_bytes)
        if count > most:
            raise self._buffer.source.corrupt(f"at most {most} numbers in {self._buffer.what}", str(count))
        return struct.unpack(f"<{count}{code}", self._buffer.take(start, count * item_bytes)) if count else ()

    def text(self, field: int) -> str:
        """Text, of which 64 KiB are read at most; what is not UTF-8 is replaced."""
        start, count = self.vector(field, 1)
        return self._buffer.take(start, min(count, _MAX_TEXT_BYTES)).decode(errors="replace") if count else ""

    def texts(self, field: int) -> Iterator[str]:
        """A vector of text."""
        buffer = self._buffer
        start, count = self.vector(field, 4)
        for at in range(start, start + 4 * count, 4):
            text_at, size_bytes = buffer.vector(buffer.follow(at), 1)
            yield buffer.take(text_at, min(size_bytes, _MAX_TEXT_BYTES)).decode(errors="replace") if size_bytes else ""

    def table(self, field: int) -> Table | None:
        """A table; None if it is left out."""
        at = self._field(field)
        return None if at is None else self._buffer.table(self._buffer.follow(at))

    def tables(self, field: int) -> Iterator[Table]:
        """A vector of tables, made one after the other."""
        start, count = self.vector(field, 4)
        for at in range(start, start + 4 * count, 4):
            yield self._buffer.table(self._buffer.follow(at))
