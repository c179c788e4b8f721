"""Whether another thread of this process loaded or imported meanwhile: what was measured then is the sum, and no lesson."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

__all__ = ["Interval", "interval"]

_lock = threading.Lock()
_running: list[Interval] = []


class Interval:
    """One load or import.

    Attributes:
        alone: Whether no other thread's has overlapped it so far.
    """

    def __init__(self) -> None:
        self.alone = True
        self.thread = threading.get_ident()


@contextlib.contextmanager
def interval() -> Iterator[Interval]:
    """Marks the block as one; what runs inside another of the same thread is part of that and muddies nothing."""
    made = Interval()
    with _lock:
        for other in _running:
            if other.thread != made.thread:
                other.alone = made.alone = False
        _running.append(made)
    try:
        yield made
    finally:
        with _lock:
            _running.remove(made)
