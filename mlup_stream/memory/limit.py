"""One limit on the memory of this process: how much, how much of it is used, what counts against it and where it is set."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any

from mlup_stream.units import format_bytes

__all__ = ["Counts", "Limit"]


class Counts(str, Enum):
    """What is charged to a limit. The same load needs a different amount of each."""

    PRIVATE = "private memory"
    """Anonymous pages: what cannot be taken back. Pages of files are, under pressure."""
    DATA = "private writable address space"
    """Whether touched or not: also thread stacks and copy-on-write maps."""
    ADDRESSES = "address space"
    """All of it: also read-only maps of files, touched or not."""


@dataclasses.dataclass(frozen=True)
class Limit:
    """A limit and its use, in bytes.

    Attributes:
        name: What it is called: `memory.max`, `RLIMIT_AS`, `memory_budget`, `host memory`.
        where: Where it is set: a file, a call, a setting.
        limit_bytes: The limit.
        used_bytes: What is charged to it now and could not be taken back.
        counts: What is charged to it.
        shared: Whether other processes are charged to it too.
    """

    name: str
    where: str
    limit_bytes: int
    used_bytes: int
    counts: Counts = Counts.PRIVATE
    shared: bool = False

    @property
    def available_bytes(self) -> int:
        """What may still be taken; 0 when more is used than the limit allows, as after the limit was lowered."""
        return max(0, self.limit_bytes - self.used_bytes)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "counts": self.counts.value, "available_bytes": self.available_bytes}

    def __str__(self) -> str:
        used = format_bytes(self.used_bytes)
        return f"{self.name} of {format_bytes(self.limit_bytes)}, {used} of it used ({self.where})"
