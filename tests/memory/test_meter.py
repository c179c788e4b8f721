"""What is measured is what the kernel says, and what cannot be known is said to be unknown."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from child import run_child

from mlup_stream.memory import meter, proc
from mlup_stream.memory.meter import PeakMeter, Snapshot, snapshot
from mlup_stream.units import KIB, MIB

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the figures of Linux")

# What a process takes on the side of a measurement: frames, regular expressions, psutil's caches.
SLACK_BYTES = 2 * MIB


def test_a_snapshot_agrees_with_an_observer_outside() -> None:
    """Another process that asks psutil about this one finds the same RSS, PSS and USS within 1% or 2 MiB."""
    inside, outside = run_child(
        """
        import subprocess, sys, json
        from mlup_stream.memory.meter import snapshot
        block = b"x" * (64 << 20)
        ask = '''
        import json, psutil
        process = psutil.Process(%d)
        full = getattr(process, "memory_footprint", process.memory_full_info)()
        print(json.dumps([process.memory_info().rss, full.pss, full.uss]))
        ''' % _os.getpid()
        now = snapshot(detailed=True)
        import textwrap
        seen = json.loads(subprocess.check_output([sys.executable, "-c", textwrap.dedent(ask)]))
        answer([[now.rss_bytes, now.pss_bytes, now.uss_bytes], seen])
        """
    )
    for mine, theirs in zip(inside, outside, strict=True):
        assert abs(mine - theirs) <= max(SLACK_BYTES, 0.01 * theirs)


def test_the_parts_of_rss_add_up() -> None:
    """RSS is anonymous memory, pages of files and shared memory, up to what the kernel has not yet added up per CPU."""
    now = snapshot()
    parts = [part for part in (now.anon_bytes, now.file_bytes, now.shmem_bytes) if part is not None]
    assert len(parts) == 3
    assert now.rss_bytes is not None
    assert abs(now.rss_bytes - sum(parts)) <= SLACK_BYTES
    assert now.pss_bytes is None
    assert now.uss_bytes is None
    assert set(now.to_dict()) == {f"{part}_bytes" for part in ("rss", "anon", "file", "shmem", "pss", "uss", "swap")}


def test_a_snapshot_takes_less_than_a_millisecond() -> None:
    """The quickest of 50, since a busy machine can only make it slower."""
    snapshot()

    def once() -> float:
        started = time.perf_counter()
        snapshot()
        return time.perf_counter() - started

    assert min(once() for _ in range(50)) < 0.001


def test_the_peak_sees_a_spike_that_snapshots_miss() -> None:
    """A block that came and went inside one C call is in the peak, whole and exactly, and in no snapshot before or after."""
    block = 64 * MIB
    base, peak, exact, settled = run_child(
        """
        from mlup_stream.memory.meter import PeakMeter, snapshot
        snapshot()
        with PeakMeter() as meter:
            b"".join([b"x" * block])[:1]
        answer([meter.baseline.rss_bytes, meter.peak.rss_bytes, meter.peak.rss_exact, snapshot().rss_bytes])
        """,
        block=block,
    )
    assert exact
    assert base + block <= peak + SLACK_BYTES
    assert peak <= base + block + SLACK_BYTES
    assert settled <= base + SLACK_BYTES


def test_an_inner_meter_does_not_destroy_the_peak_of_an_outer_one() -> None:
    """Setting the high-water mark back hands what it had reached to every meter that runs."""
    base, outer, inner = run_child(
        """
        from mlup_stream.memory.meter import PeakMeter
        with PeakMeter() as outer:
            b"x" * (64 << 20)
            with PeakMeter() as inner:
                b"x" * (16 << 20)
        answer([outer.baseline.rss_bytes, outer.peak.rss_bytes, inner.peak.rss_bytes])
        """
    )
    assert 64 * MIB - SLACK_BYTES <= outer - base <= 64 * MIB + SLACK_BYTES
    assert 16 * MIB - SLACK_BYTES <= inner - base <= 16 * MIB + SLACK_BYTES


def test_meters_overlap_in_threads() -> None:
    """Meters that start and stop in any order in other threads leave every running one its own peak."""
    base, peaks = run_child(
        """
        import threading
        from mlup_stream.memory.meter import PeakMeter, snapshot
        snapshot()
        first, second = PeakMeter(), PeakMeter()
        first.start()
        b"x" * (48 << 20)
        def others():
            for _ in range(50):
                PeakMeter().start().stop()
        threads = [threading.Thread(target=others) for _ in range(4)]
        for thread in threads: thread.start()
        second.start()
        for thread in threads: thread.join()
        first.stop()
        b"x" * (24 << 20)
        second.stop()
        answer([first.baseline.rss_bytes, [first.peak.rss_bytes, second.peak.rss_bytes]])
        """
    )
    first, second = (peak - base for peak in peaks)
    assert 48 * MIB - SLACK_BYTES <= first <= 48 * MIB + SLACK_BYTES
    assert 24 * MIB - SLACK_BYTES <= second <= 24 * MIB + SLACK_BYTES


@pytest.mark.parametrize(
    ("step", "anon_bytes"),
    [
        ("b'x' * (64 << 20)", 64 * MIB),
        ("bytearray(64 << 20); bytearray(8 << 20)", 64 * MIB),
        ("[bytes(1000) for _ in range(20_000)]", 20 * MIB),
        ("sum(mapped[::4096])", 0),
        ("mapped[:]", 64 * MIB),
    ],
    ids=["block", "two blocks in turn", "small objects", "a map that is read", "a map that is copied"],
)
def test_the_true_peak_of_anonymous_memory_lies_in_the_interval(step: str, anon_bytes: int, tmp_path: Any) -> None:
    """The lower end was seen, the upper end is proved, and both hold for memory of either kind."""
    path = tmp_path / "file"
    path.write_bytes(b"\1" * (64 * MIB))
    base, low, high, rss = run_child(
        f"""
        import mmap
        from mlup_stream.memory.meter import PeakMeter
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with PeakMeter() as meter:
            {step}
        peak = meter.peak
        answer([meter.baseline.anon_bytes, peak.anon_low_bytes, peak.anon_high_bytes, peak.rss_bytes])
        """,
        path=str(path),
    )
    truth = base + anon_bytes
    assert low <= truth + SLACK_BYTES
    assert truth <= high + SLACK_BYTES
    assert low <= high <= rss


def test_a_map_that_stays_in_the_file_is_proved_to_be_no_private_memory(tmp_path: Any) -> None:
    """Reading 64 MiB through a map raises RSS by all of it; that none of it was private follows from the count of page faults."""
    path = tmp_path / "file"
    path.write_bytes(b"\1" * (64 * MIB))

    grown, private, others = run_child(
        """
        import mmap
        from mlup_stream.memory import proc
        from mlup_stream.memory.meter import PeakMeter
        def huge_pages():
            vmstat = proc.read_file("/proc/vmstat")
            return sum(proc.number_after(vmstat, name) or 0 for name in (b"thp_fault_alloc ", b"thp_collapse_alloc "))
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        before = huge_pages()
        with PeakMeter() as meter:
            total = 0
            for start in range(0, len(mapped), 4096):
                total += mapped[start]
        base, peak = meter.baseline, meter.peak
        answer([
            peak.rss_bytes - base.rss_bytes,
            peak.anon_high_bytes - base.anon_bytes,
            (huge_pages() - before) * 2 * 1024 * 1024,
        ])
        """,
        path=str(path),
    )
    # The kernel maps 16 pages of a file and more at a fault. Huge pages that it gave to other processes loosen the bound.
    assert grown >= 64 * MIB - SLACK_BYTES
    assert private <= 64 * MIB // 16 + SLACK_BYTES + others


def test_a_sample_raises_the_lower_end() -> None:
    """What was seen at a window's end is known to have been there."""
    base, without, with_sample = run_child(
        """
        from mlup_stream.memory.meter import PeakMeter
        with PeakMeter() as first:
            block = bytes(1) * (32 << 20)
            del block
        with PeakMeter() as second:
            block = bytes(1) * (32 << 20)
            second.sample()
            del block
        answer([first.baseline.anon_bytes, first.peak.anon_low_bytes, second.peak.anon_low_bytes])
        """
    )
    assert without - base <= SLACK_BYTES
    assert with_sample - base >= 32 * MIB - SLACK_BYTES


