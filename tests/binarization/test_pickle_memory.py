"""What unpickling takes, as equations: in fresh processes, by the kernel's high-water mark.

    private(view, arrays)              = structure                      <= 0.02 of the payload
    private(view, copying classes)     = model                          <= 1.02 of the payload
    RSS(view, copying classes)         = model + what is being copied   (the standard unpickler: twice the payload)
    RSS(path, stream), any class       = model + what is being copied
    RSS(bytes)                         = raw + RSS(path)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from child import run_child
from measured import SLACK_BYTES, measure_load

from mlup_stream.units import MIB

pytest.importorskip("numpy", reason="arrays are numpy's")

pytestmark = [
    pytest.mark.big,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the equations are about the kernel's figures in /proc"),
]

PICKLE = "mlup_stream.ml.binarization.pickle.PickleBinarizer"
PAYLOAD_BYTES = 256 * MIB
PARTS = 64
PART_BYTES = PAYLOAD_BYTES // PARTS

# As scikit-learn's trees, whose nodes lie in memory of their own: what __setstate__ is given is copied.
COPYING = """
import sys
import numpy

def private_bytes():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

class Copying:
    first_bytes = most_bytes = 0
    def __init__(self, array):
        self.array = array
    def __getstate__(self):
        return {"array": self.array}
    def __setstate__(self, state):
        Copying.first_bytes = Copying.first_bytes or private_bytes()
        self.array = state["array"].copy()
        Copying.most_bytes = max(Copying.most_bytes, private_bytes())  # there is no higher moment than this one

sys.modules["__main__"].Copying = Copying
"""


@pytest.fixture(scope="module", params=[4, 5])
def arrays(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One array of 256 MiB."""
    path = tmp_path_factory.mktemp("arrays") / "model.pkl"
    run_child(
        """
        import pickle, numpy
        with open(path, "wb") as file:
            pickle.dump({"weights": numpy.arange(size // 8, dtype="f8")}, file, protocol)
        answer(None)
        """,
        path=str(path),
        size=PAYLOAD_BYTES,
        protocol=request.param,
    )
    yield path
    path.unlink()


