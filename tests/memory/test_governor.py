"""The governor as its users see it: one object that plans, watches, measures, learns and gives back."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest
from child import run_child

from mlup_stream.errors import ConfigError, MemoryBudgetExceeded
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.memory.governor import MemoryGovernor
from mlup_stream.memory.learned import LearnedStore
from mlup_stream.units import GIB, MIB


@pytest.fixture
def store(tmp_path: Path) -> LearnedStore:
    return LearnedStore(str(tmp_path / "measurements"), enabled=True)


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A model file of 4 MiB."""
    path = tmp_path / "model.pkl"
    path.write_bytes(b"x" * (4 * MIB))
    return str(path)


def estimate(size_bytes: int, certainty: Certainty = Certainty.EXACT) -> Estimate:
    return Estimate.private(size_bytes, certainty=certainty, why="a test")


def test_a_step_of_ones_own_is_measured() -> None:
    """Before, the true peak, after, and what came back, as the documentation's example prints it."""
    text, taken, kept, returned = run_child(
        """
        from mlup_stream.memory.governor import MemoryGovernor
        with MemoryGovernor(budget="2GiB", learned=False) as governor:
            with governor.measure("my step") as measured:
                b"x" * (64 << 20)
                blocks = [b"y" * 60_000 for _ in range(400)]
                pinned = b"z" * 60_000
                del blocks
        report = measured.report
        answer([str(report), report.taken_bytes, report.kept_bytes, report.returned_bytes])
        """
    )
    for words in ("my step", "before  RSS", "peak    RSS", "after   RSS", "back    ", "memory_budget of 2.0 GiB"):
        assert words in text
    assert 64 * MIB - MIB <= taken <= 68 * MIB
    assert kept <= 3 * MIB
    assert returned >= 0.8 * 400 * 60_000


def test_a_step_that_raises_has_a_report_too() -> None:
    """The error goes through, and what the step took is there."""
    with MemoryGovernor(learned=False) as governor, pytest.raises(KeyError), governor.measure("my step") as measured:
        raise KeyError
    assert measured.report is not None
    assert measured.report.peak.rss_bytes


def test_steps_may_be_nested() -> None:
    """The outer one's peak has the inner one's."""
    outer, inner = run_child(
        """
        from mlup_stream.memory.governor import MemoryGovernor
        with MemoryGovernor(learned=False) as governor, governor.measure("outer") as outer:
            b"x" * (48 << 20)
            with governor.measure("inner") as inner:
                b"x" * (16 << 20)
        answer([outer.report.taken_bytes, inner.report.taken_bytes])
        """
    )
    assert 47 * MIB <= outer <= 52 * MIB
    assert 15 * MIB <= inner <= 20 * MIB


def test_a_budget_is_spent_by_what_is_held() -> None:
    """64 MiB from the start: a block of 40 leaves about 24, and letting it go gives them back."""
    before, holding, after = run_child(
        """
        from mlup_stream.memory.governor import MemoryGovernor
        with MemoryGovernor("64MiB", learned=False) as governor:
            before = governor.available().bytes
            block = b"x" * (40 << 20)
            holding = governor.available().bytes
            del block
            answer([before, holding, governor.available().bytes])
        """
    )
    assert 63 * MIB <= before <= 64 * MIB
    assert 22 * MIB <= holding <= 24 * MIB
    assert 62 * MIB <= after <= 64 * MIB


def test_a_plan_takes_the_first_that_fits() -> None:
    """Deliveries may be enum members or their names; the admission has the reason."""
    from mlup_stream.delivery.kinds import Delivery

    with MemoryGovernor("64MiB", learned=False) as governor:
        admission = governor.plan({Delivery.PATH: estimate(100 * MIB), Delivery.STREAM: estimate(8 * MIB)}, name="model.pkl")
        assert admission.delivery == "stream"
        assert Delivery(admission.delivery) is Delivery.STREAM
        assert "path needs" in admission.reason
        with pytest.raises(MemoryBudgetExceeded, match=r"model\.pkl: needs"):
            governor.plan({"path": estimate(100 * MIB)}, name="model.pkl")


def test_what_nobody_can_say_is_guessed_by_size_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """One line in the log when it may not fit, none when there is room for ten of it."""
    with caplog.at_level(logging.WARNING, "mlup_stream"), MemoryGovernor("64MiB", learned=False) as governor:
        assert governor.plan({"path": None}, name="small.bin", size_bytes=MIB).warning == ""
        assert caplog.records == []
        admission = governor.plan({"path": None}, name="large.bin", size_bytes=GIB)
    assert admission.estimate is not None
    assert admission.estimate.certainty is Certainty.UNKNOWN
    assert len(caplog.records) == 1
    assert "large.bin" in caplog.text


TAKES = """
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.memory.governor import MemoryGovernor
from mlup_stream.memory.learned import LearnedStore
given = None if bound is None else Estimate.private(bound, certainty=Certainty.CONSERVATIVE, why="a test")
with MemoryGovernor(learned=LearnedStore(folder, enabled=True)) as governor:
    admission = governor.plan({"path": given}, path=file, format="pickle", size_bytes=4 << 20)
    with governor.watching(admission) as watch:
        block = b"x" * size
        watch.settle()
answer([admission.estimate.certainty.value, admission.estimate.peak_anon_bytes])
"""


