"""The watch: a load whose estimate was wrong is given up, one that was right is left alone, whatever fails is told in one way."""

from __future__ import annotations

import contextlib
import errno
import pickle
import re
import time

import pytest
from child import run_child
from limits import data_limit, needs_cgroups, run_limited

from mlup_stream.errors import CorruptModelError, MemoryBudgetExceeded
from mlup_stream.memory.budget import Available
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.memory.governor import MemoryGovernor
from mlup_stream.memory.limit import Limit
from mlup_stream.memory.pressure import PressureMeter
from mlup_stream.memory.watch import Watch, is_out_of_memory
from mlup_stream.units import GIB, MIB

GROWS = """
from mlup_stream.errors import MemoryBudgetExceeded
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.memory.governor import MemoryGovernor
from mlup_stream.memory.meter import snapshot

estimate = Estimate.private(estimated, certainty=Certainty(certainty), why="a test")
def load(governor):
    with governor.watching(governor.plan({"stream": estimate}, name="model.pkl")) as watch:
        kept = []
        for passed in range(0, file_size, 1 << 20):
            watch.window(passed)
            kept.append(b"x" * (growth << 20))
        watch.settle()
        return len(kept)

before = snapshot().anon_bytes
with MemoryGovernor(budget, learned=False) as governor:
    try:
        outcome, message, passed = load(governor), "", None
    except MemoryBudgetExceeded as error:
        outcome, message, passed = "given up", str(error), error.passed_bytes
    governor.give_back()
answer([outcome, message, passed, snapshot().anon_bytes - before])
"""


@needs_cgroups
@pytest.mark.parametrize("growth", [1, 3, 10])
def test_a_load_whose_estimate_was_wrong_is_given_up_before_it_is_killed(growth: int) -> None:
    """Up to ten times what it reads, in a group of 128 MiB: a typed error, and everything came back."""
    outcome, message, passed, kept = run_limited(
        GROWS, limit_bytes=128 * MIB, estimated=4 * MIB, certainty="unknown", file_size=400 * MIB, growth=growth, budget="auto"
    )
    assert outcome == "given up"
    assert 50 * MIB <= passed * growth < 128 * MIB
    assert kept <= 4 * MIB
    for words in ("model.pkl", "given up after", "4.0 MiB was estimated (unknown)", "memory."):
        assert words in message


@needs_cgroups
def test_a_load_whose_estimate_was_right_uses_the_last_byte() -> None:
    """An exact 90 MiB that were admitted are not given up because little is left near the end."""
    outcome, _, _, _ = run_limited(
        GROWS, limit_bytes=104 * MIB, estimated=90 * MIB, certainty="exact", file_size=90 * MIB, growth=1, budget="auto"
    )
    assert outcome == 90


def test_a_users_budget_is_held_without_any_limit_of_the_system() -> None:
    """32 MiB from the governor's start: a load that grows beyond them is given up within a window or two."""
    outcome, message, passed, _ = run_child(
        GROWS, estimated=4 * MIB, certainty="unknown", file_size=400 * MIB, growth=1, budget="32MiB"
    )
    assert outcome == "given up"
    assert 20 * MIB <= passed <= 34 * MIB
    assert "memory_budget of 32.0 MiB" in message


def test_without_a_budget_nothing_is_given_up() -> None:
    """memory_budget=None measures and refuses nothing."""
    outcome, _, _, _ = run_child(GROWS, estimated=1 << 50, certainty="exact", file_size=8 * MIB, growth=1, budget=None)
    assert outcome == 8


def watch_over(room_bytes: int, estimate: Estimate | None = None) -> tuple[Watch, list[int]]:
    """A watch that believes that `room_bytes` are left, and the number of times it asked."""
    asked: list[int] = []

    def available() -> Available:
        asked.append(1)
        return Available.of([Limit("memory.max", "/group", room_bytes, 0)])

    watch = Watch("model", available=available, estimate=estimate, pressure=PressureMeter())
    watch.start()
    return watch, asked


