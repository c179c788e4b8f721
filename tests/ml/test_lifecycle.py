"""What a model's life may bring beside the load: no model left, two threads, one `Config` for two files, pickling, failing."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

import mlup_stream as mlup
from mlup_stream import errors
from mlup_stream.constants import BinarizationType, LoadedFile
from mlup_stream.memory.budget import Budget
from mlup_stream.ml.binarization.base import BaseBinarizer
from mlup_stream.ml.failure import nothing_left_behind
from mlup_stream.ml.storage.base import BaseStorage
from mlup_stream.ml.storage.memory import MemoryStorage


class Model:
    def predict(self, X: Any) -> Any:
        return X

    def rows(self, data: Any, /, **more: Any) -> Any:
        return ("rows", data, more)

    def keywords(self, **data: Any) -> Any:
        return data

    def anything(self, *data: Any, **more: Any) -> Any:
        return (data, more)

    def later(self, flag: Any = 0, *, X: Any) -> Any:
        return (flag, X)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.pckl"
    path.write_bytes(pickle.dumps(Model()))
    return path


def conf_of(path: Path, **settings: Any) -> mlup.Config:
    return mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": str(path)}, **settings)


@pytest.mark.parametrize("in_kwargs", [False, True])
def test_an_unloaded_model_in_memory_is_not_loaded_as_none(in_kwargs: bool) -> None:
    """After `unload` nobody here holds it: the next load says so, and says what to do, rather than to load None."""
    up = mlup.UP(conf=mlup.Config(storage_kwargs={"model": Model()})) if in_kwargs else mlup.UP(ml_model=Model())
    up.ml.load()
    up.ml.unload()
    with pytest.raises(errors.ModelNotFoundError, match="ml_model="):
        up.ml.load()
    assert not up.ml.loaded
    with pytest.raises(errors.ModelNotFoundError, match="ml_model="):
        mlup.MLupModel().load()


def test_a_reload_of_a_model_in_memory_that_fails_keeps_the_model() -> None:
    """A name of a method that does not exist fails the reload; with the right one the next load has the model still."""
    model = Model()
    up = mlup.UP(ml_model=model)
    up.ml.load()
    up.conf.predict_method_name = "predicts"
    with pytest.raises(errors.ConfigError, match="did you mean 'predict'"):
        up.ml.load(force_loading=True)
    up.conf.predict_method_name = "predict"
    assert up.ml.load(force_loading=up.ml.loaded).model_obj is model


def test_predicting_while_another_thread_reloads_gives_an_answer_or_says_not_loaded(model_file: Path) -> None:
    """No prediction sees half of an unload: each is answered, or is the typed error."""
    ml = mlup.MLupModel(conf=conf_of(model_file)).load()
    wrong: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            try:
                assert ml.predict(X=3) == 3
            except errors.ModelLoadError:
                pass
            except BaseException as error:
                wrong.append(error)
                return

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for each in askers:
        each.start()
    for _ in range(60):
        ml.unload()
        ml.load()
    done.set()
    for each in askers:
        each.join()
    assert wrong == []


def test_an_unload_between_two_looks_of_a_prediction_takes_nothing_away() -> None:
    """The method looks at the model while it is let go: what `predict` calls was read once."""

    class Unloading:
        def __init__(self) -> None:
            self.ml: Any = None

        def predict(self, X: Any) -> Any:
            self.ml.unload()
            raise ValueError("while unloaded")

    model = Unloading()
    model.ml = mlup.MLupModel(ml_model=model).load()
    with pytest.raises(errors.PredictError, match=r"Unloading.predict failed \(ValueError"):
        model.ml.predict(X=1)


def test_up_takes_the_settings_of_an_mlupmodel(model_file: Path) -> None:
    """`UP(ml_model=MLupModel(conf=c))` uses `c`; another `conf` beside it is taken, because it was said."""
    conf = conf_of(model_file)
    up = mlup.UP(ml_model=mlup.MLupModel(conf=conf))
    assert up.conf is conf
    assert up.ml.conf is conf
    up.ml.load()
    assert up.predict(X=1) == 1
    other = conf_of(model_file, name="other")
    assert mlup.UP(ml_model=mlup.MLupModel(conf=conf), conf=other).ml.conf is other


def test_a_model_beside_a_storage_that_finds_one_is_refused(model_file: Path) -> None:
    """One of the two would be thrown away in silence."""
    with pytest.raises(errors.ConfigError, match="leave ml_model out"):
        mlup.UP(ml_model=Model(), conf=conf_of(model_file))


class Wrong(BaseStorage):
    def load_bytes_single_file(self, *args: Any, **kwargs: Any) -> Any:
        return None

    def load(self) -> list[LoadedFile]:
        local = ["what a debugger would show"]
        raise TypeError(f"in the storage itself, {len(local)}")


def test_a_type_error_inside_a_storage_is_not_blamed_on_its_arguments() -> None:
    """Only the constructor's is about `storage_kwargs`."""
    with pytest.raises(errors.ModelLoadError, match="failed to find the model") as failed:
        mlup.MLupModel(conf=mlup.Config(storage_type=Wrong)).load()
    assert not isinstance(failed.value, errors.ConfigError)
    with pytest.raises(errors.ConfigError, match="storage_kwargs"):
        mlup.MLupModel(conf=mlup.Config(storage_type=Wrong, storage_kwargs={"no_such": 1})).load()


