"""The loads and imports of this process that run now, and what they will still take: two that each fit may not fit together.

A load is among them from its admission on, so that no other is admitted into the room that it was promised. What is measured
while another runs is the sum of both, and no lesson.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import TypeVar

from mlup_stream.memory.meter import private_bytes

__all__ = ["Running", "admitted", "promised", "rivals"]

_Admitted = TypeVar("_Admitted")


class Running:
    """One load or import, until `end`.

    Attributes:
        name: What is loaded.
        needed_bytes: The private memory that it was admitted with; 0 if it is too small to be anybody's rival.
        alone: Whether none of another thread has overlapped it so far.
        beside_bytes: What those that have were admitted with, together.
    """

    def __init__(self, name: str = "", needed_bytes: int = 0) -> None:
        self.name = name
        self.needed_bytes = needed_bytes
        self.alone = True
        self.beside_bytes = 0
        self._thread = threading.get_ident()
        self._base_bytes = 0
        if needed_bytes == 0:
            return  # too small to be in the way of any other
        self._base_bytes = private_bytes()
        with _lock:
            for other in rivals():
                for one, its_rival in ((self, other), (other, self)):
                    one.alone = False
                    one.beside_bytes += its_rival.needed_bytes
            _running.add(self)

    def still_to_take_bytes(self, now_bytes: int) -> int:
        """How much of its need it has not taken, when the process has `now_bytes` of private memory; at least that."""
        return max(0, self.needed_bytes - max(0, now_bytes - self._base_bytes))

    def end(self) -> None:
        """Idempotent. What it keeps is not counted as taken by those that still run."""
        with _lock:
            if self in _running:
                _running.discard(self)
                kept_bytes = max(0, private_bytes() - self._base_bytes)
                for other in _running:
                    other._base_bytes += min(kept_bytes, self.needed_bytes)


_lock = threading.RLock()
_running: weakref.WeakSet[Running] = weakref.WeakSet()  # what was planned and forgotten runs no more


def rivals() -> tuple[Running, ...]:
    """Those of other threads: one that runs inside another of the same thread is part of that."""
    here = threading.get_ident()
    return tuple(each for each in _running if each._thread != here)


def admitted(name: str, attempt: Callable[[int, str], tuple[_Admitted, int]]) -> tuple[_Admitted, Running]:
    """Admits a load beside those that run, one admission at a time.

    Args:
        name: What is to be loaded.
        attempt: Called with the bytes that the others will still take, and their names; returns what it admitted and what that
            needs, or raises.
    """
    with _lock:
        found, needed_bytes = attempt(*promised())
        return found, Running(name, needed_bytes)


def promised() -> tuple[int, str]:
    """The bytes that the loads of other threads will still take, and their names."""
    with _lock:
        others = rivals()
        if not others:
            return 0, ""
        now_bytes = private_bytes()
        return sum(other.still_to_take_bytes(now_bytes) for other in others), " and ".join(other.name for other in others)


def _none_runs() -> None:
    """In a child that was forked meanwhile: the threads that load are its parent's."""
    global _lock
    _lock = threading.RLock()
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_none_runs)