@pytest.mark.parametrize(("room", "most"), [(64 * GIB, 3), (GIB, 9), (128 * MIB, 65)])
def test_the_budget_is_asked_as_rarely_as_is_safe(room: int, most: int) -> None:
    """Of 512 windows of 1 MiB: a sixteenth of what is left may pass between two checks, up to 256 MiB."""
    watch, asked = watch_over(room)
    for passed in range(0, 512 * MIB, MIB):
        watch.window(passed)
    watch.stop()
    assert 2 <= len(asked) <= most + 1


def test_a_check_leaves_room_for_the_next_window_of_a_load_that_is_not_known() -> None:
    """3 MiB are left: given up if nothing sure is known, left alone if the load is within what it was admitted with."""
    watch, _ = watch_over(3 * MIB)
    with pytest.raises(MemoryBudgetExceeded, match="nothing was known"):
        watch.check(MIB)
    watch.stop()
    watch, _ = watch_over(3 * MIB, Estimate.private(3 * MIB, certainty=Certainty.EXACT, why=""))
    watch.check(MIB)
    watch.stop()


def test_a_load_is_given_up_when_others_have_taken_what_it_still_needs() -> None:
    """It was admitted to the last byte of what there was then: 60 MiB that are still to come do not fit into 40 MiB."""
    for still_bytes, given_up in ((30 * MIB, False), (60 * MIB, True)):
        watch, _ = watch_over(40 * MIB, Estimate.private(still_bytes, certainty=Certainty.EXACT, why=""))
        with pytest.raises(MemoryBudgetExceeded, match="others have taken") if given_up else contextlib.nullcontext():
            watch.check(MIB)
        watch.stop()


def load_that_raises(error: Exception) -> None:
    with MemoryGovernor(learned=False) as governor:
        admission = governor.plan({"path": None}, name="model.onnx", size_bytes=1)
        with governor.watching(admission):
            raise error


def test_near_the_end_of_the_file_little_has_to_be_left() -> None:
    """A load of which nothing is known is not given up when what is left of the file, at its rate, still fits."""
    watch, _ = watch_over(3 * MIB)
    watch._size_bytes = 100 * MIB
    watch._passed_bytes = 98 * MIB
    watch.check(99 * MIB)
    with pytest.raises(MemoryBudgetExceeded):
        watch.check(0)
    watch.stop()


