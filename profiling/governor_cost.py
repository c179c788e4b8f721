"""What does the governor cost? A snapshot, and everything that it does around one load, beside the load of a 512 MB file.

Then what a load costs that moves no bytes, all of it: a pickle of 1 KiB, and models of 256 MiB that stay in their file; ours and
the library's own call in turn, in one process.

    python profiling/governor_cost.py

The governor's part is a load of nothing: budget, gate, watch, report and giving back, with an estimate and no file. Everything
has run once before. The load beside it is `pickle.load` of arrays, warm, the shortest that copies its file: against all others
the share is smaller.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import common
import formats

from mlup_stream.units import MIB, format_bytes

FIXED = (("pickle-arrays", 1024), ("gguf", 256 * MIB), ("safetensors-torch", 256 * MIB))
"""Whose loads move no bytes, and how large they are: what there is to load stays in the file, or is nothing."""
FIXED_HEADINGS = ("load", "ours", "lowest-highest", "library", "lowest-highest")
HEADINGS = ("what", "median", "lowest-highest", "of the load")


def timed(repeats: int) -> dict[str, list[float]]:
    """Seconds of each. For a fresh process."""
    from mlup_stream.memory.estimate import Certainty, Estimate
    from mlup_stream.memory.governor import MemoryGovernor
    from mlup_stream.memory.meter import snapshot

    estimate = Estimate.private(0, certainty=Certainty.EXACT, why="nothing is loaded")

    def governed() -> None:
        with MemoryGovernor() as governor:
            admission = governor.plan({"view": estimate, "path": estimate}, name="nothing")
            with governor.watching(admission) as watch:
                watch.settle()

    return {"a snapshot": _seconds(snapshot, repeats), "the governor, around one load": _seconds(governed, repeats)}


def timed_load(path: str, repeats: int) -> list[float]:
    """Seconds of the library's load. For a fresh process."""
    case = formats.case_named("pickle-arrays")
    formats.import_modules(case)
    return _seconds(lambda: case.library(path), repeats)


def timed_fixed(case: str, path: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of our load and of the library's, in turn. For a fresh process."""
    import mlup_stream as mlup

    chosen = formats.case_named(case)
    formats.import_modules(chosen)
    ways = {"ours": lambda: mlup.load(path, **dict(chosen.options)), "library": lambda: chosen.library(path)}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(repeats + 1):
        for name, load in ways.items():
            (seconds,) = _seconds(load, 1, first=False)
            if index:  # everything has run once before
                found[name].append(seconds)
    return found


def _seconds(do: Callable[[], Any], repeats: int, *, first: bool = True) -> list[float]:
    if first:
        do()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        do()
        found.append(time.perf_counter() - started)
    return found


def _fixed_rows(repeats: int) -> Iterator[list[str]]:
    for case, size_bytes in FIXED:
        if not formats.is_installed(formats.case_named(case)):
            continue
        with tempfile.TemporaryDirectory(prefix="mlup-stream-governor-") as folder:
            path = os.path.join(folder, "model" + formats.case_named(case).suffix)
            common.call("formats:write", case=case, path=path, size_bytes=size_bytes)
            common.warm(path)
            found = common.call("governor_cost:timed_fixed", case=case, path=path, repeats=repeats)
        cells = [case, *(cell for way in ("ours", "library") for cell in _cells(found[way]))]
        cells[0] += f", {format_bytes(size_bytes)}"
        yield cells


def _cells(seconds: list[float]) -> tuple[str, str]:
    return f"{statistics.median(seconds) * 1e3:.2f} ms", f"{min(seconds) * 1e3:.2f}-{max(seconds) * 1e3:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=common.size_argument, default="512MiB", help="of the file (default: 512MiB)")
    parser.add_argument("--repeat", type=int, default=50, help="how often (default: 50; the load, a tenth of it)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlup-stream-governor-") as folder:
        path = os.path.join(folder, "model.pkl")
        common.call("formats:write", case="pickle-arrays", path=path, size_bytes=arguments.size)
        common.warm(path)
        found = common.call("governor_cost:timed", repeats=arguments.repeat)
        load = common.call("governor_cost:timed_load", path=path, repeats=max(3, arguments.repeat // 10))
    load_seconds = statistics.median(load)
    rows = [
        [what, f"{statistics.median(each) * 1e3:.2f} ms", f"{min(each) * 1e3:.2f}-{max(each) * 1e3:.2f}", f"{share:.2%}"]
        for what, each in {**found, "`pickle.load(file)`": load}.items()
        for share in [statistics.median(each) / load_seconds]
    ]
    print(common.table(HEADINGS, rows))
    print("\n" + common.table(FIXED_HEADINGS, list(_fixed_rows(arguments.repeat))))
    print(f"\n{common.machine(('numpy', 'psutil'))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
