"""The values of an XGBoost model file, one after the other, in bounded memory: UBJSON and JSON in the same terms.

A model is one object. Its strings and numbers are kept, of its lists those of numbers whose key is wanted; every list else is
passed over and counted. The trees, which are nearly all of the file, are handed to a callback one at a time and not kept.

The grammar is that which the library reads, and not more of the two formats. Source: `json.cc` and `json_io.h` of dmlc/xgboost
(`UBJReader`, `JsonReader`), checked with 3.2. Every length is held against what is left of the file before anything is allocated
by it, and nesting is bounded: the library does neither.
"""

from __future__ import annotations

import array
import os
import re
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple, NoReturn

from mlup_stream.errors import CorruptModelError
from mlup_stream.formats.kinds import Format
from mlup_stream.units import KIB, MIB

__all__ = ["JsonValues", "Numbers", "UbjValues", "Values"]

_MAX_DEPTH = 32
"""The library writes 8 levels."""
_MAX_KEYS = 100_000
_MAX_KEPT_TEXT_BYTES = 64 * KIB
_MAX_LIST_BYTES = 1024 * MIB
_WINDOW_BYTES = 1 * MIB

OnItem = Callable[[dict[str, Any]], None]


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
        if depth > _MAX_DEPTH:
            raise self.corrupt(f"at most {_MAX_DEPTH} levels", "more")
        if key in found or len(found) >= _MAX_KEYS:
            raise self.corrupt(f"at most {_MAX_KEYS} keys, each once", f"{key[:40]!r} twice" if key in found else "more")


_FIXED = {
    "d": ("f", 4),
    "D": ("d", 8),
    "U": ("B", 1),
    "i": ("b", 1),
    "I": ("h", 2),
    "l": ("i", 4),
    "L": ("q", 8),
}
"""The library's numbers: the type of an array of them, and their size; big-endian in the file."""


_LENGTH = struct.Struct(">q")


