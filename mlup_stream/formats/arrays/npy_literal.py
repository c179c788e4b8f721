"""The Python literal in the header of an `.npy` file: strings, whole numbers, True, False, None, tuples, lists and dicts.

Not `ast.literal_eval`, which the library uses: that one compiles what it is given, takes memory and time far beyond the text's
length, and can end the interpreter on a deeply nested text (its own documentation says so). This takes time and memory in
proportion to the text, nests 32 deep at most, and knows nothing but what `repr` writes for these types in Python 2 and 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

__all__ = ["parse_literal"]

_MAX_DEPTH = 32
_SHOWN = 40

# A number has at most 40 digits: 2^63 has 19, and the time that `int` takes grows with the square of their number.
_TOKEN = re.compile(
    r"""\s*(?:
        [uU]?(?P<string>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
      | (?P<number>-?[0-9]{1,40})[lL]?(?![\w.])
      | (?P<word>True|False|None)(?!\w)
      | (?P<mark>[][(){},:])
      | (?P<end>\Z)
    )""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_ESCAPED = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "r": "\r", "t": "\t"}
_WORDS = {"True": True, "False": False, "None": None}

Token = tuple[str, Any]


def parse_literal(text: str) -> Any:
    """The value that `text` is the literal of.

    Raises:
        ValueError: It is not such a literal; the message says where.
    """
    parser = _Parser(_tokens(text))
    value = parser.value(_MAX_DEPTH)
    parser.take("end")
    return value


def _tokens(text: str) -> Iterator[Token]:
    position = 0
    while True:
        found = _TOKEN.match(text, position)
        if found is None:
            raise ValueError(f"not a literal at {position}: {text[position : position + _SHOWN]!r}")
        position = found.end()
        kind = found.lastgroup
        if kind == "string":
            yield "value", _ESCAPE.sub(_unescaped, found["string"][1:-1])
        elif kind == "number":
            yield "value", int(found["number"])
        elif kind == "word":
            yield "value", _WORDS[found["word"]]
        elif kind == "mark":
            yield found["mark"], found["mark"]
        else:
            yield "end", "the end"
            return


def _unescaped(found: re.Match[str]) -> str:
    code = found[1] or found[2] or found[3]
    if code:
        return chr(int(code, 16))  # beyond the last code point: a ValueError, as it should be
    if found[4] not in _ESCAPED:
        raise ValueError(f"an unknown escape: {found[0]!r}")
    return _ESCAPED[found[4]]


class _Parser:
    """Recursive descent over the tokens, one ahead."""

    def __init__(self, tokens: Iterator[Token]) -> None:
        self._tokens = tokens
        self._kind, self._token = next(tokens)

    def take(self, kind: str) -> Any:
        if self._kind != kind:
            raise ValueError(f"expected {kind!r}, found {self._token!r:.60}")
        taken = self._token
        if kind != "end":
            self._kind, self._token = next(self._tokens)
        return taken

    def value(self, depth: int) -> Any:
        if depth == 0:
            raise ValueError(f"nested more than {_MAX_DEPTH} deep")
        if self._kind == "(":
            items, has_comma = self._items("(", ")", depth)
            return tuple(items) if has_comma or not items else items[0]
        if self._kind == "[":
            return self._items("[", "]", depth)[0]
        if self._kind == "{":
            return self._dict(depth)
        return self.take("value")

    def _items(self, opening: str, closing: str, depth: int) -> tuple[list[Any], bool]:
        """What stands between two brackets, and whether there is a comma among it."""
        self.take(opening)
        items = []
        has_comma = False
        while self._kind != closing:
            items.append(self.value(depth - 1))
            if self._kind != closing:
                self.take(",")
                has_comma = True
        self.take(closing)
        return items, has_comma

    def _dict(self, depth: int) -> dict[str, Any]:
        self.take("{")
        found: dict[str, Any] = {}
        while self._kind != "}":
            key = self.take("value")
            if not isinstance(key, str) or key in found:
                raise ValueError(f"a key that is no text, or there twice: {key!r:.60}")
            self.take(":")
            found[key] = self.value(depth - 1)
            if self._kind != "}":
                self.take(",")
        self.take("}")
        return found
