"""Admits a load, by the first delivery that fits, or refuses it before anything big is allocated."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from mlup_stream.errors import MemoryBudgetExceeded
from mlup_stream.memory.budget import Available
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.memory.limit import Limit
from mlup_stream.units import KIB, MIB, format_bytes

__all__ = ["Choice", "Weighed", "admit", "admit_import", "not_sure_to_fit", "overhead_bytes", "weigh"]

_WORST_GROWTH = 10
"""How many times its size a load was seen to take (a pickle of small objects): with that much room nobody needs a warning."""


_MOST_CPUS = 8
"""How many CPUs' stocks are counted: the kernel takes them back before it kills, and a container may run on a few of 256."""


def overhead_bytes(estimate: Estimate, *, shared: bool = True) -> int:
    """What the kernel and the allocator charge on top of a load's own pages.

    Page tables, 8 bytes for each page of 4 KiB, mapped or private; against a limit that is `shared`, the pages that each CPU
    charges ahead (64 of 4 KiB); and 2 MiB for what the interpreter takes meanwhile: the report, frames, the free ends of the
    allocator's arenas.
    """
    page_tables_bytes = (estimate.peak_anon_bytes + estimate.mapped_bytes) // 512
    stocks_bytes = 64 * 4 * KIB * min(os.cpu_count() or 1, _MOST_CPUS) if shared else 0
    return page_tables_bytes + stocks_bytes + 2 * MIB


@dataclasses.dataclass(frozen=True)
class Weighed:
    """One delivery, held against every limit.

    Attributes:
        delivery: Its name.
        estimate: What it will take; None if nobody could say.
        limit: The limit that is the tight one for it: what it counts decides how much of it is needed.
        needed_bytes: How much of that limit the load needs, overhead included.
        available_bytes: What that limit leaves.
    """

    delivery: str
    estimate: Estimate | None
    limit: Limit | None
    needed_bytes: int | None
    available_bytes: int | None

    @property
    def known(self) -> bool:
        """Whether anything is known of what it will take."""
        return self.estimate is not None and self.estimate.certainty is not Certainty.UNKNOWN

    @property
    def fits(self) -> bool:
        """Whether it fits, as far as its estimate goes."""
        return self.needed_bytes is None or self.available_bytes is None or self.needed_bytes <= self.available_bytes

    @property
    def why(self) -> str:
        """In a few words: what the figure follows from, and which limit it met."""
        if self.estimate is None:
            return "nothing is known of what it takes"
        if self.limit is None or self.fits:
            return f"{self.estimate.certainty.value}: {self.estimate.why}"
        return f"needs {_size(self.needed_bytes)}, {_size(self.available_bytes)} is left of {self.limit}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "delivery": self.delivery,
            "estimate": None if self.estimate is None else self.estimate.to_dict(),
            "limit": None if self.limit is None else self.limit.to_dict(),
            "needed_bytes": self.needed_bytes,
            "available_bytes": self.available_bytes,
            "fits": self.fits,
            "why": self.why,
        }


@dataclasses.dataclass(frozen=True)
class Choice:
    """The delivery that a load was admitted with.

    Attributes:
        chosen: That delivery.
        reason: Why it, if it was not the first that was asked for; empty otherwise.
        warning: What to tell the user; empty if nothing is amiss.
        considered: Every delivery, in the order of preference.
    """

    chosen: Weighed
    reason: str
    warning: str
    considered: tuple[Weighed, ...]

    @property
    def delivery(self) -> str:
        return self.chosen.delivery

    @property
    def estimate(self) -> Estimate | None:
        return self.chosen.estimate


def weigh(estimates: Mapping[str, Estimate | None], room: Available) -> tuple[Weighed, ...]:
    """Each delivery against every limit: the rows of `mlup-stream plan`."""
    return tuple(_weigh(delivery, estimate, room) for delivery, estimate in estimates.items())


def _weigh(delivery: str, estimate: Estimate | None, room: Available) -> Weighed:
    if estimate is not None and estimate.certainty is Certainty.UNKNOWN and estimate.at_least_bytes:
        certain = _weigh(delivery, estimate.certain, room)
        if not certain.fits:
            return certain
    if estimate is None or not room.limits:
        needed_bytes = None if estimate is None else estimate.peak_anon_bytes + overhead_bytes(estimate)
        return Weighed(delivery, estimate, room.tightest, needed_bytes, room.bytes)
    needs = [estimate.needed_bytes(limit.counts) + overhead_bytes(estimate, shared=limit.shared) for limit in room.limits]
    needed_bytes, limit = min(zip(needs, room.limits, strict=True), key=lambda each: each[1].available_bytes - each[0])
    return Weighed(delivery, estimate, limit, needed_bytes, limit.available_bytes)