def test_a_mark_that_cannot_be_set_back_is_exact_only_if_the_interval_raised_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the reset an older, higher mark says nothing of this interval, and the peak says so."""
    monkeypatch.setattr(proc, "reset_high_water", lambda: False)
    older_bytes = 1 << 40  # more than any process of this suite has
    marks = iter([older_bytes, older_bytes])
    monkeypatch.setattr(meter, "_high_water_bytes", lambda: next(marks))
    peak = PeakMeter().start().stop()
    assert not peak.rss_exact
    assert peak.rss_bytes is not None
    assert peak.rss_bytes < older_bytes
    assert "could not be set back" in peak.source

    marks = iter([older_bytes, older_bytes + MIB])
    peak = PeakMeter().start().stop()
    assert peak.rss_exact
    assert peak.rss_bytes == older_bytes + MIB


def test_a_mark_older_than_an_interval_is_not_handed_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where marks cannot be set back, an inner meter leaves an outer one with its samples, not with an earlier load's peak."""
    monkeypatch.setattr(proc, "reset_high_water", lambda: False)
    monkeypatch.setattr(meter, "_high_water_bytes", lambda: 1 << 40)
    with PeakMeter() as outer, PeakMeter():
        pass
    assert outer.peak.rss_bytes is not None
    assert outer.peak.rss_bytes < 1 << 40


