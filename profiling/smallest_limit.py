"""In how little memory does FILE load and answer? The one figure that no way of counting can argue with.

    python profiling/smallest_limit.py model.onnx

For each delivery, and for the library's own call, the smallest limit is searched by halving in which a fresh process loads the
file, answers once, and answers right. The limit is a memory control group below this process's own (version 1 or 2), removed
after; where none may be made it is RLIMIT_DATA, which counts private memory only. Everything in the process counts: the
interpreter, the framework, the model. Before each try the file is taken out of the page cache, so that the pages that a load
maps or reads are charged to its own group.

"imports alone" is the smallest limit in which the same process does everything but load the file. What the libraries' own code
takes as file pages is charged to whoever touched it first, so all figures are less that, the same for each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

import answers
import common
import formats
import limiters
from common import LIBRARY
from fresh_process import ChildFailed

from mlup_stream.units import MIB, format_bytes

IMPORTS = "imports alone"
SAME = 1e-5
HEADINGS = ("load by", "smallest limit", "over imports", "over the file", "seconds there", "tries")


def attempt(path: str, case_name: str, way: str, optimize: str, ask: str | None) -> dict[str, Any]:
    """Loads and answers once. For a fresh, limited process."""
    import time

    case = formats.case_named(case_name)
    formats.import_modules(case)
    if way == IMPORTS:
        formats.prepared(path, "auto", options=case.options)
        return {"seconds": 0.0, "answer": []}
    if way == LIBRARY:
        started = time.monotonic()
        model = case.library(path)
    else:
        load = formats.prepared(path, way, optimize=optimize, options=case.options)
        started = time.monotonic()
        model = load().model_obj
    answer = answers.answer(model, ask)
    return {"seconds": time.monotonic() - started, "answer": answer}


class Search:
    """The tries of one way."""

    def __init__(self, arguments: argparse.Namespace, path: str, case_name: str, limiter: limiters.Limiter) -> None:
        self._arguments = arguments
        self._path = path
        self._case_name = case_name
        self._limiter = limiter
        self.expected: list[float] | None = None

    def run(self, way: str) -> dict[str, Any]:
        """The smallest limit in bytes for `way`, None if nothing was enough, with the seconds at that limit and the tries."""
        step_bytes = self._arguments.precision
        low, high = 0, _round_up(max(common.size_of(self._path) // 4, 64 * MIB), step_bytes)
        tries, seconds = 0, None
        while high <= self._arguments.highest:
            tries += 1
            seconds = self.fits(way, high)
            if seconds is not None:
                break
            low, high = high, high * 2
        else:
            return {"way": way, "limit_bytes": None, "seconds": None, "tries": tries}
        while high - low > step_bytes:
            middle = _round_up((low + high) // 2, step_bytes)
            if middle >= high:
                break
            tries += 1
            there = self.fits(way, middle)
            if there is None:
                low = middle
            else:
                high, seconds = middle, there
        return {"way": way, "limit_bytes": high, "seconds": seconds, "tries": tries}

    def fits(self, way: str, limit_bytes: int) -> float | None:
        """Seconds of a load and an answer under the limit; None when it did not come to the right answer."""
        common.evict(self._path)
        with self._limiter.limited(limit_bytes) as enter:
            try:
                found = self._try(way, before_exec=enter, timeout_seconds=self._arguments.timeout)
            except ChildFailed as error:
                common.note(f"{way}: {format_bytes(limit_bytes)}: {error}")
                return None
        if self.expected is not None and way != IMPORTS and answers.difference(found["answer"], self.expected) > SAME:
            common.note(f"{way}: {format_bytes(limit_bytes)}: A WRONG ANSWER")
            return None
        common.note(f"{way}: {format_bytes(limit_bytes)}: answered after {found['seconds']:.2f} s")
        return float(found["seconds"])

    def _try(self, way: str, **how: Any) -> dict[str, Any]:
        found: dict[str, Any] = common.call(
            "smallest_limit:attempt",
            path=self._path,
            case_name=self._case_name,
            way=way,
            optimize=self._arguments.optimize,
            ask=self._arguments.ask,
            **how,
        )
        return found

    def learn_the_answer(self) -> None:
        """What the library's own call answers without a limit."""
        self.expected = self._try(LIBRARY)["answer"]


def _round_up(size_bytes: int, step_bytes: int) -> int:
    return -(-size_bytes // step_bytes) * step_bytes


def rows_of(results: list[dict[str, Any]], call: str, size_bytes: int) -> list[list[str]]:
    imports_bytes = results[0]["limit_bytes"] or 0
    rows = []
    for found in results:
        label = {IMPORTS: IMPORTS, LIBRARY: f"`{call}`"}.get(found["way"], f"mlup_stream, {found['way']}")
        limit_bytes = found["limit_bytes"]
        if limit_bytes is None:
            rows.append([label, "none was enough", "", "", "", str(found["tries"])])
            continue
        above_bytes = limit_bytes - imports_bytes
        above = ["", "", ""]
        if found["way"] != IMPORTS:
            above = [f"{above_bytes / MIB:+.0f} MiB", f"{above_bytes / size_bytes:.2f}", f"{found['seconds']:.2f}"]
        rows.append([label, f"{limit_bytes / MIB:.0f} MiB", *above, str(found["tries"])])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="a model file, or a folder that is a model")
    parser.add_argument("--deliveries", default="", help="with commas (default: the library's call, auto and all accepted)")
    parser.add_argument("--precision", type=common.size_argument, default="4MiB", help="of the limit (default: 4MiB)")
    parser.add_argument("--highest", type=common.size_argument, default="32GiB", help="give up above this (default: 32GiB)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds until a try counts as failed (default: 60)")
    parser.add_argument("--optimize", default="memory", choices=("memory", "speed"))
    parser.add_argument("--ask", help="what to ask, in Python, such as 'model.predict([[0.0] * 64])' (default: see answers.py)")
    parser.add_argument("--json", action="store_true", help="print the limits as JSON")
    arguments = parser.parse_args()
    if not os.path.exists(arguments.file):
        parser.error(f"{arguments.file}: no such file")
    path = os.path.abspath(arguments.file)
    format_name, ways = common.call("formats:ways_of", path=path)
    ways = [way.strip() for way in arguments.deliveries.split(",") if way.strip()] or ways
    limiter = limiters.find_limiter()
    common.note(f"limited by: {limiter.name}")
    case = formats.case_of_format(format_name)
    search = Search(arguments, path, case.name, limiter)
    search.learn_the_answer()
    results = [search.run(way) for way in (IMPORTS, *ways)]
    size_bytes = common.size_of(path)
    if arguments.json:
        print(json.dumps({"limiter": limiter.name, "format": format_name, "size_bytes": size_bytes, "limits": results}, indent=2))
    else:
        print(common.table(HEADINGS, rows_of(results, case.call, size_bytes)))
        print(f"\n{os.path.basename(path)}: {format_name}, {size_bytes / MIB:.1f} MiB. Limited by: {limiter.name}.")
        print(common.machine(case.packages))
    return int(any(found["limit_bytes"] is None for found in results))


if __name__ == "__main__":
    sys.exit(main())
