"""Real loads under real limits, from far too small to ample: a correct prediction or MemoryBudgetExceeded, and no process dies.

The model is 256 MB. A limit is what the process has taken once everything is imported, and a number of bytes on top.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from child import run_child
from limits import needs_cgroups, run_limited
from models import BIG_BYTES, KINDS, Kind, each_of, need, remove

from mlup_stream.units import MIB

pytestmark = [
    pytest.mark.big,
    pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="control groups and RLIMIT_DATA as Linux has them"),
]

FORMATS = (
    "pickle",
    "joblib",
    "npy",
    "npz",
    "onnx",
    "ort",
    "arrow",
    "faiss",
    "skops",
    "usearch",
    "safetensors",
    "gguf",
    "lightgbm",
    "xgboost",
    "torch",
    "torchscript",
    "keras",
    "keras-h5",
    "savedmodel",
)

TENSORFLOW = ("keras", "keras-h5", "savedmodel")
"""Each step imports TensorFlow, which takes ten seconds with a machine to itself: more time than a test of others has."""

SLOW = ("npz", "gguf", "skops", "faiss", "usearch", "lightgbm", "xgboost")
"""What goes the same way as one of the others, or takes seconds for each step: run by `make test-slow`."""
IN_PLACE = ("pickle", "joblib", "npy", "npz", "onnx", "ort", "arrow", "faiss", "usearch", "skops", "safetensors", "gguf", "torch")
NOT_ALIGNED = ("pickle", "npz", "skops")
"""Those whose arrays lie anywhere in the file, and stay in it where mapping is asked for."""
IN_PLACE_ROOM = 48
"""In which, on top of the bare process, a model of any size loads and answers if its weights stay in the file."""

# On top of the bare process, in MiB: what an in-place load needs and less than that, and fractions of the file for copies of it.
STEPS = tuple(
    (delivery, more)
    for delivery, mores in {
        "auto": (2, 4, 6, 8, 12, 16, 32, IN_PLACE_ROOM, 256, 640),
        "path": (16, 248, 264, 400, 640),
        "stream": (16, 264, 640),
        "bytes": (128, 264, 500, 530, 700),
    }.items()
    for more in mores
)
# More of the first, for what accepts so few deliveries that the steps above are fewer than twenty.
MORE = tuple(("auto", more) for more in (96, 128, 192, 288, 384))
FEW = (("auto", 2), ("auto", 24), ("auto", 640), ("path", 128), ("path", 320), ("stream", 280), ("bytes", 128), ("bytes", 700))

BARE = """
import importlib, warnings
warnings.simplefilter("ignore")
for name in imports.split(", "):
    globals()[name] = importlib.import_module(name)
import numpy
import mlup_stream as mlup
from mlup_stream.memory import proc
from mlup_stream.memory.cgroup import memory_cgroups
from mlup_stream.memory.meter import snapshot
conf = mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": path, "delivery": "auto"}, mapping=mapping)
up = mlup.UP(conf=conf)
"""

MEASURE_BARE = (
    BARE
    + """
import mlup_stream.memory.reclaim
up.ml.plan(mlup.MemoryGovernor())
mlup_stream.memory.reclaim.give_back()
group = memory_cgroups()[0] if memory_cgroups() else None
used = 0
if group is not None:
    use = "memory.usage_in_bytes" if group.version == 1 else "memory.current"
    wanted = (b"total_active_file ", b"total_inactive_file ") if group.version == 1 else (b"active_file ", b"inactive_file ")
    statistics = proc.read_file(group.folders[0] + "/memory.stat")
    used = int(proc.read_file(group.folders[0] + "/" + use)) - sum(proc.number_after(statistics, name) for name in wanted)
answer([used, proc.status()["VmData"]])
"""
)

LOAD = (
    BARE
    + """
from mlup_stream.errors import MemoryBudgetExceeded
conf.storage_kwargs["delivery"] = delivery
try:
    up.ml.load()
    model = up.ml.model_obj
    answer(["loaded", up.ml.report.delivery, eval(answer_of)])
except MemoryBudgetExceeded as error:
    answer(["refused", delivery, str(error)])
