"""The profiling scripts run, compare, and clean up; and what they stand on measures what it says."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fresh_process import ChildFailed, call_fresh
from measurement import call_measured

from mlup_stream.units import MIB

numpy = pytest.importorskip("numpy", reason="the models are arrays")

PROFILING = Path(__file__).resolve().parent.parent / "profiling"
MODEL_BYTES = 8 * MIB
HERE = {"PYTHONPATH": str(Path(__file__).resolve().parent)}
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def run(script: str, *arguments: str, code: int = 0) -> str:
    command = [sys.executable, str(PROFILING / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A pickle of one array that happens to be aligned, and stays in the file."""
    path = tmp_path / "model.pkl"
    array = numpy.arange(1, MODEL_BYTES // 8 + 1, dtype=numpy.float64)
    files = (pickle.dumps({"weights" + "_" * pad: array}, protocol=5) for pad in range(array.itemsize))
    path.write_bytes(next(each for each in files if each.index(array[:9].tobytes()) % array.itemsize == 0))
    return path


def noisy(value: int) -> int:
    """For a fresh process: prints to where the answer goes by default."""
    print("noise")
    os.write(1, b"more noise\n")
    return value + 1


def dying(code: int) -> None:
    """For a fresh process."""
    os._exit(code)


def sleeping() -> None:
    """For a fresh process."""
    import time

    time.sleep(60)


def spiking(spike_bytes: int) -> dict[str, Any]:
    """For a fresh process: a load that takes private memory, touches it and gives it back before it returns."""
    import mmap

    from measurement import measured

    def load() -> int:
        # Shared, which is the default, would be shared memory.
        with mmap.mmap(-1, spike_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
            for start in range(0, spike_bytes, mmap.PAGESIZE):
                area[start] = 1
        return 5

    return measured(load, lambda model: model * 2)


def test_what_a_child_prints_is_not_its_answer() -> None:
    """An answer comes back as it was given, whatever else was printed, by Python or below it."""
    assert call_fresh("test_profiling:noisy", environment=HERE, value=4) == 5


def test_a_child_without_an_answer_is_an_error() -> None:
    """One that dies, cannot be imported or takes too long raises, with its exit code."""
    with pytest.raises(ChildFailed) as failed:
        call_fresh("test_profiling:dying", environment=HERE, code=7)
    assert failed.value.returncode == 7
    with pytest.raises(ChildFailed, match="No module named 'no_such_module'"):
        call_fresh("no_such_module:function")
    with pytest.raises(ChildFailed) as failed:
        call_fresh("test_profiling:sleeping", environment=HERE, timeout_seconds=0.5)
    assert failed.value.returncode is None


@linux
def test_a_spike_of_private_memory_is_seen_from_outside() -> None:
    """Peak anon finds memory that came and went within one call, which a snapshot before and after shows as nothing.

    A touched page is there for longer than the time between two samples, but for the last ones: at most an eighth is missed.
    The kernel adds its counts per processor up now and then.
    """
    spike_bytes = 256 * MIB
    found = call_measured("test_profiling:spiking", environment=HERE, spike_bytes=spike_bytes)
    slack_bytes = 4 * MIB
    assert spike_bytes * 7 // 8 <= found["peak_anon"] <= spike_bytes + slack_bytes
    assert spike_bytes - MIB <= found["peak_rss"] <= spike_bytes + slack_bytes
    assert found["settled_anon"] <= slack_bytes
    assert found["answer"] == 10


@linux
def test_against_libraries_compares_both_ways(tmp_path: Path) -> None:
    """Both ways are loaded as often as asked, answer alike, and the model is gone after."""
    printed = run("against_libraries.py", "--formats=npy", "--size=1MiB", "--repeat=2", "--json", f"--folder={tmp_path}")
    (result,) = json.loads(printed)
    assert result["size_bytes"] >= MIB
    assert set(result["ways"]) == {"library", "auto"}
    for way in result["ways"].values():
        assert way["difference"] == 0
        assert way["seconds_lowest"] <= way["seconds"] <= way["seconds_highest"]
    assert list(tmp_path.iterdir()) == []


@linux
def test_against_libraries_prints_a_table(tmp_path: Path) -> None:
    """Cold, as text: a row for the library, a row for us, and the machine; an unknown format is an error of usage."""
    printed = run("against_libraries.py", "--formats=npy", "--size=1MiB", "--repeat=1", "--cold", f"--folder={tmp_path}")
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert len({len(row) for row in rows}) == 1
    assert "numpy" in printed.splitlines()[-1]
    run("against_libraries.py", "--formats", "nothing", code=2)


def test_two_answers_are_compared_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of one array, one number more, and a NaN are differences; the same arrays are none."""
    monkeypatch.syspath_prepend(str(PROFILING))
    import answers

    weights = {"a": numpy.arange(100_000.0), "b": [numpy.ones(3), (numpy.zeros(2),)]}
    expected = answers.answer(weights)
    assert answers.difference(answers.answer(pickle.loads(pickle.dumps(weights))), expected) == 0
    weights["a"][99_999] = numpy.nextafter(99_999.0, 0)
    assert answers.difference(answers.answer(weights), expected) > 0
    assert answers.difference([*expected, 1.0], expected) == float("inf")
    assert answers.difference([float("nan"), *expected[1:]], expected) == float("inf")
    assert answers.answer(weights, "model['a'][:2]") == [0.0, 1.0]


@linux
def test_onnx_predictions_has_memory_and_time_of_each_way() -> None:
    """In the file stays what `memory` and the model that was saved packed leave there; `speed` and the library copy it."""
    pytest.importorskip("onnx", reason="writes the model")
    printed = run("onnx_predictions.py", "--size=64MiB", "--repeat=1", "--batches=1,2")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()[2:6]]
    private = {row[0]: float(row[1]) for row in rows}
    assert private["onnxruntime's own"] > 0.9
    assert private['optimize="speed"'] > 0.9
    assert private['optimize="memory"'] < 0.2
    assert private["saved packed"] < 0.2
    assert all(float(cell) > 0 for row in rows for cell in row[3:])


@linux
def test_smallest_limit_finds_limits(model: Path) -> None:
    """Each way has a limit in which it answered, found to the precision that was asked for, and no group is left."""
    before = _groups()  # of whoever measures at the same time
    printed = run("smallest_limit.py", str(model), "--deliveries=library,auto", "--precision=32MiB", "--json")
    found = json.loads(printed)
    assert [each["way"] for each in found["limits"]] == ["imports alone", "library", "auto"]
    for each in found["limits"]:
        assert 0 < each["limit_bytes"] <= 512 * MIB
        assert each["limit_bytes"] % (32 * MIB) == 0
    assert _groups() <= before


def _groups() -> set[Path]:
    return set(Path("/sys/fs/cgroup").glob("**/mlup-stream-profiling-*"))


@linux
def test_a_limit_is_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that takes more than its limit does not answer, one that takes less does: by the group, and by RLIMIT_DATA."""
    monkeypatch.syspath_prepend(str(PROFILING))
    import limiters

    by_rlimit = limiters.Limiter("RLIMIT_DATA", limiters._under_rlimit)
    for limiter in (limiters.find_limiter(), by_rlimit):
        with limiter.limited(128 * MIB) as enter:
            call_fresh("test_profiling:spiking", environment=HERE, before_exec=enter, spike_bytes=16 * MIB)
            with pytest.raises(ChildFailed):
                call_fresh("test_profiling:spiking", environment=HERE, before_exec=enter, spike_bytes=256 * MIB)


def test_memray_session_tells_maps_from_the_heap(model: Path, tmp_path: Path) -> None:
    """What memray counts of a view is a map of the whole file and little heap; of the library's call it is all heap."""
    pytest.importorskip("memray", reason="the flame graphs are memray's")
    flames = tmp_path / "flames"
    printed = run("memray_session.py", str(model), "--deliveries", "library,view", "--output", str(flames))
    library, view = ([cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()[2:4])
    assert float(library[2]) >= 1.0
    assert float(library[3]) == 0.0
    assert float(view[3]) >= 1.0
    assert float(view[2]) <= 4 * MIB / MODEL_BYTES
    assert sorted(each.name for each in flames.iterdir()) == ["model.pkl.library.html", "model.pkl.view.html"]
