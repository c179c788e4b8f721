"""Runs a limited test in a fresh process and holds what it took against its limits, and against a record if there is one."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from typing import Any

import pytest

from mlup_stream.errors import ConfigError
from mlup_stream.memory.outside import Sample, is_told_apart
from mlup_stream.testing import records, wording
from mlup_stream.testing.fresh import Ran, run
from mlup_stream.testing.limits import LIMIT_LOAD, MARKERS, Limit, Taken, Verdict, limits_of, load_arguments
from mlup_stream.testing.plugin import folders_of, option
from mlup_stream.units import MIB, format_bytes

__all__ = ["reports_of"]

_TIMEOUT_SECONDS = 300.0
_NEAR_MISS = 0.05
"""A test that takes this much more than it may is measured once more: on a busy machine a reading may be a little high."""
_FAR_TIMES, _FAR_BYTES = 2, 256 * MIB
"""A test that takes more than twice its limit and this is ended, before it takes the machine's memory."""
_OF_STATUS = {"peak_rss": "rss_bytes", "peak_anon": "anon_bytes", "peak_pss": "pss_bytes"}
_STEADY_BYTES = MIB
"""What is taken for no change: the kernel counts RSS per CPU and adds up now and then."""
_UNMEASURED = "this system does not tell private memory from pages of files"


def reports_of(item: pytest.Item) -> list[pytest.TestReport]:
    """The reports of the test's phases, the call's failed where a limit was passed."""
    try:
        limits, load_limits = _limits(item)
    except ConfigError as error:
        return [_made(item, "setup", "failed", str(error))]
    figures = {limit.figure for limit in limits}
    unmeasured = _unmeasured(item, figures)
    if unmeasured:
        skipped = _made(item, "setup", "skipped", unmeasured)
        skipped.memory = {"unmeasured": _UNMEASURED}  # type: ignore[attr-defined]  # travels with it
        return [skipped]
    growth = records.Growth.of(option(item.config, "compare"), option(item.config, "fail_on_growth"))
    shares = "peak_pss" in figures or (bool(figures) and not is_told_apart())

    def once() -> tuple[Ran, dict[str, Taken], list[Verdict]]:
        ran = _run(item, limits, shares)
        taken = _taken(ran)
        verdicts = [Verdict(limit, taken.get(limit.figure)) for limit in (*limits, *load_limits)]
        return ran, taken, [*verdicts, *growth.limits(item.nodeid, taken)]

    ran, taken, verdicts = once()
    first: list[Verdict] = []
    if _is_near_miss(ran, verdicts):
        first = verdicts
        ran, taken, verdicts = once()
    return _judged(item, ran, taken, verdicts, first)


def _limits(item: pytest.Item) -> tuple[list[Limit], list[Limit]]:
    markers = {name: item.get_closest_marker(name) for name in (*MARKERS, LIMIT_LOAD)}
    said = {name: (marker.args, dict(marker.kwargs)) for name, marker in markers.items() if marker is not None}
    load_limits = load_arguments(said[LIMIT_LOAD], folders_of(item))[1] if LIMIT_LOAD in said else []
    if load_limits and "load" not in getattr(item, "fixturenames", ()):
        raise ConfigError("limit_load: the test loads nothing; let it take the fixture `load`")
    return limits_of(said), load_limits


def _unmeasured(item: pytest.Item, figures: set[str]) -> str:
    """Why the test is skipped; empty if it is not."""
    if is_told_apart():
        return ""
    if option(item.config, "unmeasured") != "psutil":
        return f"{_UNMEASURED}; rss_unmeasured = psutil uses what psutil has"
    return f"{_UNMEASURED}, and psutil does not know PSS here" if "peak_pss" in figures else ""


def _run(item: pytest.Item, limits: list[Limit], shares: bool, memray: str | None = None) -> Ran:
    return run(
        item,
        shares=shares,
        timeout_seconds=float(option(item.config, "timeout") or _TIMEOUT_SECONDS),
        is_too_much=_watched(limits),
        memray=memray,
    )


