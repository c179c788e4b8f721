"""The classes and functions that the beginning of a pickle names, in order, without importing any of them.

Source: the opcodes as `pickletools` in the standard library documents them. GLOBAL has both names in it; STACK_GLOBAL takes the
two strings that were pushed last, which may come out of the memo. Only the first 64 KiB are looked at, which is the structure of
most models before their first array; what follows may name more.
"""

from __future__ import annotations

import contextlib
import io
import pickletools
from collections.abc import Iterator
from typing import Any, BinaryIO

from mlup_stream.formats.source import Source
from mlup_stream.units import KIB

__all__ = ["first_globals"]

_HEAD_BYTES = 64 * KIB
_MAX_GLOBALS = 200
_MAX_NAME = 200
_PUTS = ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT")
_GETS = ("GET", "BINGET", "LONG_BINGET")


def first_globals(given: Any, name: str | None = None, *, pickles: int = 1) -> list[str]:
    """The names, such as `sklearn.ensemble._forest.RandomForestClassifier`, each once; at most 200.

    Args:
        given: A view, a path, a buffer or a seekable binary file.
        name: What to call it in a message.
        pickles: How many pickles follow each other in the file.

    Peak memory: 64 KiB, and about 100 bytes for each opcode in them.
    """
    with Source(given, name) as source:
        head = source.read(0, min(_HEAD_BYTES, source.size_bytes), "head of the pickle")
    found: dict[str, None] = {}
    file = io.BytesIO(head)
    # What it raises is that the head ends within an opcode, or that the bytes of an array follow, as in joblib files.
    with contextlib.suppress(ValueError, KeyError, IndexError, OverflowError):
        for _ in range(pickles):
            for each in _globals(file):
                found[each[:_MAX_NAME]] = None
                if len(found) >= _MAX_GLOBALS:
                    return list(found)
    return list(found)


def _globals(file: BinaryIO) -> Iterator[str]:
    """The names in the one pickle that begins where the file stands."""
    strings: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in _PUTS:
            memo[len(memo) if argument is None else argument] = strings[-1] if strings else None
            continue
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".", 1)
        elif opcode.name == "STACK_GLOBAL" and all(isinstance(each, str) for each in strings[-2:]):
            yield ".".join(strings[-2:])
        if opcode.name in _GETS:
            strings.append(memo.get(argument or 0))
        elif opcode.stack_after:
            strings.append(argument if isinstance(argument, str) else None)
        del strings[:-2]
