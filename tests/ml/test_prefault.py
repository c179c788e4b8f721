"""`optimize="speed"` brings the file into memory before the model is handed out, where it would stay there."""

from __future__ import annotations

from pathlib import Path

import pytest
from child import run_child
from limits import needs_cgroups, run_limited

LOAD = """
import os
import numpy
import mlup_stream as mlup
from mlup_stream.delivery.artifact import Artifact
touched = []
before = Artifact.prefault
Artifact.prefault = lambda self, placement: (touched.append(1), before(self, placement))
with mlup.open(path, optimize=optimize, memory_budget=budget) as loaded:
    answer([len(touched), loaded.report.delivery])
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "m.npy"
    numpy.save(path, numpy.ones((8192, 1024)))
    return str(path)


def test_speed_touches_the_file_ahead_where_there_is_room(path: str) -> None:
    """64 MiB on a machine that has more; `optimize="memory"` leaves it to the first prediction."""
    assert run_child(LOAD, path=path, optimize="speed", budget="auto") == [1, "view"]
    assert run_child(LOAD, path=path, optimize="memory", budget="auto") == [0, "view"]


@needs_cgroups
def test_speed_touches_nothing_that_would_not_stay(path: str) -> None:
    """In a group of 80 MiB, with the process in it, each page that is touched would push out another: none was touched."""
    assert run_limited(LOAD, limit_bytes=80 << 20, path=path, optimize="speed", budget="auto") == [0, "view"]
