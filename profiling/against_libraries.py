"""Is our load as fast as the library's own call, and what does each take?

    python profiling/against_libraries.py --formats pickle,onnx --size 256MiB --repeat 5

For each format a model is made, then loaded by its library and by us in turn (A B A B ...), each time in a fresh process that has
done its imports and one load of a tiny file of the same format before. Medians with the lowest and the highest; memory above
what was there before, as a ratio to the file's size. The exit code is 1 when an answer differs.

Each of our loads is a first one: nothing is remembered of the file. `--again` adds one by a process that is not the first: what
passed its check, a LightGBM or XGBoost file, is not checked again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from typing import Any

import answers
import common
import formats
from common import LIBRARY
from fresh_process import ChildFailed

TINY_BYTES = 4096
AGAIN = ", again"
ANSWERS_MAY_DIFFER = 1e-5  # of the largest number: float32 sums in another order
FIGURES = ("peak_rss", "peak_anon", "settled_rss", "settled_anon", "use_rss", "use_anon")
HEADINGS = (
    *("format", "size", "load by", "seconds (lowest-highest)", "first use"),
    *("peak RSS", "anon", "settled RSS", "anon", "in use RSS", "anon", "answer"),
)


def measure(case: str, path: str, tiny: str, way: str, optimize: str, cache: str = "") -> dict[str, Any]:
    """One load of one file, with what `cache` remembers of it. For a fresh process."""
    if cache:
        os.environ.update(XDG_CACHE_HOME=cache, MLUP_STREAM_LEARNED="1")
    from measurement import measured

    chosen = formats.case_named(case)
    formats.import_modules(chosen)

    def loader(file: str) -> Any:
        if way == LIBRARY:
            return lambda: chosen.library(file)
        return formats.prepared(file, way, optimize=optimize, options=chosen.options)

    def ask(loaded: Any) -> list[float]:
        return answers.answer(loaded if way == LIBRARY else loaded.model_obj, chosen.ask)

    # What a library imports and starts at its first load is no part of loading this file.
    ask(loader(tiny)())
    return measured(loader(path), ask)


def compare(case: formats.Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both ways, in turn, over one model of the case, which is removed after."""
    with tempfile.TemporaryDirectory(prefix="mlup-stream-profiling-", dir=arguments.folder) as folder:
        path, tiny = (os.path.join(folder, f"{name}{case.suffix}") for name in ("model", "tiny"))
        common.note(f"{case.name}: making the model")
        common.call("formats:write", case=case.name, path=path, size_bytes=int(arguments.size * case.share))
        common.call("formats:write", case=case.name, path=tiny, size_bytes=TINY_BYTES)
        of_model = [each for each in common.files_of(folder) if each.startswith(path)]
        size_bytes = sum(map(os.path.getsize, of_model))
        again = (f"{arguments.delivery}{AGAIN}",) if arguments.again else ()
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in (LIBRARY, arguments.delivery, *again)}
        failures: dict[str, str] = {}
        for number in range(arguments.repeat):
            for way, found in runs.items():
                common.note(f"{case.name}: {way}, {number + 1} of {arguments.repeat}")
                for file in of_model:
                    (common.evict if arguments.cold else common.warm)(file)
                try:
                    for _ in range(2 if way in again and not found else 1):  # the first of which is not counted
                        run = common.call_and_measure(
                            "against_libraries:measure",
                            case=case.name,
                            path=path,
                            tiny=tiny,
                            way=way.removesuffix(AGAIN),
                            optimize=arguments.optimize,
                            cache=os.path.join(folder, "cache") if way in again else "",
                        )
                    found.append(run)
                except ChildFailed as error:
                    failures[way] = str(error)
    expected = runs[LIBRARY][0]["answer"] if runs[LIBRARY] else None
    ways: dict[str, dict[str, Any]] = {}
    for way, found in runs.items():
        if way in failures:
            ways[way] = {"failure": failures[way]}
        else:
            differs = None if expected is None else max(answers.difference(run["answer"], expected) for run in found)
            ways[way] = {**_medians(found), "difference": differs}
    return {"format": case.name, "call": case.call, "size_bytes": size_bytes, "ways": ways}


def _medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [run["seconds"] for run in runs]
    medians: dict[str, Any] = {
        "seconds": statistics.median(seconds),
        "seconds_lowest": min(seconds),
        "seconds_highest": max(seconds),
        "use_seconds": statistics.median(run["use_seconds"] for run in runs),
        "peak_exact": all(run["peak_exact"] for run in runs),
    }
    for name in FIGURES:
        known = [run[name] for run in runs if run[name] is not None]
        medians[name] = statistics.median(known) if known else None
    return medians


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """A row per way, ours with the ratio of the times."""
    rows = []
    for way, found in result["ways"].items():
        theirs = way == LIBRARY
        label = [
            result["format"] if theirs else "",
            f"{result['size_bytes'] / 2**20:.0f} MiB" if theirs else "",
            f"`{result['call']}`" if theirs else f"mlup_stream, {way}",
        ]
        if "failure" in found:
            rows.append([*label, "failed", *[""] * (len(HEADINGS) - len(label) - 1)])
            continue
        seconds = f"{found['seconds']:.3f} ({found['seconds_lowest']:.3f}-{found['seconds_highest']:.3f})"
        library_seconds = result["ways"][LIBRARY].get("seconds")
        if not theirs and library_seconds:
            seconds += f", {found['seconds'] / library_seconds:.2f}x"
        same = {None: "", 0.0: "same"}.get(found["difference"]) or f"differs by {found['difference']:.0e}"
        memory = [common.ratio(found[name], result["size_bytes"]) for name in FIGURES]
        rows.append([*label, seconds, f"{found['use_seconds']:.3f}", *memory, "" if theirs else same])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="", help="names, or beginnings of names, with commas; all that are installed")
    parser.add_argument("--size", type=common.size_argument, default="256MiB", help="of each model (default: 256MiB)")
    parser.add_argument("--repeat", type=int, default=5, help="loads of each kind (default: 5)")
    parser.add_argument("--delivery", default="auto", help="ours (default: auto)")
    parser.add_argument("--optimize", default="memory", choices=("memory", "speed"))
    parser.add_argument("--again", action="store_true", help="also by a process that is not the first to load the file")
    parser.add_argument("--cold", action="store_true", help="drop the file from the page cache before each load")
    parser.add_argument("--folder", help="where the models are made (default: the system's folder for temporary files)")
    parser.add_argument("--json", action="store_true", help="print the medians as JSON")
    arguments = parser.parse_args()
    wanted = [name.strip() for name in arguments.formats.split(",") if name.strip()]
    cases = [case for case in formats.CASES if formats.is_installed(case)]
    if wanted:
        cases = [case for case in cases if any(case.name.startswith(name) for name in wanted)]
    if not cases:
        parser.error(f"--formats: expected some of {', '.join(case.name for case in formats.CASES)}")
    results = [compare(case, arguments) for case in cases]
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        print(common.table(HEADINGS, [row for result in results for row in rows_of(result)], left=3))
        cache = "cold" if arguments.cold else "in the page cache"
        print(f"\nFiles {cache}, {arguments.repeat} loads each, optimize={arguments.optimize}.")
        print(common.machine(sorted({name for case in cases for name in case.packages})))
        for result in results:
            for way, found in result["ways"].items():
                if "failure" in found:
                    print(f"{result['format']}, {way}: {found['failure']}")
    agree = all(
        found.get("difference") is not None and found["difference"] <= ANSWERS_MAY_DIFFER
        for result in results
        for found in result["ways"].values()
    )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