def test_a_failure_in_somebodys_storage_keeps_its_variables() -> None:
    """For a debugger or an error tracker; the frames of this package are emptied all the same."""
    with pytest.raises(errors.ModelLoadError) as failed:
        mlup.MLupModel(conf=mlup.Config(storage_type=Wrong)).load()
    cause = failed.value.__cause__
    assert cause is not None
    trace = cause.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_name != "load":
        trace = trace.tb_next
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    assert trace.tb_frame.f_locals["local"] == ["what a debugger would show"]


def test_a_failure_empties_the_frames_of_an_implicit_chain_too() -> None:
    """What was being handled when the error came is held by `__context__`, also when `from None` hides it."""

    def inner() -> None:
        kept = bytearray(10)
        raise KeyError(len(kept))

    def outer() -> None:
        try:
            inner()
        except KeyError:
            raise ValueError("outer") from None

    with pytest.raises(ValueError, match="outer") as failed, nothing_left_behind():
        outer()
    context = failed.value.__context__
    assert context is not None
    trace = context.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    assert "kept" not in trace.tb_frame.f_locals


class Overwriting(BaseBinarizer):
    """Somebody's binarizer, during which the file is overwritten in place."""

    @classmethod
    def deserialize(cls, data: LoadedFile, **options: Any) -> Any:
        assert data.path is not None
        with open(data.path, "r+b") as file:
            file.write(b"other weights")
        return Model()


def test_a_file_that_changes_under_somebodys_binarizer_is_told(model_file: Path) -> None:
    """The cycle checks the identity itself before it hands a model out; not only our binarizers do."""
    ml = mlup.MLupModel(conf=conf_of(model_file, binarization_type=Overwriting))
    with pytest.raises(errors.ModelFileChanged):
        ml.load()
    assert not ml.loaded


class OwnMemory(MemoryStorage):
    """A subclass, which inherits `gives_models`."""


def test_a_subclass_of_the_memory_storage_goes_to_a_file(tmp_path: Path) -> None:
    """Without the model, as for the storage itself."""
    up = mlup.UP(ml_model=Model(), conf=mlup.Config(storage_type=OwnMemory, storage_kwargs={"model": Model()}))
    assert "storage_kwargs" not in up.to_dict()["ml"]
    up.to_yaml(tmp_path / "conf.yaml")


def test_one_config_loads_two_files_of_two_formats(tmp_path: Path, model_file: Path) -> None:
    """What was found in one is written back and does not bind the next; what somebody set does."""
    numpy = pytest.importorskip("numpy")
    array_file = tmp_path / "model.npy"
    numpy.save(array_file, numpy.arange(5))
    conf = conf_of(model_file)
    ml = mlup.MLupModel(conf=conf).load()
    assert conf.binarization_type is BinarizationType.PICKLE
    assert conf.asked_binarization_type == "auto"
    conf.storage_kwargs["path_to_files"] = str(array_file)
    assert ml.load(force_loading=True).model_obj.sum() == 10
    assert conf.binarization_type is BinarizationType.NPY
    conf.binarization_type = "pickle"
    with pytest.raises(errors.ModelBinarizationError):
        ml.load(force_loading=True)


