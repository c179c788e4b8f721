"""What passed a check is not checked again while it stays the file that it was."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from child import run_child
from models import KINDS

from mlup_stream.delivery import checked_once as module
from mlup_stream.delivery.artifact import artifact_of
from mlup_stream.delivery.checked_once import checked_once
from mlup_stream.delivery.files import FileIdentity
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.entries import Entries
from mlup_stream.errors import CorruptModelError, ModelFileChanged
from mlup_stream.units import MIB

SETTLED_SECONDS = 0.2  # after which another write has another time


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MLUP_STREAM_LEARNED", "1")
    return tmp_path / "cache" / "mlup-stream" / "checked"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.write_bytes(b"good")
    time.sleep(SETTLED_SECONDS)
    return path


class Check:
    """A check that refuses what does not begin with "good", and counts how often it was asked."""

    def __init__(self, name: str = "check 1") -> None:
        self.name, self.runs = name, 0

    def of(self, source: object) -> None:
        artifact = artifact_of(source if isinstance(source, LoadedFile) else LoadedFile(path=str(source)))

        def run() -> None:
            self.runs += 1
            if bytes(artifact.content()[:4]) != b"good":
                raise CorruptModelError("bad", path=artifact.name, format="pickle")

        try:
            checked_once(artifact, self.name, run)
        finally:
            artifact.release()


def test_the_second_time_nothing_is_checked(path: Path) -> None:
    """By whatever name it is opened; another check, or the same of another version, knows nothing of it."""
    check = Check()
    check.of(path)
    other_name = path.with_name("link")
    os.symlink(path, other_name)
    check.of(path)
    check.of(other_name)
    assert check.runs == 1
    other = Check("check 2")
    other.of(path)
    assert other.runs == 1


def _written(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(b"evil")


def _replaced(path: Path) -> None:
    aside = path.with_name("aside")
    aside.write_bytes(b"evil")
    os.replace(aside, path)


@pytest.mark.parametrize("change", [_written, _replaced])
@pytest.mark.parametrize("sets_time_back", [False, True])
def test_what_changed_is_checked_again(path: Path, change: Callable[[Path], None], sets_time_back: bool) -> None:
    """Also of the same size, and with the time of the last write set back to what it was."""
    check, status = Check(), os.stat(path)
    check.of(path)
    change(path)
    if sets_time_back:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CorruptModelError):
        check.of(path)
    assert check.runs == 2


def test_what_failed_is_not_remembered(path: Path) -> None:
    """Each load of a damaged file says so."""
    path.write_bytes(b"evil")
    time.sleep(SETTLED_SECONDS)
    check = Check()
    for _ in range(2):
        with pytest.raises(CorruptModelError):
            check.of(path)
    assert check.runs == 2


def test_a_file_written_this_moment_is_not_remembered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another write in the same tick of the clock could not be told from it: neither in the kernel's, nor in whole seconds."""
    changed_ns = os.stat(path).st_ctime_ns
    check = Check()
    for since_ns, runs in ((0, 1), (module._TICK_NS, 2), (module._TICK_NS + 1, 3), (0, 3)):
        monkeypatch.setattr(time, "time_ns", lambda now_ns=changed_ns + since_ns: now_ns)
        check.of(path)
        assert check.runs == runs
    monkeypatch.undo()
    whole = FileIdentity(1, 2, 3, 4, 5 * 10**9)
    assert not module._is_settled(whole, whole.ctime_ns + 10 * module._TICK_NS)
    assert module._is_settled(whole, whole.ctime_ns + module._COARSE_NS + 1)


def test_a_change_while_it_is_checked_is_neither_passed_nor_remembered(path: Path) -> None:
    """What was checked is not what lies there."""
    artifact = artifact_of(LoadedFile(path=str(path)))
    with pytest.raises(ModelFileChanged):
        checked_once(artifact, "check 1", lambda: _written(path))
    artifact.release()
    check = Check()
    with pytest.raises(CorruptModelError):
        check.of(path)


def test_a_known_file_that_changed_since_it_was_opened_is_not_passed(path: Path) -> None:
    """Its name is remembered, its bytes are others by now."""
    Check().of(path)
    artifact = artifact_of(LoadedFile(path=str(path)))
    _written(path)
    with pytest.raises(ModelFileChanged):
        checked_once(artifact, "check 1", lambda: pytest.fail("it is known"))
    artifact.release()


def test_content_without_a_file_is_always_checked(path: Path) -> None:
    """Bytes beside a path are not the bytes of the path."""
    check = Check()
    check.of(path)
    for _ in range(2):
        with pytest.raises(CorruptModelError):
            check.of(LoadedFile(b"evil", str(path)))
    assert check.runs == 3


@pytest.mark.skipif(os.name == "nt", reason="modes of files as POSIX has them")
def test_what_others_can_write_is_not_believed(path: Path, own_folder: Path) -> None:
    """An entry that somebody else may have put there lets nothing pass."""
    check = Check()
    check.of(path)
    (entry,) = own_folder.iterdir()
    entry.chmod(0o666)
    check.of(path)
    assert check.runs == 2


def test_it_can_be_switched_off(path: Path, monkeypatch: pytest.MonkeyPatch, own_folder: Path) -> None:
    """By MLUP_STREAM_LEARNED=0, as everything that is remembered."""
    monkeypatch.setenv("MLUP_STREAM_LEARNED", "0")
    check = Check()
    check.of(path)
    check.of(path)
    assert check.runs == 2
    assert not own_folder.exists()


def test_where_nothing_can_be_written_every_load_checks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that cannot be made fails no load."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    check = Check()
    check.of(path)
    check.of(path)
    assert check.runs == 2


LOADS = """
import contextlib
import mlup_stream
from mlup_stream.errors import CorruptModelError
from mlup_stream.ml.binarization import lightgbm, xgboost

walks = []
for module, name in ((lightgbm, "walk"), (xgboost, "check")):
    def counted(*given, real=getattr(module, name), **named):
        walks.append(1)
        return real(*given, **named)
    setattr(module, name, counted)
for delivery in deliveries:
    with contextlib.suppress(CorruptModelError), mlup_stream.open(path, delivery=delivery):
        pass
answer(len(walks))
"""


@pytest.mark.parametrize("kind", ["lightgbm", "xgboost"])
def test_a_second_process_walks_no_tree(tmp_path: Path, kind: str) -> None:
    """By any delivery, and a snapshot by what its original is; a byte that was changed since is found by a walk."""
    path = tmp_path / "model"
    KINDS[kind].build(path, MIB)
    time.sleep(SETTLED_SECONDS)
    environment = {"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"], "MLUP_STREAM_LEARNED": "1"}

    def walks(*deliveries: str) -> int:
        return int(run_child(LOADS, environment=environment, path=str(path), deliveries=deliveries))

    assert walks("view") == 1
    assert walks("view", "path", "bytes") == 0
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)
    assert walks("view") == 1


def test_the_oldest_go_first(tmp_path: Path) -> None:
    """The folder is bounded."""
    entries = Entries("checked", 1, folder=str(tmp_path / "checked"), max_entries=3)
    for index in range(5):
        assert entries.write(f"entry-{index}", {"index": index})
        os.utime(tmp_path / "checked" / f"entry-{index}.json", (index, index))
    assert entries.write("entry-5", {"index": 5})
    found = {entries.content(each)["index"] for each in entries.paths()}
    assert found == {3, 4, 5}
