"""What a pool has of each model: the copies that are loaded, what went wrong, and in which order copies are let go of.

The order is that of GreedyDual-Size-Frequency (L. Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency
Caching Policy", HP Labs 1998, after P. Cao and S. Irani, "Cost-Aware WWW Proxy Caching Algorithms", USITS 1997): what is worth
keeping is what is used often and takes long to load, by the byte that letting go returns; worth ages with what has been let go.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import stat
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from mlup_stream.config import Config
from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.files import FileIdentity, folder_identity
from mlup_stream.errors import MemoryBudgetExceeded, ModelLoadError
from mlup_stream.memory.estimate import Certainty
from mlup_stream.memory.governor import MemoryGovernor
from mlup_stream.memory.limit import Counts
from mlup_stream.ml.model import MLupModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlup_stream.ml.held import Held
    from mlup_stream.ml.plan import LoadPlan

__all__ = ["Copy", "Entry", "Failure", "PoolModel", "copied", "state_of"]

_MOST_DOUBLINGS = 6


class PoolModel(MLupModel):
    """A model whose load is admitted by the governor of its pool, and not by its own `memory_budget`."""

    def __init__(
        self, conf: Config, governor: MemoryGovernor, make_room: Callable[[MemoryBudgetExceeded], bool]
    ) -> None:
        super().__init__(conf=copy.copy(conf))  # detection writes into it
        self._pool_governor = governor
        self._make_room = make_room
        self._alone = True

    def _governor(self) -> MemoryGovernor:
        conf, pool = self.conf, self._pool_governor
        return MemoryGovernor(
            pool.budget,
            limit=conf.memory_limit,
            ticket=conf.memory_ticket,
            learned=conf.memory_learned,
            beside=pool,
            make_room=self._make_room,
        )

    def _build(self, plan: LoadPlan, artifact: Artifact, *arguments: Any) -> tuple[Held, Any, Any]:
        found = super()._build(plan, artifact, *arguments)
        self._alone = plan.admission.running.alone
        return found

    @property
    def path(self) -> str | None:
        """Where what was loaded lies."""
        return None if self._artifact is None else self._artifact.path

    def private_bytes(self) -> int:
        """What the model keeps of private memory, as its load measured it: what was settled, less what there was before.

        Other threads allocate and free meanwhile: what the load was estimated at bounds the figure where the estimate is sure,
        and stands for it where another load ran at the same time.
        """
        measured_bytes = self._kept_bytes()
        estimate = None if self.report is None else self.report.estimate
        if estimate is None or estimate.certainty is Certainty.UNKNOWN:
            return measured_bytes
        most_bytes = estimate.peak_anon_bytes if self._alone else estimate.settled_anon_bytes
        least_bytes = estimate.settled_anon_bytes if estimate.certainty is Certainty.EXACT else 0
        return max(min(measured_bytes, most_bytes), min(least_bytes, most_bytes))


@dataclasses.dataclass(eq=False)
class Copy:
    """One load of a model: another one takes its place when the file changes.

    Attributes:
        ml: The model.
        path: Where it was loaded from; None for what has no path.
        state: What `path` was then.
        private_bytes: What nobody can take back while it is loaded.
        users: How many hold it now.
        uses: How often it was taken.
        worth: See the module's first lines.
        retired: Whether it goes with its last user.
    """

    ml: PoolModel
    path: str | None
    state: object
    private_bytes: int
    users: int = 0
    uses: int = 0
    worth: float = 0.0
    retired: bool = False

    def frees_bytes(self, counts: Counts) -> int:
        """How much of a limit that counts so letting it go returns. Pages of its file are nobody's loss but of address space."""
        report = self.ml.report
        if counts is Counts.PRIVATE or report is None:
            return self.private_bytes
        if counts is Counts.ADDRESSES:
            return self.private_bytes + report.size_bytes
        return self.private_bytes + (report.estimate.copy_on_write_bytes if report.estimate is not None else 0)

    def used(self, clock: float) -> None:
        """Somebody takes it."""
        self.users += 1
        self.uses += 1
        seconds = self.ml.report.seconds if self.ml.report is not None else 0.0
        self.worth = clock + self.uses * seconds / max(1, self.private_bytes)


@dataclasses.dataclass(frozen=True)
class Failure:
    """A load that failed. It is not tried again before `until`, unless the file changes.

    Attributes:
        error: Why.
        state: What the file was then.
        until: When it may be tried again, by `time.monotonic`.
        times: How often in a row it has failed.
    """

    error: Exception
    state: object
    until: float
    times: int

    @classmethod
    def of(cls, error: Exception, state: object, before: Failure | None, retry_seconds: float) -> Failure:
        times = 1 if before is None or before.state != state else before.times + 1
        return cls(error, state, time.monotonic() + retry_seconds * 2 ** min(times - 1, _MOST_DOUBLINGS), times)

    def holds(self, state: object) -> bool:
        return state == self.state and time.monotonic() < self.until

    def again(self) -> Exception:
        """The error for who asks meanwhile: of the same type, with the same values."""
        error = copied(self.error)
        left_seconds = max(0.0, self.until - time.monotonic())
        error.args = (f"{self.error}; it is tried again in {left_seconds:.1f} s, or when the file changes", *error.args[1:])
        return error


@dataclasses.dataclass(eq=False)
class Entry:
    """One name of a pool.

    Attributes:
        name: The name.
        conf: How it is loaded.
        pinned: Whether it goes only when nothing else is left to go.
        copy: What answers for it now.
        loading: The load that runs, for those who wait for it.
        failure: The last load's, if that failed.
        loads, hits, evictions, failures: How often.
        load_seconds: All loads together.
    """

    name: str
    conf: Config
    pinned: bool = False
    copy: Copy | None = None
    loading: Future[None] | None = None
    failure: Failure | None = None
    loads: int = 0
    hits: int = 0
    evictions: int = 0
    failures: int = 0
    load_seconds: float = 0.0

    @property
    def path(self) -> Any:
        """What was loaded, or what the configuration says will be; None where it does not."""
        return self.copy.path if self.copy is not None else self.conf.storage_kwargs.get("path_to_files")

    def state_now(self) -> object:
        """What lies at `path` now, see `state_of`."""
        return state_of(self.path)


_Error = TypeVar("_Error", bound=BaseException)


def copied(error: _Error) -> _Error | ModelLoadError:
    """The error without its traceback, whose frames are those of a request: it may be kept, and raised more than once."""
    try:
        found = copy.copy(error)
    except Exception:  # a library's own, which takes other arguments than it keeps
        found = ModelLoadError(f"{type(error).__name__}: {error}")  # type: ignore[assignment]
    found.__cause__ = error.__cause__
    return found


def state_of(path: Any) -> object:
    """What changes when a file or a folder of files is replaced or written to; None for what is not there or has no path.

    Device, inode, size and modification time: a rename, or other permissions, change nothing that was loaded.
    """
    if not isinstance(path, (str, os.PathLike)):
        return None
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            return {name: identity[:4] for name, identity in folder_identity(path).items()}
        return FileIdentity.of(status)[:4]
    except (OSError, ValueError):
        return None
