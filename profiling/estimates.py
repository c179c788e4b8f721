"""How good are the estimates? What each delivery of each format was said to take, beside what it took.

    python profiling/estimates.py --formats pickle,onnx --size 256MiB

Each load is a fresh process that has done its imports; the estimate is made in it from the file's headers, before the load, with
nothing learned. Figures are private memory above what was there before, as ratios to the file's size: what was measured is
an interval, since no kernel keeps a mark of it (see `mlup_stream/memory/meter.py`), and its lower end was seen from outside. "off
by" is how far outside of the interval the estimate lies, over the file's size: at most 5% for exact ones, or 2 MiB, which is what
the load cycle itself takes; a conservative one may only be too high. The exit code is 1 when one is further off.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from typing import Any

import common
import formats
from common import LIBRARY
from fresh_process import ChildFailed

from mlup_stream.units import MIB

EXACT_WITHIN = 0.05
CYCLE_BYTES = 2 * MIB
HEADINGS = (
    *("format", "delivery", "certainty", "peak estimated", "peak measured", "off by"),
    *("settled estimated", "settled measured", "off by", "follows from"),
)


def measure(case: str, path: str, way: str) -> dict[str, Any]:
    """The estimate of one delivery, and one load by it. For a fresh process."""
    from measurement import measured

    from mlup_stream.memory.governor import MemoryGovernor

    chosen = formats.case_named(case)
    formats.import_modules(chosen)
    load = formats.prepared(path, way, options=chosen.options)
    with MemoryGovernor(None, learned=False) as governor:
        rows = {row.delivery: row for row in load.__self__.plan(governor)}  # type: ignore[attr-defined]  # a bound method
    found = measured(load, lambda loaded: None)
    found["answer"] = rows[way].to_dict()["estimate"] if way in rows else None
    return found


def rows_of(case: formats.Case, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per delivery, over one model of the case, which is removed after."""
    with tempfile.TemporaryDirectory(prefix="mlup-stream-profiling-", dir=arguments.folder) as folder:
        path = os.path.join(folder, f"model{case.suffix}")
        common.note(f"{case.name}: making the model")
        common.call("formats:write", case=case.name, path=path, size_bytes=int(arguments.size * case.share))
        of_model = [each for each in common.files_of(folder) if each.startswith(path)]  # external data lies beside the model
        size_bytes = sum(map(os.path.getsize, of_model))
        _, ways = common.call("formats:ways_of", path=path)
        rows = []
        for way in ways:
            if way in (LIBRARY, "auto"):
                continue
            common.note(f"{case.name}: {way}")
            for file in of_model:
                common.warm(file)
            try:
                found = common.call_and_measure("estimates:measure", case=case.name, path=path, way=way)
            except ChildFailed as error:
                rows.append({"format": case.name, "delivery": way, "failure": str(error).splitlines()[-1]})
                continue
            rows.append({"format": case.name, "delivery": way, "size_bytes": size_bytes, **found})
        return rows


def off_by_bytes(estimated: int, lowest: int | None, highest: int | None, certainty: str) -> int | None:
    """How far the estimate lies outside of what was measured; a conservative one that is too high is not off."""
    if lowest is None or highest is None:
        return None
    if certainty == "conservative":
        return max(0, lowest - estimated)
    return max(0, lowest - estimated, estimated - highest)


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """The row with `peak_off` and `settled_off` in bytes, and `good`: whether the estimate kept what it says of itself."""
    estimate = row.get("answer")
    if estimate is None:
        return {**row, "good": "failure" not in row}
    settled = row["settled_anon"]
    offs = {
        "peak_off": off_by_bytes(
            estimate["peak_anon_bytes"], row["peak_anon"], row["peak_anon_limit"], estimate["certainty"]
        ),
        "settled_off": off_by_bytes(estimate["settled_anon_bytes"], settled, settled, estimate["certainty"]),
    }
    allowed_bytes = max(EXACT_WITHIN * row["size_bytes"], CYCLE_BYTES)
    sure = estimate["certainty"] in ("exact", "conservative")
    return {**row, **offs, "good": not sure or all((off or 0) <= allowed_bytes for off in offs.values())}


def cells(row: dict[str, Any]) -> list[str]:
    label = [row["format"], row["delivery"]]
    if "failure" in row:
        return [*label, "failed", *[""] * (len(HEADINGS) - 4), row["failure"]]
    size_bytes, estimate = row["size_bytes"], row["answer"]
    peak = common.ratio(row["peak_anon"], size_bytes)
    highest = common.ratio(row["peak_anon_limit"], size_bytes)
    measured = [peak if peak == highest else f"{peak}-{highest}", common.ratio(row["settled_anon"], size_bytes)]
    if estimate is None:
        return [*label, "none", "", measured[0], "", "", measured[1], "", ""]

    def off(name: str) -> str:
        return "?" if row[name] is None else f"{row[name] / size_bytes:.1%}"

    return [
        *label,
        estimate["certainty"],
        common.ratio(estimate["peak_anon_bytes"], size_bytes),
        measured[0],
        off("peak_off"),
        common.ratio(estimate["settled_anon_bytes"], size_bytes),
        measured[1],
        off("settled_off"),
        estimate["why"],
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="", help="names, or beginnings of names, with commas; all that are installed")
    parser.add_argument("--size", type=common.size_argument, default="256MiB", help="of each model (default: 256MiB)")
    parser.add_argument("--folder", help="where the models are made (default: the system's folder for temporary files)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    wanted = [name.strip() for name in arguments.formats.split(",") if name.strip()]
    cases = [case for case in formats.CASES if formats.is_installed(case)]
    if wanted:
        cases = [case for case in cases if any(case.name.startswith(name) for name in wanted)]
    if not cases:
        parser.error(f"--formats: expected some of {', '.join(case.name for case in formats.CASES)}")
    rows = [judged(row) for case in cases for row in rows_of(case, arguments)]
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        print(common.table(HEADINGS, map(cells, rows), left=3))
        print(f"\n{common.machine(sorted({name for case in cases for name in case.packages}))}")
    return 0 if all(row["good"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