class UbjValues(Values):
    """UBJSON, with keys and counts as 64-bit numbers, as the library writes it."""

    @property
    def position(self) -> int:
        return self._file.tell()

    def model(self) -> dict[str, Any]:
        if self._marker() != "{":
            self._wrong("an object", "another value")
        found = self._object(0)
        if self._file.tell() != self._size_bytes:
            self._wrong("the end of the file after the model", f"{self._size_bytes - self._file.tell()} bytes more")
        return found

    def _wrong(self, expected: str, found: str) -> NoReturn:
        raise self.corrupt(expected, found)

    def _read(self, size_bytes: int) -> bytes:
        if not 0 <= size_bytes <= _MAX_KEPT_TEXT_BYTES:
            self._check_left(size_bytes)
        data = self._file.read(size_bytes)
        if len(data) != size_bytes:
            self._wrong(f"{size_bytes} bytes", f"{len(data)} to the end of the file")
        return data

    def _check_left(self, size_bytes: int) -> None:
        left_bytes = self._size_bytes - self._file.tell()
        if not 0 <= size_bytes <= left_bytes:
            self._wrong(f"{size_bytes} bytes", f"{left_bytes} to the end of the file")

    def _marker(self) -> str:
        marker = self._file.read(1)
        if not marker:
            self._wrong("a value", "the end of the file")
        return marker.decode("latin-1")

    def _length(self) -> int:
        marker = self._marker()
        if marker != "L":
            self._wrong("a length, which begins with 'L'", repr(marker))
        return int(_LENGTH.unpack(self._read(8))[0])

    def _text(self) -> str:
        size_bytes = self._length()
        if size_bytes > _MAX_KEPT_TEXT_BYTES:
            self._skip(size_bytes)
            return ""
        return self._read(size_bytes).decode("utf-8", "replace")

    def _skip(self, size_bytes: int) -> None:
        self._check_left(size_bytes)
        self._file.seek(size_bytes, os.SEEK_CUR)

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while (marker := self._marker()) != "}":
            if marker != "L":
                self._wrong("a key, which begins with 'L'", repr(marker))
            (size_bytes,) = _LENGTH.unpack(self._read(8))
            if not 0 <= size_bytes <= _MAX_KEPT_TEXT_BYTES:
                self._wrong("a key", f"one of {size_bytes} bytes")
            data = self._read(size_bytes + 1)  # with the marker of its value
            key = data[:-1].decode("utf-8", "replace")
            self._enter(found, key, depth)
            found[key] = self._value(chr(data[-1]), key, depth + 1)
        return found

    def _value(self, marker: str, key: str, depth: int) -> Any:
        if marker == "{":
            return self._object(depth)
        if marker == "[":
            return self._list(key, depth)
        if marker == "S":
            return self._text()
        if marker in _FIXED:
            kind, size_bytes = _FIXED[marker]
            return struct.unpack(">" + kind, self._read(size_bytes))[0]
        if marker in "TF":
            return marker == "T"
        if marker != "Z":
            self._wrong("a value", repr(marker))
        return None

    def _list(self, key: str, depth: int) -> Numbers:
        if depth > _MAX_DEPTH:
            self._wrong(f"at most {_MAX_DEPTH} levels", "more")
        marker = self._marker()
        if marker == "$":
            return self._typed(key)
        count = None
        if marker == "#":
            count = self._length()
            # A value takes at least one byte of the file, and the library 8 of memory before it reads the first.
            if not 0 <= count <= self._size_bytes - self._file.tell():
                self._wrong("as many values as the file has bytes, at most", f"a count of {count}")
            marker = self._marker() if count else "]"
        items = array.array("d") if key in self._wanted else None
        passed = 0
        while (count is None and marker != "]") or (count is not None and passed < count):
            value = self._value(marker, "", depth + 1)
            passed += 1
            if key == self._items_key:
                if not isinstance(value, dict):
                    self._wrong(f"an object in {key}", repr(marker))
                self._on_item(value)
            elif items is not None:
                if not isinstance(value, (int, float)):
                    self._wrong(f"numbers in {key}", repr(marker))
                items.append(value)
            if passed != count:
                marker = self._marker()
        return Numbers(passed, items)

    def _typed(self, key: str) -> Numbers:
        head = self._read(11)
        kind = chr(head[0])
        if kind not in _FIXED or head[1:3] != b"#L":
            self._wrong("a list of numbers with its count", repr(head[:3]))
        (count,) = _LENGTH.unpack(head[3:])
        type_, item_bytes = _FIXED[kind]
        if count < 0 or key not in self._wanted:
            self._skip(count * item_bytes)
            return Numbers(count, None)
        items: array.array[Any] = array.array(type_, self._read(count * item_bytes))
        if sys.byteorder == "little":
            items.byteswap()
        return Numbers(count, items)


_SPACE = b" \t\n\r"
_TOKEN = re.compile(rb'[ \t\n\r]*([{}\[\],:]|"(?:[^"\\]|\\.)*"|[-+0-9.eEinfaNtrulsI]+)', re.DOTALL)
_LONGEST_TOKEN_BYTES = 16 * MIB


