"""What does importing each library take? The figures of `memory.import_costs`, which judge the first import on a machine.

Each import is that of a fresh interpreter: private memory, private writable address space (what RLIMIT_DATA counts) with one
processor and with all, and all address space (RLIMIT_AS). "estimated" is what the table comes to for it, with what it needs.

    python profiling/framework_imports.py [sklearn torch ...]
    python profiling/framework_imports.py --write                               # where pandas and matplotlib are not installed
    python profiling/framework_imports.py --write pandas pyarrow matplotlib     # where they are

The second and third measure each on top of what it needs, and write the table. What is not measured keeps its line.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import machine, table

from mlup_stream.memory import imports
from mlup_stream.memory.import_costs import COSTS
from mlup_stream.units import MIB, format_bytes

MODULES = {
    "keras": ("tensorflow", "keras"),
    "safetensors": ("safetensors.numpy",),
    "usearch": ("usearch.index",),
    "gensim": ("gensim.models",),
    "ai_edge_litert": ("ai_edge_litert.interpreter",),
    "skops": ("skops.io",),
    "sklearn": ("sklearn.ensemble",),  # its largest family of models
}
"""What a model's own loading imports, where that is not the library's name alone."""

# What each library imports, if it is installed: pandas, pyarrow and matplotlib are nobody's requirement.
NEEDS = {
    "numpy": (),
    "joblib": ("numpy",),
    "pyarrow": ("numpy",),
    "pandas": ("numpy", "pyarrow"),
    "matplotlib": ("numpy",),
    "sklearn": ("numpy", "joblib", "pandas"),
    "onnx": ("numpy",),
    "onnxruntime": ("numpy",),
    "lightgbm": ("numpy", "sklearn"),
    "xgboost": ("numpy", "sklearn"),
    "safetensors": ("numpy",),
    "gguf": ("numpy",),
    "skops": ("numpy", "joblib", "sklearn"),
    "catboost": ("numpy", "pandas"),
    "faiss": ("numpy",),
    "gensim": ("numpy",),
    "usearch": ("numpy",),
    "ai_edge_litert": ("numpy",),
    "h5py": ("numpy",),
    "torch": ("numpy",),
    "tensorflow": ("numpy", "h5py", "pandas", "matplotlib"),
    "keras": ("numpy",),  # measured beside TensorFlow; others can be its backend
}

TABLE = Path(imports.__file__).with_name("import_costs.py")

# In an interpreter that has imported nothing else: what two libraries share would be missing from the second.
_MEASURE = """
import importlib, json, os, sys, warnings
warnings.simplefilter("ignore")
processors, first, modules = sys.argv[1], *(each.split(",") if each else [] for each in sys.argv[2:])
if processors != "all":
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(processors)])
from mlup_stream.memory import imports
from mlup_stream.memory.learned import LearnedStore
from mlup_stream.memory.limit import Counts
from mlup_stream.memory.proc import status
for module in first:
    importlib.import_module(module)
roots = imports.to_import(modules)
estimate = imports.estimate_of(roots, LearnedStore(enabled=False))
before = status()
for module in modules:
    importlib.import_module(module)
after = status()
print(json.dumps({
    "anon": after["RssAnon"] - before["RssAnon"],
    "data": after["VmData"] - before["VmData"],
    "address": after["VmSize"] - before["VmSize"],
    "estimated_anon": estimate.needed_bytes(Counts.PRIVATE),
    "estimated_data": estimate.needed_bytes(Counts.DATA),
    "estimated_address": estimate.needed_bytes(Counts.ADDRESSES),
}))
"""


def modules_of(library: str) -> tuple[str, ...]:
    return MODULES.get(library, (library,))


def measure(modules: Iterable[str], processors: int | str = "all", *, first: Iterable[str] = ()) -> dict[str, int]:
    """What importing `modules` takes in a fresh interpreter that has imported `first`, and what it is said to take, in bytes."""
    command = [sys.executable, "-c", _MEASURE, str(processors), ",".join(first), ",".join(modules)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def is_there(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def costs_of(library: str) -> tuple[int, int, int, int, tuple[str, ...]]:
    """The library's line of the table: what it takes on top of what it needs, in MiB, each rounded up."""
    needs = NEEDS[library]
    first = [module for need in needs if is_there(need) for module in modules_of(need)] + list(modules_of(library)[:-1])
    alone, found = (measure(modules_of(library), count, first=first) for count in (1, "all"))
    processors = len(os.sched_getaffinity(0))
    per_cpu = (found["data"] - alone["data"]) / max(1, processors - 1)

    def up(size_bytes: float) -> int:
        return max(0, math.ceil(size_bytes / MIB))

    # An interpreter that has imported less of the standard library takes a little more for the first of them.
    private = up(found["anon"] + (0 if needs else MIB // 2))
    return private, up(alone["data"] - private * MIB), round(per_cpu / MIB), up(found["address"] - found["data"]), needs


def write(chosen: Iterable[str]) -> None:
    """Measures `chosen`, and writes the table with the lines that it has of others."""
    measured = {library: costs_of(library) for library in chosen}
    kept = {library: COSTS[library] for library in NEEDS if library in COSTS and library not in measured}
    rows = {library: measured.get(library) or kept.get(library) for library in NEEDS}
    lines = [f'    "{library}": {row},'.replace("'", '"') for library, row in rows.items() if row is not None]
    with_what = textwrap.fill(f"{datetime.date.today()}: {machine([library for library in NEEDS if is_there(library)])}", 128)
    header = f'''"""What importing each library takes beyond what it needs. Written by `profiling/framework_imports.py --write`.

{with_what}
"""

from __future__ import annotations

COSTS: dict[str, tuple[int, int, int, int, tuple[str, ...]]] = {{
    # in MiB: private memory, private address space beyond it, the same for each further CPU, maps of files; what it imports
'''
    TABLE.write_text(header + "\n".join(lines) + "\n}\n")


def show(chosen: Iterable[str]) -> None:
    rows: list[tuple[Any, ...]] = []
    for library in chosen:
        modules = modules_of(library)
        alone, found = (measure(modules, count) for count in (1, "all"))
        sizes = (found["anon"], found["estimated_anon"], alone["data"], found["data"], found["estimated_data"])
        more = (found["address"], found["estimated_address"])
        rows.append((", ".join(modules), *map(format_bytes, (*sizes, *more))))
    headings = ("import", "private", "estimated", "writable, 1 processor", "all", "estimated", "address space", "estimated")
    print(table(headings, rows))
    print()
    print(machine(list(chosen)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", nargs="*", help="which; all that are known and installed by default")
    parser.add_argument("--write", action="store_true", help="write the table instead")
    arguments = parser.parse_args()
    chosen = [library for library in arguments.library or NEEDS if is_there(library)]
    if arguments.write:
        write(chosen)
    else:
        show(chosen)


if __name__ == "__main__":
    main()
