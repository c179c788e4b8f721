"""What one load takes, measured in a fresh process: `measured` in that process, `answer_measured` in the one that started it.

RSS is the kernel's high-water mark. No kernel keeps one of anonymous memory, so that peak is sampled from outside.
"""

from __future__ import annotations

import gc
import os
import pickle
import tempfile
import time
from collections.abc import Callable
from typing import Any

from fresh_process import FreshCall

from mlup_stream.memory.meter import PeakMeter, snapshot
from mlup_stream.memory.outside import Sampler
from mlup_stream.up import load

__all__ = ["answer_measured", "call_measured", "measured", "warm_up"]


def warm_up() -> None:
    """Loads a pickle of nothing, because the load cycle imports some of its own modules when it first runs."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "nothing.pkl")
        with open(path, "wb") as file:
            pickle.dump(None, file)
        load(path)


def measured(load_model: Callable[[], Any], use: Callable[[Any], Any]) -> dict[str, Any]:
    """Loads a model and uses it once. Imports, and anything else that is not the load, are to be done before.

    Returns:
        Bytes above what was there before, None where the system does not say: `peak_rss` of the load (`peak_exact`: whether
        the kernel marked it), `peak_anon` (at least so much) and `peak_anon_limit` (at most); `settled_rss`, `settled_anon`
        after it; `use_rss`, `use_anon` at the peak of the use. `baseline_anon` itself. For `answer_measured`, the times `started`
        and `ended`, `use_started` and `use_ended`. `answer`: what `use` returned, a JSON value.
    """
    gc.collect()
    baseline = snapshot()
    started = time.monotonic()
    with PeakMeter() as meter:
        model = load_model()
    ended = time.monotonic()
    gc.collect()
    settled = snapshot()
    use_started = time.monotonic()
    with PeakMeter() as use_meter:
        answer = use(model)
    use_ended = time.monotonic()
    peak, use_peak = meter.peak, use_meter.peak
    return {
        "started": started,
        "ended": ended,
        "use_started": use_started,
        "use_ended": use_ended,
        "baseline_anon": baseline.anon_bytes,
        "peak_exact": peak.rss_exact,
        "peak_rss": _above(baseline.rss_bytes, peak.rss_bytes),
        "peak_anon": _above(baseline.anon_bytes, peak.anon_low_bytes),
        "peak_anon_limit": _above(baseline.anon_bytes, peak.anon_high_bytes),
        "settled_rss": _above(baseline.rss_bytes, settled.rss_bytes),
        "settled_anon": _above(baseline.anon_bytes, settled.anon_bytes),
        "use_rss": _above(baseline.rss_bytes, use_peak.rss_bytes),
        "use_anon": _above(baseline.anon_bytes, use_peak.anon_low_bytes),
        "answer": answer,
    }


def _above(baseline_bytes: int | None, size_bytes: int | None) -> int | None:
    return None if baseline_bytes is None or size_bytes is None else size_bytes - baseline_bytes


def answer_measured(call: FreshCall) -> dict[str, Any]:
    """What a function that returns what `measured` returned says in a fresh process.

    `seconds` and `use_seconds` take the place of the times, and `peak_anon` and `use_anon` count what was seen from here.

    Raises:
        ChildFailed: As `FreshCall.answer`.
    """
    call.ready()
    with Sampler(call.pid) as sampler:
        found: dict[str, Any] = call.answer()
    baseline_bytes = found.pop("baseline_anon")
    for prefix, figure in (("", "peak_anon"), ("use_", "use_anon")):
        started, ended = found.pop(f"{prefix}started"), found.pop(f"{prefix}ended")
        found[f"{prefix}seconds"] = ended - started
        seen_bytes = sampler.highest("anon_bytes", started, ended)
        if seen_bytes is not None and baseline_bytes is not None:
            found[figure] = max(found[figure], seen_bytes - baseline_bytes)
    return found


def call_measured(function: str, **arguments: Any) -> dict[str, Any]:
    """`answer_measured` of a call of its own; see `FreshCall` for the arguments."""
    with FreshCall(function, **arguments) as call:
        return answer_measured(call)
