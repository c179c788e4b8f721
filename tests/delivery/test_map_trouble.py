"""Where `auto` does not map: network and FUSE file systems, and a process that is about to run out of maps or descriptors."""

from __future__ import annotations

import os
import pickle
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from child import run_child

import mlup_stream as mlup
from mlup_stream.delivery import file_system
from mlup_stream.delivery.file_system import file_system_of
from mlup_stream.delivery.map_trouble import map_trouble

Mount = namedtuple("Mount", "device mountpoint fstype opts")


def _mounted(monkeypatch: pytest.MonkeyPatch, *mounts: tuple[str, str]) -> None:
    import psutil

    table = [Mount("x", point, kind, "rw") for point, kind in (("/", "ext4"), *mounts)]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all=False: table)
    file_system.recent_kinds.forget()


def test_the_deepest_mount_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A disk below a tmpfs is a disk, the later of two mounts at one point hides the other, and beginning alike is not below."""
    _mounted(monkeypatch, ("/a", "tmpfs"), ("/a/disk", "xfs"), ("/b", "xfs"), ("/b", "nfs"))
    found = {path: file_system_of(path) for path in ("/a", "/a/disk/model", "/a/diskette", "/ab", "/b/model")}
    assert found == {"/a": "tmpfs", "/a/disk/model": "xfs", "/a/diskette": "tmpfs", "/ab": "ext4", "/b/model": "nfs"}


@pytest.mark.parametrize(
    ("kind", "speaks"), [("nfs4", True), ("fuse.sshfs", True), ("fuseblk", True), ("ext4", False), ("overlay", False)]
)
def test_the_file_system_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, speaks: bool) -> None:
    """Remote and FUSE file systems speak against a map, by the longest mount point above the file."""
    _mounted(monkeypatch, (str(tmp_path.parent), "nfs"), (str(tmp_path), kind), (str(tmp_path) + "-other", "cifs"))
    assert bool(map_trouble(tmp_path / "model.pckl")) is speaks


def test_auto_streams_where_a_map_is_a_bad_idea_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The report names the file system; asking for the view gets the view all the same."""
    path = tmp_path / "m.pckl"
    path.write_bytes(pickle.dumps([1, 2, 3]))
    _mounted(monkeypatch, (str(tmp_path), "nfs"))

    def load(**storage: Any) -> Any:
        model = mlup.MLupModel(conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": path, **storage}))
        return model.load().report

    assert load().delivery != "view"
    assert "nfs" in load().delivery_reason
    assert load(delivery="view").delivery == "view"


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="from Python 3.13 on a map keeps no descriptor")
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc/self/fd")
def test_few_descriptors_speak_against_a_map(tmp_path: Path) -> None:
    """With the limit nearly reached the trouble is named."""
    code = """
        import resource
        from mlup_stream.delivery.map_trouble import map_trouble, recent_plenty
        before = map_trouble(path)
        recent_plenty.forget()
        resource.setrlimit(resource.RLIMIT_NOFILE, (16, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        answer([before, map_trouble(path)])
    """
    before, after = run_child(code, path=str(tmp_path))
    assert before is None
    assert "descriptors" in after
