"""joblib files of real estimators, of older times, of missing classes, and bombs; and what they take, as equations."""

from __future__ import annotations

import io
import os
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from given import Given, deserialize, estimated
from measured import SLACK_BYTES, measure_load

import mlup_stream as mlup
from mlup_stream.delivery.kinds import Delivery, MappingMode
from mlup_stream.errors import MemoryBudgetExceeded, MissingClassError, ModelBinarizationError, ModelLoadError
from mlup_stream.ml.binarization.joblib import JoblibBinarizer
from mlup_stream.units import MIB

numpy = pytest.importorskip("numpy", reason="the arrays")
joblib = pytest.importorskip("joblib", reason="writes the files")

ROWS = numpy.random.default_rng(0).random((200, 5))
CLASSES = (ROWS.sum(axis=1) > 2.5).astype(int)
TARGETS = ROWS @ numpy.arange(5.0)


def load(loaded: Given, **options: Any) -> Any:
    """The model, after everything that the handle holds was given back."""
    return deserialize(JoblibBinarizer, loaded, **options)


def estimators() -> dict[str, Any]:
    """One of each of scikit-learn's main families, trained."""
    from sklearn import cluster, ensemble, linear_model, naive_bayes, neighbors, neural_network, pipeline, preprocessing, svm
    from sklearn.compose import make_column_transformer
    from sklearn.decomposition import PCA

    words = preprocessing.OneHotEncoder(sparse_output=False)
    return {
        "random forest": ensemble.RandomForestClassifier(10, random_state=0).fit(ROWS, CLASSES),
        "extra trees": ensemble.ExtraTreesRegressor(10, random_state=0).fit(ROWS, TARGETS),
        "isolation forest": ensemble.IsolationForest(n_estimators=10, random_state=0).fit(ROWS),
        "gradient boosting": ensemble.GradientBoostingClassifier(n_estimators=10, random_state=0).fit(ROWS, CLASSES),
        "histogram boosting": ensemble.HistGradientBoostingRegressor(max_iter=10, random_state=0).fit(ROWS, TARGETS),
        "ada boost": ensemble.AdaBoostRegressor(n_estimators=5, random_state=0).fit(ROWS, TARGETS),
        "neighbours in a tree": neighbors.KNeighborsClassifier(algorithm="kd_tree").fit(ROWS, CLASSES),
        "neighbours in balls": neighbors.KNeighborsRegressor(algorithm="ball_tree").fit(ROWS, TARGETS),
        "neighbours by force": neighbors.KNeighborsClassifier(algorithm="brute").fit(ROWS, CLASSES),
        "support vectors": svm.SVC(probability=False).fit(ROWS, CLASSES),
        "linear support vectors": svm.LinearSVC().fit(ROWS, CLASSES),
        "perceptron": neural_network.MLPClassifier((50, 50), max_iter=20, random_state=0).fit(ROWS, CLASSES),
        "logistic": linear_model.LogisticRegression().fit(ROWS, CLASSES),
        "stochastic": linear_model.SGDClassifier(random_state=0).fit(ROWS, CLASSES),
        "bayes": naive_bayes.GaussianNB().fit(ROWS, CLASSES),
        "clusters": cluster.KMeans(3, n_init=1, random_state=0).fit(ROWS),
        "pipeline": pipeline.make_pipeline(
            preprocessing.StandardScaler(), PCA(3), linear_model.Ridge()
        ).fit(ROWS, TARGETS),
        "words": pipeline.make_pipeline(
            make_column_transformer((words, [0]), remainder="drop"), linear_model.LogisticRegression()
        ).fit(numpy.array([["a"], ["b"]] * 100, dtype=object), CLASSES),
    }