class JsonValues(Values):
    """JSON. Lists of numbers are found by their brackets; what they hold is read where somebody wants it."""

    def __init__(self, file: BinaryIO, name: str, wanted: frozenset[str], items_of: tuple[str, OnItem]) -> None:
        super().__init__(file, name, wanted, items_of)
        self._buffer = b""
        self._at = 0

    @property
    def position(self) -> int:
        return self._file.tell() - len(self._buffer) + self._at

    def model(self) -> dict[str, Any]:
        if self._token() != b"{":
            raise self.corrupt("an object", "another value")
        found = self._object(0)
        while self._more():
            pass_over = self._buffer[self._at :].strip(_SPACE)
            if pass_over:
                raise self.corrupt("the end of the file after the model", repr(pass_over[:20]))
            self._at = len(self._buffer)
        return found

    def _more(self) -> bool:
        """Reads on; False at the end of the file, when nothing is left of the buffer either."""
        more = self._file.read(max(_WINDOW_BYTES, len(self._buffer) - self._at))
        self._buffer, self._at = self._buffer[self._at :] + more, 0
        return bool(more) or bool(self._buffer)

    def _token(self) -> bytes:
        while True:
            found = _TOKEN.match(self._buffer, self._at)
            # A token at the buffer's end may go on behind it.
            if found is not None and (found.end() < len(self._buffer) or found[1] in b"{}[],:"):
                self._at = found.end()
                return found[1]
            before = len(self._buffer) - self._at
            if before > _LONGEST_TOKEN_BYTES or not self._more() or len(self._buffer) == before:
                raise self.corrupt("JSON", repr(self._buffer[self._at : self._at + 20]) if before else "the end of the file")

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        token = self._token()
        while token != b"}":
            if token[:1] != b'"' or self._token() != b":":
                raise self.corrupt("a key", repr(token[:20]))
            key = token[1:-1].decode("utf-8", "replace")
            self._enter(found, key, depth)
            found[key] = self._value(self._token(), key, depth + 1)
            token = self._token()
            if token == b",":
                token = self._token()
            elif token != b"}":
                raise self.corrupt("',' or '}'", repr(token[:20]))
        return found

    def _value(self, token: bytes, key: str, depth: int) -> Any:
        if token == b"{":
            return self._object(depth)
        if token == b"[":
            return self._list(key, depth)
        if token[:1] == b'"':
            return token[1:-1][:_MAX_KEPT_TEXT_BYTES].decode("utf-8", "replace")
        if token in (b"true", b"false", b"null"):
            return {b"true": True, b"false": False, b"null": None}[token]
        try:
            return int(token) if token.lstrip(b"-").isdigit() and len(token) < 20 else float(token)
        except ValueError:
            raise self.corrupt("a value", repr(token[:20])) from None

    def _list(self, key: str, depth: int) -> Numbers:
        if depth > _MAX_DEPTH:
            raise self.corrupt(f"at most {_MAX_DEPTH} levels", "more")
        first = self._peek()
        if first not in b'{["tfn]':
            return self._numbers(key)
        passed = 0
        token = self._token()
        while token != b"]":
            value = self._value(token, "", depth + 1)
            passed += 1
            if key == self._items_key:
                if not isinstance(value, dict):
                    raise self.corrupt(f"an object in {key}", repr(token[:20]))
                self._on_item(value)
            token = self._token()
            if token == b",":
                token = self._token()
            elif token != b"]":
                raise self.corrupt("',' or ']'", repr(token[:20]))
        return Numbers(passed, array.array("d") if key in self._wanted and not passed else None)

    def _peek(self) -> bytes:
        while True:
            rest = self._buffer[self._at : self._at + 64].lstrip(_SPACE)
            if rest:
                return rest[:1]
            self._at = min(len(self._buffer), self._at + 64)
            if self._at == len(self._buffer) and not self._more():
                raise self.corrupt("a list", "the end of the file")

    def _numbers(self, key: str) -> Numbers:
        looked = self._at
        while (end := self._buffer.find(b"]", looked)) < 0:
            before = looked = len(self._buffer) - self._at
            if before > _MAX_LIST_BYTES or not self._more() or len(self._buffer) == before:
                raise self.corrupt("the end of a list", "the end of the file")
        text = self._buffer[self._at : end]
        self._at = end + 1
        count = text.count(b",") + 1
        if key not in self._wanted:
            return Numbers(count, None)
        try:
            return Numbers(count, array.array("d", map(float, text.split(b","))))
        except ValueError:
            raise self.corrupt(f"numbers in {key}", repr(text[:20])) from None