"""
)


class Subject(NamedTuple):
    """A model file, its right answer, and what a process needs before it loads it."""

    name: str
    path: Path
    kind: Any
    said: float
    bare_bytes: int
    bare_data_bytes: int

    def arguments(self) -> dict[str, Any]:
        mapping = "copy-on-write" if self.name in NOT_ALIGNED else "auto"
        return {"path": str(self.path), "imports": self.kind.imports, "answer_of": self.kind.answer_of, "mapping": mapping}


def _params() -> list[Any]:
    marks: dict[str, list[Any]] = {each.values[0]: list(each.marks) for each in each_of(FORMATS)}
    for kind in SLOW:
        marks[kind].append(pytest.mark.slow)
    for kind in TENSORFLOW:
        marks[kind].append(pytest.mark.timeout(1200))
    return [pytest.param(kind, marks=marks[kind]) for kind in FORMATS]


@pytest.fixture(scope="module", params=_params())
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """A model of 256 MB of each format in turn, removed before the next is made."""
    kind = KINDS[request.param]
    need(request.param)
    path = tmp_path_factory.mktemp("limits") / kind.file_name
    kind.build(path, BIG_BYTES)
    mapping = "copy-on-write" if request.param in NOT_ALIGNED else "auto"
    arguments = {"path": str(path), "imports": kind.imports, "answer_of": kind.answer_of, "mapping": mapping}
    try:
        outcome, _, said = run_child(LOAD, delivery="path", **arguments)
        assert outcome == "loaded"
        measure: Callable[..., Any] = run_child if needs_cgroups.args[0] else run_limited
        limit = {} if needs_cgroups.args[0] else {"limit_bytes": None}
        bare_bytes, bare_data_bytes = measure(MEASURE_BARE, **limit, **arguments)
        yield Subject(request.param, path, kind, said, bare_bytes, bare_data_bytes)
    finally:
        remove(path)


def steps_of(kind: Kind, steps: tuple[tuple[str, int], ...], fewest: int) -> tuple[tuple[str, int], ...]:
    """The steps by deliveries that the format accepts, those for copies stretched to where its most hungry one fits."""
    stretch = kind.ample / 2.5
    found = tuple((each, int(more * stretch)) for each, more in steps if each == "auto" or each in kind.deliveries)
    return found if len(found) >= fewest else found + MORE


def outcomes(subject: Subject, by: str, steps: tuple[tuple[str, int], ...]) -> list[tuple[str, int, Any]]:
    """What became of each delivery under each number of MiB on top of the bare process; two at a time."""
    bare_bytes = subject.bare_bytes if by == "cgroup" else subject.bare_data_bytes

    def step(of: tuple[str, int]) -> tuple[str, int, Any]:
        delivery, more = of
        limit_bytes = bare_bytes + more * MIB
        # What an earlier step learned would hide what the headers say.
        environment = {"MLUP_STREAM_LEARNED": "0"}
        arguments = {**subject.arguments(), "delivery": delivery, "environment": environment, "timeout_seconds": 300}
        return delivery, more, run_limited(LOAD, limit_bytes=limit_bytes, by=by, **arguments)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(step, steps))


def check(subject: Subject, found: list[tuple[str, int, Any]]) -> None:
    """Each outcome is one of the two; an ample limit is enough for everything, and what was refused told why."""
    for delivery, more, (outcome, _, said) in found:
        context = f"{delivery} with {more} MiB: {outcome}: {said}"
        if outcome == "loaded":
            assert said == subject.said, context
        else:
            assert outcome == "refused", context
            assert subject.path.name in said, context
            assert more < subject.kind.ample * 256, context
    # Sweeps in which nothing was refused, or nothing loaded, would not have looked at the edge.
    copies = "bytes" if "bytes" in subject.kind.deliveries else "path"
    assert {"loaded", "refused"} == {outcome for delivery, _, (outcome, _, _) in found if delivery == copies}


@needs_cgroups
def test_under_any_limit_of_a_control_group_a_load_answers_or_is_refused(subject: Subject) -> None:
    """At least 20 limits, from 2 MiB above the bare process to what is ample, through every delivery.

    loaded(auto) for every limit >= bare + 48 MiB, whatever the size of the file, where the weights stay in it.
    """
    steps = steps_of(subject.kind, STEPS, 20)
    assert len(steps) >= 20
    found = outcomes(subject, "cgroup", steps)
    check(subject, found)
    if subject.name in IN_PLACE:
        enough = [outcome for delivery, more, (outcome, _, _) in found if delivery == "auto" and more >= IN_PLACE_ROOM]
        assert enough
        assert set(enough) == {"loaded"}


def test_under_any_data_limit_a_load_answers_or_is_refused(subject: Subject) -> None:
    """The same under RLIMIT_DATA, which needs no rights: all limits where control groups cannot be made, otherwise a few."""
    steps = steps_of(subject.kind, STEPS, 20) if needs_cgroups.args[0] else steps_of(subject.kind, FEW, 0)
    check(subject, outcomes(subject, "data", steps))
