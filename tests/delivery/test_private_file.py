"""The private copy: the content, for this user alone, on a disk, and gone afterwards."""

from __future__ import annotations

import errno
import io
import os
import pickle
import re
import stat
import sys
import tempfile
from pathlib import Path

import pytest

import mlup_stream as mlup
from mlup_stream.delivery import private_file as module
from mlup_stream.delivery.private_file import private_file
from mlup_stream.errors import ModelLoadError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture(params=["without a name", "with a name"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "with a name":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    elif not hasattr(os, "O_TMPFILE"):
        pytest.skip("this system has no files without a name")
    return request.param


@pytest.mark.parametrize("suffix", ["", ".keras"])
@pytest.mark.parametrize("content", [b"content" * 1000, bytearray(b"content" * 1000), io.BytesIO(b"content" * 1000)], ids=type)
def test_it_holds_the_content_and_is_gone_afterwards(folder: Path, way: str, content: object, suffix: str) -> None:
    """The path leads to the content, ends as asked, is readable by this user alone, and nothing is left of it."""
    if isinstance(content, io.BytesIO):
        content.seek(0)
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    with private_file(content, suffix=suffix) as path:
        assert Path(path).read_bytes() == b"content" * 1000
        assert path.endswith(suffix)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        for each in folder.rglob("*"):
            assert stat.S_IMODE(each.parent.stat().st_mode) == 0o700
    assert list(folder.iterdir()) == []
    if before:
        assert set(os.listdir("/proc/self/fd")) == before


def test_it_is_gone_after_a_failure(folder: Path, way: str) -> None:
    """A load that fails leaves nothing, however it fails."""
    with pytest.raises(KeyboardInterrupt), private_file(b"content", suffix=".h5"):
        raise KeyboardInterrupt
    assert list(folder.iterdir()) == []


def test_a_failing_source_leaves_nothing(folder: Path, way: str) -> None:
    """A file object that cannot be read to its end leaves no half copy."""

    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"), private_file(Broken(), suffix=".h5"):  # type: ignore[arg-type]
        pass
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not os.path.isdir("/dev/shm") or not sys.platform.startswith("linux"), reason="there is no /dev/shm")
def test_memory_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder whose files are memory is passed over, even when TMPDIR names it."""
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    with private_file(b"content", suffix=".h5") as path:
        assert not path.startswith("/dev/shm")
        assert not os.path.realpath(path).startswith("/dev/shm")
        assert os.stat(path).st_dev != os.stat("/dev/shm").st_dev


def test_without_a_disk_the_message_says_what_to_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every temporary folder is memory, the error names TMPDIR; nothing is put into memory in silence."""
    monkeypatch.setattr(module, "file_system_of", lambda path: "tmpfs")
    with pytest.raises(ModelLoadError, match="set TMPDIR"), private_file(b"content"):
        pass


def test_without_any_folder_it_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no folder can be written to, a load that needs a copy says so and what to set, and others do without."""
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps(list(range(1000))))

    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    monkeypatch.setattr("mlup_stream.delivery.snapshot._shared_blocks", lambda file: None)
    with pytest.raises(ModelLoadError, match="set TMPDIR"), private_file(b"content"):
        pass
    with pytest.raises(ModelLoadError, match="set TMPDIR"):
        mlup.load(path, snapshot=True)
    assert mlup.load(path) == list(range(1000))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of files")
def test_a_full_disk_is_a_typed_error(folder: Path, way: str) -> None:
    """It says in which folder there was no room, and nothing is left there."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        said = re.escape(str(folder)) + ".*set TMPDIR"
        with pytest.raises(ModelLoadError, match=said), private_file(bytes(5000), suffix=".h5"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(folder.iterdir()) == []
