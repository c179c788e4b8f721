"""The store of measurements: several processes, kills, damage, bounds, and off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from child import run_child

from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.memory.learned import LearnedStore, LoadKey, Measured, refined
from mlup_stream.units import MIB

KEY = LoadKey(1, 2, 3 * MIB, 4, "pickle", "path")
TOOK = Measured(100, 20, 50, 10)


@pytest.fixture
def store(tmp_path: Path) -> LearnedStore:
    return LearnedStore(str(tmp_path / "measurements"), enabled=True)


def test_what_was_recorded_is_recalled(store: LearnedStore) -> None:
    """By another store over the same folder too, which is another process."""
    assert store.recall(KEY) is None
    assert store.record(KEY, TOOK)
    assert LearnedStore(store.folder, enabled=True).recall(KEY) == TOOK


def test_the_highest_of_the_last_five_is_recalled(store: LearnedStore) -> None:
    """One load that another thread fell into goes out of date after five more."""
    store.record(KEY, Measured(900, 0, 900, 0))
    for _ in range(4):
        store.record(KEY, TOOK)
    recalled = store.recall(KEY)
    assert recalled is not None
    assert recalled.peak_anon_bytes == 900
    store.record(KEY, TOOK)
    assert store.recall(KEY) == TOOK._replace(loads=5)


def test_each_refusal_takes_the_highest_away(store: LearnedStore) -> None:
    """Nobody measures a load that is refused: after as many refusals as there were loads, nothing is known of it."""
    for size in (700, 900, 800):
        store.record(KEY, Measured(size, 0, size, 0))
    found = []
    while (measured := store.recall(KEY)) is not None:
        found.append((measured.peak_anon_bytes, measured.loads))
        store.doubt(KEY)
    assert found == [(900, 3), (800, 2), (700, 1)]
    store.doubt(KEY)
    assert os.listdir(store.folder) == []


def test_what_is_known_of_a_file_can_be_listed_and_forgotten(store: LearnedStore, tmp_path: Path) -> None:
    """Under the name that it was loaded by; every format and delivery of one file goes at once, and no other file's."""
    paths = [tmp_path / "a.pkl", tmp_path / "b.pkl"]
    for path in paths:
        path.write_bytes(b"x")
        for delivery in ("view", "stream"):
            key = LoadKey.of(path, "pickle", delivery)
            assert key is not None
            store.record(key, TOOK, path.name)
    assert sorted(each[:3] for each in store.remembered()) == [
        (name, "pickle", delivery) for name in ("a.pkl", "b.pkl") for delivery in ("stream", "view")
    ]
    paths[0].write_bytes(b"xy")  # what was learned of the content before goes too
    assert store.forget(paths[0]) == 2
    assert {each.name for each in store.remembered()} == {"b.pkl"}
    assert store.forget(tmp_path / "none") == 0


