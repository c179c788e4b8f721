"""What an interval cost in memory: before, at the peak, after, and what giving back returned."""

from __future__ import annotations

import dataclasses
from typing import Any

from mlup_stream.memory.limit import Limit
from mlup_stream.memory.meter import Peak, Snapshot
from mlup_stream.memory.pressure import Pressure
from mlup_stream.memory.reclaim import ReclaimStep
from mlup_stream.units import format_bytes

__all__ = ["MemoryReport"]


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """Memory over one interval of this process.

    Attributes:
        baseline: Before, with the imports done.
        peak: The highest during.
        settled: After, with everything given back that could be.
        steps: What each step of giving back returned.
        name: What was done.
        seconds: How long it took, without the giving back.
        limit: The tightest limit on memory at the start; None if there was none, or nobody asked.
        pressure: What the system suffered meanwhile; None if nobody asked.
    """

    baseline: Snapshot
    peak: Peak
    settled: Snapshot
    steps: tuple[ReclaimStep, ...] = ()
    name: str = ""
    seconds: float | None = None
    limit: Limit | None = None
    pressure: Pressure | None = None

    @property
    def taken_bytes(self) -> int | None:
        """By how much RSS rose at the peak."""
        return _difference(self.peak.rss_bytes, self.baseline.rss_bytes)

    @property
    def kept_bytes(self) -> int | None:
        """By how much RSS is higher after than before."""
        return _difference(self.settled.rss_bytes, self.baseline.rss_bytes)

    @property
    def returned_bytes(self) -> int:
        """What all steps of giving back returned together."""
        return sum(step.returned_bytes for step in self.steps)

    @property
    def held_by(self) -> tuple[str, ...]:
        """What still holds memory that should have been given back."""
        return tuple(holder for step in self.steps for holder in step.held_by)

    def to_dict(self) -> dict[str, Any]:
        """Everything as numbers, text, lists and None, ready for JSON."""
        return {
            "name": self.name,
            "seconds": self.seconds,
            "baseline": self.baseline.to_dict(),
            "peak": self.peak.to_dict(),
            "settled": self.settled.to_dict(),
            "steps": [step.to_dict() for step in self.steps],
            "limit": None if self.limit is None else self.limit.to_dict(),
            "pressure": None if self.pressure is None else self.pressure.to_dict(),
        }

    def __str__(self) -> str:
        peak, low_bytes, high_bytes = self.peak, self.peak.anon_low_bytes, self.peak.anon_high_bytes
        anon = _size(low_bytes) if low_bytes == high_bytes else f"{_size(low_bytes)} to {_size(high_bytes)}"
        lines = [
            (self.name or "memory") + ("" if self.seconds is None else f", {self.seconds:.2f} s"),
            f"  before  {_line(self.baseline)}",
            f"  peak    RSS {'' if peak.rss_exact else 'at least '}{_size(peak.rss_bytes)}, anon {anon}",
            f"  after   {_line(self.settled)}",
            f"  back    {format_bytes(self.returned_bytes)}",
        ]
        if self.steps:
            lines[-1] += ": " + ", ".join(f"{step.name} {format_bytes(step.returned_bytes)}" for step in self.steps)
        lines += [f"  held by {holder}" for holder in self.held_by]
        if self.limit is not None:
            lines.append(f"  budget  {_size(self.limit.available_bytes)}, by {self.limit}")
        if self.pressure is not None and (self.pressure.limit_hits or self.pressure.oom_kills):
            hits, kills = self.pressure.limit_hits or 0, self.pressure.oom_kills or 0
            lines.append(f"  pressure: limit hit {hits} times, processes killed {kills} ({self.pressure.source})")
        return "\n".join(lines)


def _line(now: Snapshot) -> str:
    return f"RSS {_size(now.rss_bytes)}, anon {_size(now.anon_bytes)}, file {_size(now.file_bytes)}"


def _difference(later: int | None, earlier: int | None) -> int | None:
    return None if later is None or earlier is None else later - earlier


def _size(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else format_bytes(size_bytes)