def test_what_a_load_took_is_the_next_estimate(store: LearnedStore, file: str) -> None:
    """A conservative or missing estimate is replaced by the measurement; an exact one is neither replaced nor measured."""

    def load(given: Estimate | None, size_bytes: int) -> Estimate | None:
        with MemoryGovernor(learned=store) as governor:
            admission = governor.plan({"path": given}, path=file, format="pickle", size_bytes=4 * MIB)
            with governor.watching(admission) as watch:
                block = b"x" * size_bytes
                watch.settle()
                del block
            return admission.estimate

    # In processes of their own: what earlier tests have freed goes back during a load, and is taken off what it took.
    certainty, _ = run_child(TAKES, folder=store.folder, file=file, bound=None, size=32 * MIB)
    assert certainty == "unknown"
    run_child(TAKES, folder=store.folder, file=file, bound=GIB, size=32 * MIB)
    certainty, peak_bytes = run_child(TAKES, folder=store.folder, file=file, bound=GIB, size=0)
    assert certainty == "learned"
    assert 31 * MIB <= peak_bytes <= 40 * MIB
    exact = load(estimate(7), 0)
    assert exact == estimate(7)
    os.utime(file, (1, 1))
    third = load(None, 0)
    assert third is not None
    assert third.certainty is Certainty.UNKNOWN


def test_a_load_that_failed_teaches_nothing(store: LearnedStore, file: str) -> None:
    """Half a load says nothing of a whole one."""
    with MemoryGovernor(learned=store) as governor:
        admission = governor.plan({"path": None}, path=file, format="pickle")
        with pytest.raises(KeyError), governor.watching(admission):
            raise KeyError
        assert governor.plan({"path": None}, path=file, format="pickle").estimate is None


def test_loads_that_overlap_teach_nothing(store: LearnedStore, file: str) -> None:
    """Two threads' loads are measured together: neither is remembered, and the next one that is alone is."""

    def load(meanwhile: bool) -> None:
        def other() -> None:
            with MemoryGovernor(learned=False) as governor, governor.watching(governor.plan({"path": None})):
                pass

        with MemoryGovernor(learned=store) as governor:
            admission = governor.plan({"path": None}, path=file, format="pickle")
            with governor.watching(admission) as watch:
                if meanwhile:
                    thread = threading.Thread(target=other)
                    thread.start()
                    thread.join()
                watch.settle()

    def known() -> bool:
        with MemoryGovernor(learned=store) as governor:
            return governor.plan({"path": None}, path=file, format="pickle").estimate is not None

    load(meanwhile=True)
    assert not known()
    load(meanwhile=False)
    assert known()


def test_small_files_are_not_worth_remembering(store: LearnedStore, tmp_path: Path) -> None:
    """What a file below 1 MiB takes is lost in the noise of a process."""
    (tmp_path / "small.pkl").write_bytes(b"x")
    with MemoryGovernor(learned=store) as governor:
        assert governor.plan({"path": None}, path=tmp_path / "small.pkl", format="pickle").key is None


def test_the_learned_store_can_be_switched_off(file: str) -> None:
    """By the governor's argument."""
    with MemoryGovernor(learned=False) as governor:
        assert not governor.learned.enabled
        with governor.watching(governor.plan({"path": None}, path=file, format="pickle")) as watch:
            watch.settle()


def test_rows_admit_nothing(store: LearnedStore, file: str) -> None:
    """The rows of the command line: every delivery in order, guesses and lessons included, whether they fit or not."""
    with MemoryGovernor("64MiB", learned=store) as governor:
        rows = governor.weigh({"path": None, "view": estimate(GIB)}, path=file, format="pickle", size_bytes=4 * MIB)
    assert [(row.delivery, row.fits) for row in rows] == [("path", True), ("view", False)]


def test_a_ticket_is_given_back_with_the_load_and_with_the_governor(tmp_path: Path) -> None:
    """At the end of the watched block, and for a load that was planned and not carried out at the end of the governor's."""

    def tickets() -> int:
        return len(list(tmp_path.rglob("*.ticket")))

    with MemoryGovernor(ticket=tmp_path, learned=False) as governor:
        admission = governor.plan({"path": estimate(MIB)})
        assert tickets() == 1
        with governor.watching(admission) as watch:
            watch.settle()
            assert tickets() == 1
        assert tickets() == 0
        governor.plan({"path": estimate(MIB)})
        assert tickets() == 1
    assert tickets() == 0


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"budget": "lots"}, "memory_budget"),
        ({"limit": "harder"}, "memory_limit"),
        ({"budget": None, "limit": "hard"}, "memory_limit"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, object], field: str) -> None:
    """Before anything is measured."""
    with pytest.raises(ConfigError, match=field) as failed:
        MemoryGovernor(**arguments)  # type: ignore[arg-type]
    assert failed.value.field == field


def test_the_governor_is_in_the_packages_front_room() -> None:
    """`mlup.MemoryGovernor`, as the documentation has it."""
    import mlup_stream as mlup

    assert mlup.MemoryGovernor is MemoryGovernor


def test_memory_imports_nothing_of_the_rest() -> None:
    """Dependencies point one way: to errors, units and the entries of what is remembered."""
    assert run_child(
        """
        import sys, types
        import importlib.util
        # The package without its front room, which imports everything.
        spec = importlib.util.find_spec("mlup_stream")
        package = types.ModuleType("mlup_stream")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["mlup_stream"] = package
        import mlup_stream.memory.governor
        parts = sorted({name.split(".")[1] for name in sys.modules if name.startswith("mlup_stream.")})
        heavy = [name for name in ("numpy", "psutil", "platformdirs", "filelock", "ctypes", "tempfile") if name in sys.modules]
        answer([parts, heavy])
        """
    ) == [["entries", "errors", "memory", "units"], []]
