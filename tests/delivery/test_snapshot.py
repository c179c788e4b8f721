"""`snapshot=True`: what is loaded is a private copy, whatever happens to the file afterwards."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from child import write_from_outside

import mlup_stream as mlup
from mlup_stream.delivery.pinned import PinnedFile
from mlup_stream.delivery.snapshot import snapshot_of
from mlup_stream.errors import ModelFileChanged

numpy = pytest.importorskip("numpy", reason="the extra `numpy` is not installed")

ITEMS = 1 << 17


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "m.pckl"
    path.write_bytes(pickle.dumps(numpy.arange(ITEMS, dtype=numpy.float64), protocol=5))
    return path


@pytest.mark.parametrize("delivery", ["auto", "path", "view", "stream", "bytes"])
def test_overwriting_the_file_in_place_changes_nothing(path: Path, delivery: str) -> None:
    """The weights are those of the moment of loading; the report names the file itself; the copy leaves nothing behind."""
    names = set(os.listdir(path.parent))
    model = mlup.MLupModel(
        conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": path, "delivery": delivery}, snapshot=True)
    )
    model.load()
    write_from_outside(path, b"\xff" * path.stat().st_size)
    assert float(model.model_obj.sum()) == ITEMS * (ITEMS - 1) / 2
    assert model.report is not None
    assert model.report.file == str(path)
    assert set(os.listdir(path.parent)) == names
    model.unload()


def test_without_a_snapshot_the_map_shows_what_is_written() -> None:
    """The danger that the snapshot is there for: docs/security.md tells it, and this test would fail if it were not so."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        path = Path(folder) / "m.npy"
        numpy.save(path, numpy.arange(ITEMS, dtype=numpy.float64))
        model = mlup.load(path, delivery="view")
        write_from_outside(path, b"\0" * path.stat().st_size)
        assert float(model.sum()) == 0.0


def test_a_file_that_changes_while_it_is_copied_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of half the old and half the new content is not handed out."""
    import mlup_stream.delivery.snapshot as module

    def changing(file: PinnedFile) -> None:
        os.utime(file.path, ns=(1, 1))

    monkeypatch.setattr(module, "_shared_blocks", changing)
    file = PinnedFile(path)
    with pytest.raises(ModelFileChanged), snapshot_of(file):
        pass
    file.close()


@pytest.mark.skipif(shutil.which("mkfs.xfs") is None or os.geteuid() != 0, reason="makes an XFS file system: root and mkfs.xfs")
def test_on_a_file_system_that_can_the_copy_takes_no_space(tmp_path: Path) -> None:
    """Blocks in use do not grow by the file's size: the copy shares them."""
    image, mount = tmp_path / "image", tmp_path / "mount"
    mount.mkdir()
    with open(image, "wb") as file:
        file.truncate(400 << 20)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
    try:
        (mount / "m.bin").write_bytes(os.urandom(32 << 20))
        os.sync()
        before = os.statvfs(mount).f_bfree
        file = PinnedFile(mount / "m.bin")
        with snapshot_of(file) as copy, copy.open() as content:
            assert content.read() == (mount / "m.bin").read_bytes()
            os.sync()
            taken_bytes = (before - os.statvfs(mount).f_bfree) * os.statvfs(mount).f_frsize
        assert taken_bytes < 1 << 20
    finally:
        file.close()
        subprocess.run(["umount", str(mount)], check=True)
