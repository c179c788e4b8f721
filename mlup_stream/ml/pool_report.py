"""What a pool holds and what it did: one value, of which the table, the JSON and the metrics are renderings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from mlup_stream.memory.governor import MemoryGovernor
from mlup_stream.memory.sharing import FileMaps, file_maps
from mlup_stream.ml.pool_models import Copy, Entry
from mlup_stream.units import format_bytes

__all__ = ["ModelInPool", "PoolReport", "report_of"]


@dataclasses.dataclass(frozen=True)
class ModelInPool:
    """One name that somebody has asked for.

    Attributes:
        name: The name.
        loaded: Whether it is loaded.
        pinned: Whether it goes last.
        users: How many use it now.
        private_bytes: What it keeps that nobody can take back, as its load measured it; 0 when it is not loaded.
        file_bytes: Pages of its file that are in memory: the kernel takes them back when it needs them.
        pss_bytes: The same, with each page divided by the number of processes that map it.
        loads: How often it was loaded.
        load_seconds: How long all loads took together.
        hits: How often it was there when somebody asked.
        evictions: How often it was let go of.
        failures: How often its load failed.
        error: Why the last load failed; empty if it did not.
    """

    name: str
    loaded: bool
    pinned: bool
    users: int
    private_bytes: int
    file_bytes: int
    pss_bytes: int
    loads: int
    load_seconds: float
    hits: int
    evictions: int
    failures: int
    error: str


@dataclasses.dataclass(frozen=True)
class PoolReport:
    """A pool at one moment.

    Attributes:
        models: Every name that somebody has asked for, in their order.
        left_bytes: What is left of the budget; None where nothing limits it.
        limit: What sets the tightest bound, in words.
    """

    models: tuple[ModelInPool, ...]
    left_bytes: int | None
    limit: str

    @property
    def private_bytes(self) -> int:
        """What all models keep together."""
        return sum(each.private_bytes for each in self.models)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values, sizes in bytes and times in seconds."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        left = "no limit was found" if self.left_bytes is None else f"{format_bytes(self.left_bytes)} left of {self.limit}"
        loaded = [each for each in self.models if each.loaded]
        lines = [f"{len(loaded)} of {len(self.models)} models loaded, {format_bytes(self.private_bytes)} private; {left}"]
        for each in self.models:
            size = "not loaded"
            if each.loaded:
                size = f"{format_bytes(each.private_bytes)} private, {format_bytes(each.file_bytes)} file"
            counts = f"loads {each.loads}, hits {each.hits}, evictions {each.evictions}"
            lines.append(f"  {each.name}: {size}; {counts}{f'; failed: {each.error}' if each.error else ''}")
        return "\n".join(lines)


def report_of(entries: Iterable[Entry], governor: MemoryGovernor) -> PoolReport:
    """What these entries are now. Walks the page tables of the process once."""
    maps = file_maps()
    models = tuple(_model_of(entry, maps) for entry in entries)
    room = governor.available()
    return PoolReport(models, room.bytes if governor.budget.enforced else None, str(room.tightest or ""))


def _model_of(entry: Entry, maps: tuple[FileMaps, ...]) -> ModelInPool:
    copy = entry.copy
    own = [] if copy is None else [each for each in maps if _is_of(copy, each)]
    return ModelInPool(
        name=entry.name,
        loaded=copy is not None,
        pinned=entry.pinned,
        users=0 if copy is None else copy.users,
        private_bytes=0 if copy is None else copy.private_bytes,
        file_bytes=sum(max(0, each.rss_bytes - each.anon_bytes) for each in own),
        pss_bytes=sum(max(0, each.pss_bytes - each.anon_bytes) for each in own),
        loads=entry.loads,
        load_seconds=entry.load_seconds,
        hits=entry.hits,
        evictions=entry.evictions,
        failures=entry.failures,
        error="" if entry.failure is None else str(entry.failure.error),
    )


def _is_of(copy: Copy, maps: FileMaps) -> bool:
    path, state = copy.path or "", copy.state
    if isinstance(state, dict):
        return any(maps.is_of(f"{path}/{name}", each[0], each[1]) for name, each in state.items())
    return isinstance(state, tuple) and maps.is_of(path, state[0], state[1])
