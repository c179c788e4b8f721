"""Many models under one budget: loaded when somebody asks, let go of when another needs the room.

    pool = mlup.ModelPool({"fraud": "models/fraud.onnx", "rank": mlup.Config(...)}, memory_budget="512MiB")

    with pool.use("fraud") as loaded:           # loads on demand; it stays for as long as it is in use
        loaded.predict(X=rows)

    async with pool.use("rank") as loaded:      # the load runs in a thread
        loaded.model.run(...)

The governor admits each load, as it does without a pool, and asks the pool for room before it refuses one. One lock guards the
pool's own lists; loads and unloads run outside it.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mlup_stream.config import Config
from mlup_stream.errors import MemoryBudgetExceeded, ModelLoadError, ModelPoolFull
from mlup_stream.memory.governor import MemoryGovernor
from mlup_stream.memory.reclaim import trim_allocator
from mlup_stream.memory.running import promised
from mlup_stream.ml.pool_leases import PooledModel, Use
from mlup_stream.ml.pool_models import Copy, Entry, Failure, PoolModel, copied, state_of
from mlup_stream.ml.pool_sources import names_of
from mlup_stream.units import format_bytes

if TYPE_CHECKING:
    from mlup_stream.ml.pool_report import PoolReport

__all__ = ["ModelPool"]

logger = logging.getLogger("mlup_stream")

_GIVEN_UP_TRIES = 3
"""How often a load that was given up under way, because it took more than its headers say, is begun again with more room."""


class ModelPool:
    """Models by name, as many of them loaded as fit.

    A child that is forked starts with no model loaded. What it was using at that moment it may go on using.

    Args:
        models: Names with a path or a `Config` each; or the path of a folder, or a storage, whose files are then the models by
            their names. The `memory_budget` of a `Config` is not looked at.
        memory_budget: What this process may take of private memory from now on, the imports of libraries apart: models, their
            loads' peaks, and what requests allocate meanwhile. As `Config.memory_budget`: `"auto"` is what the container, the
            process's limits and the host leave.
        timeout_seconds: How long a load waits for models in use that would make the room.
        retry_seconds: How long a load that failed is not tried again; twice as long each time, 64 times at most.

    Raises:
        ConfigError: An argument is not valid.
    """

    def __init__(
        self,
        models: Mapping[str, str | os.PathLike[str] | Config] | str | os.PathLike[str] | Any,
        *,
        memory_budget: str | int | float | None = "auto",
        timeout_seconds: float = 60.0,
        retry_seconds: float = 1.0,
    ) -> None:
        self._names = names_of(models)
        trim_allocator()  # what is free in its stock would be taken without being counted
        self._governor = MemoryGovernor(memory_budget)
        self._timeout_seconds = timeout_seconds
        self._retry_seconds = retry_seconds
        self._entries: dict[str, Entry] = {}
        self._clock = 0.0
        self._closed = False
        self._dropped: collections.deque[Copy] = collections.deque()  # of handles that nobody released
        self._begin_anew()
        _pools.add(self)

    def _begin_anew(self) -> None:
        self._changed = threading.Condition()
        self._building = 0

    # What is used

    def use(self, name: str) -> Use:
        """The model of that name, for a `with` or an `async with` block, which it is loaded for if it is not there yet.

        Entering the block raises:
            ModelNotFoundError: No model has that name.
            ModelPoolFull: There is no room for it, and none can be made in time.
            ModelLoadError: As `MLupModel.load`. Until it may be tried again, the same without trying.
        """
        return Use(self, name)

    async def get(self, name: str) -> PooledModel:
        """The same for asyncio, without a block: whoever gets it calls its `release()`. Raises as `use`."""
        while True:
            found = self._begin(name)
            if isinstance(found, PooledModel):
                return found
            entry, running = found
            if running is None:
                task = asyncio.get_running_loop().run_in_executor(None, self._load, entry)
                try:
                    return await asyncio.shield(task)
                except asyncio.CancelledError:
                    task.add_done_callback(_release_found)
                    raise
            waiting = asyncio.wrap_future(running)
            await asyncio.wait((waiting,))
            _raise_again(waiting.exception())

    def _take(self, name: str) -> PooledModel:
        while True:
            found = self._begin(name)
            if isinstance(found, PooledModel):
                return found
            entry, running = found
            if running is None:
                return self._load(entry)
            _raise_again(running.exception())

    def _begin(self, name: str) -> PooledModel | tuple[Entry, Future[None] | None]:
        """The model, if it is there; the load to wait for; or, with None, the caller's turn to `_load`."""
        entry = self._entries.get(name) or self._new_entry(name)
        state = entry.state_now()
        with self._changed:
            self._check_open()
            self._drop()
            copy = entry.copy
            # A file that is gone replaces nothing; while its successor loads, the old model answers.
            if copy is not None and (entry.loading is not None or state in (copy.state, None)):
                entry.hits += 1
                return self._lease(entry, copy)
            if entry.loading is not None:
                return entry, entry.loading
            if entry.failure is not None and entry.failure.holds(state):
                if copy is not None:
                    return self._lease(entry, copy)
                raise entry.failure.again() from entry.failure.error
            entry.loading = Future()
            entry.loading.set_running_or_notify_cancel()
            self._building += 1
            return entry, None

    def _new_entry(self, name: str) -> Entry:
        entry = Entry(name, self._names.conf(name))
        with self._changed:
            return self._entries.setdefault(name, entry)

    def _lease(self, entry: Entry, copy: Copy) -> PooledModel:
        copy.used(self._clock)
        return PooledModel(self, entry.name, copy)

    def _release(self, copy: Copy) -> None:
        with self._changed:
            copy.users -= 1
            gone = copy.retired and copy.users == 0
            self._changed.notify_all()
        if gone:
            copy.ml.unload()

    def _drop(self) -> None:
        """Takes back what was dropped without a release. A finalizer may run anywhere: it only says so."""
        while self._dropped:
            self._dropped.popleft().users -= 1

    # What is loaded

    def _load(self, entry: Entry) -> PooledModel:
        """Loads the model, tells those who wait, and hands it out; the old one, if a new one cannot be loaded."""
        loading = entry.loading
        assert loading is not None
        state = entry.state_now()
        try:
            copy = self._loaded(entry)
        except BaseException as error:
            told = copied(error)
            lease = self._failed(entry, told, state)
            loading.set_exception(told)
            if lease is None:
                raise
            return lease
        with self._changed:
            entry.loading, entry.failure = None, None
            entry.loads += 1
            entry.load_seconds += 0.0 if copy.ml.report is None else copy.ml.report.seconds
            self._building -= 1
            old, entry.copy = entry.copy, copy
            lease = self._lease(entry, copy)
            gone = self._retired(old)
            if self._closed:
                gone += self._retired(copy)
                entry.copy = None
            self._changed.notify_all()
        loading.set_result(None)
        for each in gone:
            each.ml.unload()
        return lease

    def _loaded(self, entry: Entry) -> Copy:
        until = time.monotonic() + self._timeout_seconds
        for tries in range(1, _GIVEN_UP_TRIES + 1):
            ml = PoolModel(entry.conf, self._governor, lambda error: self._make_room(entry, error, until))
            state = entry.state_now()
            trim_allocator()
            try:
                ml.load()
            except MemoryBudgetExceeded as error:
                # Refused before it began, with no room to be made; or under way, which more room may help.
                if isinstance(error, ModelPoolFull) or tries == _GIVEN_UP_TRIES or not self._make_room(entry, error, until):
                    raise
                continue
            path = ml.path
            # What it was before, where that is known: of a file that was replaced meanwhile the next caller loads the new one.
            same = state is not None and path == entry.path
            return Copy(ml, path, state if same else state_of(path), ml.private_bytes())
        raise AssertionError("the last try returns or raises")

    def _failed(self, entry: Entry, error: BaseException, state: object) -> PooledModel | None:
        with self._changed:
            entry.loading = None
            entry.failures += 1
            self._building -= 1
            # What waits for room has cost nothing and is asked again at once.
            if isinstance(error, Exception) and not isinstance(error, ModelPoolFull):
                entry.failure = Failure.of(error, state, entry.failure, self._retry_seconds)
            lease = None
            if entry.copy is not None and isinstance(error, Exception):
                lease = self._lease(entry, entry.copy)
            self._changed.notify_all()
        if lease is not None:
            logger.warning("%s: the file has changed and cannot be loaded; the model from before goes on (%s)", entry.name, error)
        return lease

    def _make_room(self, entry: Entry, error: MemoryBudgetExceeded, until: float) -> bool:
        """Lets go of what is worth least, until what was refused may fit; waits for what is in use.

        Raises:
            ModelPoolFull: Not even with everything gone, or not in time.
        """
        missing_bytes = max(1, (error.needed_bytes or 0) - (error.available_bytes or 0))
        counts = getattr(error.limit, "counts", None)
        with self._changed:
            self._drop()
            loaded = {each.copy: each for each in self._entries.values() if each.copy is not None}
            frees = {copy: copy.private_bytes if counts is None else copy.frees_bytes(counts) for copy in loaded}
            # Pinned models go last, and last of all the one that this load replaces: it may have to go on.
            order = sorted(
                (copy for copy in loaded if frees[copy] > 0),
                key=lambda copy: (loaded[copy] is entry, loaded[copy].pinned, copy.worth),
            )
            idle = [copy for copy in order if copy.users == 0]
            gone: list[Copy] = []
            if sum(map(frees.__getitem__, idle)) >= missing_bytes or error.guessed:
                while missing_bytes > 0 and idle:
                    copy = idle.pop(0)
                    missing_bytes -= frees[copy]
                    self._clock = max(self._clock, copy.worth)
                    loaded[copy].evictions += 1
                    loaded[copy].copy = None
                    gone += self._retired(copy)
            else:
                # What waits for room holds none: loads that wait for each other would wait for ever.
                self._building -= 1
                try:
                    left_seconds = until - time.monotonic()
                    may_come_bytes = sum(frees.values()) + promised()[0]
                    if left_seconds <= 0 or (may_come_bytes < missing_bytes and self._building == 0):
                        names = tuple((loaded[copy].name, frees[copy]) for copy in order)
                        in_use = tuple(loaded[copy].name for copy in order if copy.users > 0)
                        raise _full(entry.name, error, missing_bytes, names, in_use) from error
                    self._changed.wait(left_seconds if self._building == 0 else min(left_seconds, 0.1))
                finally:
                    self._building += 1
        if not gone and error.guessed:
            return False
        for copy in gone:
            logger.debug("%s: let go of for %s", copy.path, entry.name)
            copy.ml.unload()
        return True

    def _retired(self, copy: Copy | None) -> list[Copy]:
        """The copy, if it may be unloaded now; otherwise it goes with its last user."""
        if copy is None:
            return []
        copy.retired = True
        return [copy] if copy.users == 0 else []

    # What is told to the pool, and what it tells

    def warm(self, *names: str) -> None:
        """Loads these models, or all there are, one after the other; one that has no room lets go of others. Raises as `use`."""
        for name in names or self._names.listed():
            with self.use(name):
                pass

    def evict(self, *names: str) -> tuple[str, ...]:
        """Lets go of these models, or of all, that nobody uses, pinned ones too; returns their names."""
        for name in names:
            self._entries.get(name) or self._new_entry(name)
        with self._changed:
            self._drop()
            chosen = [
                (entry, entry.copy)
                for entry in self._entries.values()
                if entry.copy is not None and entry.copy.users == 0 and (not names or entry.name in names)
            ]
            for entry, copy in chosen:
                entry.evictions += 1
                entry.copy = None
                copy.retired = True
            self._changed.notify_all()
        for _, copy in chosen:
            copy.ml.unload()
        return tuple(entry.name for entry, _ in chosen)

    def pin(self, *names: str, pinned: bool = True) -> None:
        """These models go only when no other can. They are not loaded by that."""
        for name in names:
            (self._entries.get(name) or self._new_entry(name)).pinned = pinned

    def names(self) -> tuple[str, ...]:
        """Every name that there is now, loaded or not."""
        return self._names.listed()

    def report(self) -> PoolReport:
        """What is loaded and what it holds, what is left of the budget, and what happened so far."""
        from mlup_stream.ml.pool_report import report_of

        with self._locked() as entries:
            return report_of(entries, self._governor)

    def metrics(self) -> str:
        """The report as OpenMetrics text, for a scrape (`Content-Type: application/openmetrics-text; version=1.0.0`)."""
        from mlup_stream.metrics import openmetrics

        return openmetrics(self.report())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[tuple[Entry, ...]]:
        with self._changed:
            self._drop()
            yield tuple(self._entries.values())

    def close(self) -> None:
        """Lets go of every model; one that is in use goes with its last user. Idempotent."""
        with self._changed:
            self._closed = True
            self._drop()
            gone = [copy for entry in self._entries.values() for copy in self._retired(entry.copy)]
            for entry in self._entries.values():
                entry.copy = None
            self._changed.notify_all()
        for copy in gone:
            copy.ml.unload()

    def _check_open(self) -> None:
        if self._closed:
            raise ModelLoadError("the pool is closed; make another")

    def __enter__(self) -> ModelPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a pool is not pickled: make one in each process, from the same names")

    def _forked(self) -> None:
        """In a child: nothing is loaded, nobody loads, no lock is held."""
        self._begin_anew()
        self._dropped.clear()
        for entry in self._entries.values():
            if entry.copy is not None:
                _not_to_end_here.append(entry.copy)
            entry.copy, entry.loading = None, None


