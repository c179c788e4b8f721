"""A load of a few kilobytes costs a few system calls: who keeps a small model per customer makes thousands of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from child import run_child
from limits import needs_cgroups, run_limited

WRITE = {
    "pickle": "import pickle; pickle.dump({'rows': list(range(200))}, open(path, 'wb'))",
    "joblib": "import joblib, numpy; joblib.dump({'a': numpy.arange(100)}, path)",
    "npy": "import numpy; numpy.save(path, numpy.arange(100))",
    "npz": "import numpy; numpy.savez(path, a=numpy.arange(100))",
    "safetensors": "import numpy, safetensors.numpy; safetensors.numpy.save_file({'a': numpy.arange(100)}, path)",
}

COUNT = """
import sys
import mlup_stream as mlup
exec(write)
for _ in range(3):
    model = mlup.load(path)
opened = []
counts = False
def hook(event, arguments):
    if counts and event in ("open", "os.listdir") and isinstance(arguments[0], (str, bytes)):
        opened.append(str(arguments[0]))
sys.addaudithook(hook)
counts = True
mlup.load(path)
counts = False
answer(opened)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the files of Linux")
@pytest.mark.parametrize("kind", WRITE)
def test_a_small_load_asks_the_kernel_at_most_eight_times(kind: str, tmp_path: Path) -> None:
    """Once everything is imported: at most 8 files of /proc and /sys are opened, and the model's own at most twice."""
    if kind not in ("pickle",):
        pytest.importorskip({"joblib": "joblib", "safetensors": "safetensors"}.get(kind, "numpy"))
    path = tmp_path / f"m.{kind}"
    opened = run_child(COUNT, path=str(path), write=WRITE[kind])
    assert len([each for each in opened if each.startswith(("/proc/", "/sys/"))]) <= 8, opened
    assert opened.count(str(path)) <= 2


EXPANDS = """
import pickle
import mlup_stream as mlup
from mlup_stream.errors import MemoryBudgetExceeded
class Large:
    def __reduce__(self):
        return bytearray, (size,)
with open(path, "wb") as file:
    pickle.dump(Large(), file)
before = open("/proc/self/statm").read().split()[1]
try:
    with mlup.open(path) as loaded:
        size = len(loaded.model)
        memory = loaded.report.memory
        answer(["loaded", size, memory.taken_bytes, len(memory.steps)])
except MemoryBudgetExceeded as error:
    answer(["refused", str(error)])
"""


@needs_cgroups
def test_a_small_file_that_becomes_large_is_neither_overlooked_nor_killed(tmp_path: Path) -> None:
    """60 bytes that ask for 64 MiB: the report says so, and memory is given back; 400 MiB in a group of 200 is a typed error."""
    arguments: dict[str, Any] = {"path": str(tmp_path / "m.pkl"), "limit_bytes": 200 << 20}
    outcome, size, taken, steps = run_limited(EXPANDS, size=64 << 20, **arguments)
    assert (outcome, size, steps) == ("loaded", 64 << 20, 3)
    assert taken >= 60 << 20
    assert run_limited(EXPANDS, size=400 << 20, **arguments)[0] == "refused"
