"""A model that knows which others are alive: what the state machines load and let go of."""

from __future__ import annotations

import weakref
from typing import Any, ClassVar

__all__ = ["Tracked"]


class Tracked:
    """Answers with its value."""

    alive: ClassVar[weakref.WeakSet[Tracked]] = weakref.WeakSet()

    def __new__(cls, *_: Any) -> Tracked:  # unpickling calls this, and not __init__
        made = super().__new__(cls)
        cls.alive.add(made)
        return made

    def __init__(self, value: int) -> None:
        self.value = value

    def predict(self, X: int) -> tuple[int, int]:
        return self.value, X
