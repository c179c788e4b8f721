"""Whether arrays can be written to depends on `mapping` alone: under a limit they are mapped, copied, or not loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from child import run_child
from limits import data_limit
from models import KINDS

from mlup_stream.units import GIB, MIB

pytest.importorskip("numpy", reason="the extra `numpy` is not installed")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA as Linux counts it")

SIZE_BYTES = 64 * MIB
LOAD = """
    import resource, warnings
    warnings.simplefilter("ignore")
    import numpy
    import mlup_stream as mlup
    from mlup_stream.memory import proc
    for name in filter(None, imports.split(", ")):
        __import__(name)
    if room_bytes is not None:
        limit = proc.status()["VmData"] + room_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        loaded = mlup.open(path, **settings)
    except mlup.errors.MemoryBudgetExceeded as error:
        answer(str(error))
    else:
        array = loaded.model if isinstance(loaded.model, numpy.ndarray) else loaded.model["w0"]
        if array.flags.writeable:
            array[0] = 7
        answer([bool(array.flags.writeable), float(array[1])])
"""


def load(path: Path, kind: str, room_bytes: int | None, **settings: Any) -> Any:
    limit = None if room_bytes is not None else data_limit(8 * GIB)
    imports = KINDS[kind].imports
    return run_child(LOAD, path=str(path), imports=imports, room_bytes=room_bytes, settings=settings, before_exec=limit)


@pytest.mark.parametrize("kind", ["pickle", "joblib", "npy", "npz", "safetensors"])
def test_a_limit_on_data_makes_nothing_read_only(tmp_path: Path, kind: str) -> None:
    """Under 8 GiB, and under what just holds the arrays, they can be written to; under less the load is refused.

    `mapping="read-only"` needs no room.
    """
    path = tmp_path / KINDS[kind].file_name
    KINDS[kind].build(path, SIZE_BYTES)
    for room_bytes in (None, SIZE_BYTES + 48 * MIB):
        assert load(path, kind, room_bytes) == [True, 1.0]
        assert load(path, kind, room_bytes, mapping="copy-on-write") == [True, 1.0]
    assert "RLIMIT_DATA" in load(path, kind, SIZE_BYTES // 2, delivery="path")
    assert load(path, kind, SIZE_BYTES // 2, mapping="read-only") == [False, 1.0]


def test_an_estimator_goes_on_learning_under_a_limit_on_data(tmp_path: Path) -> None:
    """What writes to its arrays in C does not ask first whether it may: under any limit they can be written to."""
    pytest.importorskip("sklearn", reason="the estimator is scikit-learn's")
    code = """
        import warnings
        warnings.simplefilter("ignore")
        import joblib, numpy
        from sklearn.linear_model import SGDClassifier
        import mlup_stream as mlup
        x = numpy.random.default_rng(0).standard_normal((20, 50_000))
        y = numpy.arange(20) % 2
        joblib.dump(SGDClassifier(max_iter=5).fit(x, y), path)
        model = mlup.load(path)
        before = model.coef_.copy()
        model.partial_fit(x[:1], 1 - y[:1])
        answer(bool((model.coef_ != before).any()))
    """
    assert run_child(code, path=str(tmp_path / "m.joblib"), before_exec=data_limit(8 * GIB))
