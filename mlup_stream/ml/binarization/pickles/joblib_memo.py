"""Letting go of what only an unpickler's memo still holds.

The memo keeps every object that the pickle might ask for again: the state of each estimator among them, and with it the arrays
that the estimator has copied long since. A forest takes twice its size for that. So now and then what nobody but the memo holds
is let go, if there is a large payload in it, and a *stand-in* takes its place there. If the pickle asks for one all the same,
which takes an object that gave away its own state and shares it as well, the stand-in turns up in the model, or something
stumbles over it: then the load has to be done again, keeping everything.

Memory held at the most: what was read since the last look, which is 512 KiB, or 256 bytes for each entry of the memo if that is
more. A look copies the memo, and takes 0.1 us for each entry that is new or that somebody still holds, as long as reading so many
bytes. What was let go leaves holes between what stays,
which the allocator keeps and cannot always use again (a forest of 138 MB with trees of different sizes: 16 MB of holes), so it is
asked now and then to return them.
"""

from __future__ import annotations

import itertools
import pickle
import struct
import sys
import weakref
from typing import Any

from mlup_stream.memory.reclaim import trim_allocator
from mlup_stream.units import KIB, MIB

__all__ = ["MemoKeeper", "StandIn"]

_LOOK_EVERY_BYTES = 512 * KIB
_BYTES_FOR_AN_ENTRY = 256
_TRIM_EVERY_BYTES = 8 * MIB
_TRIM_SHARE = 16
_LARGE_BYTES = 1 * KIB
_KINDS: frozenset[type[Any]] = frozenset({bytearray, bytes, dict, list, tuple})
_STATE_ITEMS = 64
"""A container with more items than that is not the state of an object."""


class StandIn:
    """Takes the place of what was let go."""


def _references(memo: dict[int, Any], index: int) -> int:
    return sys.getrefcount(memo[index])


_elsewhere = [object()]
_HELD_ONCE_MORE = _references({0: _elsewhere[0]}, 0)
"""What an object counts that the memo's copy holds, and one other: the memo."""
del _elsewhere


class MemoKeeper:
    """Decides what an unpickler's memo need not keep.

    Args:
        enabled: False to keep everything.

    Attributes:
        let_go: How many entries were let go.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._next_look_bytes = _LOOK_EVERY_BYTES
        self._next_trim_bytes = _TRIM_EVERY_BYTES
        self._stand_in: StandIn | None = StandIn()
        self._alive = weakref.ref(self._stand_in)
        self._seen = 0
        self._watched: list[int] = []
        self.let_go = 0

    @property
    def stand_in(self) -> StandIn | None:
        return self._stand_in

    def is_due(self, passed_bytes: int) -> bool:
        """Whether it is time for a look, so many bytes of payload having passed."""
        return self._enabled and passed_bytes >= self._next_look_bytes

    def opcodes(self, memo: dict[int, Any], passed_bytes: int) -> bytes:
        """The opcodes that let go of what only `memo`, a copy of the unpickler's, and the unpickler's own still hold.

        They put the stand-in, which `persistent_load(None)` has to give, into its places, and leave the stack as it was.
        """
        self._next_look_bytes = passed_bytes + max(_LOOK_EVERY_BYTES, _BYTES_FOR_AN_ENTRY * len(memo))
        if self.let_go and passed_bytes >= self._next_trim_bytes:
            trim_allocator()
            self._next_trim_bytes = passed_bytes + max(_TRIM_EVERY_BYTES, passed_bytes // _TRIM_SHARE)
        unused = self._unused(memo)
        if not unused:
            return b""
        self.let_go += len(unused)
        puts = b"".join(pickle.LONG_BINPUT + struct.pack("<I", index) for index in unused)
        return pickle.NONE + pickle.BINPERSID + puts + pickle.POP

    def _unused(self, memo: dict[int, Any]) -> list[int]:
        kinds = _kinds()
        # A copy of the memo is in the order of its indexes, and the pickler counts them up.
        self._watched += [index for index in itertools.islice(memo, self._seen, None) if type(memo[index]) in kinds]
        self._seen = len(memo)
        unused, watched = [], []
        for index in self._watched:
            if _references(memo, index) != _HELD_ONCE_MORE:
                watched.append(index)
            elif _is_large(memo[index]):
                unused.append(index)
            # Otherwise it is small, and complete: what is still being built is held by the unpickler's stack as well.
        self._watched = watched
        return unused

    def was_asked_for(self) -> bool:
        """At the end, when the memo is gone: whether somebody has got hold of the stand-in."""
        self._stand_in = None
        return self._alive() is not None


def _kinds() -> frozenset[type[Any]]:
    """The types of payloads and of states."""
    numpy = sys.modules.get("numpy")
    return _KINDS if numpy is None else _KINDS | {numpy.ndarray}


def _is_large(value: Any) -> bool:
    """Whether it is a payload, or the state of an object that has one."""
    kind = type(value)
    if kind is dict:
        return len(value) <= _STATE_ITEMS and any(map(_is_payload, value.values()))
    if kind is tuple or kind is list:
        return len(value) <= _STATE_ITEMS and any(map(_is_payload, value))
    return _is_payload(value)


def _is_payload(value: Any) -> bool:
    kind = type(value)
    if kind is bytes or kind is bytearray:
        return len(value) >= _LARGE_BYTES
    numpy = sys.modules.get("numpy")
    return numpy is not None and kind is numpy.ndarray and value.nbytes >= _LARGE_BYTES
