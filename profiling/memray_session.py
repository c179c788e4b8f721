"""Where does the memory of a load come from, by delivery? memray's flame graphs of FILE, beside what the kernel counted.

    python profiling/memray_session.py model.onnx --output flames/

Each delivery, and the library's own call, loads the file twice, each time in a fresh process: once under memray, whose flame
graph goes to the output folder, and once without it, for RSS and anon, because memray takes memory itself.

memray counts what is asked for, when it is asked for: an untouched 1 GiB file map is 1 GiB allocated. The table tells the two
apart: "heap" is the peak of what was allocated, "mapped" the peak of what was mapped. A map of exactly one of Python's arenas
(1 MiB) is counted as heap.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import Any

import common
import formats
from common import LIBRARY
from fresh_process import ChildFailed

# Objects/obmalloc.c: arenas of pymalloc, with and without its radix tree.
ARENA_BYTES = frozenset({1 << 20, 1 << 18})
HEADINGS = (
    "load by",
    "memray peak",
    "heap",
    "mapped",
    "peak RSS",
    "peak anon",
    "settled RSS",
    "settled anon",
    "allocations",
    "flame graph",
)


def load(path: str, format_name: str, way: str) -> Any:
    """A function that loads `path`, with everything imported that it needs."""
    case = formats.case_of_format(format_name)
    formats.import_modules(case)
    return (lambda: case.library(path)) if way == LIBRARY else formats.prepared(path, way)


def measure(path: str, format_name: str, way: str) -> dict[str, Any]:
    """One load, measured by the kernel. For a fresh process."""
    from measurement import measured

    return measured(load(path, format_name, way), lambda _: None)


def track(path: str, format_name: str, way: str, records: str, native: bool) -> None:
    """One load under memray, which writes to `records`. For a fresh process."""
    import memray

    run = load(path, format_name, way)
    with memray.Tracker(records, native_traces=native):
        model = run()
    del model


def replay(records: str) -> dict[str, int]:
    """What memray recorded: the peaks of everything, of the heap and of maps in bytes, and the number of allocations."""
    import memray

    kinds = memray.AllocatorType
    freeing = {kinds.FREE, kinds.MUNMAP, kinds.PYMALLOC_FREE}
    live: dict[int, tuple[int, bool]] = {}
    now, peak = [0, 0], [0, 0, 0]
    count = 0
    with memray.FileReader(records) as reader:
        for record in reader.get_allocation_records():
            kind = kinds(record.allocator)
            before_bytes, was_map = live.pop(record.address, (0, False))
            now[was_map] -= before_bytes
            if kind in freeing:
                # Unmapping the end of a map leaves its beginning.
                if was_map and record.size < before_bytes:
                    live[record.address] = (before_bytes - record.size, True)
                    now[True] += before_bytes - record.size
                continue
            count += 1
            is_map = kind is kinds.MMAP and record.size not in ARENA_BYTES
            live[record.address] = (record.size, is_map)
            now[is_map] += record.size
            peak = [max(peak[0], sum(now)), max(peak[1], now[False]), max(peak[2], now[True])]
    return {"all": peak[0], "heap": peak[1], "mapped": peak[2], "allocations": count}


def session(path: str, format_name: str, way: str, output: str, native: bool) -> list[str]:
    """One row of the table; its flame graph is written beside it."""
    label = formats.case_of_format(format_name).call if way == LIBRARY else f"mlup_stream, {way}"
    name = f"{os.path.basename(os.path.normpath(path))}.{way}"
    records, graph = (os.path.join(output, f"{name}.{ending}") for ending in ("bin", "html"))
    try:
        measured = common.call_and_measure("memray_session:measure", path=path, format_name=format_name, way=way)
        common.call("memray_session:track", path=path, format_name=format_name, way=way, records=records, native=native)
        counted = common.call("memray_session:replay", records=records)
        draw = [sys.executable, "-m", "memray", "flamegraph", "-f", "-o", graph, records]
        subprocess.run(draw, check=True, capture_output=True)
    except ChildFailed as error:
        common.note(f"{label}: {error}")
        return [label, "failed", *[""] * (len(HEADINGS) - 2)]
    finally:
        if os.path.exists(records):
            os.remove(records)
    size_bytes = common.size_of(path)
    return [
        label,
        *(common.ratio(counted[name], size_bytes) for name in ("all", "heap", "mapped")),
        *(common.ratio(measured[name], size_bytes) for name in ("peak_rss", "peak_anon", "settled_rss", "settled_anon")),
        str(counted["allocations"]),
        os.path.basename(graph),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="a model file, or a folder that is a model")
    parser.add_argument("--deliveries", default="", help="with commas (default: the library's call, auto and all accepted)")
    parser.add_argument("--output", default="memray", help="folder for the flame graphs (default: memray)")
    parser.add_argument("--native", action="store_true", help="with the C frames; slower")
    arguments = parser.parse_args()
    if not os.path.exists(arguments.file):
        parser.error(f"{arguments.file}: no such file")
    path = os.path.abspath(arguments.file)
    format_name, ways = common.call("formats:ways_of", path=path)
    ways = [way.strip() for way in arguments.deliveries.split(",") if way.strip()] or ways
    os.makedirs(arguments.output, exist_ok=True)
    rows = []
    for way in ways:
        common.note(f"{os.path.basename(path)}: {way}")
        rows.append(session(path, format_name, way, arguments.output, arguments.native))
    print(common.table(HEADINGS, rows))
    size = f"{common.size_of(path) / 2**20:.1f} MiB"
    print(f"\n{os.path.basename(path)}: {format_name}, {size}. Ratios to that, above the imports.")
    print(common.machine(("memray", *formats.case_of_format(format_name).packages)))
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
