"""Loads of one process at once, and a reload whose old model somebody keeps: what fits alone may not fit beside the other."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
from child import run_child
from limits import needs_cgroups, run_limited

from mlup_stream.errors import MemoryBudgetExceeded
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.memory.governor import MemoryGovernor
from mlup_stream.memory.meter import Peak, Snapshot
from mlup_stream.memory.report import MemoryReport
from mlup_stream.memory.running import Running, promised
from mlup_stream.units import MIB

MODEL_BYTES = 128 * MIB


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two matrices of 128 MiB; by `stream` each becomes private memory."""
    numpy = pytest.importorskip("numpy")
    paths = [tmp_path_factory.mktemp("models") / f"{name}.npy" for name in "ab"]
    for path in paths:
        numpy.save(path, numpy.arange(MODEL_BYTES // 8).reshape(-1, 1024))
    return list(map(str, paths))


TOGETHER = """
import threading
import numpy
import mlup_stream as mlup
from mlup_stream.errors import MemoryBudgetExceeded
start, outcomes, kept = threading.Barrier(2), [], []
def load(path):
    conf = mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": path, "delivery": "stream"}, **settings)
    up = mlup.UP(conf=conf)
    start.wait()
    try:
        up.ml.load()
        kept.append(up)
        outcomes.append(["loaded", int(up.ml.model_obj[-1, -1])])
    except MemoryBudgetExceeded as error:
        outcomes.append(["refused", str(error)])
threads = [threading.Thread(target=load, args=(path,)) for path in paths]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
answer(sorted(outcomes))
"""


def loaded_one(outcomes: list[list[object]]) -> None:
    (first, value), (second, message) = outcomes
    assert (first, value) == ("loaded", MODEL_BYTES // 8 - 1)
    assert second == "refused"
    assert "which this process is loading" in str(message)


@needs_cgroups
@pytest.mark.parametrize("attempt", range(3))
def test_of_two_loads_that_do_not_fit_together_one_wins(models: list[str], attempt: int) -> None:
    """In a group of 260 MiB, two of 128 MiB at once: one is there, the other is refused and says for whom; nobody is killed."""
    loaded_one(run_limited(TOGETHER, limit_bytes=260 * MIB, paths=models, settings={}))


def test_a_budget_in_bytes_holds_two_loads_too(models: list[str]) -> None:
    """200 MiB each, on a machine that has more: what the other is promised is not there for this one."""
    loaded_one(run_child(TOGETHER, paths=models, settings={"memory_budget": "200MiB"}))


def test_who_waits_for_its_turn_has_its_whole_budget(models: list[str], tmp_path: Path) -> None:
    """With tickets the second load begins to count when its turn comes: what the first took meanwhile is not its own."""
    settings = {"memory_budget": "200MiB", "memory_ticket": True}
    outcomes = run_child(TOGETHER, paths=models, settings=settings, environment={"TMPDIR": str(tmp_path)})
    assert [each[0] for each in outcomes] == ["loaded", "loaded"]


def test_what_a_load_was_promised_is_not_promised_again() -> None:
    """From its admission on, before it has taken a byte, until it has ended; then there is room for the other."""
    needs = {"stream": Estimate.private(60 * MIB, certainty=Certainty.EXACT, why="a test")}
    refused: list[str] = []

    def other() -> None:
        with MemoryGovernor("100MiB", learned=False) as governor:
            try:
                governor.plan(needs, name="b.npy")
            except MemoryBudgetExceeded as error:
                refused.append(str(error))

    def try_other() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    with MemoryGovernor("100MiB", learned=False) as governor:
        admission = governor.plan(needs, name="a.npy")
        try_other()
        assert len(refused) == 1
        assert "a.npy will still take" in refused[0]
        with governor.watching(admission) as watch:
            watch.settle()
        try_other()
        assert len(refused) == 1
        governor.plan(needs, name="a.npy")
    try_other()  # planned and not carried out: the promise went with the governor
    assert len(refused) == 1


def test_a_load_that_ends_takes_nothing_off_what_the_other_needs() -> None:
    """The memory of the one that is done is not taken for the first half of the one that has not begun."""
    found: list[int] = []

    def slow() -> None:
        running = Running("slow", 50 * MIB)
        begun.set()
        done.wait()
        running.end()

    begun, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=slow)
    thread.start()
    begun.wait()
    quick = Running("quick", 40 * MIB)
    kept = b"x" * (40 * MIB)
    quick.end()
    found.append(promised()[0])
    done.set()
    thread.join()
    del kept
    assert found[0] >= 45 * MIB
    assert promised() == (0, "")


RELOAD = """
import mlup_stream as mlup
from mlup_stream.errors import MemoryBudgetExceeded
up = mlup.UP(conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": path, "delivery": "stream"}))
up.ml.load()
keep = up.ml.model_obj if held else None
try:
    up.ml.load(force_loading=True)
    answer(["loaded", int(up.ml.model_obj[-1, -1])])
except MemoryBudgetExceeded as error:
    answer(["refused", str(error), up.ml.loaded and up.ml.model_obj is keep])
"""


@needs_cgroups
def test_a_reload_counts_on_what_really_came_back(models: list[str]) -> None:
    """In a group for one: with the old model let go it loads; while somebody holds it, it is refused, and the old one stays."""
    assert run_limited(RELOAD, limit_bytes=260 * MIB, path=models[0], held=False) == ["loaded", MODEL_BYTES // 8 - 1]
    outcome, message, stays = run_limited(RELOAD, limit_bytes=260 * MIB, path=models[0], held=True)
    assert outcome == "refused"
    assert "the model that it replaces is still held by" in message
    assert stays


def test_libraries_that_are_mapped_are_not_the_models(tmp_path: Path) -> None:
    """RSS rose by 183 MiB, of 283 private and 367 of libraries before: what is remembered is 183, not the peak less 283."""
    from mlup_stream.memory.governor import _measured

    report = MemoryReport(
        Snapshot(rss_bytes=650 * MIB, anon_bytes=283 * MIB, file_bytes=367 * MIB),
        Peak(833 * MIB, True, 300 * MIB, 833 * MIB, "the kernel's mark"),
        Snapshot(rss_bytes=800 * MIB, anon_bytes=420 * MIB, file_bytes=380 * MIB),
        (),
    )
    measured = _measured(report)
    assert measured is not None
    assert measured.peak_anon_bytes == 183 * MIB
    assert measured.settled_anon_bytes == 137 * MIB


def test_what_is_known_of_one_delivery_bounds_the_others(tmp_path: Path) -> None:
    """`auto` does not leave a delivery that is known not to fit for one that builds the same objects, of which less is known."""
    from mlup_stream.memory.learned import LearnedStore, LoadKey, Measured

    path = tmp_path / "m.pkl"
    path.write_bytes(bytes(2 * MIB))
    store = LearnedStore(str(tmp_path / "store"), enabled=True)
    key = LoadKey.of(path, "pickle", "view")
    assert key is not None
    guess = Estimate.private(30 * MIB, certainty=Certainty.UNKNOWN, why="a guess")
    for size in (300, 280):
        store.record(key, Measured(size * MIB, 0, 250 * MIB, 0))
    messages = []
    for _ in range(2):
        with MemoryGovernor("100MiB", learned=store) as governor, pytest.raises(MemoryBudgetExceeded) as refused:
            governor.plan({"view": guess, "stream": guess}, name="m.pkl", path=path, format="pickle", size_bytes=2 * MIB)
        messages.append(str(refused.value))
    assert re.search(r"needs 25[23]\.", messages[0])  # the model alone, and the kernel's share
    with MemoryGovernor("100MiB", learned=store) as governor:  # refused twice, and two measurements are forgotten
        assert governor.plan({"view": guess}, name="m.pkl", path=path, format="pickle", size_bytes=2 * MIB).delivery == "view"


def test_a_refusal_by_what_was_learned_says_so(tmp_path: Path) -> None:
    """How many loads it was learned from, and the command that forgets it."""
    from mlup_stream.memory.learned import LearnedStore, LoadKey, Measured

    path = tmp_path / "m.pkl"
    path.write_bytes(bytes(2 * MIB))
    store = LearnedStore(str(tmp_path / "store"), enabled=True)
    key = LoadKey.of(path, "pickle", "view")
    assert key is not None
    for _ in range(3):
        store.record(key, Measured(300 * MIB, 0, 250 * MIB, 0))
    learned = r"learned from 3 loads of this file: `mlup-stream learned forget m\.pkl`"
    with MemoryGovernor("100MiB", learned=store) as governor, pytest.raises(MemoryBudgetExceeded, match=learned):
        governor.plan({"view": None}, name="m.pkl", path=path, format="pickle", size_bytes=2 * MIB)
