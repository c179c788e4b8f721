"""Watches one interval: measures it, holds it to the budget while it runs, and reports on it at the end."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

from mlup_stream.errors import MemoryBudgetExceeded, MLupError
from mlup_stream.memory.budget import Available
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.memory.gate import overhead_bytes
from mlup_stream.memory.meter import PeakMeter, snapshot
from mlup_stream.memory.pressure import PressureMeter
from mlup_stream.memory.reclaim import give_back, promotions
from mlup_stream.memory.report import MemoryReport
from mlup_stream.memory.running import Running
from mlup_stream.units import MIB, format_bytes

__all__ = ["SMALL_BYTES", "Watch", "is_out_of_memory"]

# A check costs 0.5 ms. So many bytes of the file may pass between two that a load which grows by ten times what it reads, the
# worst that was seen, cannot use up what was left at the first of them.
_PASSED_PER_ROOM = 16
_FEWEST_PASSED_BYTES = 1 * MIB
_MOST_PASSED_BYTES = 256 * MIB
SMALL_BYTES = 1 * MIB
"""Below this a load is lost in the noise of a process: its peak and what it gives back are not worth what they cost to know."""
_LAST_BYTES = 4 * MIB
"""What a load of which nothing sure is known has to leave: the next window's growth must still fit."""

# What libraries make of an allocation that failed: torch, onnxruntime, any C++, the C library's ENOMEM as text, thread creation.
_OUT_OF_MEMORY = (
    "bad_alloc",
    "bad allocation",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate",
    "failed to map segment",
    "out of memory",
    "can't start new thread",
)


