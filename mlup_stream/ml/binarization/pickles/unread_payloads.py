"""Payloads of a pickle that were not read, and what each opcode does when it meets one.

An opcode that takes an object from the stack must find the object itself there. The tables below say which opcodes take how
many; before one of them runs, what it takes is *settled*: read, and put in its place. Everything else is the standard opcode.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

__all__ = ["LATE", "Late", "LateTuple", "settling_opcodes", "standard"]


class Late:
    """A payload that was not read.

    Attributes:
        kind: `bytes` or `bytearray`: what it will be.
        offset: Where it lies in the file.
        size_bytes: How long it is.
        real: The object, once somebody wanted it: the same for everybody.
    """

    __slots__ = ("kind", "offset", "real", "size_bytes")

    def __init__(self, kind: type[Any], offset: int, size_bytes: int) -> None:
        self.kind = kind
        self.offset = offset
        self.size_bytes = size_bytes
        self.real: Any = None


class LateTuple:
    """A tuple that holds such payloads, or such tuples."""

    __slots__ = ("items", "real")

    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.real: Any = None


LATE = (Late, LateTuple)

Opcode = Callable[[Any], None]

_TAKES: dict[bytes, int] = {
    pickle.APPEND: 2,
    pickle.BINPERSID: 1,
    pickle.BUILD: 2,
    pickle.DUP: 1,
    pickle.NEWOBJ: 2,
    pickle.NEWOBJ_EX: 3,
    pickle.READONLY_BUFFER: 1,
    pickle.REDUCE: 2,
    pickle.SETITEM: 3,
    pickle.STOP: 1,
}
_TAKES_TO_MARK = (
    pickle.ADDITEMS,
    pickle.APPENDS,
    pickle.DICT,
    pickle.FROZENSET,
    pickle.INST,
    pickle.LIST,
    pickle.OBJ,
    pickle.SETITEMS,
)
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
_GETS = (pickle.GET, pickle.BINGET, pickle.LONG_BINGET)


def standard(opcode: bytes) -> Opcode:
    """The standard library's own function for an opcode."""
    function: Opcode = pickle._Unpickler.dispatch[opcode[0]]
    return function


def settling_opcodes() -> dict[int, Opcode]:
    """The standard opcodes, with those that could meet a late payload prepared for it.

    They are functions of an unpickler that has `has_late`, `settle(count)`, `settle_to_mark()` and what the standard one has.
    """
    opcodes: dict[int, Opcode] = dict(pickle._Unpickler.dispatch)
    opcodes.update({opcode[0]: _settling(standard(opcode), count) for opcode, count in _TAKES.items()})
    opcodes.update({opcode[0]: _settling_to_mark(standard(opcode)) for opcode in _TAKES_TO_MARK})
    opcodes.update({opcode[0]: _making_a_tuple(standard(opcode), count) for opcode, count in _TUPLES.items()})
    opcodes.update({opcode[0]: _getting(standard(opcode)) for opcode in _GETS})
    opcodes[pickle.TUPLE[0]] = _load_tuple
    return opcodes


def _settling(function: Opcode, count: int) -> Opcode:
    def load(unpickler: Any) -> None:
        if unpickler.has_late:
            unpickler.settle(count)
        function(unpickler)

    return load


def _settling_to_mark(function: Opcode) -> Opcode:
    def load(unpickler: Any) -> None:
        if unpickler.has_late:
            unpickler.settle_to_mark()
        function(unpickler)

    return load


def _making_a_tuple(function: Opcode, count: int) -> Opcode:
    def load(unpickler: Any) -> None:
        if unpickler.has_late:
            items = unpickler.stack[-count:]
            if len(items) == count and any(isinstance(each, LATE) for each in items):
                unpickler.stack[-count:] = [LateTuple(items)]
                return
        function(unpickler)

    return load


_standard_tuple = standard(pickle.TUPLE)


def _load_tuple(unpickler: Any) -> None:
    if unpickler.has_late and any(isinstance(each, LATE) for each in unpickler.stack):
        items = unpickler.pop_mark()
        unpickler.append(LateTuple(items))
    else:
        _standard_tuple(unpickler)


def _getting(function: Opcode) -> Opcode:
    def load(unpickler: Any) -> None:
        function(unpickler)
        if unpickler.has_late:
            unpickler.settle(1)

    return load
