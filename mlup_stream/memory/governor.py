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
from typing import Any, TypeVar

from mlup_stream.errors import ConfigError, MemoryBudgetExceeded
from mlup_stream.memory import imports
from mlup_stream.memory.budget import Available, Budget, available
from mlup_stream.memory.cgroup import memory_cgroups
from mlup_stream.memory.estimate import Certainty, Estimate, by_size
from mlup_stream.memory.gate import Choice, Weighed, admit, admit_import, not_sure_to_fit, weigh
from mlup_stream.memory.learned import LearnedStore, LoadKey, Measured, refined
from mlup_stream.memory.limit import Counts, Limit
from mlup_stream.memory.meter import private_bytes
from mlup_stream.memory.pressure import PressureMeter
from mlup_stream.memory.proc import status
from mlup_stream.memory.reclaim import ReclaimStep, give_back
from mlup_stream.memory.report import MemoryReport
from mlup_stream.memory.rlimit import guard_of, hard_limit
from mlup_stream.memory.running import Running, admitted, promised
from mlup_stream.memory.ticket import LoadTicket, TicketOffice
from mlup_stream.memory.watch import SMALL_BYTES, Watch, is_out_of_memory
from mlup_stream.units import format_bytes

__all__ = ["Admission", "MemoryGovernor"]

logger = logging.getLogger("mlup_stream")

_LIMITS = ("soft", "hard")

_Result = TypeVar("_Result")


@dataclasses.dataclass
class _Start:
    """From where a budget in bytes counts: the private memory when its governor was made, and what imports took since."""

    private_bytes: int


