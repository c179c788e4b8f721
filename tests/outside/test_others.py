"""The limits on code that is not ours: what scikit-learn, joblib and safetensors take for their own loads."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import joblib
import numpy
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.ensemble import RandomForestClassifier

SIZE_BYTES = 64 << 20


@pytest.fixture(scope="module")
def arrays() -> Any:
    return {"w": numpy.arange(SIZE_BYTES // 8, dtype=numpy.float64)}


@pytest.fixture
def joblib_file(tmp_path: Path, arrays: Any) -> Path:
    joblib.dump(arrays, tmp_path / "m.joblib")
    return tmp_path / "m.joblib"


@pytest.fixture
def safetensors_file(tmp_path: Path, arrays: Any) -> Path:
    save_file(arrays, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.mark.limit_anon("68 MiB")
def test_joblib_copies_once(joblib_file: Path) -> None:
    """`joblib.load` of arrays takes one copy of them."""
    assert joblib.load(joblib_file)["w"][1] == 1


@pytest.mark.xfail(reason="it takes a copy", strict=True)
@pytest.mark.limit_anon("60 MiB")
def test_joblib_does_not_take_less(joblib_file: Path) -> None:
    """And not less: the meter sees it."""
    assert joblib.load(joblib_file)["w"][1] == 1


@pytest.mark.limit_anon("4 MiB")
def test_joblib_maps(joblib_file: Path) -> None:
    """`mmap_mode="r"` leaves them in the file, touched or not."""
    assert joblib.load(joblib_file, mmap_mode="r")["w"].sum() > 0


@pytest.mark.limit_rss("140 MiB")
@pytest.mark.limit_anon("140 MiB")
def test_safetensors_takes_twice_the_file(safetensors_file: Path) -> None:
    """`load_file` for numpy reads the file and copies each tensor."""
    assert load_file(safetensors_file)["w"][1] == 1


@pytest.mark.limit_anon("32 MiB")
def test_a_small_forest_predicts_in_little() -> None:
    """Training and asking a small forest of scikit-learn."""
    rows = numpy.random.default_rng(0).normal(size=(200, 4))
    forest = RandomForestClassifier(10, random_state=0, n_jobs=1).fit(rows, rows[:, 0] > 0)
    assert forest.score(rows, rows[:, 0] > 0) > 0.9


class MapLoader:
    """A stranger's right loader: it maps the file, and touches all of it."""

    def load(self, path: Path) -> Any:
        with open(path, "rb") as file:
            return numpy.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), numpy.float64)


@pytest.mark.limit_anon("16 MiB")
def test_a_right_loader_of_a_map_passes(tmp_path: Path, arrays: Any) -> None:
    """Whose heap, as a heap profiler counts an untouched map, would be 64 MiB."""
    arrays["w"].tofile(tmp_path / "w")
    assert MapLoader().load(tmp_path / "w").sum() == arrays["w"].sum()
