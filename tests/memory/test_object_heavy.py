"""Pickles that are mostly objects, under limits from far too small to ample: an answer or MemoryBudgetExceeded, never a kill.

What such a file takes is told by nothing in it: ten times its size, in steps. A dict of a million keys doubles at once.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from child import run_child
from limits import needs_cgroups, run_limited

from mlup_stream.units import MIB

joblib = pytest.importorskip("joblib", reason="writes the joblib files")
numpy = pytest.importorskip("numpy", reason="the small arrays")

pytestmark = [pytest.mark.big, needs_cgroups, pytest.mark.timeout(600)]

SHAPES: dict[str, Callable[[int], Any]] = {
    "small dicts": lambda count: [{"a": index, "b": index + 0.5} for index in range(count)],
    "one large dict": lambda count: {str(index): index for index in range(2 * count)},
    "nested tuples": lambda count: [(index, (index + 1, str(index))) for index in range(count)],
    "texts": lambda count: [f"text number {index}" for index in range(2 * count)],
    "small arrays": lambda count: [numpy.full(4, float(index)) for index in range(count // 5)],
}
DELIVERIES = ("auto", "view", "path", "stream", "bytes")

LOAD = """
import numpy
import mlup_stream as mlup
from mlup_stream.errors import MemoryBudgetExceeded
try:
    answer(len(mlup.load(path, delivery=delivery)))
except MemoryBudgetExceeded as error:
    answer(str(error))
"""


def _outcomes(path: Path, deliveries: tuple[str, ...], limits_mib: tuple[int, ...], store: Path, expected: int) -> set[str]:
    """What came of each load: "loaded" or "refused". A child that is killed is an exception."""
    found = set()
    for delivery in deliveries:
        for limit_mib in limits_mib:
            outcome = run_limited(
                LOAD,
                limit_bytes=limit_mib * MIB,
                path=str(path),
                delivery=delivery,
                environment={"XDG_CACHE_HOME": str(store), "MLUP_STREAM_LEARNED": "1"},
            )
            assert outcome == expected or str(path) in str(outcome), outcome
            found.add("loaded" if outcome == expected else "refused")
    return found


@pytest.fixture(params=sorted(SHAPES))
def shape(request: pytest.FixtureRequest) -> Callable[[int], Any]:
    return SHAPES[request.param]


@pytest.mark.parametrize("kind", ["pickle", "joblib"])
def test_sudden_growth_is_an_exception(shape: Callable[[int], Any], kind: str, tmp_path: Path) -> None:
    """Of a file of 5 to 13 MB, whose bytes are read whole first or not, in groups that hold it and that do not."""
    model = shape(250_000)
    path = tmp_path / f"m.{kind}"
    _write(model, path)
    found = _outcomes(path, ("auto", "bytes"), (60, 90, 400), tmp_path / "cache", len(model))
    assert found == {"loaded", "refused"}


@pytest.mark.slow
@pytest.mark.parametrize("learned", [False, True], ids=["nothing learned", "learned"])
@pytest.mark.parametrize("kind", ["pickle", "joblib"])
def test_no_limit_ends_in_a_kill(shape: Callable[[int], Any], kind: str, learned: bool, tmp_path: Path) -> None:
    """Twenty limits by five deliveries, of a file of 10 to 26 MB, with an empty store and one that knows every delivery."""
    model = shape(500_000)
    path = tmp_path / f"m.{kind}"
    _write(model, path)
    store = tmp_path / "cache"
    if learned:
        for delivery in DELIVERIES:
            environment = {"XDG_CACHE_HOME": str(store), "MLUP_STREAM_LEARNED": "1"}
            assert run_child(LOAD, path=str(path), delivery=delivery, environment=environment) == len(model)
    limits_mib = (40, 80, 120, 180, 320) if learned else (50, 70, 100, 140, 240)
    assert _outcomes(path, ("auto",), tuple(sorted({*limits_mib, 60, 90, 110, 160, 200})), store, len(model))
    assert _outcomes(path, DELIVERIES[1:], limits_mib[1:4], store, len(model))


def _write(model: Any, path: Path) -> None:
    if path.suffix == ".joblib":
        joblib.dump(model, path)
    else:
        path.write_bytes(pickle.dumps(model, 5))