def test_without_proc_nothing_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no /proc, what only it tells is None, and the peak is no more than the samples."""
    monkeypatch.setattr(proc, "read_file", lambda path: b"")
    monkeypatch.setattr(proc, "reset_high_water", lambda: False)
    now = snapshot()
    assert now.rss_bytes
    assert (now.anon_bytes, now.file_bytes, now.shmem_bytes, now.swap_bytes) == (None, None, None, None)
    peak = PeakMeter().start().stop()
    assert not peak.rss_exact
    assert (peak.anon_low_bytes, peak.anon_high_bytes) == (None, None)


@pytest.mark.parametrize(("platform", "mark"), [("darwin", "ru_maxrss"), ("win32", "peak_wset")])
def test_other_systems_marks_are_used_for_what_they_say(platform: str, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS and Windows keep a mark for the process's life: exact when the interval raised it, named in the source."""
    base = snapshot().rss_bytes or 0
    marks = iter([base, base + MIB])
    monkeypatch.setattr(meter.sys, "platform", platform)
    monkeypatch.setattr(proc, "read_file", lambda path: b"")
    monkeypatch.setattr(proc, "reset_high_water", lambda: False)
    memory = SimpleNamespace(rss=base, peak_wset=0)
    monkeypatch.setattr(meter, "_this_process", lambda: SimpleNamespace(memory_info=lambda: memory))
    if platform == "darwin":
        import resource

        monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=next(marks)))
        peak = PeakMeter().start().stop()
    else:
        running = PeakMeter().start()
        memory.peak_wset = base + MIB
        peak = running.stop()
    assert peak.rss_exact
    assert peak.rss_bytes == base + MIB
    assert mark in peak.source


