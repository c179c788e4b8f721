"""What does the governor cost? A snapshot, and everything that it does around one load, beside the load of a 512 MB file.

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
from collections.abc import Callable
from typing import Any

import common
import formats

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


def _seconds(do: Callable[[], Any], repeats: int) -> list[float]:
    do()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        do()
        found.append(time.perf_counter() - started)
    return found


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
    print(f"\n{common.machine(('numpy', 'psutil'))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
