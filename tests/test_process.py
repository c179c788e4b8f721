"""What a load leaves in the process: what `docs/process.md` lists, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from child import run_child
from models import KINDS, each_of, need, remove

from mlup_stream.units import MIB

# Libraries open and start things of their own when they are imported: everything is loaded once before it is looked at.
LOOK = """
import gc, locale, logging, os, random, signal, sys, threading, warnings
import importlib
for name in imports.split(", "):
    globals()[name.partition(".")[0]] = importlib.import_module(name)
import numpy
import mlup_stream as mlup
def state():
    found = {
        "signals": {int(each): repr(signal.getsignal(each)) for each in signal.valid_signals()},
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "warnings": repr(warnings.filters),
        "logging": repr((logging.root.level, logging.root.handlers)),
        "recursion": sys.getrecursionlimit(),
        "collector": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "path": list(sys.path),
        "locale": locale.setlocale(locale.LC_ALL),
        "numpy": (numpy.geterr(), repr(numpy.random.get_state())),
        "random": repr(random.getstate()),
        "threads": sorted(each.name for each in threading.enumerate()),
        "hooks": repr((sys.excepthook, sys.unraisablehook, threading.excepthook, sys.gettrace(), sys.getprofile())),
        "streams": repr((sys.stdin, sys.stdout, sys.stderr)),
    }
    os.umask(umask := os.umask(0))
    found["umask"] = umask
    try:
        import resource
        names = [each for each in dir(resource) if each.startswith("RLIMIT_")]
        found["limits"] = {each: resource.getrlimit(getattr(resource, each)) for each in names}
        found["affinity"] = sorted(os.sched_getaffinity(0))
        found["descriptors"] = len(os.listdir("/proc/self/fd"))
    except (ImportError, AttributeError, OSError):
        pass
    return found
def load():
    with mlup.open(path) as loaded:
        return eval(answer_of, {**globals(), "model": loaded.model})
first = load()
before = state()
second = load()
after = state()
answer([name for name in before if before[name] != after[name]])
"""


@pytest.mark.parametrize("name", each_of(list(KINDS)))
def test_a_load_leaves_nothing_that_the_document_does_not_list(name: str, tmp_path: Path) -> None:
    """Signals, folder, environment, warnings, logging, collector, locale, random state, threads, limits, descriptors: as before.

    But for Keras, whose initializers draw their seeds.
    """
    need(name)
    kind: Any = KINDS[name]
    path = tmp_path / kind.file_name
    kind.build(path, 2 * MIB)
    try:
        changed = run_child(LOOK, path=str(path), imports=kind.imports, answer_of=kind.answer_of)
        assert changed == (["random"] if name.startswith("keras") else [])
    finally:
        remove(path)


def test_an_exception_in_a_load_leaves_as_little(tmp_path: Path) -> None:
    """A pickle that raises half way: the same state, the collector on and the limit on memory as before."""
    path = tmp_path / "m.pkl"
    code = LOOK.replace("import mlup_stream as mlup\n", "import mlup_stream as mlup\nfrom mlup_stream.errors import MLupError\n")
    code = code.replace(
        "def load():",
        """
class Raises:
    def __reduce__(self):
        return int, ("no number",)
with open(path, "wb") as file:
    pickle.dump([bytes(2 << 20), list(range(1000)), Raises()], file)
def load():
    try:
        mlup.load(path)
    except MLupError:
        return None
    raise AssertionError
def unused():
""",
    )
    assert run_child(code, path=str(path), imports="pickle", answer_of="None") == []
