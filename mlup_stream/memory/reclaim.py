"""Giving memory back after a load, in the order in which it works, and measuring what each step returned.

`del` returns memory to the allocator, not to the system: of a freed 512 MiB of small objects glibc gave back 2% by itself and 95%
after `malloc_trim`. Objects in reference cycles are not even freed before the collector runs.

A full collection walks every object of the process: 0.1 s once torch is imported, ten times what an in-place load takes. What an
interval has made is in the two youngest generations, unless a collection of the second or the oldest ran meanwhile.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from typing import Any

from mlup_stream.memory import allocator
from mlup_stream.memory.meter import rss_bytes

__all__ = ["ReclaimStep", "fallen_bytes", "give_back", "promotions", "trim_allocator"]

_SECOND, _OLDEST = 1, 2


@dataclasses.dataclass(frozen=True)
class ReclaimStep:
    """One step of giving back.

    Attributes:
        name: What was done.
        returned_bytes: By how much RSS fell; negative if it grew meanwhile, 0 if it could not be read.
        held_by: What still holds memory that this step was to return; empty if nothing does.
    """

    name: str
    returned_bytes: int
    held_by: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "returned_bytes": self.returned_bytes, "held_by": list(self.held_by)}


def promotions() -> int:
    """How often the cyclic collector has moved objects to its oldest generation since the process began."""
    statistics = gc.get_stats()
    return int(statistics[_SECOND]["collections"] + statistics[_OLDEST]["collections"])


def give_back(
    *releases: Callable[[], tuple[str, ...]], promotions_before: int | None = None, small: bool = False
) -> tuple[ReclaimStep, ...]:
    """Releases raw data, runs the collector, trims the allocator.

    Args:
        releases: Each lets go of something, such as `LoadedFile.release`, and returns what still holds it. One that raises is
            reported as a holder: this runs on the way out of failed loads, whose own error must not be replaced.
        promotions_before: What `promotions` was when that began of which memory is to come back: what is older is then not
            collected, where the collector can tell them apart. By default everything is.
        small: Whether so little was taken that the collector and the allocator would cost more than they return.

    Returns:
        One `ReclaimStep` for each of the three, in this order; for what is small, the first alone, without a figure.
    """
    if small:
        return (ReclaimStep("raw data released", 0, tuple(holder for release in releases for holder in _released(release))),)
    trim = allocator.find_trim()  # before anything is measured: finding it costs memory once
    steps: list[ReclaimStep] = []
    before_bytes = rss_bytes()

    def done(name: str, held_by: tuple[str, ...] = ()) -> None:
        nonlocal before_bytes
        after_bytes = rss_bytes()
        steps.append(ReclaimStep(name, fallen_bytes(before_bytes, after_bytes), held_by))
        before_bytes = after_bytes

    held_by: list[str] = []
    for release in releases:
        held_by.extend(_released(release))
    done("raw data released", tuple(held_by))
    gc.collect(_OLDEST if promotions_before is None or promotions() > promotions_before else _SECOND)
    done("collector run")
    if trim is not None:
        trim()
    done("allocator trimmed", () if trim is not None else (f"the allocator ({allocator.name()}), which may keep what is freed",))
    return tuple(steps)


def fallen_bytes(before_bytes: int | None, after_bytes: int | None) -> int:
    """By how much RSS fell; 0 where that is not known."""
    return 0 if before_bytes is None or after_bytes is None else before_bytes - after_bytes


def trim_allocator() -> None:
    """Lets the allocator return free pages, also from inside its heap; does nothing where it cannot. Takes 0.1 to 10 ms."""
    trim = allocator.find_trim()
    if trim is not None:
        trim()


def _released(release: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
    try:
        return tuple(release())
    except Exception as error:
        return (f"{getattr(release, '__qualname__', release)}, which failed ({type(error).__name__}: {error})",)
