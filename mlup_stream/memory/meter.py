"""How much memory this process uses, now and at the highest point of an interval.

A difference of two snapshots says nothing of the spike between them, and a sampling thread waits for the GIL while the
spike happens. The peak is therefore the kernel's own high-water mark, set back at the start of the interval; where that
cannot be had, `Peak` says what it is instead.

No kernel keeps a high-water mark of anonymous memory, so its peak is an interval. What was seen is the lower end. The upper end
is the smaller of two proofs: anonymous memory is part of RSS, so never more than the peak of RSS; and it grows only by page
faults, which the kernel counts (`proc.anon_growth_limit_bytes`).
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
from types import TracebackType
from typing import Any

from mlup_stream.memory import proc

__all__ = ["Peak", "PeakMeter", "Snapshot", "private_bytes", "rss_bytes", "snapshot"]


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Memory of this process at one moment, in bytes; None is what cannot be known here.

    Attributes:
        rss_bytes: Resident. The kernel counts per CPU and adds up now and then: off by some 100 KiB.
        anon_bytes: Private pages that nobody can take back.
        file_bytes: Pages of mapped files, which the kernel drops under pressure and shares between processes.
        shmem_bytes: Shared memory and tmpfs pages that are mapped here.
        pss_bytes: RSS with each shared page divided by the number of its users. Only in a detailed snapshot.
        uss_bytes: What would become free if this process ended. Only in a detailed snapshot.
        swap_bytes: Anonymous memory that was swapped out.
    """

    rss_bytes: int | None = None
    anon_bytes: int | None = None
    file_bytes: int | None = None
    shmem_bytes: int | None = None
    pss_bytes: int | None = None
    uss_bytes: int | None = None
    swap_bytes: int | None = None

    @property
    def private_bytes(self) -> int:
        """What nobody can take back, swapped out or not; RSS where the system does not tell it apart, else 0."""
        return (self.rss_bytes or 0) if self.anon_bytes is None else self.anon_bytes + (self.swap_bytes or 0)

    def to_dict(self) -> dict[str, int | None]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Peak:
    """The highest memory of this process over an interval, in bytes; None is what cannot be known here.

    Attributes:
        rss_bytes: The peak of RSS; at least this much when it is not exact.
        rss_exact: Whether `rss_bytes` is the peak itself, as the kernel saw it.
        anon_low_bytes: The peak of anonymous memory was at least this: it was seen.
        anon_high_bytes: It was at most this: it cannot have been more.
        source: Where the figures come from.
    """

    rss_bytes: int | None
    rss_exact: bool
    anon_low_bytes: int | None
    anon_high_bytes: int | None
    source: str

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def snapshot(*, detailed: bool = False) -> Snapshot:
    """Memory of this process now. Takes 0.1 ms; detailed, which walks the page tables, 0.3 ms and more."""
    status = proc.status()
    pss_bytes, uss_bytes = _shares() if detailed else (None, None)
    return Snapshot(
        rss_bytes=status["VmRSS"] if "VmRSS" in status else rss_bytes(),
        anon_bytes=status.get("RssAnon"),
        file_bytes=status.get("RssFile"),
        shmem_bytes=status.get("RssShmem"),
        pss_bytes=pss_bytes,
        uss_bytes=uss_bytes,
        swap_bytes=status.get("VmSwap"),
    )


def rss_bytes() -> int | None:
    """Resident memory alone, for who asks after every step; None where nobody says it.

    From `/proc/self`, which is this process even in the `/proc` of another PID namespace; by psutil elsewhere.
    """
    status = proc.status()
    if "VmRSS" in status:
        return status["VmRSS"]
    try:
        return int(_this_process().memory_info().rss)
    except Exception:  # psutil's own, or no descriptor is left to import it
        return None


def private_bytes() -> int:
    """`Snapshot.private_bytes` now."""
    return snapshot().private_bytes


_process: Any = None


def _this_process() -> Any:
    """psutil's handle of this process, made once, and once more after a fork."""
    global _process
    if _process is None or _process.pid != os.getpid():
        import psutil  # 7 MiB that `import mlup_stream` does not pay

        _process = psutil.Process()
    return _process


def _shares() -> tuple[int | None, int | None]:
    """PSS and USS, from the kernel's summary where there is one, otherwise from psutil 8, otherwise from psutil 7."""
    rollup = proc.smaps_rollup()
    if "Pss" in rollup:
        return rollup["Pss"], sum(size for name, size in rollup.items() if name.startswith("Private"))
    import psutil

    try:
        process = _this_process()
        # psutil 8 deprecates the second for the first.
        found = (getattr(process, "memory_footprint", None) or process.memory_full_info)()
    except (psutil.Error, OSError):
        return None, None
    return getattr(found, "pss", None), getattr(found, "uss", None)


