"""What the system said within the last second, for who asks a thousand times in one: a server with a model for each customer."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Recent"]

_Answer = TypeVar("_Answer")
_SECONDS = 1.0
_MOST = 64


class Recent(Generic[_Answer]):
    """Answers by what was asked; each is good for a second."""

    def __init__(self) -> None:
        self._answers: dict[Hashable, tuple[float, _Answer]] = {}

    def get(self, of: Hashable) -> _Answer | None:
        """The answer of the last second; None without one."""
        at_seconds, answer = self._answers.get(of, (-_SECONDS, None))
        return answer if time.monotonic() - at_seconds < _SECONDS else None

    def put(self, of: Hashable, answer: _Answer) -> _Answer:
        if len(self._answers) >= _MOST:
            self._answers.clear()
        self._answers[of] = (time.monotonic(), answer)
        return answer

    def ask(self, of: Hashable, question: Callable[[], _Answer]) -> _Answer:
        """The answer of the last second, or a new one."""
        found = self.get(of)
        return self.put(of, question()) if found is None else found

    def forget(self) -> None:
        self._answers.clear()