@dataclasses.dataclass(frozen=True)
class Admission:
    """A load that was admitted: what `plan` returns and `watching` takes.

    Attributes:
        name: What is to be loaded.
        choice: The delivery, why it, and what else was considered.
        key: Under which the load's measurement is remembered; None for none.
        running: The load's place among those of this process; what it needs is kept for it until it ends.
        ticket: The right to load now, if tickets are in use.
        size_bytes: The size of what is to be loaded; None if that is not known.
        room: What was available then; None when no budget is in force.
        asked: The one delivery that the user asked for.
        small: Whether it is not worth a close look, see `watch.SMALL_BYTES`.
        calls_what_it_names: Whether it can take more than its headers say, see `rlimit.guard_of`.
    """

    name: str
    choice: Choice
    running: Running
    key: LoadKey | None = None
    ticket: LoadTicket | None = None
    size_bytes: int | None = None
    room: Available | None = None
    asked: str | None = None
    small: bool = False
    calls_what_it_names: bool = False

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
        beside: A governor whose count of a budget in bytes this one goes on with: what either takes counts for both.
        make_room: Asked before a load or an import is refused: lets something go and says whether to try again. It may wait, and
            may raise an error that says more than the one it was given.

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
        beside: MemoryGovernor | None = None,
        make_room: Callable[[MemoryBudgetExceeded], bool] | None = None,
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
        self._open: list[Admission] = []
        self._make_room = make_room
        self._start: _Start = _Start(0) if beside is None else beside._start
        if beside is None and self.budget.limit_bytes is not None:
            self._start.private_bytes = private_bytes()

    def __enter__(self) -> MemoryGovernor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        while self._open:  # loads that were planned and not carried out
            self._end(self._open[-1])

    def available(self, *, small: bool = False) -> Available:
        """How many bytes may still be taken, and by which limit; for a load that is `small`, as of the last second."""
        spent_bytes = private_bytes() - self._start.private_bytes if self.budget.limit_bytes is not None else 0
        room = available(self.budget, spent_bytes=spent_bytes, root=self._root, groups=self._groups, small=small)
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
        estimate = imports.estimate_of(roots, self.learned) if roots else None
        if estimate is not None and self.budget.enforced:
            budget = dataclasses.replace(self.budget, limit_bytes=None)
            needed = estimate
            self._with_room(
                lambda _: admit_import(roots, needed, available(budget, root=self._root, groups=self._groups), name=name)
            )
        before_bytes = private_bytes() if roots else 0
        running = Running(", ".join(roots), estimate.peak_anon_bytes) if estimate is not None else None
        try:
            yield
        except MemoryBudgetExceeded:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise _allocation_failed(name, None, self.available()) from error
        finally:
            if running is not None:
                running.end()
        if running is not None:
            taken_bytes = max(0, private_bytes() - before_bytes)
            # Beside a load of another thread part of it may be that one's.
            self._start.private_bytes += taken_bytes if running.alone else min(taken_bytes, running.needed_bytes)
            if running.alone:
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
        calls_what_it_names: bool = False,
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
            calls_what_it_names: Whether it can take more than its headers say, see `rlimit.guard_of`.

        Raises:
            MemoryBudgetExceeded: No delivery fits.
            LoadTicketTimeout: Others were loading for too long.
        """
        known, keys = self._refined(estimates, size_bytes=size_bytes, path=path, format=format, variant=variant)
        with self._doubting(known, keys):
            admission = self._with_room(
                lambda blindly: self._admitted(
                    known, keys, name, asked, size_bytes, freed_bytes, calls_what_it_names, blindly=blindly
                )
            )
        self._open.append(admission)
        return admission

    def _with_room(self, attempt: Callable[[bool], _Result]) -> _Result:
        """What `attempt` returns, asked again for as long as `make_room` finds something to let go of.

        It is told whether to admit a load whose guess does not fit: room is made for a guess too, and is no condition.
        """
        blindly = self._make_room is None
        while True:
            try:
                return attempt(blindly)
            except MemoryBudgetExceeded as error:
                if self._make_room is not None and self._make_room(error):
                    continue
                if blindly or not error.guessed:
                    raise
                blindly = True

    def _admitted(
        self,
        known: dict[str, Estimate | None],
        keys: dict[str, LoadKey],
        name: str,
        asked: str | None,
        size_bytes: int | None,
        freed_bytes: int,
        calls_what_it_names: bool,
        *,
        blindly: bool,
    ) -> Admission:
        small = size_bytes is not None and size_bytes < SMALL_BYTES and all(map(_is_small, known.values()))
        began_bytes = private_bytes() if self._ticket else 0

        def attempt(tickets_bytes: int) -> tuple[tuple[Choice, Available, Running], int | None]:
            # A budget in bytes is for what is taken from its turn on, not for what others took while it waited.
            nonlocal began_bytes
            if self._ticket:
                now_bytes = private_bytes()
                self._start.private_bytes += now_bytes - began_bytes
                began_bytes = now_bytes

            def beside(promised_bytes: int, others: str) -> tuple[tuple[Choice, Available], int]:
                # Tickets tell of this process's loads too, but not against limits that are its own.
                room = self._room(small).less(tickets_bytes).more(freed_bytes)
                room = room.promised(promised_bytes, others, shared=not self._ticket)
                choice = admit(known, room, name=name, asked=asked)
                if not blindly and not choice.chosen.fits:
                    raise not_sure_to_fit(choice.chosen, name)
                return (choice, room), 0 if small else choice.chosen.needed_bytes or 1

            (choice, room), running = admitted(name, beside)
            return (choice, room, running), choice.chosen.needed_bytes if choice.chosen.known else None

        ticket = None
        if self._ticket:
            folder = None if self._ticket is True else os.fspath(self._ticket)
            group = self._groups[0].folders[0] if self._groups else ""
            office = TicketOffice(folder, group=group, timeout_seconds=self._ticket_timeout_seconds)
            (choice, room, running), ticket = office.take(name, attempt)
        else:
            (choice, room, running), _ = attempt(0)
        if choice.warning:
            logger.warning("%s", choice.warning)
        sure = choice.estimate is not None and choice.estimate.certainty is Certainty.EXACT
        key = None if sure else keys.get(choice.delivery)
        found = room if self.budget.enforced else None
        return Admission(name, choice, running, key, ticket, size_bytes, found, asked, small, calls_what_it_names)

    def confirm(self, admission: Admission, *, held_by: tuple[str, ...] = ()) -> Admission:
        """A load that was admitted with `freed_bytes`, once more, now that they were let go of: with what really came back.

        Args:
            admission: What `plan` returned.
            held_by: What keeps what did not come back, for the message.

        Raises:
            MemoryBudgetExceeded: Too little came back.
        """
        room = self._room().promised(*promised())
        if held_by:
            room = room.noting(f"the model that it replaces is still held by {', '.join(held_by)}")
        estimates = {each.delivery: each.estimate for each in admission.choice.considered}
        try:
            choice = admit(estimates, room, name=admission.name, asked=admission.asked)
        except MemoryBudgetExceeded:
            self._end(admission)
            raise
        key = admission.key if choice.delivery == admission.delivery else None
        confirmed = dataclasses.replace(admission, choice=choice, key=key, room=room if self.budget.enforced else None)
        self._open[self._open.index(admission)] = confirmed
        return confirmed

    @contextlib.contextmanager
    def _doubting(self, known: dict[str, Estimate | None], keys: dict[str, LoadKey]) -> Iterator[None]:
        """What was learned is believed a little less each time that a load is refused for it."""
        try:
            yield
        except MemoryBudgetExceeded:
            for delivery, key in keys.items():
                estimate = known[delivery]
                if estimate is not None and estimate.certainty is Certainty.LEARNED:
                    self.learned.doubt(key)
            raise

    def _room(self, small: bool = False) -> Available:
        return self.available(small=small) if self.budget.enforced else Available(())

    def _end(self, admission: Admission) -> None:
        """The load is over, or will not be: the next one gets its turn."""
        admission.running.end()
        if admission.ticket is not None:
            admission.ticket.release()
        if admission in self._open:
            self._open.remove(admission)

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
            lambda report: self._remember(admission, report) if admission.running.alone else None,
            # Under a hard limit it is the last byte that counts: asked again.
            room=admission.room if self.limit != "hard" else None,
            running=admission.running,
            small=admission.small,
            calls_what_it_names=admission.calls_what_it_names,
        )
        with watched as watch:
            try:
                yield watch
            finally:
                self._end(admission)

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
        running: Running | None = None,
        small: bool = False,
        calls_what_it_names: bool = False,
    ) -> Iterator[Watch]:
        watch = Watch(
            name,
            available=self.available if self.budget.enforced else None,
            room=room,
            estimate=estimate,
            size_bytes=size_bytes,
            pressure=None if small else PressureMeter(self._root, self._groups),
            on_settled=on_settled,
            running=running,
            small=small,
        )
        with contextlib.ExitStack() as ending:
            watch.start()
            ending.callback(watch.stop)
            room_bytes = None if watch.room is None else watch.room.bytes
            guard_bytes = None
            if running is not None and self.limit != "hard":
                guard_bytes = guard_of(estimate, size_bytes, room_bytes, calls_what_it_names=calls_what_it_names)
            if guard_bytes is not None and running is not None:
                guard_bytes += running.beside_bytes  # other threads are under it too
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
        model_bytes = 0
        for delivery, estimate in estimates.items():
            delivery = getattr(delivery, "value", delivery)
            key = LoadKey.of(path, format, delivery, variant) if path is not None and format else None
            measured = None
            if key is not None and key.size_bytes >= SMALL_BYTES:
                keys[delivery] = key
                measured = self.learned.recall(key)
                estimate = refined(estimate, measured)
            if estimate is None and size_bytes is not None:
                estimate = by_size(size_bytes, delivery)
            if measured is not None:
                model_bytes = max(model_bytes, measured.settled_anon_bytes)
            elif estimate is not None:
                # The deliveries come the cheapest first: the model is as large by each that follows.
                estimate = estimate.at_least(model_bytes)
            known[delivery] = estimate
        return known, keys

    def _remember(self, admission: Admission, report: MemoryReport) -> None:
        measured = _measured(report)
        if admission.key is not None and measured is not None:
            self.learned.record(admission.key, measured, admission.name)


def _is_small(estimate: Estimate | None) -> bool:
    return estimate is None or estimate.peak_anon_bytes + estimate.mapped_bytes < SMALL_BYTES


def _measured(report: MemoryReport) -> Measured | None:
    """What the interval took; None where too little of it can be known."""
    base, peak, settled = report.baseline, report.peak, report.settled
    if peak.anon_high_bytes is None or base.anon_bytes is None or settled.anon_bytes is None or report.taken_bytes is None:
        return None
    # The upper end is a bound of all of RSS where nothing better is known, with the libraries that are mapped in it.
    seen_bytes = max(0, (peak.anon_low_bytes or 0) - base.anon_bytes)
    peak_anon_bytes = max(seen_bytes, min(peak.anon_high_bytes - base.anon_bytes, report.taken_bytes))
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
