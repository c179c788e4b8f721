"""The load cycle as a program sees it: `UP`, `load`, the report, reloading, unloading, and failing."""

from __future__ import annotations

import gc
import os
import pickle
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest

import mlup_stream as mlup
from mlup_stream import errors
from mlup_stream.constants import BinarizationType, LoadedFile
from mlup_stream.ml.binarization.base import BaseBinarizer
from mlup_stream.ml.empty import EmptyModel
from mlup_stream.ml.storage.base import BaseStorage


class Doubler:
    """A model with state, which pickle finds by import."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset

    def predict(self, X: list[int]) -> list[int]:
        return [2 * x + self.offset for x in X]

    def predict_rows(self, rows: list[int], *, scale: int = 1) -> list[int]:
        return [scale * row for row in rows]


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.pckl"
    path.write_bytes(pickle.dumps(Doubler(offset=1)))
    return path


def _up(path: Path, **settings: Any) -> mlup.UP:
    storage = {"path_to_files": str(path), **settings.pop("storage_kwargs", {})}
    return mlup.UP(conf=mlup.Config(storage_type="disk", storage_kwargs=storage, **settings))


def test_the_documented_memory_example() -> None:
    """`UP(ml_model=EmptyModel())` uses MemoryStorage, is not loaded before `load`, and predicts None."""
    up = mlup.UP(ml_model=EmptyModel())
    assert not up.ml.loaded
    up.ml.load()
    assert up.ml.loaded
    assert up.predict(X=[[1, 2, 3]]) is None
    assert up.conf.binarization_type is BinarizationType.MEMORY


def test_memory_storage_keeps_no_second_reference() -> None:
    """After unloading nobody here holds the model: it dies."""
    model = Doubler()
    alive = weakref.ref(model)
    up = mlup.UP(ml_model=model)
    up.ml.load()
    del model
    up.ml.unload()
    assert alive() is None
    with pytest.raises(errors.ModelLoadError):
        _ = up.ml.model_obj


def test_a_model_in_storage_kwargs_is_handed_over_too() -> None:
    """The configuration does not keep the model alive either."""
    model = Doubler()
    alive = weakref.ref(model)
    up = mlup.UP(conf=mlup.Config(storage_kwargs={"model": model}))
    up.ml.load(force_loading=True)
    up.ml.load(force_loading=True)
    assert up.ml.model_obj is model
    del model
    up.ml.unload()
    assert alive() is None


def test_memory_storage_needs_a_model() -> None:
    """`UP()` alone says what to give it."""
    with pytest.raises(errors.ModelLoadError, match="ml_model"):
        mlup.UP()


@pytest.mark.parametrize("delivery", ["auto", "path", "view", "stream", "bytes"])
def test_a_file_is_loaded_detected_and_asked(model_file: Path, delivery: str) -> None:
    """Through every delivery the same model; what detection found is written to the configuration."""
    up = _up(model_file, storage_kwargs={"delivery": delivery})
    assert up.ml.load() is up.ml
    assert up.predict(X=[1, 2]) == [3, 5]
    assert up.conf.binarization_type is BinarizationType.PICKLE
    assert up.ml.report is not None
    assert delivery in ("auto", up.ml.report.delivery)


def test_the_one_liner_returns_the_model_itself(model_file: Path) -> None:
    """As `joblib.load` would; any field of Config is a keyword."""
    assert mlup.load(model_file).predict([1]) == [3]
    assert mlup.load(str(model_file), delivery="bytes", binarization_type="pickle").offset == 1
    with pytest.raises(errors.ConfigError, match="did you mean 'optimize'"):
        mlup.load(model_file, optimise="speed")


def test_predict_calls_the_named_method(model_file: Path) -> None:
    """`predict_method_name` chooses the method; `X` is its first argument whatever it is called there."""
    up = _up(model_file, predict_method_name="predict_rows")
    with up.ml.load():
        assert up.predict(X=[1], scale=3) == [3]
        assert up.predict(rows=[1], scale=2) == [2]
        up.conf.predict_method_name = "predict"
        up.ml.load_model_settings()
        assert up.predict(X=[1]) == [3]


def test_predicting_wrong_is_a_predict_error_with_its_cause(model_file: Path) -> None:
    """The model's own exception is chained; a method that is not there is named."""
    up = _up(model_file)
    with pytest.raises(errors.ModelLoadError, match="not loaded"):
        up.predict(X=[1])
    up.ml.load()
    with pytest.raises(errors.PredictError, match="TypeError") as failed:
        up.predict(X=3)
    assert isinstance(failed.value.__cause__, TypeError)
    up.conf.predict_method_name = "classify"
    up.ml.load_model_settings()
    with pytest.raises(errors.PredictError, match="'classify'"):
        up.predict(X=[1])