class Watch:
    """An interval under the governor's eyes.

    Attributes:
        name: What runs in it.
        room: What was available at the start; None when no budget is in force.
        report: What it came to; None before `settle`.
    """

    def __init__(
        self,
        name: str,
        *,
        available: Callable[[], Available] | None,
        estimate: Estimate | None,
        pressure: PressureMeter | None = None,
        room: Available | None = None,
        size_bytes: int | None = None,
        on_settled: Callable[[MemoryReport], None] | None = None,
        running: Running | None = None,
        small: bool = False,
    ) -> None:
        self.name = name
        self.room = room
        self.report: MemoryReport | None = None
        self._available = available
        self._estimate = estimate
        self._size_bytes = size_bytes
        self._pressure = pressure
        self._on_settled = on_settled
        self._running = running
        self._small = small
        self._meter = PeakMeter(exact=not small)
        self._next_check_bytes = 0
        self._started = 0.0
        self._seconds: float | None = None
        self._grown_bytes = 0
        self._passed_bytes = 0
        self._last_passed_bytes = 0
        self._promotions = 0

    def start(self) -> None:
        if self.room is None and self._available is not None:
            self.room = self._available()
        self._next_check_bytes = self._step_bytes(self.room)
        if self._pressure is not None:
            self._pressure.start()
        self._promotions = promotions()
        self._started = time.perf_counter()
        self._meter.start()

    def window(self, passed_bytes: int) -> None:
        """Called by a reader with the number of bytes of the file that have passed through it; mostly does nothing.

        Raises:
            MemoryBudgetExceeded: So little is left that the load would be killed if it went on.
        """
        self._last_passed_bytes = passed_bytes
        if passed_bytes >= self._next_check_bytes and self._available is not None:
            self.check(passed_bytes)

    def check(self, passed_bytes: int = 0) -> None:
        """Measures, and holds what was taken against the budget.

        Raises:
            MemoryBudgetExceeded: As `window`.
        """
        now = self._meter.sample()
        if self._available is None:
            return
        room = self._available()
        grown_bytes = now.private_bytes - self._meter.baseline.private_bytes
        step_bytes, self._grown_bytes = grown_bytes - self._grown_bytes, grown_bytes
        step_passed_bytes, self._passed_bytes = passed_bytes - self._passed_bytes, passed_bytes
        left_bytes = room.bytes
        if left_bytes is not None and left_bytes <= self._reserve_bytes(step_bytes, step_passed_bytes):
            raise self.gave_up(room, passed_bytes, needed_bytes=grown_bytes + step_bytes)
        self._next_check_bytes = passed_bytes + self._step_bytes(room)

    def gave_up(
        self, room: Available, passed_bytes: int | None = None, *, needed_bytes: int | None = None
    ) -> MemoryBudgetExceeded:
        """The error for a load that cannot go on; without `passed_bytes` an allocation failed since the last window."""
        failed = ", when an allocation failed" if passed_bytes is None else ""
        passed_bytes = self._last_passed_bytes if passed_bytes is None else passed_bytes
        limit = room.tightest
        left_bytes = None if limit is None else limit.available_bytes
        left = "an unknown amount" if left_bytes is None else format_bytes(left_bytes)
        return MemoryBudgetExceeded(
            f"{self.name}: given up after {format_bytes(passed_bytes)} of the file had taken {format_bytes(self._grown_bytes)},"
            f" {self._than_estimated()}{failed}; {left} is left of {limit}; give it more memory",
            needed_bytes=needed_bytes,
            available_bytes=left_bytes,
            limit=limit,
            passed_bytes=passed_bytes,
        )

    def _reserve_bytes(self, step_bytes: int, step_passed_bytes: int) -> int:
        """What must be left so that the load may go on.

        As long as a sure estimate holds, what it still needs: it was admitted to the last byte, and others may have taken some
        since. Otherwise as much as the last step took, and not more than the rest of the file would take at that rate.
        """
        estimate = self._estimate
        beside_bytes = 0 if self._running is None else self._running.beside_bytes
        if estimate is not None and estimate.certainty is not Certainty.UNKNOWN:
            spare_bytes = overhead_bytes(estimate)
            if self._grown_bytes <= estimate.peak_anon_bytes + spare_bytes + beside_bytes:
                return max(0, estimate.peak_anon_bytes - self._grown_bytes - spare_bytes)
        reserve_bytes = max(_LAST_BYTES, step_bytes)
        if self._size_bytes is not None and step_passed_bytes > 0:
            rest_bytes = max(0, self._size_bytes - self._passed_bytes)
            reserve_bytes = min(reserve_bytes, max(0, step_bytes) * rest_bytes // step_passed_bytes + _FEWEST_PASSED_BYTES)
        return reserve_bytes

    def _than_estimated(self) -> str:
        if self._estimate is None:
            return "of which nothing was known before"
        peak_bytes, certainty = self._estimate.peak_anon_bytes, self._estimate.certainty
        as_estimated = certainty is not Certainty.UNKNOWN and self._grown_bytes <= peak_bytes
        return (
            f"{'of the' if as_estimated else 'where'} {format_bytes(peak_bytes)} {'that were' if as_estimated else 'was'}"
            f" estimated ({certainty.value}){', and others have taken the rest' if as_estimated else ''}"
        )

    @staticmethod
    def _step_bytes(room: Available | None) -> int:
        left_bytes = None if room is None else room.bytes
        if left_bytes is None:
            return _MOST_PASSED_BYTES
        return min(max(left_bytes // _PASSED_PER_ROOM, _FEWEST_PASSED_BYTES), _MOST_PASSED_BYTES)

    def stop(self) -> None:
        """Ends the interval; what follows is no longer measured. Idempotent."""
        if self._seconds is None:
            self._meter.stop()
            self._seconds = time.perf_counter() - self._started

    def _took_little(self) -> bool:
        """Whether private memory never grew by as much as is worth collecting: of what stays in its file, and of a small load."""
        if self._small:
            most_bytes: int | None = self._meter.sample().private_bytes
        else:
            most_bytes = self._meter.peak.anon_high_bytes
        return most_bytes is not None and most_bytes - self._meter.baseline.private_bytes < SMALL_BYTES

    def settle(self, *releases: Callable[[], tuple[str, ...]]) -> MemoryReport:
        """Ends the interval, gives memory back, and reports.

        Args:
            releases: See `give_back`.
        """
        self.stop()
        steps = give_back(*releases, promotions_before=self._promotions, small=self._took_little())
        self.report = MemoryReport(
            self._meter.baseline,
            self._meter.peak,
            snapshot(),
            steps,
            name=self.name,
            seconds=self._seconds,
            limit=None if self.room is None else self.room.tightest,
            pressure=None if self._pressure is None else self._pressure.stop(),
        )
        if self._on_settled is not None:
            self._on_settled(self.report)
        return self.report


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether `error`, or what it was raised from, is an allocation that failed, in the words of whichever library."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        # Our own errors and the system's quote names and paths, which may have such words in them: their type says what they are.
        quotes = isinstance(error, MLupError) or (isinstance(error, OSError) and error.errno is not None)
        text = "" if quotes else str(error)[:2000].lower()
        if any(words in text for words in _OUT_OF_MEMORY):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False
