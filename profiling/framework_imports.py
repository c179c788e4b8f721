"""What does importing each library take? The figures of `mlup_stream.memory.imports`, which judge the first import on a machine.

Each import is that of a fresh interpreter: private memory, and private writable address space (what RLIMIT_DATA counts) with one
processor and with all. "estimated" is what the table in `imports` comes to for it, with what it needs.

    python profiling/framework_imports.py [sklearn torch ...]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import warnings
from typing import Any

from common import call, machine, table

from mlup_stream.memory import imports
from mlup_stream.memory.learned import LearnedStore
from mlup_stream.memory.limit import Counts
from mlup_stream.memory.proc import status
from mlup_stream.units import format_bytes

# What a model's own loading imports, where that is not the library's name alone.
_MODULES = {"sklearn": "sklearn.ensemble", "safetensors": "safetensors.numpy"}


def measure(module: str, processors: int | None) -> dict[str, int]:
    """What importing `module` takes in this process, in bytes."""
    if processors is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:processors])
    estimate = imports.estimate_of(imports.to_import([module]), LearnedStore(enabled=False))
    before = status()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module(module)
    after = status()
    return {
        "anon": after["RssAnon"] - before["RssAnon"],
        "data": after["VmData"] - before["VmData"],
        "estimated_anon": estimate.needed_bytes(Counts.PRIVATE),
        "estimated_data": estimate.needed_bytes(Counts.DATA),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", nargs="*", help="which; all that are known and installed by default")
    # Keras is nothing without its backend.
    chosen = parser.parse_args().library or sorted(imports.KNOWN - {"keras"})
    rows: list[tuple[Any, ...]] = []
    for library in chosen:
        if importlib.util.find_spec(library) is None:
            continue
        module = _MODULES.get(library, library)
        alone, found = (call("framework_imports:measure", module=module, processors=count) for count in (1, None))
        sizes = (found["anon"], found["estimated_anon"], alone["data"], found["data"], found["estimated_data"])
        rows.append((module, *map(format_bytes, sizes)))
    headings = ("import", "private", "estimated", "address space, 1 processor", "all", "estimated")
    print(table(headings, rows))
    print()
    print(machine([library for library in chosen if importlib.util.find_spec(library) is not None]))


if __name__ == "__main__":
    main()