def _watched(limits: list[Limit]) -> Callable[[Sample, dict[str, Any]], str]:
    def is_too_much(sample: Sample, baseline: dict[str, Any]) -> str:
        for limit in limits:
            name = _OF_STATUS[limit.figure]
            now_bytes, before_bytes = getattr(sample, name), baseline.get(name)
            if now_bytes is None or before_bytes is None:
                continue
            if now_bytes - before_bytes > _FAR_TIMES * limit.limit_bytes + _FAR_BYTES:
                return f"it took {format_bytes(now_bytes - before_bytes)}, far above its limit of {limit.said}"
        return ""

    return is_too_much


def _taken(ran: Ran) -> dict[str, Taken]:
    """Each figure that was measured, in bytes above the baseline."""
    if "started" not in ran.events:
        return {}
    found = _peaks(ran, ran.events["started"], ran.events.get("ended"), "")
    if "loaded" in ran.events:
        loaded = ran.events["loaded"]
        found.update(_peaks(ran, {**loaded, "seconds": loaded["started"]}, {**loaded, "seconds": loaded["ended"]}, "load "))
    for event, prefix in (("settled", ""), ("loaded", "load ")):
        if event in ran.events:
            baseline = ran.events["started" if event == "settled" else event]["baseline"]
            for name in ("rss", "anon"):
                after_bytes, before_bytes = (each[f"{name}_bytes"] for each in (ran.events[event]["settled"], baseline))
                if after_bytes is not None and before_bytes is not None:
                    size_bytes = after_bytes - before_bytes
                    found[f"{prefix}settled_{name}"] = Taken(size_bytes, size_bytes, "after it, with memory given back")
    return found


def _peaks(ran: Ran, started: dict[str, Any], ended: dict[str, Any] | None, prefix: str) -> dict[str, Taken]:
    baseline = started["baseline"]
    until = ended["seconds"] if ended is not None else float("inf")
    found = {}
    for figure, name in _OF_STATUS.items():
        before_bytes = baseline.get(name)
        if before_bytes is None:
            continue
        samples = [each for each in ran.samples if started["seconds"] <= each.seconds <= until]
        seen = [size for size in (getattr(each, name) for each in samples) if size]
        high_bytes, how = None, "the highest of samples from outside, one every 2 ms"
        if ended is not None:
            peak, at_end = ended["peak"], ended.get("at_end") or {}
            seen.append(at_end.get(name) or 0)
            if figure != "peak_rss":
                seen += _of_the_mark(figure, peak, baseline, at_end, samples)
            if figure == "peak_rss" and peak["rss_bytes"] is not None:
                seen.append(peak["rss_bytes"])
                high_bytes, how = (max(seen) if peak["rss_exact"] else None), peak["source"]
            elif figure == "peak_anon" and peak["anon_high_bytes"] is not None:
                seen.append(peak["anon_low_bytes"])
                high_bytes = max(peak["anon_high_bytes"], *seen)
        if seen:
            found[f"{prefix}{figure}"] = Taken(max(seen) - before_bytes, high_bytes and high_bytes - before_bytes, how)
    return found


def _of_the_mark(
    figure: str, peak: dict[str, Any], baseline: dict[str, Any], at_end: dict[str, Any], samples: list[Sample]
) -> list[int]:
    """The peak of a figure by the kernel's mark of RSS, where it was private memory that rose; empty otherwise.

    That is so where pages of files and shared ones stayed as they were, and the process had page faults enough: a map that was
    touched and let go between two samples has a sixteenth of them.
    """
    moments = [each for each in (baseline, at_end, *(sample._asdict() for sample in samples)) if each]
    others = [(each["file_bytes"] or 0) + (each["shmem_bytes"] or 0) for each in moments]
    anon_bytes = int((peak["rss_bytes"] or 0) - max(others))
    is_steady = max(others) - min(others) <= _STEADY_BYTES
    most_bytes = int(peak["anon_high_bytes"] or 0)
    if not peak["rss_exact"] or not is_steady or anon_bytes > most_bytes + _STEADY_BYTES:
        return []
    if figure != "peak_pss":
        return [min(anon_bytes, most_bytes)]
    return [int(peak["rss_bytes"] - max(each["rss_bytes"] - each["pss_bytes"] for each in (baseline, at_end)))] if at_end else []


