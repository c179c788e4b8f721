"""What one load takes, measured in a fresh process: `measured` in that process, `call_measured` in the one that started it.

RSS is the kernel's high-water mark. No kernel keeps one of anonymous memory, and a thread inside the process does not run while
a library holds the interpreter's lock, so that peak is sampled from outside, every 2 ms: a spike is missed only if it comes and
goes between two samples, which at the 2 GB/s at which pages come into being is one of about 4 MB.
"""

from __future__ import annotations

import gc
import re
import threading
import time
from collections.abc import Callable
from typing import Any

from mlup_stream.cli.fresh_process import call_fresh
from mlup_stream.memory.meter import PeakMeter, Snapshot, snapshot

__all__ = ["call_measured", "measured"]

_INTERVAL_SECONDS = 0.002
_ANON = re.compile(rb"^RssAnon:\s+(\d+) kB", re.MULTILINE)


def measured(load: Callable[[], Any], use: Callable[[Any], Any]) -> dict[str, Any]:
    """Loads a model and uses it once. Imports, and anything else that is not the load, are to be done before.

    Returns:
        Seconds: `use_seconds`, and for `call_measured` the times `started` and `ended`. Bytes above what was there before,
        None where the system does not say: `peak_rss` of the load (`peak_exact`: whether the kernel marked it), `peak_anon`
        (at least so much) and `peak_anon_limit` (at most); `settled_rss`, `settled_anon` after it; `used_rss`, `used_anon`
        after the first use. `baseline_anon` itself. `answer`: what `use` returned, a JSON value.
    """
    gc.collect()
    baseline = snapshot()
    started = time.monotonic()
    with PeakMeter() as meter:
        model = load()
    ended = time.monotonic()
    gc.collect()
    settled = snapshot()
    using = time.monotonic()
    answer = use(model)
    use_seconds = time.monotonic() - using
    used = snapshot()
    peak = meter.peak
    return {
        "started": started,
        "ended": ended,
        "use_seconds": use_seconds,
        "baseline_anon": baseline.anon_bytes,
        "peak_exact": peak.rss_exact,
        "peak_rss": _above(baseline.rss_bytes, peak.rss_bytes),
        "peak_anon": _above(baseline.anon_bytes, peak.anon_low_bytes),
        "peak_anon_limit": _above(baseline.anon_bytes, peak.anon_high_bytes),
        **_figures("settled", baseline, settled),
        **_figures("used", baseline, used),
        "answer": answer,
    }


def _figures(name: str, baseline: Snapshot, now: Snapshot) -> dict[str, int | None]:
    return {
        f"{name}_rss": _above(baseline.rss_bytes, now.rss_bytes),
        f"{name}_anon": _above(baseline.anon_bytes, now.anon_bytes),
    }


def _above(baseline_bytes: int | None, size_bytes: int | None) -> int | None:
    return None if baseline_bytes is None or size_bytes is None else size_bytes - baseline_bytes


def call_measured(function: str, **arguments: Any) -> dict[str, Any]:
    """What `function`, which returns what `measured` returned, says in a fresh process; see `call_fresh`.

    `seconds` takes the place of the two times, and `peak_anon` counts what was seen from here.

    Raises:
        ChildFailed: As `call_fresh`.
    """
    watch = _Watch()
    try:
        found: dict[str, Any] = call_fresh(function, on_start=watch.start, **arguments)
    finally:
        watch.stop()
    started, ended, baseline_bytes = (found.pop(name) for name in ("started", "ended", "baseline_anon"))
    found["seconds"] = ended - started
    seen_bytes = watch.highest(started, ended)
    if seen_bytes is not None and baseline_bytes is not None:
        found["peak_anon"] = max(found["peak_anon"], seen_bytes - baseline_bytes)
    return found


class _Watch:
    """Samples of another process's `RssAnon`, with times of a clock that all processes share. Empty where there is no `/proc`."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, pid: int) -> None:
        self._thread = threading.Thread(target=self._run, args=(pid,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def highest(self, started: float, ended: float) -> int | None:
        return max((anon_bytes for at, anon_bytes in self._samples if started <= at <= ended), default=None)

    def _run(self, pid: int) -> None:
        while not self._stop.wait(_INTERVAL_SECONDS):
            try:
                with open(f"/proc/{pid}/status", "rb") as file:
                    found = _ANON.search(file.read())
            except OSError:
                return
            if found is None:  # it has ended, and only its name is left
                return
            self._samples.append((time.monotonic(), int(found[1]) * 1024))
