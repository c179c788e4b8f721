"""What an interval cost in memory: before, at the peak, after, and what giving back returned."""

from __future__ import annotations

import dataclasses
from typing import Any

from mlup_stream.memory.meter import Peak, Snapshot
from mlup_stream.memory.reclaim import ReclaimStep

__all__ = ["MemoryReport"]


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """Memory over one interval of this process.

    Attributes:
        baseline: Before, with the imports done.
        peak: The highest during.
        settled: After, with everything given back that could be.
        steps: What each step of giving back returned.
    """

    baseline: Snapshot
    peak: Peak
    settled: Snapshot
    steps: tuple[ReclaimStep, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything as numbers, text, lists and None, ready for JSON."""
        return {
            "baseline": self.baseline.to_dict(),
            "peak": self.peak.to_dict(),
            "settled": self.settled.to_dict(),
            "steps": [step.to_dict() for step in self.steps],
        }