_pools: weakref.WeakSet[ModelPool] = weakref.WeakSet()
_not_to_end_here: list[Copy] = []
"""A parent's models, which end with the child: when a session ends, onnxruntime waits for threads that a child does not have.

They lie in pages that are the parent's too."""


def _forked() -> None:
    for pool in list(_pools):
        pool._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _release_found(task: asyncio.Future[PooledModel]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().release()


def _raise_again(error: BaseException | None) -> None:
    """The error of the load that this caller waited for. One that was interrupted is begun anew, by whoever comes first."""
    if isinstance(error, Exception):
        raise copied(error) from error


def _full(
    name: str, error: MemoryBudgetExceeded, missing_bytes: int, models: tuple[tuple[str, int], ...], in_use: tuple[str, ...]
) -> ModelPoolFull:
    """The refusal, with what would have to go."""
    enough: list[tuple[str, int]] = []
    for each in models:
        if sum(size for _, size in enough) < missing_bytes:
            enough.append(each)
    gone = ", ".join(f"{each} ({format_bytes(size)}{', in use' if each in in_use else ''})" for each, size in enough)
    if sum(size for _, size in enough) < missing_bytes:
        enough = []
        why = f"{f'not even with {gone} gone' if gone else 'and nothing is loaded that could go'}; raise memory_budget"
    else:
        why = f"{gone} would have to go; release what is in use, raise timeout_seconds, or raise memory_budget"
    return ModelPoolFull(
        f"{name}: the pool has no room, {format_bytes(missing_bytes)} are missing: {why} ({error})",
        **{key: value for key, value in vars(error).items() if not key.startswith("_")},
        would_have_to_go=tuple(enough),
        in_use=in_use,
    )