def test_psutil_8_is_asked_for_the_footprint_and_psutil_7_for_the_full_info(monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil 8 deprecates `memory_full_info` for `memory_footprint`, and warnings are errors here."""
    monkeypatch.setattr(proc, "smaps_rollup", dict)
    monkeypatch.setattr(proc, "status", dict)
    footprint = SimpleNamespace(pss=1 * MIB, uss=2 * MIB)

    def deprecated() -> None:
        raise DeprecationWarning("memory_full_info() is deprecated")

    memory_info = SimpleNamespace(rss=3 * MIB)
    eight = SimpleNamespace(memory_info=lambda: memory_info, memory_footprint=lambda: footprint, memory_full_info=deprecated)
    monkeypatch.setattr(meter, "_this_process", lambda: eight)
    now = snapshot(detailed=True)
    assert (now.rss_bytes, now.pss_bytes, now.uss_bytes) == (3 * MIB, 1 * MIB, 2 * MIB)

    seven = SimpleNamespace(memory_info=lambda: memory_info, memory_full_info=lambda: footprint)
    monkeypatch.setattr(meter, "_this_process", lambda: seven)
    assert snapshot(detailed=True).pss_bytes == 1 * MIB


def test_another_pid_namespaces_proc_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """RSS is that of /proc/self, whatever is there under this process's number; where neither can be read it is unknown."""
    import psutil

    def nobody() -> None:
        raise psutil.NoSuchProcess(1)

    monkeypatch.setattr(meter, "_this_process", nobody)
    now = snapshot()
    assert now.rss_bytes == pytest.approx(proc.status()["VmRSS"], abs=MIB)
    monkeypatch.setattr(proc, "status", dict)
    assert (snapshot(), meter.rss_bytes(), meter.private_bytes()) == (Snapshot(), None, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_meters_of_its_own() -> None:
    """A child that is forked while a meter runs, or while another thread holds the lock, can measure; its parent goes on."""
    assert run_child(
        """
        from mlup_stream.memory import meter
        with meter.PeakMeter() as outer:
            meter._running().lock.acquire()
            child = _os.fork()
            if child == 0:
                with meter.PeakMeter() as inner:
                    b"x" * (8 << 20)
                _os._exit(0 if inner.peak.rss_bytes - inner.baseline.rss_bytes > 7 << 20 else 1)
            meter._running().lock.release()
            _, state = _os.waitpid(child, 0)
        answer([_os.waitstatus_to_exitcode(state), outer.peak.rss_exact])
        """,
        timeout_seconds=30,
    ) == [0, True]


def test_a_meter_that_was_not_started_or_not_stopped_says_so() -> None:
    """Reading a figure that is not there yet is a mistake of the caller, with the remedy in the message."""
    with pytest.raises(RuntimeError, match="start"):
        _ = PeakMeter().baseline
    running = PeakMeter().start()
    with pytest.raises(RuntimeError, match="stop"):
        _ = running.peak
    assert running.stop() == running.stop()
    with pytest.raises(RuntimeError, match="stopped"):
        PeakMeter().stop()


def test_a_meter_may_be_used_again() -> None:
    """A second interval knows nothing of the first."""
    meter_ = PeakMeter().start()
    meter_._rss_seen_bytes = 1 << 50
    meter_.stop()
    peak = meter_.start().stop()
    assert peak.rss_bytes is not None
    assert peak.rss_bytes < 1 << 50


def test_no_meter_stays_behind() -> None:
    """A block that raises ends its interval all the same."""
    with pytest.raises(KeyError), PeakMeter():
        raise KeyError
    assert meter._running().meters == []


def test_the_numbers_of_proc_are_parsed_in_any_place() -> None:
    """The first and the last line count, names that only end like the one that is sought do not, and garbage is no number."""
    text = b"first: 1 kB\nnot_first: 2 kB\nsecond:\t 3 kB\nbad: x\nempty:\nlast: 4"
    assert [proc.number_after(text, name) for name in (b"first:", b"second:", b"last:")] == [1, 3, 4]
    assert [proc.number_after(text, name) for name in (b"irst:", b"bad:", b"empty:", b"absent:")] == [None] * 4


def test_measuring_needs_no_more_than_six_mebibytes() -> None:
    """psutil, ctypes and all of the meter together: what is left of a small load's 15 MiB belongs to the rest of the cycle."""
    grown = run_child(
        """
        import mlup_stream.errors, re
        def rss():
            return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
        before = rss()
        from mlup_stream.memory.meter import PeakMeter
        from mlup_stream.memory.reclaim import give_back
        with PeakMeter():
            give_back()
        answer(rss() - before)
        """
    )
    assert grown <= 6 * MIB + 512 * KIB


def test_two_threads_may_stop_one_meter() -> None:
    """The second to stop gets the peak that the first made."""
    running = PeakMeter().start()
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(running.stop())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
