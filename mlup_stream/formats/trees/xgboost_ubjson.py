"""The values of an XGBoost model file, one after the other, in bounded memory: UBJSON; JSON in the same terms is `xgboost_json`.

A model is one object. Its strings and numbers are kept, of its lists those of numbers whose key is wanted; every list else is
passed over and counted. The trees, which are nearly all of the file, are handed to a callback one at a time and not kept.

The grammar is that which the library reads, and not more of the two formats. Source: `json.cc` and `json_io.h` of dmlc/xgboost
(`UBJReader`, `JsonReader`), checked with 3.2. Every length is held against what is left of the file before anything is allocated
by it, and nesting is bounded: the library does neither.
"""

from __future__ import annotations

import array
import os
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple, NoReturn

from mlup_stream.errors import CorruptModelError
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.trees.xgboost_alike import ITEM_TYPES, AlikeTrees, Layouts, SeenList
from mlup_stream.units import KIB

__all__ = ["MAX_DEPTH", "MAX_KEPT_TEXT_BYTES", "WINDOW_BYTES", "Numbers", "OnAlike", "OnItem", "UbjValues", "Values"]

MAX_DEPTH = 32
"""The library writes 8 levels."""
_MAX_KEYS = 100_000
MAX_KEPT_TEXT_BYTES = 64 * KIB
WINDOW_BYTES = 256 * KIB

_LENGTH_MARKER, _OBJECT_END = b"L}"
_NUMBERS = {marker: (struct.Struct(">" + kind), size_bytes) for marker, (kind, size_bytes) in ITEM_TYPES.items()}

OnItem = Callable[[dict[str, Any]], None]
OnAlike = Callable[[AlikeTrees], None]


class Numbers(NamedTuple):
    """A list of numbers.

    Attributes:
        length: How many.
        items: They themselves; None of a list that nobody asked for.
    """

    length: int
    items: array.array[Any] | None


