"""The report of a load: one value, of which the log line, the table and the JSON are renderings."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlup_stream.memory.estimate import Estimate
from mlup_stream.memory.report import MemoryReport
from mlup_stream.units import format_bytes

if TYPE_CHECKING:
    from mlup_stream.delivery.placement import Placement
    from mlup_stream.delivery.terms import Built
    from mlup_stream.ml.plan import LoadPlan

__all__ = ["LoadReport", "StageSeconds", "Stopwatch"]


@dataclass(frozen=True)
class StageSeconds:
    """How long each stage of a load took.

    Attributes:
        finding: The storage, opening the file, and the snapshot where one was asked for.
        detecting: Which format it is.
        importing: The format's library, and what a pickle names; next to nothing from the second load on.
        planning: Headers, estimates and the gate; waiting for a ticket too.
        building: The binarizer, and bringing the payload into memory with `optimize="speed"`.
        giving_back: The model that was replaced, views, the collector, the allocator.
    """

    finding: float = 0.0
    detecting: float = 0.0
    importing: float = 0.0
    planning: float = 0.0
    building: float = 0.0
    giving_back: float = 0.0

    @property
    def total(self) -> float:
        return float(sum(dataclasses.astuple(self)))


class Stopwatch:
    """Tells a load's time apart: `ended(stage)` gives a stage the time since the last one ended."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def ended(self, stage: str) -> None:
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._since
        self._since = now

    @property
    def stages(self) -> StageSeconds:
        return StageSeconds(**self._seconds)


@dataclass(frozen=True)
class LoadReport:
    """What a load did and what it took.

    Attributes:
        file: The path, or what kind of content there was instead of one.
        format: The name of the format.
        binarizer: The import path of the class that built the model.
        delivery: How the bytes travelled.
        delivery_reason: Why so.
        size_bytes: The size of the file, of the folder's files together, or of the content.
        seconds: The whole load, imports of the framework included.
        stage_seconds: The same, told apart.
        build_seconds: The binarizer alone.
        estimate: What the load was expected to take, and how surely; None where nothing could be said.
        memory: RSS, anon and file memory before, at the peak and after, and what each step of the reclaim returned.
        placement: How many payload bytes stayed in the mapped file and how many were copied; None where that is not known.
        arrays_writable: Whether the model's arrays may be written to, which `mapping` decides and not the delivery; None where a
            format has no arrays to give.
    """

    file: str
    format: str
    binarizer: str
    delivery: str
    delivery_reason: str
    size_bytes: int
    seconds: float
    stage_seconds: StageSeconds
    build_seconds: float
    estimate: Estimate | None
    memory: MemoryReport
    placement: Placement | None = None
    arrays_writable: bool | None = None

    @classmethod
    def of(
        cls,
        name: str,
        plan: LoadPlan,
        memory: MemoryReport,
        built: Built,
        *,
        size_bytes: int,
        stages: StageSeconds,
    ) -> LoadReport:
        return cls(
            file=name,
            format=plan.format,
            binarizer=f"{plan.binarizer.__module__}.{plan.binarizer.__qualname__}",
            delivery=plan.delivery.value,
            delivery_reason=plan.reason,
            size_bytes=size_bytes,
            seconds=stages.total,
            stage_seconds=stages,
            build_seconds=memory.seconds or 0.0,
            estimate=plan.admission.estimate,
            memory=memory,
            placement=built.placement,
            arrays_writable=built.arrays_writable,
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values; sizes in bytes, times in seconds, None for what could not be known."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["stage_seconds"] = dataclasses.asdict(self.stage_seconds)
        values["memory"] = self.memory.to_dict()
        values["estimate"] = None if self.estimate is None else self.estimate.to_dict()
        values["placement"] = None if self.placement is None else self.placement.to_dict()
        return values

    def __str__(self) -> str:
        return (
            f"{self.file}: {self.format}, {format_bytes(self.size_bytes)}, delivery {self.delivery}, {self.seconds:.2f} s;"
            f" RSS {_figure(self.memory.baseline.rss_bytes)} before, {_figure(self.memory.peak.rss_bytes)} at the peak,"
            f" {_figure(self.memory.settled.rss_bytes)} settled"
        )


def _figure(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else format_bytes(size_bytes)