def test_who_has_no_cache_folder_remembers_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user id without a passwd entry or a home: platformdirs raises, or answers `~/.cache`, and nothing is written there."""
    import platformdirs

    def no_home(name: str, appauthor: bool) -> str:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.chdir(tmp_path)
    for answer in (no_home, lambda name, appauthor: f"~/.cache/{name}"):
        monkeypatch.setattr(platformdirs, "user_cache_dir", answer)
        store = LearnedStore(enabled=True)
        assert not store.record(KEY, TOOK)
        assert (store.recall(KEY), store.remembered(), store.clear(), os.listdir()) == (None, [], 0, [])


@pytest.mark.parametrize(
    "other",
    [
        KEY._replace(mtime_ns=5),
        KEY._replace(size_bytes=5),
        KEY._replace(inode=5),
        KEY._replace(delivery="view"),
        KEY._replace(format="joblib"),
        KEY._replace(variant="speed"),
    ],
)
def test_another_load_is_another_measurement(store: LearnedStore, other: LoadKey) -> None:
    """A file that was changed, another file, another delivery, format or option: nothing is known of it."""
    store.record(KEY, TOOK)
    assert store.recall(other) is None


def test_a_changed_file_replaces_what_was_known_of_the_old_one(store: LearnedStore) -> None:
    """Writing a model file in place a thousand times leaves one entry."""
    for version in range(10):
        store.record(KEY._replace(mtime_ns=version), TOOK)
    assert len(os.listdir(store.folder)) == 1


def test_the_key_of_a_file_is_its_identity(tmp_path: Path) -> None:
    """A regular file has one, under each of its names; a folder and a missing file have none."""
    path = tmp_path / "model.pkl"
    path.write_bytes(b"x" * 10)
    (tmp_path / "link").symlink_to(path)
    key = LoadKey.of(path, "pickle", "path")
    assert key is not None
    assert (key.size_bytes, key.format, key.delivery) == (10, "pickle", "path")
    assert LoadKey.of(tmp_path / "link", "pickle", "path") == key
    assert LoadKey.of(tmp_path, "savedmodel", "path") is None
    assert LoadKey.of(tmp_path / "missing", "pickle", "path") is None
    path.write_bytes(b"y" * 11)
    assert LoadKey.of(path, "pickle", "path") != key


def test_the_store_is_bounded(tmp_path: Path) -> None:
    """The entries that were not written for longest go first."""
    store = LearnedStore(str(tmp_path / "m"), enabled=True, max_entries=10)
    for inode in range(30):
        store.record(KEY._replace(inode=inode), TOOK)
        os.utime(Path(store.folder) / f"{KEY._replace(inode=inode)._entry}.json", (inode, inode))
    assert len(os.listdir(store.folder)) <= 11
    assert store.recall(KEY._replace(inode=29)) == TOOK
    assert store.recall(KEY._replace(inode=0)) is None


def test_the_store_can_be_removed(store: LearnedStore) -> None:
    """`clear` says how many loads it forgot and leaves no folder; forgetting nothing is no error."""
    store.record(KEY, TOOK)
    store.record(KEY._replace(inode=9), TOOK)
    (Path(store.folder) / "x.1.2.aside").write_text("left by a kill")
    assert store.clear() == 2
    assert not os.path.exists(store.folder)
    assert store.clear() == 0


def test_the_store_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an argument, which wins, and by MLUP_STREAM_LEARNED=0: nothing is written or read."""
    folder = str(tmp_path / "m")
    assert not LearnedStore(folder, enabled=False).record(KEY, TOOK)
    monkeypatch.setenv("MLUP_STREAM_LEARNED", "0")
    off = LearnedStore(folder)
    assert not off.enabled
    assert not off.record(KEY, TOOK)
    assert not os.path.exists(folder)
    assert LearnedStore(folder, enabled=True).record(KEY, TOOK)
    assert off.recall(KEY) is None
    monkeypatch.setenv("MLUP_STREAM_LEARNED", "1")
    assert LearnedStore(folder).recall(KEY) == TOOK


def test_the_store_lies_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where platformdirs says, which follows XDG_CACHE_HOME on Linux."""
    import platformdirs

    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name, appauthor: f"/cache/{name}")
    assert LearnedStore().folder == os.path.join("/cache/mlup-stream", "measurements")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 5000,
        '{"version": 2, "size_bytes": 3145728, "mtime_ns": 4, "loads": [[1, 1, 1, 1]]}',
        '{"version": 1, "size_bytes": 3145728, "mtime_ns": 4, "loads": [[1, 1, 1]]}',
        '{"version": 1, "size_bytes": 3145728, "mtime_ns": 4, "loads": [[1, 1, 1, "1"]]}',
        '{"version": 1, "size_bytes": 3145728, "mtime_ns": 4, "loads": [[1, -1, 1, 1]]}',
        '{"version": 1, "size_bytes": 3145728, "mtime_ns": 4, "loads": [[1, 1e300, 1, true]]}',
        '{"version": 1, "size_bytes": 3145728, "mtime_ns": 4, "loads": [[1, 1, 1, 99999999999999999999]]}',
        '{"version": 1, "size_bytes": 3145728, "mtime_ns": 4, "loads": 7}',
    ],
)
def test_damage_is_as_if_nothing_were_there(store: LearnedStore, text: str) -> None:
    """Whatever lies in the file, it is no measurement, no exception, and the next record replaces it."""
    store.record(KEY, TOOK)
    (path,) = Path(store.folder).iterdir()
    path.write_text(text)
    assert store.recall(KEY) is None
    assert store.record(KEY, TOOK)
    assert store.recall(KEY) == TOOK


def test_a_folder_that_cannot_be_made_fails_no_load(tmp_path: Path) -> None:
    """A file lies where the folder should: nothing is remembered, and that is all."""
    (tmp_path / "file").write_text("")
    store = LearnedStore(str(tmp_path / "file" / "m"), enabled=True)
    assert not store.record(KEY, TOOK)
    assert store.recall(KEY) is None
    assert store.clear() == 0


WRITER = """
import sys
from mlup_stream.memory.learned import LearnedStore, LoadKey, Measured
store = LearnedStore(sys.argv[1], enabled=True, max_entries=int(sys.argv[3]))
number = int(sys.argv[2])
turn = 0
print("ready", flush=True)
while True:
    turn += 1
    size = number * 1_000_000 + turn
    # Ten keys that all write, and one of 300 of its own.
    for inode in (turn % 10, 1000 * number + turn % 300):
        store.record(LoadKey(1, inode, 5, 5, "pickle", "path"), Measured(size, size, size, size))