class Values:
    """What both formats have in common.

    Args:
        file: A seekable binary file, from its beginning.
        name: What to call it in a message.
        wanted: The keys whose lists of numbers are kept.
        items_of: The key of the list whose objects are handed over, and to whom.
    """

    def __init__(self, file: BinaryIO, name: str, wanted: frozenset[str], items_of: tuple[str, OnItem]) -> None:
        self._file = file
        self._name = name
        self._wanted = wanted
        self._items_key, self._on_item = items_of
        self._size_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)

    @property
    def position(self) -> int:
        """How far it has been read."""
        raise NotImplementedError

    def model(self) -> dict[str, Any]:
        """The whole.

        Raises:
            CorruptModelError: It is cut off, something follows it, or it is not what the library writes.
        """
        raise NotImplementedError

    def corrupt(self, expected: str, found: str) -> CorruptModelError:
        """The error that says where the file is wrong; the caller raises it."""
        return CorruptModelError(
            f"{self._name}: expected {expected}, found {found}, near byte {self.position};"
            " the file may be truncated or damaged: copy or save it again",
            path=self._name,
            format=Format.XGBOOST.value,
        )

    def _enter(self, found: dict[str, Any], key: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise self.corrupt(f"at most {MAX_DEPTH} levels", "more")
        if key in found or len(found) >= _MAX_KEYS:
            raise self.corrupt(f"at most {_MAX_KEYS} keys, each once", f"{key[:40]!r} twice" if key in found else "more")


_LENGTH = struct.Struct(">q")


class UbjValues(Values):
    """UBJSON, with keys and counts as 64-bit numbers, as the library writes it.

    Peak memory: two windows of 256 KiB, what `Layouts` keeps, and the lists that are wanted of one tree. Lists that nobody wants
    are not read where they go on behind the window.

    Args:
        on_alike: Given trees that are laid out as one before them (`xgboost_layouts`), in place of whom `items_of` names.
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        wanted: frozenset[str],
        items_of: tuple[str, OnItem],
        on_alike: OnAlike | None = None,
    ) -> None:
        super().__init__(file, name, wanted, items_of)
        self._on_alike = on_alike
        self._layouts = Layouts()
        self._buffer = bytearray(min(2 * WINDOW_BYTES, self._size_bytes))
        self._view = memoryview(self._buffer)
        self._begin = self._at = self._end = 0  # where in the file the buffer begins; what of the buffer is not read yet
        self._seen: list[SeenList] | None = None

    @property
    def position(self) -> int:
        return self._begin + self._at

    def model(self) -> dict[str, Any]:
        if self._marker() != "{":
            self._wrong("an object", "another value")
        found = self._object(0)
        if self.position != self._size_bytes:
            self._wrong("the end of the file after the model", f"{self._size_bytes - self.position} bytes more")
        return found

    def _wrong(self, expected: str, found: str) -> NoReturn:
        raise self.corrupt(expected, found)

    def _check_left(self, size_bytes: int) -> None:
        left_bytes = self._size_bytes - self.position
        if not 0 <= size_bytes <= left_bytes:
            self._wrong(f"{size_bytes} bytes", f"{left_bytes} to the end of the file")

    def _fill(self, size_bytes: int) -> None:
        """Has the next `size_bytes`, at most a window, in the buffer."""
        self._check_left(size_bytes)
        rest_bytes = self._end - self._at
        self._view[:rest_bytes] = self._view[self._at : self._end]
        self._begin, self._at, self._end = self._begin + self._at, 0, rest_bytes
        while self._end < size_bytes:
            self._end += self._read_into(self._view[self._end : self._end + WINDOW_BYTES])

    def _read_into(self, view: memoryview) -> int:
        count: int = self._file.readinto(view)  # type: ignore[attr-defined]  # every binary file of the standard library has it
        if not count:
            self._wrong("the rest of the file", "its end: it became shorter meanwhile")
        return count

    def _place(self, size_bytes: int) -> int:
        """Where in the buffer the next `size_bytes`, at most a window, are; they count as read."""
        at = self._at
        if size_bytes < 0 or at + size_bytes > self._end:
            self._fill(size_bytes)
            at = 0
        self._at = at + size_bytes
        return at

    def _marker(self) -> str:
        return chr(self._buffer[self._place(1)])

    def _length(self) -> int:
        at = self._place(9)
        if self._buffer[at] != _LENGTH_MARKER:
            self._wrong("a length, which begins with 'L'", repr(chr(self._buffer[at])))
        return int(_LENGTH.unpack_from(self._buffer, at + 1)[0])

    def _text(self) -> str:
        size_bytes = self._length()
        if size_bytes > MAX_KEPT_TEXT_BYTES:
            self._skip(size_bytes)
            return ""
        at = self._place(size_bytes)
        return self._buffer[at : at + size_bytes].decode("utf-8", "replace")

    def _skip(self, size_bytes: int) -> None:
        if 0 <= size_bytes <= self._end - self._at:
            self._at += size_bytes
            return
        self._check_left(size_bytes)
        self._begin, self._at, self._end = self.position + size_bytes, 0, 0
        self._file.seek(self._begin)

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while (marker := self._buffer[self._place(1)]) != _OBJECT_END:
            if marker != _LENGTH_MARKER:
                self._wrong("a key, which begins with 'L'", repr(chr(marker)))
            (size_bytes,) = _LENGTH.unpack_from(self._buffer, self._place(8))
            if not 0 <= size_bytes <= MAX_KEPT_TEXT_BYTES:
                self._wrong("a key", f"one of {size_bytes} bytes")
            at = self._place(size_bytes + 1)  # with the marker of its value
            key = self._buffer[at : at + size_bytes].decode("utf-8", "replace")
            marker = self._buffer[at + size_bytes]
            self._enter(found, key, depth)
            found[key] = self._value(chr(marker), key, depth + 1)
        return found

    def _value(self, marker: str, key: str, depth: int) -> Any:
        if marker == "{":
            return self._object(depth)
        if marker == "[":
            return self._list(key, depth)
        if marker == "S":
            return self._text()
        if marker in _NUMBERS:
            number, size_bytes = _NUMBERS[marker]
            return number.unpack_from(self._buffer, self._place(size_bytes))[0]
        if marker in "TF":
            return marker == "T"
        if marker != "Z":
            self._wrong("a value", repr(marker))
        return None

    def _list(self, key: str, depth: int) -> Numbers:
        if depth > MAX_DEPTH:
            self._wrong(f"at most {MAX_DEPTH} levels", "more")
        marker = self._marker()
        if marker == "$":
            return self._typed(key)
        count = None
        if marker == "#":
            count = self._length()
            # A value takes at least one byte of the file, and the library 8 of memory before it reads the first.
            if not 0 <= count <= self._size_bytes - self.position:
                self._wrong("as many values as the file has bytes, at most", f"a count of {count}")
            marker = self._marker() if count else "]"
        items = array.array("d") if key in self._wanted else None
        passed = 0
        while (count is None and marker != "]") or (count is not None and passed < count):
            most = None if count is None else count - passed
            if key == self._items_key:
                passed += self._item(marker, depth, most)
            elif taken := self._numbers_alike(marker, items, most):
                passed += taken
            else:
                value = self._value(marker, "", depth + 1)
                if items is not None:
                    if not isinstance(value, (int, float)):
                        self._wrong(f"numbers in {key}", repr(marker))
                    items.append(value)
                passed += 1
            if passed != count:
                marker = self._marker()
        return Numbers(passed, items)

    def _item(self, marker: str, depth: int, most: int | None) -> int:
        """Takes the object that has just begun, and those behind it that are laid out like one before; how many."""
        if marker != "{":
            self._wrong(f"an object in {self._items_key}", repr(marker))
        start = self._at - 1
        if self._on_alike is not None:
            found = self._layouts.run(self._buffer, start, self._end, most)
            if found is None and self._end - start < WINDOW_BYTES and self._begin + self._end < self._size_bytes:
                self._at = start
                self._fill(min(WINDOW_BYTES, self._size_bytes - self.position))
                start, self._at = 0, 1
                found = self._layouts.run(self._buffer, start, self._end, most)
            if found is not None:
                self._at = found.end
                self._on_alike(found)
                return len(found.nodes)
        begin = self._begin
        seen: list[SeenList] = []
        self._seen = seen
        tree = self._object(depth + 1)
        self._seen = None
        self._on_item(tree)
        if begin == self._begin and self._on_alike is not None:  # all of it is still in the buffer
            data = bytes(self._view[start : self._at])
            self._layouts.learn(data, tree, [each._replace(at=each.at - begin - start) for each in seen])
        return 1

    def _numbers_alike(self, marker: str, items: array.array[Any] | None, most: int | None) -> int:
        """Takes those behind the marker that has just been read that have the same; how many. 0 if they are not numbers."""
        if marker not in _NUMBERS:
            return 0
        type_, item_bytes = ITEM_TYPES[marker]
        step = 1 + item_bytes
        taken = 0
        chunk = 16  # grows with what is found: of lists in which types take turns each number would cost a whole chunk
        self._at -= 1
        while True:
            at = self._at
            there = min(chunk, (self._end - at) // step, chunk if most is None else most - taken)
            markers = self._buffer[at : at + there * step : step]
            count = there - len(markers.lstrip(marker.encode()))
            if items is not None and count:
                raw = bytearray(count * item_bytes)
                for index in range(item_bytes):
                    raw[index::item_bytes] = self._buffer[at + 1 + index : at + count * step : step]
                found: array.array[Any] = array.array(type_, bytes(raw))
                if sys.byteorder == "little":
                    found.byteswap()
                items.extend(map(float, found))
            taken += count
            self._at = at + count * step
            if count < chunk:
                break
            chunk = min(2 * chunk, 1 << 14)
        if not taken:
            self._at += 1
        return taken

    def _typed(self, key: str) -> Numbers:
        at = self._place(11)
        kind = chr(self._buffer[at])
        if kind not in ITEM_TYPES or self._buffer[at + 1 : at + 3] != b"#L":
            self._wrong("a list of numbers with its count", repr(bytes(self._buffer[at : at + 3])))
        (count,) = _LENGTH.unpack_from(self._buffer, at + 3)
        type_, item_bytes = ITEM_TYPES[kind]
        if self._seen is not None:
            self._seen.append(SeenList(key, self.position, kind, count))
        if count < 0 or key not in self._wanted:
            self._skip(count * item_bytes)
            return Numbers(count, None)
        size_bytes = count * item_bytes
        if size_bytes <= max(WINDOW_BYTES, self._end - self._at):
            at = self._place(size_bytes)
            items: array.array[Any] = array.array(type_)
            items.frombytes(self._view[at : at + size_bytes])
        else:
            self._check_left(size_bytes)
            items = array.array(type_, bytes(item_bytes)) * count
            self._copy_to(memoryview(items).cast("B"))
        if sys.byteorder == "little":
            items.byteswap()
        return Numbers(count, items)

    def _copy_to(self, target: memoryview) -> None:
        """Reads a list that is longer than the buffer; it is known to be there."""
        held_bytes = self._end - self._at
        target[:held_bytes] = self._view[self._at : self._end]
        self._begin, self._at, self._end = self._begin + self._end, 0, 0
        while held_bytes < len(target):
            count = self._read_into(target[held_bytes : held_bytes + WINDOW_BYTES])
            held_bytes += count
            self._begin += count