def _is_near_miss(ran: Ran, verdicts: list[Verdict]) -> bool:
    over = [each for each in verdicts if each.is_over]
    return bool(over) and not ran.ended_by and all(each.over_bytes <= _NEAR_MISS * each.limit.limit_bytes for each in over)


def _judged(
    item: pytest.Item, ran: Ran, taken: dict[str, Taken], verdicts: list[Verdict], first: list[Verdict]
) -> list[pytest.TestReport]:
    reports = ran.reports
    call = next((each for each in reports if each.when == "call"), None)
    if call is None and not any(each.outcome != "passed" for each in reports):
        # It ended in the middle of something.
        call = _made(item, "call", "failed", "")
        reports = [*(each for each in reports if each.when == "setup"), call]
    if call is None:
        return reports
    over = [each for each in verdicts if each.is_over]
    lines = wording.page(ran, verdicts, first)
    if over and option(item.config, "memray") and not ran.ended_by:
        lines += _largest(item)
    text = "\n".join(lines)
    if not call.longrepr and call.outcome == "failed":
        call.longrepr = f"{_why_it_ended(ran)}\n{text}".rstrip()
    elif over and call.outcome == "passed" and hasattr(call, "wasxfail"):
        call.outcome = "skipped"  # as it was expected to
    elif over and str(call.longrepr).startswith("[XPASS(strict)]"):
        call.outcome, call.wasxfail, call.longrepr = "skipped", "", None
    elif over and call.outcome == "passed":
        call.outcome, call.longrepr = "failed", text
    if verdicts and text not in str(call.longrepr):
        call.sections.append(("memory", text))
    properties = _properties(verdicts, taken)
    for each in reports:
        each.user_properties.extend(properties)
    unmeasured = {} if is_told_apart() else {"unmeasured": _UNMEASURED}
    call.memory = {**records.entry(ran, taken, verdicts, retried=bool(first)), **unmeasured}  # type: ignore[attr-defined]  # travels with it
    return reports


def _why_it_ended(ran: Ran) -> str:
    if ran.ended_by:
        return f"the test's process was ended: {ran.ended_by}"
    if "not collected" in ran.events:
        return f"the test could not be collected in a fresh process:\n{ran.events['not collected']['text']}"
    if "report" not in ran.events and "started" not in ran.events and ran.exit_code >= 0:
        return f"the test did not run in a fresh process (exit code {ran.exit_code}):\n{ran.said[-4000:]}"
    name = signal.Signals(-ran.exit_code).name if ran.exit_code < 0 else f"exit code {ran.exit_code}"
    return f"the test's process ended by {name}\n{ran.said[-4000:]}".rstrip()


def _largest(item: pytest.Item) -> list[str]:
    """The largest allocations at the peak, by memray in one more fresh process."""
    with tempfile.TemporaryDirectory(prefix="mlup-stream-memray-") as folder:
        path = os.path.join(folder, "record.bin")
        _run(item, [], False, memray=path)
        return wording.largest_allocations(path)


def _properties(verdicts: list[Verdict], taken: dict[str, Taken]) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = [(f"{figure.replace(' ', '_')}_bytes", each.low_bytes) for figure, each in taken.items()]
    found += [(f"limit_{each.limit.figure.replace(' ', '_')}_bytes", each.limit.limit_bytes) for each in verdicts]
    return found


def _made(item: pytest.Item, when: Any, outcome: Any, text: str) -> pytest.TestReport:
    """A report of our own."""
    path, line, _ = item.location
    longrepr: Any = (path, line or 0, f"Skipped: {text}") if outcome == "skipped" else text
    return pytest.TestReport(item.nodeid, item.location, dict.fromkeys(item.keywords, 1), outcome, longrepr, when)
