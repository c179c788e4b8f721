"""Memory of another process, sampled from outside on a clock that all processes share.

No kernel keeps a high-water mark of anonymous memory or PSS, and a thread inside the process does not run while a library holds
the interpreter's lock. From outside a spike is missed only if it comes and goes between two samples: at the 2 GB/s at which pages
come into being, one of about 4 MB at the interval of 2 ms.

Source: `/proc/PID/status` and `/proc/PID/smaps_rollup` (proc_pid_status(5), proc_pid_smaps(5)); by psutil where there is none.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from mlup_stream.memory.proc import number_after, read_file

__all__ = ["Sample", "Sampler", "is_told_apart"]

_INTERVAL_SECONDS = 0.002
_SHARES_INTERVAL_SECONDS = 0.02
"""Between two readings of PSS, which walk the process's page tables."""
_KEPT_SAMPLES = 20_000
"""Twice as many are thinned out: the higher of two neighbours stays, so that no peak is lost."""


class Sample(NamedTuple):
    """One moment of a process; sizes in bytes, None where the system does not say.

    Attributes:
        seconds: Of `time.monotonic`.
        rss_bytes: Resident.
        anon_bytes: Private pages that nobody can take back; where only psutil is there, its USS.
        file_bytes: Pages of mapped files.
        shmem_bytes: Shared memory and tmpfs pages that are mapped.
        pss_bytes: RSS with each shared page divided by the number of its users, where it was asked for; the last that was read.
    """

    seconds: float
    rss_bytes: int | None
    anon_bytes: int | None
    file_bytes: int | None
    shmem_bytes: int | None
    pss_bytes: int | None = None


def is_told_apart() -> bool:
    """Whether this system tells anonymous memory from pages of files."""
    return number_after(read_file("/proc/self/status"), b"RssAnon:") is not None


class Sampler:
    """Samples a process until the end of its `with` block, in a thread.

    Args:
        pid: The process.
        shares: Whether PSS is read too.
        on_sample: Called in the thread with each sample.

    Attributes:
        samples: In the order of time.
    """

    def __init__(self, pid: int, *, shares: bool = False, on_sample: Callable[[Sample], None] | None = None) -> None:
        self.samples: list[Sample] = []
        self._pid = pid
        self._shares = shares
        self._on_sample = on_sample
        self._pss: tuple[float, int | None] = (float("-inf"), None)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlup-stream sampler", daemon=True)
        self._process: Any = None

    def between(self, started: float, ended: float) -> list[Sample]:
        """The samples of an interval."""
        return [each for each in self.samples if started <= each.seconds <= ended]

    def highest(self, figure: str, started: float = float("-inf"), ended: float = float("inf")) -> int | None:
        """The highest of a figure of `Sample` in an interval; None if it was not seen there."""
        found = (getattr(each, figure) for each in self.between(started, ended))
        return max((size for size in found if size is not None), default=None)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        read = self._of_proc if is_told_apart() else self._of_psutil
        while not self._stop.wait(_INTERVAL_SECONDS):
            sample = read()
            if sample is None:  # it has ended, and only its name is left
                return
            self.samples.append(sample)
            if len(self.samples) >= 2 * _KEPT_SAMPLES:
                self.samples = [max(pair, key=_highness) for pair in zip(self.samples[::2], self.samples[1::2], strict=False)]
            if self._on_sample is not None:
                self._on_sample(sample)

    def _of_proc(self) -> Sample | None:
        text = read_file(f"/proc/{self._pid}/status")
        names = (b"VmRSS:", b"RssAnon:", b"RssFile:", b"RssShmem:")  # none of them of a process that has ended
        rss_bytes, anon_bytes, file_bytes, shmem_bytes = ((number_after(text, name) or 0) * 1024 for name in names)
        if not rss_bytes:
            return None
        now = time.monotonic()
        if self._shares and now - self._pss[0] >= _SHARES_INTERVAL_SECONDS:
            kilobytes = number_after(read_file(f"/proc/{self._pid}/smaps_rollup"), b"Pss:")
            self._pss = time.monotonic(), None if kilobytes is None else kilobytes * 1024
        return Sample(now, rss_bytes, anon_bytes, file_bytes, shmem_bytes, self._pss[1])

    def _of_psutil(self) -> Sample | None:
        import psutil

        with contextlib.suppress(psutil.Error):
            if self._process is None:
                self._process = psutil.Process(self._pid)
            rss_bytes = int(self._process.memory_info().rss)
            uss_bytes = None
            if self._shares:
                found = (getattr(self._process, "memory_footprint", None) or self._process.memory_full_info)()
                uss_bytes = getattr(found, "uss", None)
            return Sample(time.monotonic(), rss_bytes, uss_bytes, None, None)
        return None


def _highness(sample: Sample) -> int:
    return sample.anon_bytes or sample.rss_bytes or 0
