"""What does a limited test cost, and how often is its verdict wrong on a busy machine?

    python profiling/limited_tests.py --repeat 50 --busy 2

`--repeat` runs of one test that allocates 64 MiB, with limits 5% above and 5% below that, while `--busy` processes do nothing but
compute; then the seconds of an empty test with a limit and of the same file run by pytest by itself, in turn. The exit code is 1
when a verdict was wrong.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

import common

TESTS = """
import pytest

def allocate(mib):
    taken = bytearray(mib << 20)
    taken[::4096] = bytes(len(taken[::4096]))

@pytest.mark.parametrize("run", range({repeat}))
@pytest.mark.limit_{figure}("{above} MiB")
def test_within(run):
    allocate(64)

@pytest.mark.parametrize("run", range({repeat}))
@pytest.mark.limit_{figure}("{below} MiB")
def test_over(run):
    allocate(64)
"""
EMPTY = "import pytest\n{marker}\ndef test_nothing():\n    pass\n"
LIMIT = '@pytest.mark.limit_anon("64 MiB")'
_PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "mlup_stream.testing.plugin", "-p", "no:cacheprovider")


def verdicts(folder: str, figure: str, repeat: int) -> tuple[int, int]:
    """How many of the tests within the limit failed, and how many over it passed."""
    source = TESTS.format(repeat=repeat, figure=figure, above=64 * 1.05, below=64 * 0.95)
    said = _run(folder, source, "-rA")
    return said.count("\nFAILED test_it.py::test_within"), said.count("\nPASSED test_it.py::test_over")


def seconds(folder: str, marker: str) -> float:
    """Of a run of pytest with one empty test."""
    begun = time.monotonic()
    _run(folder, EMPTY.format(marker=marker))
    return time.monotonic() - begun


def _run(folder: str, source: str, *options: str) -> str:
    with open(os.path.join(folder, "test_it.py"), "w", encoding="utf-8") as file:
        file.write(source)
    path = os.pathsep.join([str(common.HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [*_PYTEST, *options, "test_it.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise SystemExit(done.stdout + done.stderr)
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=50, help="runs of each test (default: 50)")
    parser.add_argument("--busy", type=int, default=2, help="processes that compute meanwhile (default: 2)")
    arguments = parser.parse_args()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(arguments.busy)]
    wrong = 0
    rows = []
    try:
        with tempfile.TemporaryDirectory(prefix="mlup-stream-profiling-") as folder:
            for figure in ("rss", "anon", "pss"):
                common.note(f"limit_{figure}: {2 * arguments.repeat} tests")
                failed, passed = verdicts(folder, figure, arguments.repeat)
                wrong += failed + passed
                rows.append((f"limit_{figure}", str(2 * arguments.repeat), str(failed), str(passed)))
    finally:
        for each in busy:
            each.kill()
            each.wait()
    print(common.table(("marker", "tests, 5% from the limit", "failed within it", "passed over it"), rows))
    with tempfile.TemporaryDirectory(prefix="mlup-stream-profiling-") as folder:
        pairs = [(seconds(folder, ""), seconds(folder, LIMIT)) for _ in range(7)]
    plain, limited = (statistics.median(each) for each in zip(*pairs, strict=True))
    print(f"\nA run of pytest with one empty test: {plain:.2f} s; with a limit: {limited:.2f} s, that is")
    print(f"{limited - plain:.2f} s for the test's process, in which Python and pytest start and import their plug-ins again.")
    print(f"\n{arguments.busy} processes computing during the first table, none during the second.")
    print(common.machine(("pytest", "psutil")))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