"""


def write_at_once_and_be_killed(folder: Path, max_entries: int) -> list[list[Measured | None]]:
    """Eight processes write while this one reads, each is ended by SIGKILL; what was read of each of the ten keys, in order."""
    store = LearnedStore(str(folder), enabled=True, max_entries=max_entries)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(number), str(max_entries)], stdout=subprocess.PIPE, text=True
        )
        for number in range(1, 9)
    ]
    read: list[list[Measured | None]] = [[] for _ in range(10)]
    try:
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        for writer in writers:
            for turn in range(300):
                read[turn % 10].append(store.recall(LoadKey(1, turn % 10, 5, 5, "pickle", "path")))
            writer.send_signal(signal.SIGKILL)
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    return read


def test_eight_processes_that_write_at_once_and_are_killed_leave_a_whole_store(tmp_path: Path) -> None:
    """Once an entry is there it never goes, not for the moment of a write nor by SIGKILL, and somebody wrote it whole."""
    read = write_at_once_and_be_killed(tmp_path / "m", max_entries=10_000)
    for measurements in read:
        first = next(index for index, measured in enumerate(measurements) if measured is not None)
        assert all(measured is not None and len(set(measured[:4])) == 1 for measured in measurements[first:])
    for path in (tmp_path / "m").glob("*.json"):
        loads = json.loads(path.read_text())["loads"]
        assert 1 <= len(loads) <= 5
        assert all(len(set(load)) == 1 for load in loads)


def test_eight_processes_that_write_at_once_keep_the_store_bounded(tmp_path: Path) -> None:
    """At most one entry more for each writer; what the killed left aside is removed by the first new entry a minute later."""
    folder = tmp_path / "m"
    write_at_once_and_be_killed(folder, max_entries=20)
    assert 10 <= len(list(folder.glob("*.json"))) <= 20 + 8
    (folder / "x.json.1.2.aside").write_text("{")
    for path in folder.glob("*.aside"):
        os.utime(path, (time.time() - 120,) * 2)
    assert LearnedStore(str(folder), enabled=True, max_entries=20).record(KEY._replace(inode=77777), TOOK)
    assert list(folder.glob("*.aside")) == []
    assert len(list(folder.glob("*.json"))) <= 20


def test_what_was_measured_replaces_what_is_not_exact() -> None:
    """Exact headers win over a measurement, a measurement over everything else."""
    exact, bound = (Estimate.private(1000, certainty=kind, why="") for kind in (Certainty.EXACT, Certainty.CONSERVATIVE))
    assert refined(exact, TOOK) is exact
    assert refined(bound, None) is bound
    assert refined(None, None) is None
    for estimate in (bound, None):
        learned = refined(estimate, TOOK)
        assert learned is not None
        assert learned.certainty is Certainty.LEARNED
        assert (learned.peak_anon_bytes, learned.peak_file_bytes, learned.settled_anon_bytes) == (100, 20, 50)


def test_a_measurement_never_raises_an_upper_bound() -> None:
    """A load beside a thread that allocates is measured with it: the headers' upper bound holds, or it is refused for good."""
    bound = Estimate.private(80, certainty=Certainty.CONSERVATIVE, why="a test")
    learned = refined(bound, Measured(1000, 20, 900, 10))
    assert learned is not None
    assert (learned.peak_anon_bytes, learned.settled_anon_bytes) == (80, 80)


def test_more_settled_than_there_was_at_the_peak_is_clamped() -> None:
    """A process that grew between the peak and the end leaves such a measurement: no estimate may be made of it as it is."""
    learned = refined(None, Measured(100, 20, 150, 30))
    assert learned is not None
    assert (learned.settled_anon_bytes, learned.settled_file_bytes) == (100, 20)


def test_recording_needs_no_framework_and_little_memory(tmp_path: Path) -> None:
    """At most 5 MiB with json and platformdirs, which the first load of a large file pays."""
    assert (
        run_child(
            """
            import sys, re
            import mlup_stream
            def rss():
                return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
            before = rss()
            from mlup_stream.memory.learned import LearnedStore, LoadKey, Measured
            key = LoadKey(1, 2, 3, 4, "pickle", "path")
            assert LearnedStore(enabled=True).record(key, Measured(1, 1, 1, 1))
            answer(rss() - before)
            """,
            environment={"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)},
        )
        <= 5 * MIB
    )
