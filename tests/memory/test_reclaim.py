"""Giving back: each step returns what only it can return, and says what is still held."""

from __future__ import annotations

import ctypes.util
import json
import sys
from typing import Any

import pytest
from child import run_child

from mlup_stream.memory import allocator
from mlup_stream.memory.meter import Peak, Snapshot
from mlup_stream.memory.pressure import Pressure
from mlup_stream.memory.reclaim import ReclaimStep, give_back
from mlup_stream.memory.report import MemoryReport
from mlup_stream.units import MIB

SLACK_BYTES = 2 * MIB
NAMES = ["raw data released", "collector run", "allocator trimmed"]


def test_each_step_returns_what_is_its_own() -> None:
    """Raw bytes go with the release, a cycle with the collector, the allocator's free pages with the trim."""
    steps = run_child(
        """
        import gc
        from mlup_stream.memory.reclaim import give_back
        gc.disable()
        raw = [b"x" * (48 << 20)]
        class Cycle: pass
        cycle = Cycle()
        cycle.itself, cycle.payload = cycle, b"x" * (32 << 20)
        del cycle
        blocks = [b"x" * 60_000 for _ in range(400)]   # 24 MB inside the heap
        pinned = b"y" * 60_000                         # on top of them, so that free alone returns nothing
        def release():
            raw.clear()
            blocks.clear()
            return ()
        answer([[step.name, step.returned_bytes, list(step.held_by)] for step in give_back(release)])
        """
    )
    assert [name for name, _, _ in steps] == NAMES
    released, collected, trimmed = (returned for _, returned, _ in steps)
    assert 48 * MIB - SLACK_BYTES <= released <= 48 * MIB + SLACK_BYTES
    assert 32 * MIB - SLACK_BYTES <= collected <= 32 * MIB + SLACK_BYTES
    assert 0.8 * 400 * 60_000 <= trimmed <= 400 * 60_000 + SLACK_BYTES
    assert all(held_by == [] for _, _, held_by in steps)


@pytest.mark.parametrize("promoted", [False, True])
def test_a_load_collects_the_cycles_that_it_made(promoted: bool) -> None:
    """A cycle made under a watch is freed when it settles, also after a collection has moved it to the oldest generation."""
    alive, collected_bytes = run_child(
        """
        import gc, weakref
        import mlup_stream as mlup
        class Cycle: pass
        with mlup.MemoryGovernor(None) as governor, governor.measure("what is imported at the first"):
            pass
        gc.disable()    # or it may run by itself before the step has ended
        with mlup.MemoryGovernor(None) as governor, governor.measure("a step") as measured:
            cycle = Cycle()
            cycle.itself, cycle.payload = cycle, b"x" * (32 << 20)
            if promoted:
                gc.collect(0)
                gc.collect(1)
            alive = weakref.ref(cycle)
            del cycle
        answer([alive() is not None, measured.report.steps[1].returned_bytes])
        """,
        promoted=promoted,
    )
    assert not alive
    assert collected_bytes >= 32 * MIB - SLACK_BYTES


def test_a_load_does_not_collect_what_was_there_before() -> None:
    """What is older than a load is left to the collector's own time: walking it would take longer than the load."""
    collected = run_child(
        """
        import gc
        import mlup_stream as mlup
        with mlup.MemoryGovernor(None) as governor, governor.measure("what is imported at the first"):
            pass
        gc.collect()
        generations = []
        gc.callbacks.append(lambda phase, info: generations.append(info["generation"]))
        with mlup.MemoryGovernor(None) as governor, governor.measure("a step"):
            taken = b"x" * (8 << 20)  # of less than 1 MiB nothing is collected at all
        answer(generations)
        """
    )
    assert collected
    assert max(collected) == 1


def test_what_is_still_held_is_in_the_step() -> None:
    """Every release is run, in order, and what each says of its holders is kept."""
    ran: list[str] = []

    def first() -> tuple[str, ...]:
        ran.append("first")
        return ("an array over the view",)

    def second() -> tuple[str, ...]:
        ran.append("second")
        return ()

    steps = give_back(first, second)
    assert ran == ["first", "second"]
    assert steps[0].held_by == ("an array over the view",)
    assert [step.held_by for step in steps[1:]] == [(), ()]


