"""What a reader gets of a limited test: limits beside what was measured, the time in between, the largest allocations."""

from __future__ import annotations

from typing import Any

from mlup_stream.extras import require
from mlup_stream.memory.outside import Sample
from mlup_stream.testing.fresh import Ran
from mlup_stream.testing.limits import Verdict
from mlup_stream.units import format_bytes

__all__ = ["blocks", "largest_allocations", "page"]

_BLOCKS = "▁▂▃▄▅▆▇█"
_COLUMNS = 60
_SHOWN, _FRAMES = 5, 6


def page(ran: Ran, verdicts: list[Verdict], first: list[Verdict]) -> list[str]:
    """The lines for a test: the verdicts, those of its first run if it had two, and its memory over time."""
    lines = [str(each) for each in sorted(verdicts, key=lambda each: not each.is_over)]
    if first:
        was = "; ".join(str(each) for each in first if each.is_over)
        lines.append(f"measured twice, because the first time it was close: {was}")
    started = ran.events.get("started")
    if started is None:
        return lines
    ended = ran.events.get("ended", {}).get("seconds", float("inf"))
    begun = ran.events.get("loaded", started)
    samples = [each for each in ran.samples if begun.get("started", begun["seconds"]) <= each.seconds <= ended]
    if samples:
        lines += _over_time(samples, begun["baseline"])
    return lines


def _over_time(samples: list[Sample], baseline: dict[str, Any]) -> list[str]:
    before_bytes = baseline["rss_bytes"] or 0
    highest = max(samples, key=lambda each: each.rss_bytes or 0)
    seconds = samples[-1].seconds - samples[0].seconds
    apart = []
    for name in ("anon", "file", "shmem"):
        now_bytes, then_bytes = getattr(highest, f"{name}_bytes"), baseline[f"{name}_bytes"]
        if now_bytes is not None and then_bytes is not None:
            apart.append(f"{name} {format_bytes(now_bytes - then_bytes)}")
    rise = f"{format_bytes(before_bytes)} before, {format_bytes(highest.rss_bytes or 0)} at the highest sample"
    return [
        f"RSS over {seconds:.2f} s: {blocks([each.rss_bytes or 0 for each in samples], before_bytes)}",
        f"{rise}, of that above the baseline: {', '.join(apart) or 'not told apart here'}",
    ]


def blocks(sizes: list[int], lowest: int, columns: int = _COLUMNS) -> str:
    """The sizes as one line of blocks, the highest of each column, from `lowest` to the highest of all."""
    columns = min(columns, len(sizes))
    highest = max(*sizes, lowest + 1)
    line = ""
    for column in range(columns):
        first, last = column * len(sizes) // columns, (column + 1) * len(sizes) // columns
        share = (max(sizes[first:last]) - lowest) / (highest - lowest)
        line += _BLOCKS[min(len(_BLOCKS) - 1, max(0, int(share * len(_BLOCKS))))]
    return line


def largest_allocations(record: str) -> list[str]:
    """The largest allocations at the highest moment of memray's record, each with the innermost frames of its stack."""
    memray = require("memray", "--rss-memray")
    try:
        with memray.FileReader(record) as reader:
            found = list(reader.get_high_watermark_allocation_records(merge_threads=True))
    except (OSError, RuntimeError) as error:
        return [f"memray recorded nothing ({error})"]
    total_bytes = sum(each.size for each in found)
    lines = [f"by memray, at the highest moment of its heap, {format_bytes(total_bytes)}:"]
    for each in sorted(found, key=lambda each: -each.size)[:_SHOWN]:
        lines.append(f"  {format_bytes(each.size)} in {each.n_allocations} allocation{'s' * (each.n_allocations > 1)}")
        lines += [f"      {name} {path}:{line}" for name, path, line in each.stack_trace(max_stacks=_FRAMES)]
    return lines
