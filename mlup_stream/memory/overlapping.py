"""A state of the whole process that several blocks want at once, in whatever threads: from the first of them to the last."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

__all__ = ["while_any_runs"]


def while_any_runs(begin: Callable[[], Callable[[], None]]) -> Callable[[], AbstractContextManager[None]]:
    """A context manager of which any number may overlap.

    Args:
        begin: Called when the first block begins; what it returns is called when the last has ended.
    """
    lock = threading.Lock()
    running = 0
    end: Callable[[], None] | None = None

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        nonlocal running, end
        with lock:
            if running == 0:
                end = begin()
            running += 1
        try:
            yield
        finally:
            with lock:
                running -= 1
                if running == 0 and end is not None:
                    end()

    return block