def admit(
    estimates: Mapping[str, Estimate | None], room: Available, *, name: str = "the model", asked: str | None = None
) -> Choice:
    """The first delivery that fits.

    Args:
        estimates: Deliveries in the order of preference, each with what it will take; None if nobody could say.
        room: What may be taken.
        name: What is to be loaded, for messages.
        asked: The one delivery that the user asked for; others are then only suggested.

    Returns:
        The first delivery if it fits or nothing is known of it; otherwise the first after it that is known to fit; otherwise the
        first of which nothing is known, with a warning.

    Raises:
        MemoryBudgetExceeded: No delivery fits: `needed_bytes` and `available_bytes` of the one that needs least, and `limit`.
    """
    considered = weigh(estimates, room)
    candidates = [each for each in considered if asked is None or each.delivery == asked]
    if not candidates:
        raise ValueError("nothing to choose from: give the estimate of at least one delivery, and of the one that was asked for")
    first = candidates[0]
    chosen = first if not first.known or first.fits else None
    chosen = chosen or next((each for each in candidates if each.known and each.fits), None)
    chosen = chosen or next((each for each in candidates if not each.known), None)
    if chosen is None:
        raise _refusal(candidates, considered, name)
    reason = "" if chosen is first else f"{first.delivery} {first.why}"
    return Choice(chosen, reason, _warning(chosen, name), considered)


def admit_import(libraries: tuple[str, ...], estimate: Estimate, room: Available, *, name: str = "the model") -> None:
    """Lets `libraries` be imported if what that takes fits.

    Raises:
        MemoryBudgetExceeded: It does not: `needed_bytes`, `available_bytes` and `limit`.
    """
    weighed = _weigh("import", estimate, room)
    if weighed.fits or weighed.limit is None:
        return
    raise _exceeded(
        weighed,
        f"{name}: importing {', '.join(libraries)} alone needs",
        "",
        f"it takes {weighed.limit.name} at {_size(_enough_bytes(weighed))} or more, and what the model needs on top",
    )


def not_sure_to_fit(chosen: Weighed, name: str) -> MemoryBudgetExceeded:
    """What says of a load by a guess, which is admitted all the same, how much room it would rather have."""
    return _exceeded(chosen, f"{name}: may need", f" by delivery {chosen.delivery}", "this is a guess", guessed=True)


def _warning(chosen: Weighed, name: str) -> str:
    if chosen.known or chosen.available_bytes is None:
        return ""
    if chosen.needed_bytes is not None and chosen.needed_bytes * _WORST_GROWTH <= chosen.available_bytes:
        return ""
    return (
        f"{name}: what {chosen.delivery} will take is not known"
        + (f" (by its size {_size(chosen.needed_bytes)})" if chosen.needed_bytes is not None else "")
        + f", and {_size(chosen.available_bytes)} is left of {chosen.limit}; loading it all the same"
    )


def _refusal(candidates: list[Weighed], considered: tuple[Weighed, ...], name: str) -> MemoryBudgetExceeded:
    def shortfall_bytes(each: Weighed) -> int:
        return (each.needed_bytes or 0) - (each.available_bytes or 0)

    closest = min(candidates, key=shortfall_bytes)
    assert closest.limit is not None  # what does not fit, does not fit a limit
    would_fit = tuple(each.delivery for each in considered if each.known and each.fits)
    if would_fit:
        advice = f"it would fit by {' or '.join(would_fit)}: ask for that, or for auto"
    else:
        advice = f"it would fit with {closest.limit.name} at {_size(_enough_bytes(closest))} or more"
    if closest.estimate is not None and closest.estimate.certainty is Certainty.LEARNED:
        advice += f"; {closest.estimate.why}: `mlup-stream learned forget {name}` forgets it"
    more = {"delivery": closest.delivery, "would_fit": would_fit, "considered": considered}
    return _exceeded(closest, f"{name}: needs", f" by delivery {closest.delivery}", advice, **more)


def _enough_bytes(weighed: Weighed) -> int:
    """Where the limit would have to be."""
    return (weighed.limit.used_bytes if weighed.limit is not None else 0) + (weighed.needed_bytes or 0)


def _exceeded(weighed: Weighed, who_needs: str, how: str, advice: str, **more: Any) -> MemoryBudgetExceeded:
    """The error for what does not fit: needed, left of which limit, and what to do."""
    limit = weighed.limit
    counted = limit.counts.value if limit is not None else "memory"
    return MemoryBudgetExceeded(
        f"{who_needs} {_size(weighed.needed_bytes)} of {counted}{how},"
        f" {_size(weighed.available_bytes)} is left of {limit}; {advice}",
        needed_bytes=weighed.needed_bytes,
        available_bytes=weighed.available_bytes,
        limit=limit,
        enough_bytes=_enough_bytes(weighed),
        **more,
    )


def _size(size_bytes: int | None) -> str:
    return "an unknown amount" if size_bytes is None else format_bytes(size_bytes)
