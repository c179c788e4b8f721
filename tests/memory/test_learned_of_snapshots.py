"""What a load by a snapshot teaches is known of the file itself."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

import mlup_stream as mlup
from mlup_stream.units import MIB


def test_what_is_learned_by_a_snapshot_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two loads with `snapshot=True` write one entry: each snapshot is a file of its own, and the model is the same."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    model = tmp_path / "model.pkl"
    model.write_bytes(pickle.dumps([{"name": str(each)} for each in range(60_000)] + ["x" * MIB]))
    inode = f"{os.stat(model).st_ino:x}"
    for _ in range(2):
        conf = mlup.Config(
            storage_type="disk", storage_kwargs={"path_to_files": str(model)}, snapshot=True, memory_learned=True
        )
        up = mlup.UP(conf=conf)
        up.ml.load()
        up.ml.unload()
    entries = [each.name for each in folder.rglob("*.json") if "import" not in each.name]
    assert len(entries) == 1
    assert entries[0].split("-")[1] == inode
