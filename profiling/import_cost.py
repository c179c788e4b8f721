"""What does `import mlup_stream` cost, and what does loading a 1 KB pickle add?

Each figure is that of a fresh interpreter, beside a bare one, in turns: median and spread of seconds, and of RSS.

    python profiling/import_cost.py [--repeat 15] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time

from common import machine, table

from mlup_stream.units import format_bytes

_RSS = "import os; print(int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE'))"
_WAYS = (
    ("bare interpreter", ""),
    ("import json", "import json"),
    ("import mlup_stream", "import mlup_stream"),
    ("mlup_stream.load of 1 KB", "import mlup_stream; mlup_stream.load({path!r})"),
    ("import numpy", "import numpy"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "small.pkl")
        with open(path, "wb") as file:
            pickle.dump(list(range(400)), file)
        found: dict[str, list[tuple[float, int]]] = {name: [] for name, _ in _WAYS}
        for _ in range(arguments.repeat + 1):
            for name, code in _WAYS:
                found[name].append(_run(code.format(path=path)))
    # The first of each compiled what was not compiled.
    measured = {name: runs[1:] for name, runs in found.items()}
    if arguments.json:
        print(json.dumps(measured, indent=2))
        return
    bare_seconds, bare_bytes = (statistics.median(column) for column in zip(*measured["bare interpreter"], strict=True))
    rows = []
    for name, runs in measured.items():
        seconds, sizes = zip(*runs, strict=True)
        rows.append(
            (
                name,
                f"{(statistics.median(seconds) - bare_seconds) * 1000:.0f}",
                f"{(max(seconds) - min(seconds)) * 1000:.0f}",
                format_bytes(int(statistics.median(sizes) - bare_bytes)),
            )
        )
    print(table(("above a bare interpreter", "ms, median", "ms, spread", "RSS, median"), rows))
    print()
    print(machine(["numpy"]))


def _run(code: str) -> tuple[float, int]:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", f"{code}\n{_RSS}"], check=True, capture_output=True, text=True)
    return time.perf_counter() - started, int(done.stdout)


if __name__ == "__main__":
    main()