def test_a_second_load_is_an_error_and_a_forced_one_reloads(model_file: Path) -> None:
    """`force_loading` reads the file anew."""
    up = _up(model_file)
    up.ml.load()
    first = up.ml.model_obj
    with pytest.raises(errors.ModelLoadError, match="force_loading"):
        up.ml.load()
    model_file.write_bytes(pickle.dumps(Doubler(offset=5)))
    up.ml.load(force_loading=True)
    assert up.ml.model_obj is not first
    assert up.predict(X=[0]) == [5]


def test_a_reload_lets_the_old_model_go_first(model_file: Path) -> None:
    """The old model is dead by the time the new one is built."""
    up = _up(model_file, binarization_type=f"{__name__}.Watching")
    Watching.alive = []
    up.ml.load()
    up.ml.load(force_loading=True)
    assert Watching.alive == [None]


class Watching(BaseBinarizer):
    """Notes whether the model that it built before is still alive."""

    alive: ClassVar[list[Any]]
    last: ClassVar[Any] = None

    @classmethod
    def deserialize(cls, data: LoadedFile) -> Any:
        if cls.last is not None:
            cls.alive.append(cls.last())
        model = Doubler()
        cls.last = weakref.ref(model)
        return model


def test_a_reload_that_cannot_begin_leaves_the_old_model(model_file: Path) -> None:
    """What can be known without building is checked before the old model goes."""
    up = _up(model_file)
    up.ml.load()
    model_file.unlink()
    with pytest.raises(errors.ModelNotFoundError):
        up.ml.load(force_loading=True)
    assert up.predict(X=[1]) == [3]


def test_the_context_manager_unloads(model_file: Path) -> None:
    """`with up.ml.load():` gives everything back at the end; unloading again does nothing."""
    up = _up(model_file)
    with up.ml.load():
        alive = weakref.ref(up.ml.model_obj)
    assert not up.ml.loaded
    assert alive() is None
    assert up.ml.unload() == ()


def test_the_report_is_complete_and_frozen(model_file: Path) -> None:
    """File, format, delivery and why, sizes, seconds, and memory at baseline, peak and settled, as JSON values."""
    up = _up(model_file)
    up.ml.load()
    report = up.ml.report
    assert report is not None
    values = report.to_dict()
    assert values["file"] == str(model_file)
    assert values["format"] == "pickle"
    assert values["size_bytes"] == model_file.stat().st_size
    assert values["binarizer"].endswith("PickleBinarizer")
    assert values["delivery"] in ("path", "view", "stream")
    assert values["delivery_reason"]
    assert values["estimate"] is not None
    assert 0 < values["build_seconds"] <= values["seconds"]
    assert values["memory"]["baseline"]["rss_bytes"] <= values["memory"]["peak"]["rss_bytes"]
    assert [step["name"] for step in values["memory"]["steps"]] == ["raw data released"]  # of a small load
    with pytest.raises(AttributeError):
        report.file = "x"  # type: ignore[misc]


def test_more_than_one_match_is_ambiguous(tmp_path: Path) -> None:
    """Never the first one: the error lists them."""
    for name in ("a.pckl", "b.pckl"):
        (tmp_path / name).write_bytes(pickle.dumps(1))
    with pytest.raises(errors.AmbiguousModelError, match=r"a\.pckl.*b\.pckl") as failed:
        _up(tmp_path).ml.load()
    assert len(failed.value.candidates or ()) == 2


class OldLoadedFile(NamedTuple):
    """What a storage written for the old package returns."""

    raw_data: Any = b""
    path: str | None = None


@dataclass
class BytesStorage(BaseStorage):
    """The documentation's custom storage: a dataclass with arguments and class methods, which has bytes and no path."""

    password: str
    login: str = "default login"

    @classmethod
    def load_bytes_single_file(cls, *args: Any, **kwargs: Any) -> bytes:
        return pickle.dumps(Doubler(offset=7))

    @classmethod
    def load(cls) -> list[LoadedFile]:
        return [LoadedFile(cls.load_bytes_single_file())]


@dataclass
class OldStorage(BaseStorage):
    path: str

    def load_bytes_single_file(self, *args: Any, **kwargs: Any) -> Any:
        return OldLoadedFile(path=self.path)

    def load(self) -> list[Any]:
        return [self.load_bytes_single_file()]


