"""What does importing each library take? The figures of `mlup_stream.memory.imports`, which judge the first import on a machine.

Each import is that of a fresh interpreter: private memory, and private writable address space (what RLIMIT_DATA counts) with one
processor and with all. "estimated" is what the table in `imports` comes to for it, with what it needs.

    python profiling/framework_imports.py [sklearn torch ...]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from common import machine, table

from mlup_stream.memory import imports
from mlup_stream.units import format_bytes

MODULES = {
    "keras": ("tensorflow", "keras"),
    "safetensors": ("safetensors.numpy",),
    "sklearn": ("sklearn.ensemble",),
}
"""What a model's own loading imports, where that is not the library's name alone."""

# In an interpreter that has imported nothing else: what two libraries share would be missing from the second.
_MEASURE = """
import importlib, json, os, sys, warnings
warnings.simplefilter("ignore")
processors, *modules = sys.argv[1:]
if processors != "all":
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(processors)])
from mlup_stream.memory import imports
from mlup_stream.memory.learned import LearnedStore
from mlup_stream.memory.limit import Counts
from mlup_stream.memory.proc import status
estimate = imports.estimate_of(imports.to_import(modules), LearnedStore(enabled=False))
before = status()
for module in modules:
    importlib.import_module(module)
after = status()
print(json.dumps({
    "anon": after["RssAnon"] - before["RssAnon"],
    "data": after["VmData"] - before["VmData"],
    "estimated_anon": estimate.needed_bytes(Counts.PRIVATE),
    "estimated_data": estimate.needed_bytes(Counts.DATA),
}))
"""


def modules_of(library: str) -> tuple[str, ...]:
    return MODULES.get(library, (library,))


def measure(modules: Iterable[str], processors: int | str = "all") -> dict[str, int]:
    """What importing `modules` takes in a fresh interpreter, and what it is said to take, in bytes."""
    command = [sys.executable, "-c", _MEASURE, str(processors), *modules]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", nargs="*", help="which; all that are known and installed by default")
    chosen = parser.parse_args().library or sorted(imports.KNOWN)
    rows: list[tuple[Any, ...]] = []
    for library in chosen:
        if importlib.util.find_spec(library) is None:
            continue
        modules = modules_of(library)
        alone, found = (measure(modules, count) for count in (1, "all"))
        sizes = (found["anon"], found["estimated_anon"], alone["data"], found["data"], found["estimated_data"])
        rows.append((", ".join(modules), *map(format_bytes, sizes)))
    headings = ("import", "private", "estimated", "address space, 1 processor", "all", "estimated")
    print(table(headings, rows))
    print()
    print(machine([library for library in chosen if importlib.util.find_spec(library) is not None]))


if __name__ == "__main__":
    main()