class PeakMeter:
    """The peak of an interval: `start`, any number of `sample`, `stop`; or a `with` block, then `peak`.

    Meters may be nested and overlap in any thread: setting the high-water mark back first hands what it had reached to every
    meter that is running. (A spike of another thread that comes and goes between those two system calls, about 20 microseconds,
    is lost to the outer meter.) Code outside this package that sets the mark back itself cannot be defended against.
    """

    def __init__(self, *, exact: bool = True) -> None:
        """Args: exact: False leaves the kernel's mark alone: what is seen at the start and the end, for a tenth of the time."""
        self._exact = exact
        self._forget()

    def _forget(self) -> None:
        self._baseline: Snapshot | None = None
        self._peak: Peak | None = None
        self._folded_bytes = 0
        self._mark_at_start_bytes: int | None = None
        self._was_reset = False
        self._rss_seen_bytes = 0
        self._anon_seen_bytes: int | None = None
        self._anon_limit_bytes: int | None = None

    def start(self) -> PeakMeter:
        """Begins the interval; begins a new one if it was running."""
        self._forget()
        if not self._exact:
            self._baseline = self.sample()
            return self
        running = _running()
        growth_bytes = proc.anon_growth_limit_bytes()
        with running.lock:
            mark_bytes = _high_water_bytes()
            for meter in running.meters:
                if not meter._was_reset:
                    continue  # the mark may be older than its interval
                meter._folded_bytes = max(meter._folded_bytes, mark_bytes or 0)
            self._was_reset = proc.reset_high_water()
            self._mark_at_start_bytes = mark_bytes
            if self not in running.meters:
                running.meters.append(self)
        self._baseline = now = self.sample()
        if growth_bytes is not None and now.anon_bytes is not None:
            self._anon_limit_bytes = now.anon_bytes + (now.swap_bytes or 0) - growth_bytes
        return self

    def sample(self) -> Snapshot:
        """Folds the present into the peak, which narrows what is known of anonymous memory; for a load, once per window."""
        now = snapshot()
        self._rss_seen_bytes = max(self._rss_seen_bytes, now.rss_bytes or 0)
        if now.anon_bytes is not None:
            self._anon_seen_bytes = max(self._anon_seen_bytes or 0, now.anon_bytes)
        return now

    def stop(self) -> Peak:
        """Ends the interval. Stopping again returns the same peak."""
        if not self._exact and self._peak is None and self._baseline is not None:
            self.sample()
            source = "the highest of the samples: a small load"
            self._peak = Peak(self._rss_seen_bytes, False, self._anon_seen_bytes, None, source)
        running = _running()
        with running.lock:
            if self not in running.meters:
                return self.peak
            mark_bytes = _high_water_bytes()
            running.meters.remove(self)
            self._peak = self._peak_of(mark_bytes)
        return self._peak

    def _peak_of(self, mark_bytes: int | None) -> Peak:
        self.sample()
        growth_bytes = proc.anon_growth_limit_bytes()
        # A mark that could not be set back is the peak of this interval only if the interval raised it.
        raised = mark_bytes is not None and self._mark_at_start_bytes is not None and mark_bytes > self._mark_at_start_bytes
        exact = mark_bytes is not None and (self._was_reset or raised)
        rss_bytes = max(self._rss_seen_bytes, self._folded_bytes, mark_bytes if exact and mark_bytes else 0)
        anon_high_bytes = None
        if self._anon_seen_bytes is not None:
            limits = [rss_bytes] if exact else []
            if growth_bytes is not None and self._anon_limit_bytes is not None:
                limits.append(self._anon_limit_bytes + growth_bytes)
            anon_high_bytes = max(min(limits), self._anon_seen_bytes) if limits else None
        return Peak(rss_bytes, exact, self._anon_seen_bytes, anon_high_bytes, _source(exact, self._was_reset))

    @property
    def baseline(self) -> Snapshot:
        """Memory at the start of the interval."""
        if self._baseline is None:
            raise RuntimeError("the meter was not started; call start() or use it in a with statement")
        return self._baseline

    @property
    def peak(self) -> Peak:
        """What the interval came to, once it has ended."""
        if self._peak is None:
            raise RuntimeError("the meter was not stopped; read the peak after stop() or after the with block")
        return self._peak

    def __enter__(self) -> PeakMeter:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.stop()


class _Running:
    """The meters that are running in one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.meters: list[PeakMeter] = []


_meters = _Running()


def _running() -> _Running:
    """The running meters of this process: a forked child starts with none, and with a lock that no thread holds."""
    global _meters
    if _meters.pid != os.getpid():
        _meters = _Running()
    return _meters


def _high_water_bytes() -> int | None:
    """The kernel's highest RSS of this process, since its start or since the last reset; None where there is no such figure."""
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes here, in kilobytes on other systems
    if sys.platform == "win32":
        return int(_this_process().memory_info().peak_wset)
    return proc.status().get("VmHWM")


_MARKS = {"darwin": "ru_maxrss", "win32": "peak_wset"}


def _source(exact: bool, was_reset: bool) -> str:
    mark = _MARKS.get(sys.platform, "VmHWM")
    if was_reset:
        return f"the kernel's high-water mark ({mark}), set back at the start"
    if exact:
        return f"the kernel's high-water mark ({mark}), which this interval raised"
    return f"the highest of the samples: {mark} could not be set back, and was higher before"
