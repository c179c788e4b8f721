"""Arrays that are not aligned in their file: code that insists on alignment takes what a load gives."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mlup_stream as mlup

numpy = pytest.importorskip("numpy", reason="the extra `numpy` is not installed")

SIDE = 400  # 1.2 MiB: larger than what is copied because it is small
LEADS = range(8)
MATRIX = numpy.random.default_rng(0).random((SIDE, SIDE)) + SIDE * numpy.eye(SIDE)


def _pickle(path: Path, lead: int) -> None:
    path.write_bytes(pickle.dumps({"lead": "x" * lead, "K": MATRIX}))


def _joblib_of_old(path: Path, lead: int) -> None:
    joblib = pytest.importorskip("joblib", reason="writes the file")

    class Untold(io.BytesIO):
        """A file that cannot say where it stands: no padding is written."""

        def tell(self) -> int:
            raise io.UnsupportedOperation("tell")

    file = Untold()
    joblib.dump({"lead": "x" * lead, "K": MATRIX}, file)
    path.write_bytes(file.getvalue())


def _npz(path: Path, lead: int) -> None:
    content = io.BytesIO()
    numpy.save(content, MATRIX)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x" * (lead + 1) + ".npy", content.getvalue())
        archive.writestr("K.npy", content.getvalue())


def _npy(path: Path, lead: int) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d, %d), }" % (SIDE, SIDE)
    header = header.ljust(117 + lead) + b"\n"
    path.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + MATRIX.tobytes())


def _safetensors(path: Path, lead: int) -> None:
    header = json.dumps({"K": {"dtype": "F64", "shape": [SIDE, SIDE], "data_offsets": [0, MATRIX.nbytes]}}).encode()
    header += b" " * (-len(header) % 8 + lead)
    path.write_bytes(struct.pack("<Q", len(header)) + header + MATRIX.tobytes())


FILES: dict[str, Callable[[Path, int], None]] = {
    "m.pkl": _pickle,
    "m.joblib": _joblib_of_old,
    "m.npz": _npz,
    "m.npy": _npy,
    "m.safetensors": _safetensors,
}


def _solve(matrix: Any) -> None:
    linalg = pytest.importorskip("scipy.linalg", reason="solves")
    linalg.solve(matrix, numpy.ones(SIDE))


def _first_of_view(matrix: Any) -> None:
    assert memoryview(matrix)[0, 0] == MATRIX[0, 0]


def _by_ctypes(matrix: Any) -> None:
    numpy.ctypeslib.ndpointer(dtype="f8", flags="ALIGNED").from_param(matrix)


@pytest.mark.parametrize("use", [_solve, _first_of_view, _by_ctypes])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("settings", [{}, {"optimize": "speed"}, {"delivery": "view"}])
def test_arrays_work_where_alignment_is_insisted_on(
    tmp_path: Path, name: str, settings: dict[str, Any], use: Callable[[Any], None]
) -> None:
    """Wherever in its file the matrix happens to lie: it can be used and written to, and has the values that it had."""
    path = tmp_path / name
    for lead in (0, 3, 6):
        path.unlink(missing_ok=True)
        FILES[name](path, lead)
        model = mlup.load(path, **settings)
        matrix = model if name == "m.npy" else model["K"]
        assert matrix.flags.aligned
        assert matrix.flags.writeable
        assert (matrix == MATRIX).all()
        use(matrix)


@pytest.mark.parametrize("mapping", ["copy-on-write", "read-only"])
@pytest.mark.parametrize("name", FILES)
def test_who_asks_for_mapping_gets_it(tmp_path: Path, name: str, mapping: str) -> None:
    """Nothing is copied, and the report says what that costs, wherever the matrix lies."""
    path = tmp_path / name
    aligned = set()
    for lead in LEADS:
        path.unlink(missing_ok=True)
        FILES[name](path, lead)
        with mlup.open(path, mapping=mapping) as loaded:
            matrix = loaded.model if name == "m.npy" else loaded.model["K"]
            aligned.add(bool(matrix.flags.aligned))
            assert loaded.report.to_dict()["placement"]["copied_bytes"] == 0
            del matrix
    assert aligned == {True, False}


@pytest.mark.parametrize("nested", [False, True])
def test_arrays_of_estimators_stay_in_the_file(tmp_path: Path, nested: bool) -> None:
    """A scaler's own arrays, and the list of a network's, wherever they lie: scikit-learn copes with them."""
    network = pytest.importorskip("sklearn.neural_network", reason="the estimator is scikit-learn's")
    preprocessing = pytest.importorskip("sklearn.preprocessing", reason="the estimator is scikit-learn's")
    path = tmp_path / "m.pkl"
    for lead in LEADS:
        estimator: Any = network.MLPRegressor() if nested else preprocessing.StandardScaler()
        if nested:
            estimator.coefs_ = [MATRIX, MATRIX + 1]
        else:
            estimator.mean_ = MATRIX
        path.unlink(missing_ok=True)
        path.write_bytes(pickle.dumps(["x" * lead, estimator]))
        with mlup.open(path) as loaded:
            placement = loaded.report.to_dict()["placement"]
            assert placement["mapped_bytes"] == MATRIX.nbytes * (2 if nested else 1)
            assert placement["copied_bytes"] == 0