@needs_cgroups
def test_one_large_payload_is_watched_window_by_window(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A pickle of one array of 64 MB in a group with room for 32: given up on the way, though it is read by one call."""
    path = tmp_path / "model.pckl"
    path.write_bytes(pickle.dumps(bytes(64 * MIB), protocol=4))
    outcome, passed = run_limited(
        """
        import pickle
        from mlup_stream.delivery.artifact import artifact_of
        from mlup_stream.delivery.loaded_file import LoadedFile
        from mlup_stream.errors import MemoryBudgetExceeded
        from mlup_stream.memory import governor as governing
        from mlup_stream.memory.governor import MemoryGovernor
        governing.guard_of = lambda *_, **__: None  # which would fail the allocation at once; not every system has it
        artifact = artifact_of(LoadedFile(path=path))
        with MemoryGovernor(learned=False) as governor:
            try:
                with governor.watching(governor.plan({"stream": None}, size_bytes=artifact.size_bytes)) as watch:
                    with artifact.open(on_window=watch.window) as file:
                        pickle.load(file)
                    watch.settle(artifact.release)
                answer(["loaded", 0])
            except MemoryBudgetExceeded as error:
                answer(["given up", error.passed_bytes])
        """,
        limit_bytes=48 * MIB,
        path=str(path),
    )
    assert outcome == "given up"
    assert 16 * MIB <= passed <= 40 * MIB


def test_an_error_of_the_load_itself_goes_through_unchanged() -> None:
    """Only what is out of memory is told as such."""
    error = KeyError("not in the pickle")
    with pytest.raises(KeyError) as raised:
        load_that_raises(error)
    assert raised.value is error
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("std::bad_alloc"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("can't start new thread"),
    ],
)
def test_an_allocation_that_failed_is_told_as_a_budget(error: Exception) -> None:
    """In whatever words a library has for it, also when a binarizer wrapped it; its own error is the cause."""
    wrapper = ValueError("could not be built")
    wrapper.__cause__ = error
    with pytest.raises(MemoryBudgetExceeded, match=r"model\.onnx") as raised:
        load_that_raises(wrapper)
    assert isinstance(raised.value.__cause__, ValueError)
    assert raised.value.limit is not None
    assert "\n" not in str(raised.value)


def test_other_errors_are_not_out_of_memory() -> None:
    """Nor is an endless chain a problem."""
    error = ValueError("a model of memory")
    error.__cause__ = error
    assert not is_out_of_memory(error)
    assert not is_out_of_memory(OSError(errno.ENOENT, "No such file"))
    assert not is_out_of_memory(None)


def test_what_errors_quote_of_a_file_is_no_failed_allocation() -> None:
    """A path, or a name out of a file, may have any words in it; our errors and the system's say by type what they are."""
    assert not is_out_of_memory(CorruptModelError("out of memory.pkl: it may be truncated"))
    assert not is_out_of_memory(FileNotFoundError(errno.ENOENT, "No such file or directory", "bad_alloc.bin"))
    caused = CorruptModelError("model.bin: it does not load")
    caused.__cause__ = RuntimeError("std::bad_alloc")
    assert is_out_of_memory(caused)


def test_under_an_rlimit_a_load_that_was_not_known_fails_as_a_budget() -> None:
    """Without root and without control groups: RLIMIT_DATA stands in, and the process lives."""
    outcome, message = run_child(
        """
        from mlup_stream.errors import MemoryBudgetExceeded
        from mlup_stream.memory.governor import MemoryGovernor
        with MemoryGovernor(learned=False) as governor:
            try:
                with governor.watching(governor.plan({"path": None}, name="model.pkl", size_bytes=1 << 20)) as watch:
                    block = b"x" * (256 << 20)
                answer(["loaded", ""])
            except MemoryBudgetExceeded as error:
                answer(["refused", str(error)])
        """,
        before_exec=data_limit(128 * MIB),
    )
    assert outcome == "refused"
    assert "RLIMIT_DATA of 128.0 MiB" in message


def test_a_hard_limit_stops_a_librarys_own_allocation() -> None:
    """With memory_limit="hard" a block beyond the budget is refused by the kernel, not by a check; afterwards it may be had."""
    outcome, message, after = run_child(
        """
        from mlup_stream.errors import MemoryBudgetExceeded
        from mlup_stream.memory.governor import MemoryGovernor
        with MemoryGovernor("64MiB", limit="hard", learned=False) as governor:
            try:
                with governor.watching(governor.plan({"path": None}, name="model.pkl", size_bytes=1 << 20)) as watch:
                    block = b"x" * (128 << 20)
                outcome, message = "loaded", ""
            except MemoryBudgetExceeded as error:
                outcome, message = "refused", str(error)
        answer([outcome, message, len(b"x" * (128 << 20)) >> 20])
        """
    )
    assert outcome == "refused"
    assert "memory_limit='hard'" in message
    assert after == 128


def test_under_a_hard_limit_copy_on_write_maps_count() -> None:
    """The kernel will charge the whole map, so the gate does: the read-only map is admitted, the writable one is not."""
    with MemoryGovernor("64MiB", limit="hard", learned=False) as governor:
        writable = Estimate.in_place(GIB, certainty=Certainty.EXACT, why="", copy_on_write=True)
        readable = Estimate.in_place(GIB, certainty=Certainty.EXACT, why="")
        with pytest.raises(MemoryBudgetExceeded, match="RLIMIT_DATA"):
            governor.plan({"view": writable})
        assert governor.plan({"view": readable}).delivery == "view"


@needs_cgroups
def test_pressure_is_in_the_report() -> None:
    """A step during which the kernel killed another process of the group says so, and how many.

    Not the number of times that the limit was hit: Linux 6.18 leaves `memory.failcnt` of version 1 at 0 even then.
    """
    returncode, kills, hits, source, text = run_limited(
        """
        import subprocess, sys
        from mlup_stream.memory.governor import MemoryGovernor
        with MemoryGovernor(learned=False) as governor, governor.measure("a step") as measured:
            done = subprocess.run([sys.executable, "-c", "b'x' * (256 << 20)"])
        pressure = measured.report.pressure
        answer([done.returncode, pressure.oom_kills, pressure.limit_hits, pressure.source, str(measured.report)])
        """,
        limit_bytes=64 * MIB,
    )
    assert (returncode, kills) == (-9, 1)
    assert hits >= 0
    assert "mlup-stream-test" in source
    assert f"limit hit {hits} times, processes killed 1" in text


def test_pressure_of_either_version_is_a_difference(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Stalls in seconds, limits that were hit, kills: what was there before the interval is not counted."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "proc/self/mountinfo").write_text("30 23 0:27 / /cg rw - cgroup2 cgroup2 rw\n")
    group = tmp_path / "cg"
    group.mkdir()

    def write(some: int, full: int, high: int, most: int, kills: int) -> None:
        stall = "avg10=0.00 avg60=0.00 avg300=0.00 total="
        (group / "memory.pressure").write_text(f"some {stall}{some}\nfull {stall}{full}\n")
        (group / "memory.events").write_text(f"low 9\nhigh {high}\nmax {most}\noom 9\noom_kill {kills}\noom_group_kill 9\n")

    write(1_000_000, 500_000, 10, 20, 1)
    meter = PressureMeter(str(tmp_path)).start()
    write(3_500_000, 750_000, 12, 21, 3)
    pressure = meter.stop()
    assert (pressure.stalled_seconds, pressure.all_stalled_seconds) == (2.5, 0.25)
    assert (pressure.limit_hits, pressure.oom_kills, pressure.under_oom) == (3, 2, None)
    assert pressure.source == str(group)

    for path in group.iterdir():
        path.unlink()
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/\n")
    (tmp_path / "proc/self/mountinfo").write_text("35 31 0:32 / /cg rw - cgroup cgroup rw,memory\n")
    (group / "memory.failcnt").write_text("7\n")
    (group / "memory.memsw.failcnt").write_text("3\n")
    (group / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    meter = PressureMeter(str(tmp_path)).start()
    (group / "memory.failcnt").write_text("8\n")
    (group / "memory.memsw.failcnt").write_text("4\n")
    (group / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 1\noom_kill 1\n")
    pressure = meter.stop()
    assert (pressure.limit_hits, pressure.oom_kills, pressure.under_oom) == (2, 0, True)
    assert pressure.stalled_seconds is None


def test_without_control_groups_pressure_is_the_hosts_or_unknown(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """None for what cannot be known, never 0."""
    pressure = PressureMeter(str(tmp_path)).start().stop()
    assert (pressure.stalled_seconds, pressure.limit_hits, pressure.oom_kills, pressure.under_oom) == (None,) * 4


def test_the_governor_takes_less_than_a_hundredth_of_a_large_load() -> None:
    """Everything but the collector's run, over 512 windows of 1 MiB: the quickest of 20 is under 1% of half a second.

    Copying 512 MiB into private memory takes longer than half a second on the machine of the figures in the documentation.
    """
    estimate = Estimate.private(512 * MIB, certainty=Certainty.EXACT, why="a test")

    def once() -> float:
        started = time.perf_counter()
        with MemoryGovernor(None, learned=False) as governor:
            governor.available()
            with governor.watching(governor.plan({"stream": estimate})) as watch:
                for passed in range(0, 512 * MIB, MIB):
                    watch.window(passed)
                watch.stop()
        return time.perf_counter() - started

    assert min(once() for _ in range(20)) < 0.005


def test_a_watch_says_what_it_was_of() -> None:
    """Name, seconds, the limit at the start: what a report is made of."""
    watch, _ = watch_over(GIB)
    report = watch.settle()
    assert watch.report is report
    assert report.name == "model"
    assert report.limit is not None
    assert re.search(r"^model, \d+\.\d\d s$", str(report), re.MULTILINE)
    assert "budget  1.0 GiB" in str(report)