def answer_of(name: str, model: Any) -> Any:
    return model.predict(numpy.array([["a"], ["b"]] * 5, dtype=object) if name == "words" else ROWS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compress", [0, 3])
def test_estimators_predict_as_joblibs_do(tmp_path: Path, compress: int) -> None:
    """Every family, through every delivery, read-only too; and what learns on goes on learning."""
    pytest.importorskip("sklearn", reason="the estimators")
    path = tmp_path / "model.joblib"
    for name, estimator in estimators().items():
        joblib.dump(estimator, path, compress=compress)
        expected = answer_of(name, joblib.load(path))
        for delivery in (Delivery.VIEW, Delivery.PATH, Delivery.STREAM, Delivery.BYTES):
            for mapping in MappingMode if delivery is Delivery.VIEW else (MappingMode.AUTO,):
                found = load(Given(path=path, delivery=delivery, mapping=mapping))
                assert numpy.array_equal(answer_of(name, found), expected), (name, delivery, mapping)
        model = mlup.load(path)
        assert numpy.array_equal(answer_of(name, model), expected), name
        if hasattr(model, "partial_fit"):
            model.partial_fit(ROWS, CLASSES)
            again = joblib.load(path)
            again.partial_fit(ROWS, CLASSES)
            assert numpy.array_equal(answer_of(name, model), answer_of(name, again)), name


def test_a_class_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its module and name, with or without arrays, in an array of objects too, compressed or not."""
    module = types.ModuleType("a_package_of_theirs")
    module.Thing = type("Thing", (), {"__module__": module.__name__, "__qualname__": "Thing"})  # type: ignore[attr-defined]
    thing = module.Thing()
    path = tmp_path / "model.joblib"
    for model in (thing, [numpy.arange(5), thing], numpy.array([thing, 1], dtype=object)):
        for compress in (0, 3):
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, module.__name__, module)
                joblib.dump(model, path, compress=compress)
            for delivery in (Delivery.VIEW, Delivery.STREAM):
                with pytest.raises(MissingClassError, match=r"model\.joblib.*a_package_of_theirs\.Thing") as failed:
                    load(Given(path=path, delivery=delivery))
                assert (failed.value.module, failed.value.qualname) == ("a_package_of_theirs", "Thing")


@pytest.mark.filterwarnings("ignore:.*has been generated with a joblib version less than 0.10.*:DeprecationWarning")
def test_files_from_before_joblib_0_10(tmp_path: Path) -> None:
    """With arrays in files beside it, or compressed whole: joblib itself reads them, by their path; without one they are told."""
    compat = joblib.numpy_pickle_compat
    beside, whole = tmp_path / "beside.joblib", tmp_path / "whole.joblib"
    numpy.save(tmp_path / "beside.joblib_01.npy", numpy.arange(5.0))
    beside.write_bytes(pickle.dumps({"a": compat.NDArrayWrapper("beside.joblib_01.npy", numpy.ndarray)}, 2))
    with open(whole, "wb") as file:
        compat.write_zfile(file, pickle.dumps({"a": [0.0, 1.0, 2.0, 3.0, 4.0]}, 2))
    for path in (beside, whole):
        for delivery in (Delivery.VIEW, Delivery.PATH, Delivery.STREAM):
            assert list(load(Given(path=path, delivery=delivery))["a"]) == [0, 1, 2, 3, 4]
        assert list(mlup.load(path, snapshot=True)["a"]) == [0, 1, 2, 3, 4]
        with pytest.raises(ModelBinarizationError, match=r"0\.10.*give its path"):
            load(Given(path.read_bytes()))


@pytest.mark.parametrize("compressor", ["zlib", "gzip", "bz2", "xz"])
def test_a_bomb_is_stopped_by_the_budget(tmp_path: Path, compressor: str) -> None:
    """128 MiB in a file of a hundred kilobytes: refused or given up at the budget, and nothing is left behind."""
    path = tmp_path / "model.joblib"
    joblib.dump(numpy.zeros(128 * MIB // 8), path, compress=(compressor, 9))
    assert path.stat().st_size < 1 * MIB
    with pytest.raises(MemoryBudgetExceeded, match=r"model\.joblib"):
        mlup.load(path, memory_budget="32MiB")


def test_a_stream_that_lies_of_its_arrays(tmp_path: Path) -> None:
    """An array of a pebibyte in a compressed stream is a typed error that is a MemoryError too, and not an attempt to have it."""
    import zlib

    wrapper = joblib.numpy_pickle.NumpyArrayWrapper(numpy.ndarray, (2**47,), "C", numpy.dtype("f8"))
    path = tmp_path / "model.joblib"
    path.write_bytes(zlib.compress(pickle.dumps(wrapper, 4)[:-1] + b"\0" + bytes(1000)))
    with pytest.raises(ModelLoadError, match=r"model\.joblib"):
        mlup.load(path)


def test_the_whole_cycle(tmp_path: Path) -> None:
    """Through `UP`, by content and by name; the report says how the arrays came."""
    path = tmp_path / "model.bin"
    joblib.dump({"w": numpy.arange(1000.0)}, path)
    up = mlup.UP(conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": str(path)}))
    with up.ml.load():
        assert up.ml.report is not None
        assert (up.ml.report.format, up.ml.report.delivery) == ("joblib", "view")
        assert up.ml.model_obj["w"].sum() == 499_500
    assert mlup.load(path, binarization_type="joblib")["w"].sum() == 499_500
    joblib.dump([1, 2], tmp_path / "no arrays.joblib")  # byte for byte a plain pickle
    assert mlup.load(tmp_path / "no arrays.joblib") == [1, 2]


def test_an_estimate_says_how_sure_it_is(tmp_path: Path) -> None:
    """Exact where nearly all is arrays; a guess for objects, and for what is compressed, with the least if the stream tells."""
    path = tmp_path / "model.joblib"

    def estimate(model: Any, delivery: Delivery, **how: Any) -> Any:
        joblib.dump(model, path, **how)
        return estimated(JoblibBinarizer, Given(path=path), delivery)

    arrays = {"w": numpy.arange(1_000_000.0)}
    in_view = estimate(arrays, Delivery.VIEW)
    assert (in_view.certainty.value, in_view.mapped_bytes) == ("exact", path.stat().st_size)
    assert in_view.peak_anon_bytes < 10_000
    assert 8_000_000 <= estimate(arrays, Delivery.STREAM).peak_anon_bytes < 8_010_000
    assert 16_000_000 <= estimate(arrays, Delivery.BYTES).peak_anon_bytes < 16_020_000
    assert estimate([{"a": index} for index in range(50_000)], Delivery.VIEW).certainty.value == "unknown"
    claimed = estimate(arrays, Delivery.STREAM, compress=("gzip", 1))
    assert claimed.certainty.value == "unknown"
    assert 8_000_000 <= claimed.peak_anon_bytes < 8_010_000
    assert claimed.at_least_bytes >= 4_000_000
    guessed = estimate(arrays, Delivery.STREAM, compress=("zlib", 1))
    assert guessed.certainty.value == "unknown"
    assert 4_000_000 < guessed.peak_anon_bytes < 16_000_000
    assert guessed.at_least_bytes == 0
    path.write_bytes(path.read_bytes()[:40])
    assert estimated(JoblibBinarizer, Given(path=path), Delivery.VIEW) is None
    given = io.BytesIO(b"in front")
    given.seek(8)
    joblib.dump(arrays, given)
    given.seek(8)
    assert estimated(JoblibBinarizer, Given(given), Delivery.BYTES) is not None
    assert given.tell() == 8


class Copies:
    """As the trees of a forest: its state has its array, and it copies the one that it is given."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __getstate__(self) -> dict[str, Any]:
        return {"values": self.values}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.values = state["values"].copy()


EACH_BYTES = 2 * MIB


def _arrays(folder: Path) -> Path:
    joblib.dump({f"w{index}": numpy.arange(32 * MIB // 8) + float(index) for index in range(8)}, folder / "arrays.joblib")
    return folder / "arrays.joblib"


def _forest(folder: Path, compress: Any = 0) -> Path:
    trees = [Copies(numpy.arange(EACH_BYTES // 8) + float(index)) for index in range(64)]
    path = folder / ("forest.lz4" if compress else "forest.joblib")
    joblib.dump(trees, path, compress=compress)
    return path


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "arrays": _arrays,
    "forest": _forest,
    "packed forest": lambda folder: _forest(folder, ("zlib", 1)),
}
PAYLOAD_BYTES = {"arrays": 256 * MIB, "forest": 128 * MIB, "packed forest": 128 * MIB}
ANSWERS = {"arrays": "float(sum(float(model[name].sum()) for name in sorted(model)))"}
OF_TREES = "float(sum(float(each.values.sum()) for each in model))"
BINARIZER = "mlup_stream.ml.binarization.joblib.JoblibBinarizer"

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the equations are about the kernel's figures")


@pytest.fixture(scope="module")
def big_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Each made when it is first asked for, and removed at the end."""
    folder = tmp_path_factory.mktemp("big")

    class Files(dict[str, Path]):
        def __missing__(self, kind: str) -> Path:
            self[kind] = BUILDERS[kind](folder)
            return self[kind]

    files = Files()
    yield files
    for path in files.values():
        path.unlink()


def measure(files: dict[str, Path], kind: str, delivery: str, patch: pytest.MonkeyPatch) -> Any:
    patch.setenv("PYTHONPATH", os.pathsep.join(map(str, [*Path(__file__).parents[:2], *sys.path])))  # where `Copies` is
    return measure_load(
        BINARIZER,
        files[kind],
        delivery,
        answer_of=ANSWERS.get(kind, OF_TREES),
        imports=("ctypes", "numpy", "zlib", __name__),
    )


@pytest.mark.big
@on_linux
def test_a_view_leaves_the_arrays_in_the_file(big_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """peak(view) = objects + slack, and nothing of the payload: at most 0.02 of the file, as was estimated."""
    took = measure(big_files, "arrays", "view", monkeypatch)
    assert took.peak_anon_bytes <= SLACK_BYTES <= 0.02 * PAYLOAD_BYTES["arrays"]
    assert took.peak_bytes <= 0.02 * PAYLOAD_BYTES["arrays"]
    assert took.estimate["certainty"] == "exact"
    assert took.estimate["peak_anon_bytes"] <= SLACK_BYTES


@pytest.mark.big
@on_linux
@pytest.mark.parametrize("delivery", ["path", "stream", "bytes"])
def test_what_is_copied_is_taken_once(big_files: dict[str, Path], delivery: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """peak = payload + window + slack, and the raw bytes on top for `bytes`; within 5% of the estimate, which says exact."""
    took = measure(big_files, "arrays", delivery, monkeypatch)
    raw_bytes = big_files["arrays"].stat().st_size if delivery == "bytes" else 0
    expected_bytes = PAYLOAD_BYTES["arrays"] + raw_bytes
    assert expected_bytes - SLACK_BYTES <= took.peak_bytes <= expected_bytes + SLACK_BYTES
    assert took.estimate["certainty"] == "exact"
    assert abs(took.peak_bytes - took.estimate["peak_anon_bytes"]) <= 0.05 * expected_bytes


@pytest.mark.big
@on_linux
@pytest.mark.parametrize("delivery", ["view", "path", "stream"])
@pytest.mark.parametrize("kind", ["forest", "packed forest"])
def test_what_estimators_copy_is_taken_once(
    big_files: dict[str, Path], kind: str, delivery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """peak = payload + the states of two of 64 objects + slack, compressed or not; joblib's own is 2 x payload."""
    took = measure(big_files, kind, delivery, monkeypatch)
    states_bytes = 2 * EACH_BYTES
    assert took.peak_bytes <= PAYLOAD_BYTES[kind] + states_bytes + SLACK_BYTES
    assert took.settled_anon_bytes <= PAYLOAD_BYTES[kind] + SLACK_BYTES