def test_a_release_that_fails_is_reported_and_the_others_run() -> None:
    """Giving back runs while a load's own error is on its way out, which nothing may replace."""
    ran: list[bool] = []

    def fails() -> tuple[str, ...]:
        raise BufferError("cannot close exported pointers exist")

    def works() -> tuple[str, ...]:
        ran.append(True)
        return ()

    held_by = give_back(fails, works)[0].held_by
    assert ran == [True]
    assert len(held_by) == 1
    assert "fails" in held_by[0]
    assert "BufferError: cannot close" in held_by[0]


def test_a_c_library_without_malloc_trim_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is in the report all the same and says why it returned nothing."""
    monkeypatch.setattr(allocator, "find_trim", lambda: None)
    step = give_back()[2]
    assert step.name == "allocator trimmed"
    assert "may keep what is freed" in step.held_by[0]


PRELOADED = {
    "glibc": "",
    "mimalloc": "libmimalloc.so.2",
    "tcmalloc": "libtcmalloc_minimal.so.4",
    "jemalloc": "libjemalloc.so.2",
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="allocators are preloaded there")
@pytest.mark.parametrize("name", PRELOADED)
def test_the_allocator_in_use_is_asked_to_give_back(name: str) -> None:
    """Of 160 MiB of small blocks, freed but for the last hundred, 60% come back, whichever allocator was preloaded."""
    library = ctypes.util.find_library(PRELOADED[name].partition(".")[0].removeprefix("lib")) if PRELOADED[name] else ""
    if library is None:
        pytest.skip(f"{name} is not installed; .ci/run installs it where it can")
    returned, held, in_use = run_child(
        """
        import ctypes
        from mlup_stream.memory import allocator
        from mlup_stream.memory.meter import rss_bytes
        from mlup_stream.memory.reclaim import give_back
        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        blocks = [libc.malloc(1600) for _ in range(100_000)]
        for block in blocks:
            ctypes.memset(block, 1, 1600)
        full = rss_bytes()
        for block in blocks[:-100]:
            libc.free(block)
        steps = give_back()
        answer([full - rss_bytes(), steps[-1].held_by, allocator.name()])
        """,
        environment={"LD_PRELOAD": library},
    )
    assert returned >= 0.6 * 100_000 * 1600
    assert held == []
    assert name in in_use


def _report(**values: Any) -> MemoryReport:
    return MemoryReport(
        Snapshot(rss_bytes=50 * MIB, anon_bytes=30 * MIB, file_bytes=20 * MIB),
        Peak(250 * MIB, True, 130 * MIB, 230 * MIB, "the kernel's high-water mark"),
        Snapshot(rss_bytes=150 * MIB, anon_bytes=130 * MIB, file_bytes=20 * MIB),
        (ReclaimStep("raw data released", 100 * MIB, ("exported buffers of the view of model.npy",)),),
        **values,
    )


def test_a_report_says_before_peak_after_and_what_came_back() -> None:
    """As text for a person, and as figures."""
    report = _report(name="my step", seconds=1.5, pressure=Pressure(limit_hits=3, oom_kills=0, source="/group"))
    text = str(report)
    for words in (
        "my step, 1.50 s",
        "before  RSS 50.0 MiB, anon 30.0 MiB, file 20.0 MiB",
        "peak    RSS 250.0 MiB, anon 130.0 MiB to 230.0 MiB",
        "after   RSS 150.0 MiB",
        "back    100.0 MiB: raw data released 100.0 MiB",
        "held by exported buffers of the view of model.npy",
        "limit hit 3 times, processes killed 0",
    ):
        assert words in text
    assert (report.taken_bytes, report.kept_bytes, report.returned_bytes) == (200 * MIB, 100 * MIB, 100 * MIB)


def test_a_report_is_json() -> None:
    """Everything in it goes through JSON and back unchanged."""
    values = _report().to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["steps"][0]["held_by"] == ["exported buffers of the view of model.npy"]


def test_what_a_report_does_not_know_it_calls_unknown() -> None:
    """On a system that tells little, the text says unknown and at least."""
    text = str(MemoryReport(Snapshot(rss_bytes=MIB), Peak(2 * MIB, False, None, None, "samples"), Snapshot(rss_bytes=MIB)))
    assert "anon unknown" in text
    assert "at least 2.0 MiB" in text
