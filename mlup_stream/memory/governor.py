"""The memory governor: says what may be taken, admits or refuses, watches, gives back, reports.

    with MemoryGovernor(budget="2GiB") as governor:
        admission = governor.plan({"view": estimate, "path": other}, name="model.pkl")     # or MemoryBudgetExceeded
        with governor.watching(admission) as watch:
            model = build(admission.delivery, on_window=watch.window)
            report = watch.settle(release)

        with governor.measure("my step") as measured:
            ...
    print(measured.report)
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

from mlup_stream.errors import ConfigError, MemoryBudgetExceeded
from mlup_stream.memory import imports
from mlup_stream.memory.budget import Available, Budget, available
from mlup_stream.memory.cgroup import memory_cgroups
from mlup_stream.memory.estimate import Certainty, Estimate, by_size
from mlup_stream.memory.gate import Choice, Weighed, admit, admit_import, weigh
from mlup_stream.memory.interval import interval
from mlup_stream.memory.learned import LearnedStore, LoadKey, Measured, refined
from mlup_stream.memory.limit import Counts, Limit
from mlup_stream.memory.meter import snapshot
from mlup_stream.memory.pressure import PressureMeter
from mlup_stream.memory.proc import status
from mlup_stream.memory.reclaim import ReclaimStep, give_back
from mlup_stream.memory.report import MemoryReport
from mlup_stream.memory.rlimit import guard_of, hard_limit
from mlup_stream.memory.ticket import LoadTicket, TicketOffice
from mlup_stream.memory.watch import Watch, is_out_of_memory
from mlup_stream.units import MIB, format_bytes

__all__ = ["Admission", "MemoryGovernor"]

logger = logging.getLogger("mlup_stream")

_LIMITS = ("soft", "hard")
_LEARNED_FROM_BYTES = 1 * MIB
"""What a smaller file takes is lost in the noise of a process, and its load would notice the cost of remembering it."""


@dataclasses.dataclass(frozen=True)
class Admission:
    """A load that was admitted: what `plan` returns and `watching` takes.

    Attributes:
        name: What is to be loaded.
        choice: The delivery, why it, and what else was considered.
        key: Under which the load's measurement is remembered; None for none.
        ticket: The right to load now, if tickets are in use.
        size_bytes: The size of what is to be loaded; None if that is not known.
        room: What was available then; None when no budget is in force.
    """

    name: str
    choice: Choice
    key: LoadKey | None = None
    ticket: LoadTicket | None = None
    size_bytes: int | None = None
    room: Available | None = None

    @property
    def delivery(self) -> str:
        return self.choice.delivery

    @property
    def estimate(self) -> Estimate | None:
        return self.choice.estimate

    @property
    def reason(self) -> str:
        """Why not the delivery that was preferred; empty if it is that one."""
        return self.choice.reason

    @property
    def warning(self) -> str:
        return self.choice.warning


class MemoryGovernor:
    """Holds the loads of this process, or any steps of a program, to a budget.

    Args:
        budget: `"auto"`, bytes, `"512MiB"`, a fraction of the container's or machine's memory (`0.8`), or None: refuse nothing.
            A size is what may be taken from now on.
        limit: `"hard"` makes an allocation beyond the budget fail, in libraries too (Linux; see `rlimit.hard_limit`).
        ticket: Whether loads wait for their turn where they would not fit together; a path says where the tickets lie.
        ticket_timeout_seconds: How long they wait.
        learned: Whether measurements are remembered; None leaves it to MLUP_STREAM_LEARNED. A `LearnedStore` is used as it is.
        root: The folder under which `/proc` and the control groups' mounts lie.

    Raises:
        ConfigError: An argument is not valid.
    """

    def __init__(
        self,
        budget: Any = "auto",
        *,
        limit: str = "soft",
        ticket: bool | str | os.PathLike[str] = False,
        ticket_timeout_seconds: float = 600.0,
        learned: bool | LearnedStore | None = None,
        root: str = "/",
    ) -> None:
        self.budget = Budget.of(budget)
        if limit not in _LIMITS or (limit == "hard" and not self.budget.enforced):
            allowed = "a budget with 'hard'" if limit in _LIMITS else " or ".join(map(repr, _LIMITS))
            raise ConfigError(
                f"memory_limit: expected {allowed}, found {limit!r} with memory_budget={budget!r}",
                field="memory_limit",
                value=limit,
                allowed=_LIMITS,
            )
        self.limit = limit
        self.learned = learned if isinstance(learned, LearnedStore) else LearnedStore(enabled=learned)
        self._root = root
        self._groups = memory_cgroups(root)
        self._ticket = ticket
        self._ticket_timeout_seconds = ticket_timeout_seconds
        self._tickets: list[LoadTicket] = []
        self._private_at_start_bytes = _private_bytes()

    def __enter__(self) -> MemoryGovernor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        while self._tickets:  # of loads that were planned and not carried out
            self._tickets.pop().release()

    def available(self) -> Available:
        """How many bytes may still be taken, and by which limit."""
        spent_bytes = _private_bytes() - self._private_at_start_bytes if self.budget.limit_bytes is not None else 0
        room = available(self.budget, spent_bytes=spent_bytes, root=self._root, groups=self._groups)
        if self.limit == "hard" and room.bytes is not None:
            # What was taken as address space cannot be taken as pages: copy-on-write maps and thread stacks count from here on.
            used_bytes = status().get("VmData", 0)
            hard = Limit("RLIMIT_DATA", "memory_limit='hard'", used_bytes + room.bytes, used_bytes, Counts.DATA)
            room = Available.of((*room.limits, hard))
        return room

    @contextlib.contextmanager
    def importing(self, modules: Iterable[str], *, name: str = "the model") -> Iterator[None]:
        """Admits what importing `modules` takes, before the block that does it, and remembers what it took.

        A budget in bytes is for models: it begins to count after the block.

        Args:
            modules: Dotted names; those of libraries that nothing is known of are admitted.
            name: What they are imported for, for messages.

        Raises:
            MemoryBudgetExceeded: There is less memory than the import takes; nothing has been imported.
        """
        roots = imports.to_import(modules)
        if roots and self.budget.enforced:
            room = available(dataclasses.replace(self.budget, limit_bytes=None), root=self._root, groups=self._groups)
            admit_import(roots, imports.estimate_of(roots, self.learned), room, name=name)
        before_bytes = _private_bytes() if roots else 0
        try:
            with interval() if roots else contextlib.nullcontext() as measured:
                yield
        except MemoryBudgetExceeded:
            raise
        except MemoryError as error:
            raise _allocation_failed(name, None, self.available()) from error
        if roots:
            taken_bytes = max(0, _private_bytes() - before_bytes)
            self._private_at_start_bytes += taken_bytes
            if measured is not None and measured.alone:
                imports.record(roots, taken_bytes, self.learned)

    def weigh(self, estimates: Mapping[str, Estimate | None], **load: Any) -> tuple[Weighed, ...]:
        """Each delivery against every limit, nothing admitted: the rows of `mlup-stream plan`.

        Args:
            estimates: As in `plan`.
            load: `size_bytes`, `path`, `format` and `variant`, as in `plan`.
        """
        return weigh(self._refined(estimates, **load)[0], self.available())

    def plan(
        self,
        estimates: Mapping[str, Estimate | None],
        *,
        name: str = "the model",
        asked: str | None = None,
        size_bytes: int | None = None,
        path: str | os.PathLike[str] | None = None,
        format: str = "",
        variant: str = "",
        freed_bytes: int = 0,
    ) -> Admission:
        """Admits a load by the first delivery that fits, waiting for its turn if tickets are in use.

        Args:
            estimates: Deliveries in the order of preference, each with what it will take; None if its format cannot say.
            name: What is to be loaded, for messages.
            asked: The one delivery that the user asked for; others are then only suggested.
            size_bytes: The size of the file, for a guess where an estimate is missing.
            path: The file, for what was learned of it.
            format: Its format, for the same.
            variant: Whatever else changes what the load takes.
            freed_bytes: What this process will let go of before the load begins, if it is admitted: the model that it replaces.

        Raises:
            MemoryBudgetExceeded: No delivery fits.
            LoadTicketTimeout: Others were loading for too long.
        """
        known, keys = self._refined(estimates, size_bytes=size_bytes, path=path, format=format, variant=variant)

        room: Available | None = None

        def attempt(promised_bytes: int) -> tuple[Choice, int | None]:
            nonlocal room
            room = self.available().less(promised_bytes).more(freed_bytes) if self.budget.enforced else Available(())
            choice = admit(known, room, name=name, asked=asked)
            return choice, choice.chosen.needed_bytes if choice.chosen.known else None

        ticket = None
        if self._ticket:
            folder = None if self._ticket is True else os.fspath(self._ticket)
            group = self._groups[0].folders[0] if self._groups else ""
            choice, ticket = TicketOffice(folder, group=group, timeout_seconds=self._ticket_timeout_seconds).take(name, attempt)
            self._tickets.append(ticket)
        else:
            choice, _ = attempt(0)
        if choice.warning:
            logger.warning("%s", choice.warning)
        sure = choice.estimate is not None and choice.estimate.certainty is Certainty.EXACT
        key = None if sure else keys.get(choice.delivery)
        return Admission(name, choice, key, ticket, size_bytes, room if self.budget.enforced else None)

    @contextlib.contextmanager
    def watching(self, admission: Admission) -> Iterator[Watch]:
        """Watches a load. Call `settle` on what this yields inside the block: the ticket is given back at its end.

        Raises:
            MemoryBudgetExceeded: An allocation failed in it, whatever the library made of that; its own error is the cause.
        """
        watched = self._watched(
            admission.name,
            admission.estimate,
            admission.size_bytes,
            lambda report: self._remember(admission, report) if measured.alone else None,
            # Under a hard limit it is the last byte that counts: asked again.
            room=admission.room if self.limit != "hard" else None,
            guarded=True,
        )
        with interval() as measured, watched as watch:
            try:
                yield watch
            finally:
                if admission.ticket is not None:
                    admission.ticket.release()
                    if admission.ticket in self._tickets:
                        self._tickets.remove(admission.ticket)

    @contextlib.contextmanager
    def measure(self, name: str = "memory") -> Iterator[Watch]:
        """Measures any step; at the end of the block memory is given back and `report` is there."""
        with self._watched(name) as watch:
            try:
                yield watch
            finally:
                watch.settle()

    def give_back(self, *releases: Callable[[], tuple[str, ...]]) -> tuple[ReclaimStep, ...]:
        """Gives memory back, as after an unload; see `reclaim.give_back`."""
        return give_back(*releases)

    @contextlib.contextmanager
    def _watched(
        self,
        name: str,
        estimate: Estimate | None = None,
        size_bytes: int | None = None,
        on_settled: Callable[[MemoryReport], None] | None = None,
        room: Available | None = None,
        guarded: bool = False,
    ) -> Iterator[Watch]:
        watch = Watch(
            name,
            available=self.available if self.budget.enforced else None,
            room=room,
            estimate=estimate,
            size_bytes=size_bytes,
            pressure=PressureMeter(self._root, self._groups),
            on_settled=on_settled,
        )
        with contextlib.ExitStack() as ending:
            watch.start()
            ending.callback(watch.stop)
            room_bytes = None if watch.room is None else watch.room.bytes
            guard_bytes = guard_of(estimate, size_bytes, room_bytes) if guarded and self.limit != "hard" else None
            limit_bytes = room_bytes if self.limit == "hard" else guard_bytes
            hard: Limit | None = None
            try:
                # Lifted before the error is told: telling it takes memory too.
                with hard_limit(limit_bytes) if limit_bytes is not None else contextlib.nullcontext() as hard:
                    yield watch
            except MemoryBudgetExceeded:
                raise
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                watch.stop()
                if guard_bytes is not None:
                    raise watch.gave_up(self.available()) from error
                raise _allocation_failed(name, hard, self.available()) from error

    def _refined(
        self,
        estimates: Mapping[str, Estimate | None],
        *,
        size_bytes: int | None = None,
        path: str | os.PathLike[str] | None = None,
        format: str = "",
        variant: str = "",
    ) -> tuple[dict[str, Estimate | None], dict[str, LoadKey]]:
        """The estimates, with what was learned and guesses where nothing is known; and the keys to learn under."""
        known: dict[str, Estimate | None] = {}
        keys: dict[str, LoadKey] = {}
        for delivery, estimate in estimates.items():
            delivery = getattr(delivery, "value", delivery)
            key = LoadKey.of(path, format, delivery, variant) if path is not None and format else None
            if key is not None and key.size_bytes >= _LEARNED_FROM_BYTES:
                keys[delivery] = key
                estimate = refined(estimate, self.learned.recall(key))
            if estimate is None and size_bytes is not None:
                estimate = by_size(size_bytes, delivery)
            known[delivery] = estimate
        return known, keys

    def _remember(self, admission: Admission, report: MemoryReport) -> None:
        measured = _measured(report)
        if admission.key is not None and measured is not None:
            self.learned.record(admission.key, measured)


def _private_bytes() -> int:
    now = status()
    if "RssAnon" in now:
        return now["RssAnon"] + now.get("VmSwap", 0)
    return snapshot().rss_bytes or 0


def _measured(report: MemoryReport) -> Measured | None:
    """What the interval took; None where too little of it can be known."""
    base, peak, settled = report.baseline, report.peak, report.settled
    if peak.anon_high_bytes is None or base.anon_bytes is None or settled.anon_bytes is None or report.taken_bytes is None:
        return None
    peak_anon_bytes = max(0, peak.anon_high_bytes - base.anon_bytes)
    settled_anon_bytes = max(0, settled.anon_bytes - base.anon_bytes)
    return Measured(
        peak_anon_bytes,
        max(0, report.taken_bytes - peak_anon_bytes),
        settled_anon_bytes,
        max(0, (report.kept_bytes or 0) - settled_anon_bytes),
    )


def _allocation_failed(name: str, hard: Limit | None, room: Available) -> MemoryBudgetExceeded:
    limit = hard if hard is not None else room.tightest
    left_bytes = None if limit is None else limit.available_bytes
    return MemoryBudgetExceeded(
        f"{name}: an allocation failed under way; {'an unknown amount' if left_bytes is None else format_bytes(left_bytes)}"
        f" was left of {limit}; give it more memory, or another delivery",
        available_bytes=left_bytes,
        limit=limit,
    )