@pytest.mark.parametrize("kind", [f"{__name__}.BytesStorage", BytesStorage])
def test_a_custom_storage_with_class_methods_and_bytes_only(kind: Any) -> None:
    """By import path and as a class; its arguments come from `storage_kwargs`; the bytes are used."""
    up = mlup.UP(conf=mlup.Config(storage_type=kind, storage_kwargs={"password": "p", "login": "not default login"}))
    up.ml.load()
    assert up.predict(X=[0]) == [7]
    assert up.ml.report is not None
    assert up.ml.report.delivery == "bytes"


def test_a_storage_of_the_old_package_works(model_file: Path) -> None:
    """A named tuple in place of our LoadedFile."""
    up = mlup.UP(conf=mlup.Config(storage_type=OldStorage, storage_kwargs={"path": str(model_file)}))
    up.ml.load()
    assert up.predict(X=[1]) == [3]


def test_wrong_storage_arguments_name_the_storage() -> None:
    """A missing or unknown argument is a ConfigError, not a bare TypeError."""
    with pytest.raises(errors.ConfigError, match=r"storage_kwargs: BytesStorage: .*password"):
        mlup.UP(conf=mlup.Config(storage_type=BytesStorage)).ml.load()


class OldBinarizer:
    """A binarizer that subclasses nothing of ours and knows only the old contract."""

    @classmethod
    def deserialize(cls, data: Any) -> Any:
        with open(data.path, "rb") as file:
            return pickle.loads(data.raw_data) if data.raw_data else pickle.load(file)


@pytest.mark.parametrize("delivery", ["auto", "bytes"])
def test_a_custom_binarizer_needs_only_deserialize(model_file: Path, delivery: str) -> None:
    """It is given a path, or the bytes where those were asked for."""
    up = _up(model_file, binarization_type=f"{__name__}.OldBinarizer", storage_kwargs={"delivery": delivery})
    up.ml.load()
    assert up.predict(X=[1]) == [3]
    with pytest.raises(errors.ConfigError, match="not accepted by OldBinarizer"):
        _up(model_file, binarization_type=OldBinarizer, storage_kwargs={"delivery": "view"}).ml.load()


class Held:
    """Something large that a failing load leaves in its frames."""

    alive: ClassVar[list[weakref.ref[Any]]] = []

    def __init__(self) -> None:
        Held.alive.append(weakref.ref(self))


class Failing(BaseBinarizer):
    """Fails with what it read in its local variables, and in those of the function that it called."""

    @classmethod
    def deserialize(cls, data: LoadedFile) -> Any:
        held, raw = Held(), data.raw_data
        assert raw
        try:
            cls.deeper(held)
        except KeyError as error:
            raise ValueError("failed on purpose") from error

    @classmethod
    def deeper(cls, held: Held) -> None:
        other = Held()
        raise KeyError(str(other)[:1])


def test_a_failed_load_leaves_nothing_even_while_the_exception_is_held(model_file: Path) -> None:
    """Local variables of the failed frames die, descriptors close, the state is as before, and the load can be tried again."""
    Held.alive = []
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    up = _up(model_file, binarization_type=Failing, storage_kwargs={"need_load_file": True})
    with pytest.raises(ValueError, match="on purpose") as held_by_the_caller:
        up.ml.load()
    gc.collect()
    assert held_by_the_caller.value.__cause__ is not None
    assert [each() for each in Held.alive] == [None, None]
    if descriptors:
        assert len(os.listdir("/proc/self/fd")) == descriptors
    assert not up.ml.loaded
    up.conf.binarization_type = "pickle"
    up.ml.load()
    assert up.predict(X=[1]) == [3]


def test_unpickling_needs_its_class(tmp_path: Path) -> None:
    """A class that cannot be imported is named, and the error is an ImportError too."""
    path = tmp_path / "m.pckl"
    path.write_bytes(b"cno_such_module\nModel\n.")
    with pytest.raises(ImportError, match="no_such_module") as failed:
        mlup.load(path, binarization_type="pickle")
    assert isinstance(failed.value, errors.MissingClassError)


def test_unloading_says_what_still_holds_the_model(model_file: Path) -> None:
    """Who kept the model is told that it keeps its memory; who did not hears nothing."""
    up = _up(model_file)
    up.ml.load()
    kept = up.ml.model_obj
    (holder,) = up.ml.unload()[-1].held_by
    assert "'kept'" in holder
    assert "test_load_cycle.py" in holder
    del kept
    up.ml.load()
    assert up.ml.unload()[-1].held_by == ()
