"""Where the payload of a loaded model lies: how much stayed in the mapped file, how much was copied, and why."""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["Placement"]


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a model's payload went.

    Attributes:
        mapped_bytes: Payload that stays in the mapped file.
        copied_bytes: Payload that was copied into private memory.
        reasons: Why what was copied could not stay, one entry a reason.
        parts: Where in the file that lies which stays, from and to (exclusive); None for anywhere in it.
    """

    mapped_bytes: int
    copied_bytes: int
    reasons: tuple[str, ...] = ()
    parts: tuple[tuple[int, int], ...] | None = dataclasses.field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {"mapped_bytes": self.mapped_bytes, "copied_bytes": self.copied_bytes, "reasons": self.reasons}