def test_the_callers_dictionaries_stay_as_they_are(model_file: Path) -> None:
    """`Config` copies them, and a load takes the model out of its own."""
    storage: dict[str, Any] = {"model": Model()}
    options: dict[str, Any] = {}
    conf = mlup.Config(storage_kwargs=storage, binarization_kwargs=options)
    mlup.MLupModel(conf=conf).load()
    assert list(storage) == ["model"]
    conf.binarization_kwargs["b"] = 2
    assert options == {}
    conf.binarization_kwargs.clear()
    later = {"model": Model()}
    conf.storage_kwargs = later
    mlup.MLupModel(conf=conf).load()
    assert list(later) == ["model"]


def test_a_method_that_was_named_and_does_not_exist_fails_the_load(model_file: Path) -> None:
    """Not the first request. The default name may be missing: a dict has no `predict`."""
    ml = mlup.MLupModel(conf=conf_of(model_file, predict_method_name="row"))
    with pytest.raises(errors.ConfigError, match="did you mean 'rows'") as failed:
        ml.load()
    assert failed.value.field == "predict_method_name"
    assert not ml.loaded
    assert mlup.MLupModel(ml_model={}).load().loaded


@pytest.mark.parametrize(
    ("method", "given", "answer"),
    [
        ("predict", {"X": 1}, 1),
        ("rows", {"X": 1, "k": 2}, ("rows", 1, {"k": 2})),
        ("keywords", {"X": 1, "k": 2}, {"X": 1, "k": 2}),
        ("anything", {"X": 1, "k": 2}, ((1,), {"k": 2})),
        ("later", {"X": 1}, (0, 1)),
    ],
)
def test_x_reaches_every_kind_of_signature(method: str, given: dict[str, Any], answer: Any) -> None:
    """By keyword where one is called so or all are taken, as the first argument otherwise."""
    ml = mlup.MLupModel(ml_model=Model(), conf=mlup.Config(predict_method_name=method)).load()
    assert ml.predict(**given) == answer


class Inner:
    """What an attribute may hold, and entries that are called."""

    def __init__(self) -> None:
        self.entries = {"serving_default": self.only, "one.two": self.only, "number": 1}

    def only(self, *, rows: Any) -> Any:
        return ["only", rows]


class Outer:
    def __init__(self) -> None:
        self.inner = Inner()
        self.signatures = self.inner.entries
        self.answer = self.inner.only


@pytest.mark.parametrize(
    "name", ["answer", "inner.only", "signatures.serving_default", "signatures.one.two", "inner.entries.serving_default"]
)
def test_a_method_may_be_one_of_an_attribute(name: str) -> None:
    """Dots lead to attributes, and to entries of a mapping; `X` reaches the one keyword that such a function takes."""
    ml = mlup.MLupModel(ml_model=Outer(), conf=mlup.Config(predict_method_name=name)).load()
    assert ml.predict(X=3) == ml.predict(rows=3) == ["only", 3]


@pytest.mark.parametrize("name", ["signatures.nothing", "signatures.number", "inner.nothing.more", "nothing.at.all", "inner."])
def test_a_dotted_name_that_leads_nowhere(name: str) -> None:
    """Fails the load, with the nearest name or those that there are."""
    with pytest.raises(errors.ConfigError, match=r"did you mean|: signatures\.serving_default, signatures\.one\.two, answer$"):
        mlup.MLupModel(ml_model=Outer(), conf=mlup.Config(predict_method_name=name)).load()


def test_what_has_no_predict_lists_what_can_be_called() -> None:
    """The error of the first prediction names the methods that are this object's own."""
    ml = mlup.MLupModel(ml_model=Outer()).load()
    with pytest.raises(errors.PredictError, match=r"'predict'.*: signatures\.serving_default, signatures\.one\.two, answer$"):
        ml.predict(X=1)


