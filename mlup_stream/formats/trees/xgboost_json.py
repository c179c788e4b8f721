"""The values of an XGBoost model file in JSON, in the terms of `xgboost_values`.

Source: `JsonReader` in `json.cc` of dmlc/xgboost, checked with 3.2.
"""

from __future__ import annotations

import array
import contextlib
import json
import re
from typing import Any, BinaryIO

from mlup_stream.formats.trees.xgboost_ubjson import MAX_DEPTH, MAX_KEPT_TEXT_BYTES, WINDOW_BYTES, Numbers, OnItem, Values
from mlup_stream.units import KIB, MIB

__all__ = ["JsonValues"]

_MAX_LIST_BYTES = 1024 * MIB
_LONG_LIST_BYTES = 4 * KIB
_LONG_PART_BYTES = 256 * KIB
_MOST_DIGITS = 18
_OF_PLAIN_NUMBERS = b"0123456789,.-+eE"
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
        more = self._file.read(max(WINDOW_BYTES, len(self._buffer) - self._at))
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
            return token[1:-1][:MAX_KEPT_TEXT_BYTES].decode("utf-8", "replace")
        if token in (b"true", b"false", b"null"):
            return {b"true": True, b"false": False, b"null": None}[token]
        try:
            return int(token) if token.lstrip(b"-").isdigit() and len(token) < 20 else float(token)
        except ValueError as error:
            raise self.corrupt("a value", repr(token[:20])) from error

    def _list(self, key: str, depth: int) -> Numbers:
        if depth > MAX_DEPTH:
            raise self.corrupt(f"at most {MAX_DEPTH} levels", "more")
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
        if len(text) > _LONG_LIST_BYTES and (items := _whole_numbers(text)) is not None:
            return Numbers(count, items)
        if not text.translate(None, _OF_PLAIN_NUMBERS):
            # A third of the time that `float` takes for each. What JSON does not allow, or a float does not hold, is for `float`.
            with contextlib.suppress(ValueError, OverflowError):
                return Numbers(count, array.array("d", json.loads(b"[%b]" % text)))
        try:
            return Numbers(count, array.array("d", map(float, text.split(b","))))
        except ValueError as error:
            raise self.corrupt(f"numbers in {key}", repr(text[:20])) from error


def _whole_numbers(text: bytes) -> array.array[Any] | None:
    """A long list of whole numbers, digit by digit of all of them at once; None if it has anything but digits, signs and commas.

    Peak memory: 15 MB beside the numbers, whose list is taken in parts.
    """
    try:
        import numpy
    except ImportError:  # what wants the numbers has it; without it they are read one by one
        return None
    items = array.array("q")
    at = 0
    while at <= len(text):
        end = text.find(b",", at + _LONG_PART_BYTES)
        end = len(text) if end < 0 else end
        part = numpy.frombuffer(text, numpy.uint8, end - at, at)
        ends = numpy.append(numpy.flatnonzero(part == ord(",")), len(part))
        starts = numpy.append(0, ends[:-1] + 1)
        if ends[-1] == starts[-1]:
            return None
        is_negative = part[starts] == ord("-")
        digits = ends - starts - is_negative
        are_digits = numpy.count_nonzero((part >= ord("0")) & (part <= ord("9")))
        # Every byte is a comma, a sign at a number's beginning or a digit, and no number is without a digit.
        if digits.min() < 1 or digits.max() > _MOST_DIGITS or are_digits != int(digits.sum()):
            return None
        values = numpy.zeros(len(ends), numpy.int64)
        for index in range(int(digits.max())):
            values += numpy.where(index < digits, part[ends - 1 - index] - ord("0"), 0).astype(numpy.int64) * 10**index
        items.frombytes(numpy.where(is_negative, -values, values).tobytes())
        at = end + 1
    return items