@pytest.fixture(scope="module", params=[4, 5])
def copying(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """64 objects that copy 4 MiB each when they are unpickled."""
    path = tmp_path_factory.mktemp("copying") / "model.pkl"
    run_child(
        COPYING
        + """
import pickle
with open(path, "wb") as file:
    pickle.dump([Copying(numpy.full(part // 8, float(i))) for i in range(parts)], file, protocol)
answer(None)
""",
        path=str(path),
        part=PART_BYTES,
        parts=PARTS,
        protocol=request.param,
    )
    yield path
    path.unlink()


SUM_OF_WEIGHTS = "float(model['weights'].sum())"
SUM_OF_COPIES = "float(sum(each.array.sum() for each in model))"
WEIGHTS = float(sum(range(PAYLOAD_BYTES // 8)))
COPIES = float(sum(range(PARTS)) * (PART_BYTES // 8))


def test_arrays_in_place_take_no_private_memory(arrays: Path) -> None:
    """private <= RSS = structure <= 0.02 of the payload, at the peak and settled; and so it was estimated."""
    took = measure_load(PICKLE, arrays, "view", answer_of=SUM_OF_WEIGHTS, imports=("numpy",), mapping="copy-on-write")
    assert took.answer == WEIGHTS
    assert took.peak_bytes <= 0.02 * PAYLOAD_BYTES
    assert took.settled_bytes <= 0.02 * PAYLOAD_BYTES
    assert took.estimate is not None
    assert took.estimate["peak_anon_bytes"] <= 0.02 * PAYLOAD_BYTES


@pytest.mark.parametrize("delivery", ["path", "stream"])
def test_arrays_that_are_read_take_their_size(arrays: Path, delivery: str) -> None:
    """RSS = payload + window; protocol 5's bytearrays go where they stay, too."""
    took = measure_load(PICKLE, arrays, delivery, answer_of=SUM_OF_WEIGHTS, imports=("numpy",))
    assert took.answer == WEIGHTS
    assert took.peak_bytes <= PAYLOAD_BYTES + 1 * MIB + SLACK_BYTES


@pytest.mark.parametrize("optimize", ["memory", "speed"])
def test_arrays_that_are_not_aligned_take_their_size(arrays: Path, optimize: str) -> None:
    """RSS = payload: such an array is read by descriptor, and no page of the map is touched; and so it was estimated."""
    took = measure_load(PICKLE, arrays, "view", answer_of=SUM_OF_WEIGHTS, imports=("numpy",), optimize=optimize)
    assert took.answer == WEIGHTS
    assert took.estimate is not None
    assert took.estimate["peak_anon_bytes"] >= took.peak_anon_bytes - SLACK_BYTES
    assert took.peak_bytes <= PAYLOAD_BYTES + 1 * MIB + SLACK_BYTES


def test_classes_that_copy_pay_once(copying: Path) -> None:
    """By the view: private = model <= 1.02 of the payload; RSS = model + the part that is being copied."""
    answer_of = f"[{SUM_OF_COPIES}, Copying.most_bytes - Copying.first_bytes]"
    took = measure_load(
        PICKLE, copying, "view", answer_of=answer_of, imports=("numpy",), warm_up=COPYING, mapping="copy-on-write"
    )
    total, private_bytes = took.answer
    assert total == COPIES
    assert PAYLOAD_BYTES - SLACK_BYTES <= private_bytes <= 1.02 * PAYLOAD_BYTES
    assert took.peak_bytes <= PAYLOAD_BYTES + PART_BYTES + SLACK_BYTES
    assert took.settled_bytes <= PAYLOAD_BYTES + SLACK_BYTES


@pytest.mark.parametrize(("delivery", "raw_bytes"), [("path", 0), ("stream", 0), ("bytes", PAYLOAD_BYTES)])
def test_classes_that_copy_pay_once_by_other_deliveries(copying: Path, delivery: str, raw_bytes: int) -> None:
    """RSS = raw + model + the part that is being copied + window, where the standard unpickler takes raw + 2 x model."""
    took = measure_load(PICKLE, copying, delivery, answer_of=SUM_OF_COPIES, imports=("numpy",), warm_up=COPYING)
    assert took.answer == COPIES
    # The part of the next object is read while the last one's has just been freed: the allocator may hold on to it.
    assert took.peak_bytes <= raw_bytes + PAYLOAD_BYTES + 2 * PART_BYTES + 1 * MIB + SLACK_BYTES


def test_a_forest_predicts_the_same_and_pays_once(tmp_path: Path) -> None:
    """A real one: predictions equal bit for bit; RSS <= model + one tree + slack, where `pickle.load` takes twice the model."""
    pytest.importorskip("sklearn", reason="the forest is scikit-learn's")
    path = tmp_path / "forest.pkl"
    expected = run_child(
        """
        import pickle, warnings
        warnings.simplefilter("ignore")
        import numpy
        from sklearn.ensemble import ExtraTreesRegressor
        random = numpy.random.default_rng(0)
        values = random.random((12_000, 5), dtype="f4")
        forest = ExtraTreesRegressor(24, random_state=0, max_features=1).fit(values, random.random(12_000))
        with open(path, "wb") as file:
            pickle.dump(forest, file)
        answer(float(forest.predict(numpy.linspace(0, 1, 500, dtype="f4").reshape(100, 5)).sum()))
        """,
        path=str(path),
    )
    size_bytes = path.stat().st_size
    answer_of = "float(model.predict(__import__('numpy').linspace(0, 1, 500, dtype='f4').reshape(100, 5)).sum())"
    for delivery in ("view", "path"):
        took = measure_load(PICKLE, path, delivery, answer_of=answer_of, imports=("sklearn.ensemble",))
        assert took.answer == expected
        assert took.peak_bytes <= size_bytes + 2 * size_bytes / 24 + SLACK_BYTES
        assert took.peak_bytes < 1.5 * size_bytes