def test_the_signature_is_asked_for_once_for_each_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes tens of microseconds: as long as many a prediction."""
    ml = mlup.MLupModel(ml_model=Model()).load()
    monkeypatch.setattr("inspect.signature", lambda method: pytest.fail("asked again"))
    assert [ml.predict(X=each) for each in range(3)] == [0, 1, 2]


def test_what_is_not_loaded_can_be_pickled(model_file: Path) -> None:
    """Settings and, for the memory storage, the model travel; a loaded one says what to do."""
    up = mlup.UP(conf=conf_of(model_file))
    there = pickle.loads(pickle.dumps(up))
    there.ml.load()
    assert there.predict(X=2) == 2
    with pytest.raises(TypeError, match="unload"):
        pickle.dumps(there)
    there.ml.unload()
    assert pickle.loads(pickle.dumps(there)).ml.load().loaded
    assert pickle.loads(pickle.dumps(mlup.UP(ml_model=Model()))).ml.load().predict(X=1) == 1


def test_a_budget_of_numpy_is_a_budget() -> None:
    """Sizes come from NumPy arithmetic; they count as Python's do."""
    numpy = pytest.importorskip("numpy")
    assert Budget.of(numpy.int64(1 << 30)) == Budget(limit_bytes=1 << 30)
    assert Budget.of(numpy.float32(0.5)) == Budget(fraction=0.5)


@pytest.mark.parametrize(("value", "meant"), [(1, "1.0"), (80, "0.8"), (100, "1.0")])
def test_a_number_that_looks_like_a_part_is_not_taken_for_bytes(value: int, meant: str) -> None:
    """`memory_budget=1` is not one byte, next to which nothing fits: the message has what was meant."""
    with pytest.raises(errors.ConfigError, match=f"for a part write {meant}"):
        mlup.Config(memory_budget=value)
    assert Budget.of(101) == Budget(limit_bytes=101)


def test_the_seconds_of_a_load_are_told_apart(model_file: Path) -> None:
    """The stages are disjoint and make up the whole."""
    ml = mlup.MLupModel(conf=conf_of(model_file)).load()
    assert ml.report is not None
    said = ml.report.to_dict()
    assert list(said["stage_seconds"]) == ["finding", "detecting", "importing", "planning", "building", "giving_back"]
    assert all(seconds > 0 for seconds in said["stage_seconds"].values())
    assert said["seconds"] == pytest.approx(sum(said["stage_seconds"].values()))


@pytest.mark.parametrize(
    ("kind", "code"),
    [(errors.ModelNotFoundError, 2), (errors.ModelPermissionError, 13)],
)
def test_errors_have_the_attributes_of_their_builtins(kind: type[Exception], code: int) -> None:
    """`except FileNotFoundError as e: e.errno, e.filename, e.strerror`, after a trip through pickle too; the text is ours."""
    error = kind("m.pkl: not there", path="m.pkl")  # type: ignore[call-arg]
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert (each.errno, each.filename, str(each)) == (code, "m.pkl", "m.pkl: not there")
        assert each.strerror


def test_a_missing_library_is_named_as_import_errors_name_it() -> None:
    """`except ImportError as e: e.name`."""
    error = errors.MissingDependencyError("no", name="onnx", extra="onnx")
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert (each.name, each.extra) == ("onnx", "onnx")


class Unfitted:
    fitted = False

    @property
    def predict(self) -> Any:
        if not self.fitted:
            raise RuntimeError("call fit first")
        return lambda X: X


def test_a_method_that_is_a_property_that_raises(tmp_path: Path) -> None:
    """The model loads; asking it is a typed error with the property's own words, until the property gives a method."""
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps(Unfitted()))
    ml = mlup.MLupModel(conf=conf_of(path, predict_method_name="predict")).load()
    with pytest.raises(errors.PredictError, match="call fit first") as failed:
        ml.predict(X=1)
    assert isinstance(failed.value.__cause__, RuntimeError)
    ml.model_obj.fitted = True
    assert ml.predict(X=1) == 1
