"""Keras files and SavedModel folders: the library's own answers, typed errors, and the weights once in memory, not twice."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import re
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from child import run_child
from given import Given, deserialize, estimated
from measured import SLACK_BYTES, measure_load

import mlup_stream as mlup
from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.terms import Terms
from mlup_stream.errors import (
    ConfigError,
    CorruptModelError,
    LoadError,
    MemoryBudgetExceeded,
    MissingClassError,
    MissingDependencyError,
    ModelBinarizationError,
    NotAModelFileError,
)
from mlup_stream.ml.binarization.frameworks import keras_reading
from mlup_stream.ml.binarization.tensorflow import TensorFlowBinarizer, TensorFlowSavedBinarizer

pytestmark = pytest.mark.tensorflow

BINARIZER = "mlup_stream.ml.binarization.tensorflow.TensorFlowBinarizer"
SAVED_BINARIZER = "mlup_stream.ml.binarization.tensorflow.TensorFlowSavedBinarizer"
DELIVERIES = [Delivery.PATH, Delivery.STREAM, Delivery.VIEW, Delivery.BYTES]


@pytest.fixture(scope="module")
def keras() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        pytest.importorskip("tensorflow", reason="makes the models")
        return pytest.importorskip("keras", reason="makes the models")


@pytest.fixture(scope="module")
def numpy(keras: Any) -> Any:
    return pytest.importorskip("numpy", reason="the arrays")


class Saved(dict[str, Path]):
    """The files by name, and what each model answers."""

    rows: Any
    last_layer: str
    answers: dict[str, Any]


@pytest.fixture(scope="module")
def saved(keras: Any, numpy: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    """A model with a layer that is used twice, normalisation, and an optimizer's state, in every container."""
    folder = tmp_path_factory.mktemp("keras")
    keras.utils.set_random_seed(3)
    shared = keras.layers.Dense(4, activation="relu", name="shared")
    start = keras.Input((4,))
    middle = keras.layers.BatchNormalization()(shared(shared(start)))
    model = keras.Model(start, keras.layers.Dense(2, kernel_initializer="he_normal")(middle))
    model.compile(loss=keras.losses.MeanSquaredError(), optimizer="adam")
    rows = numpy.arange(20, dtype="f4").reshape(5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(rows, rows[:, :2], verbose=0)
        model.save(folder / "model.keras")
        model.save(folder / "model.h5")
        model.export(folder / "saved", verbose=False)
    with zipfile.ZipFile(folder / "model.keras") as source, zipfile.ZipFile(
        folder / "deflated.keras", "w", zipfile.ZIP_DEFLATED
    ) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    files = Saved({path.name: path for path in folder.iterdir()})
    files.rows = rows
    files.last_layer = model.layers[-1].name
    files.answers = {"model": numpy.asarray(model(rows))}
    yield files
    shutil.rmtree(folder)


@pytest.fixture
def nothing_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After the test no more descriptors are open than before it, and the folder for temporary files is empty."""
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    count = _descriptors()
    yield
    gc.collect()
    assert _descriptors() <= count
    assert list(temporary.iterdir()) == []


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("name", ["model.keras", "model.h5", "deflated.keras"])
def test_every_delivery_predicts_what_the_saved_model_did(
    saved: Saved, numpy: Any, name: str, delivery: Delivery, nothing_left: None
) -> None:
    """Bit for bit, and a layer that was used twice is still one layer."""
    loaded = Given(path=saved[name], delivery=delivery)
    model = deserialize(TensorFlowBinarizer, loaded)
    assert numpy.array_equal(model(saved.rows), saved.answers["model"])
    assert [layer.name for layer in model.layers].count("shared") == 1
    assert not model.compiled


def test_predict_works_without_compiling(saved: Saved, numpy: Any) -> None:
    """`predict` needs no optimizer and warns of nothing."""
    up = mlup.UP(conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": saved["model.keras"]}))
    up.ml.load()
    assert numpy.allclose(up.predict(X=saved.rows, verbose=0), saved.answers["model"], rtol=1e-6)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_content_needs_no_path(saved: Saved, numpy: Any, name: str, kind: Any, nothing_left: None) -> None:
    """Bytes, a view of them or a file object, without a copy on disk."""
    model = deserialize(TensorFlowBinarizer, Given(kind(saved[name].read_bytes())))
    assert numpy.array_equal(model(saved.rows), saved.answers["model"])


def test_a_file_may_have_any_name(saved: Saved, numpy: Any, tmp_path: Path) -> None:
    """Content decides, where Keras itself goes by the suffix."""
    for name in ("model.keras", "model.h5"):
        path = shutil.copy(saved[name], tmp_path / "model.bin")
        model = deserialize(TensorFlowBinarizer, Given(path=path))
        assert numpy.array_equal(model(saved.rows), saved.answers["model"])


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_another_keras_loads_through_its_own_function(
    saved: Saved, numpy: Any, name: str, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    """Where the parts of Keras are not as expected, its `load_model` gets a private file with the suffix that it wants."""
    monkeypatch.setattr("mlup_stream.ml.binarization.tensorflow.parts", lambda: None)
    model = deserialize(TensorFlowBinarizer, Given(saved[name].read_bytes()))
    assert numpy.array_equal(model(saved.rows), saved.answers["model"])


def test_the_parts_are_there(keras: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the Keras that is installed, weights are read one at a time; a changed signature is noticed."""
    assert keras_reading.parts() is not None
    from keras.src.saving import saving_lib

    monkeypatch.setattr(saving_lib, "_load_state", lambda model: None)
    assert keras_reading.parts() is None


def test_the_old_package_may_call_it(saved: Saved) -> None:
    """The old named tuple is understood."""
    Old = namedtuple("LoadedFile", ("raw_data", "path"))
    assert TensorFlowBinarizer.deserialize(Old(b"", str(saved["model.keras"]))).layers
    assert TensorFlowSavedBinarizer.deserialize(Old(b"", str(saved["saved"]))).signatures
    assert TensorFlowBinarizer.is_this_type(Old(b"", str(saved["model.keras"]))) == 1.0
    assert TensorFlowSavedBinarizer.is_this_type(Old(b"", str(saved["saved"]))) == 1.0


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_compile_restores_the_optimizer(saved: Saved, name: str) -> None:
    """`compile=True` gives what Keras gives: loss and optimizer with its state."""
    model = deserialize(TensorFlowBinarizer, Given(path=saved[name]), compile=True)
    assert model.compiled
    assert int(model.optimizer.iterations) == 1


def test_assets_are_restored(keras: Any, numpy: Any, tmp_path: Path, nothing_left: None) -> None:
    """A vocabulary lies in files of the zip; only these are unpacked."""
    lookup = keras.layers.TextVectorization(output_sequence_length=3)
    lookup.adapt(["one two three", "two three", "three"])
    model = keras.Sequential([keras.Input((), dtype="string"), lookup])
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert any(name.startswith("assets/") for name in archive.namelist())
    loaded = deserialize(TensorFlowBinarizer, Given(path=tmp_path / "model.keras"))
    assert loaded.layers[-1].get_vocabulary() == lookup.get_vocabulary()


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_layer_that_is_not_registered_is_named(keras: Any, numpy: Any, tmp_path: Path, suffix: str) -> None:
    """The error names the class, and `custom_objects` with it helps."""

    class Doubled(keras.layers.Layer):  # type: ignore[misc]
        def call(self, values: Any) -> Any:
            return values * 2

    path = tmp_path / ("model" + suffix)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keras.Sequential([keras.Input((3,)), Doubled()]).save(path)
    with pytest.raises(MissingClassError, match=r"the \w+ 'Doubled'.*custom_objects") as failed:
        deserialize(TensorFlowBinarizer, Given(path=path))
    assert failed.value.qualname == "Doubled"
    assert str(path) in str(failed.value)
    assert "\n" not in str(failed.value)
    model = deserialize(TensorFlowBinarizer, Given(path=path), custom_objects={"Doubled": Doubled})
    assert model(numpy.ones((1, 3), "f4")).numpy().tolist() == [[2, 2, 2]]


def test_a_python_function_is_refused_unless_trusted(keras: Any, numpy: Any, tmp_path: Path) -> None:
    """`safe_mode` is on; the error says how to switch it off."""
    path = tmp_path / "model.keras"
    keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda values: values + 1)]).save(path)
    with pytest.raises(ModelBinarizationError, match='"safe_mode": False'):
        deserialize(TensorFlowBinarizer, Given(path=path))
    model = deserialize(TensorFlowBinarizer, Given(path=path), safe_mode=False)
    assert model(numpy.ones((1, 3), "f4")).numpy().tolist() == [[2, 2, 2]]


def test_an_option_that_does_not_exist_is_an_error(saved: Saved) -> None:
    """The message lists those that do."""
    with pytest.raises(ConfigError, match="compile, custom_objects, safe_mode"):
        deserialize(TensorFlowBinarizer, Given(path=saved["model.keras"]), optimizer="adam")


@pytest.mark.parametrize("delivery", [Delivery.PATH, Delivery.BYTES])
@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_truncation_is_a_typed_error(
    saved: Saved, tmp_path: Path, name: str, delivery: Delivery, nothing_left: None
) -> None:
    """Whatever is cut off: a typed error of one line that names the file."""
    whole = saved[name].read_bytes()
    path = tmp_path / name
    for cut in [*range(40), *range(40, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        loaded = Given(path=path, delivery=delivery)
        with pytest.raises(LoadError, match=re.escape(str(path))) as failed:
            deserialize(TensorFlowBinarizer, loaded)
        assert "\n" not in str(failed.value)
        loaded.release()
        assert estimated(TensorFlowBinarizer, Given(path=path), Delivery.PATH) is None


def _rewritten(source: Path, target: Path, **members: bytes | None) -> Path:
    """A copy of a zip with members exchanged or, for None, left out; `_` stands for a dot in their names."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for name in archive.namelist():
            content = members.get(name.replace(".", "_"), archive.read(name))
            if content is not None:
                copy.writestr(name, content)
    return target


DAMAGED: dict[str, dict[str, bytes | None]] = {
    "no weights": {"model_weights_h5": None},
    "no configuration": {"config_json": None},
    "a configuration that is no JSON": {"config_json": b"{nonsense"},
    "a configuration that is a list": {"config_json": b"[1, 2]"},
    "nested": {"config_json": b"[" * 100_000},
    "weights that are no HDF5": {"model_weights_h5": bytes(5000)},
    "weights that are empty": {"model_weights_h5": b""},
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_zip_is_a_typed_error(saved: Saved, tmp_path: Path, what: str, nothing_left: None) -> None:
    """Members that are missing or not what they should be."""
    path = _rewritten(saved["model.keras"], tmp_path / "model.keras", **DAMAGED[what])
    with pytest.raises(CorruptModelError, match=re.escape(str(path))):
        deserialize(TensorFlowBinarizer, Given(path=path))


def test_weights_of_another_model_are_an_error(keras: Any, saved: Saved, tmp_path: Path) -> None:
    """Never a model with some of its weights left as they were drawn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keras.Sequential([keras.Input((7,)), keras.layers.Dense(3)]).save(tmp_path / "other.keras")
    with zipfile.ZipFile(tmp_path / "other.keras") as archive:
        weights = archive.read("model.weights.h5")
    path = _rewritten(saved["model.keras"], tmp_path / "model.keras", model_weights_h5=weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of what it then raises
        with pytest.raises(ModelBinarizationError, match=re.escape(str(path)) + ".* must match") as failed:
            deserialize(TensorFlowBinarizer, Given(path=path))
    assert not isinstance(failed.value, CorruptModelError)


def _configured_otherwise(source: Path, target: Path, **more: Any) -> Path:
    """A copy of a Keras model in which the last layer's configuration says more, or something else."""
    import h5py

    def changed(content: str | bytes) -> bytes:
        config = json.loads(content)
        config["config"]["layers"][-1]["config"].update(more)
        return json.dumps(config).encode()

    if source.suffix == ".keras":
        with zipfile.ZipFile(source) as archive:
            config, metadata = changed(archive.read("config.json")), json.loads(archive.read("metadata.json"))
        metadata["keras_version"] = "9.8.7"
        return _rewritten(source, target, config_json=config, metadata_json=json.dumps(metadata).encode())
    shutil.copy(source, target)
    with h5py.File(target, "a") as file:
        file.attrs["model_config"] = changed(file.attrs["model_config"])
        file.attrs["keras_version"] = "9.8.7"
    return target


OTHERWISE: dict[str, tuple[dict[str, Any], str]] = {
    "an option of another version": ({"groups_of_tomorrow": 1}, r"Unrecognized keyword arguments.*groups_of_tomorrow"),
    "a value that is refused": ({"units": -3}, "expected a positive integer"),
    "an initializer that is gone": ({"kernel_initializer": {"class_name": "Gone", "config": {}}}, "Gone"),
    "another shape": ({"units": 7}, r"2, 7|4, 7"),
}


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
@pytest.mark.parametrize("what", OTHERWISE)
def test_why_keras_cannot_build_a_whole_file(saved: Saved, tmp_path: Path, name: str, what: str) -> None:
    """Its last words in one line, the layer that they are about, the Keras that wrote the file; and never that it is damaged."""
    more, words = OTHERWISE[what]
    layer = saved.last_layer
    path = _configured_otherwise(saved[name], tmp_path / name, **more)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of what it then raises
        with pytest.raises(ModelBinarizationError, match=words) as failed:
            deserialize(TensorFlowBinarizer, Given(path=path))
    said = str(failed.value)
    assert not isinstance(failed.value, CorruptModelError)
    assert layer in said
    assert "Keras 9.8.7 wrote the file" in said
    assert "\n" not in said
    assert "\x1b" not in said
    assert len(said) < 900


@pytest.mark.parametrize("content", ["path", "folder", "bytes"])
def test_the_reason_of_a_call_that_fails(keras: Any, tmp_path: Path, content: str) -> None:
    """What Keras colours and explains at length while it builds is told in plain words, whatever the content came as."""
    start = keras.Input((4,))
    keras.Model(start, keras.layers.Reshape((2, 2))(start)).save(tmp_path / "whole.keras")
    path = _configured_otherwise(tmp_path / "whole.keras", tmp_path / "m.keras", target_shape=[3, 3])
    given: Any = {"path": path}
    if content == "folder":
        shutil.unpack_archive(path, tmp_path / "folder", "zip")
        given = {"path": tmp_path / "folder"}
    elif content == "bytes":
        given = {"raw_data": path.read_bytes()}
    with pytest.raises(ModelBinarizationError, match="Reshape: The total size of the tensor must be unchanged") as failed:
        deserialize(TensorFlowBinarizer, Given(**given))
    assert not isinstance(failed.value, CorruptModelError)
    assert "Keras 9.8.7" in str(failed.value)


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_weights_that_cannot_be_read_are_damage(saved: Saved, tmp_path: Path, name: str, nothing_left: None) -> None:
    """What HDF5 cannot read while Keras fills a layer is told as damage, which Keras wraps in a `ValueError` of its own."""
    content = saved[name].read_bytes()
    damaged = 0
    for found in re.finditer(rb"SNOD", content):  # the groups of the HDF5 file
        path = tmp_path / name
        path.write_bytes(content[: found.start()] + b"\xff" * 24 + content[found.start() + 24 :])
        with warnings.catch_warnings(), contextlib.suppress(CorruptModelError):
            warnings.simplefilter("ignore")  # Keras warns of what it then raises
            damaged += 1
            deserialize(TensorFlowBinarizer, Given(path=path))
            damaged -= 1  # it was a group that nobody reads, such as the optimizer's
    assert damaged >= 4


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_a_watch_can_end_the_load(saved: Saved, name: str) -> None:
    """What the window's callback raises comes through h5py as it is."""
    artifact = Given(path=saved[name]).artifact

    def too_much(position: int) -> None:
        raise MemoryBudgetExceeded("too much")

    with pytest.raises(MemoryBudgetExceeded, match="too much"):
        TensorFlowBinarizer.build(artifact, Terms(on_window=too_much))
    artifact.release()


def test_a_saved_model_is_what_tensorflow_gives(saved: Saved, numpy: Any) -> None:
    """Its signatures and functions answer like the model that was exported."""
    model = deserialize(TensorFlowSavedBinarizer, Given(path=saved["saved"]), tags=["serve"])
    assert numpy.allclose(model.serve(saved.rows), saved.answers["model"], rtol=1e-6)
    assert "serving_default" in model.signatures


def test_signatures_are_served(saved: Saved, numpy: Any) -> None:
    """`predict_method_name="signatures.serving_default"` answers for arrays; without a name the error lists what there is."""
    conf = mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": str(saved["saved"])})
    up = mlup.UP(conf=conf)
    up.ml.load()
    with pytest.raises(mlup.errors.PredictError, match=r"'predict'.*serve.*signatures\.serving_default"):
        up.predict(X=saved.rows)
    up.conf.predict_method_name = "signatures.serving_default"
    up.ml.load(force_loading=True)
    (answer,) = up.predict(X=saved.rows).values()
    assert numpy.allclose(answer, saved.answers["model"], rtol=1e-6)


def test_a_model_of_tensorflow_1_is_served(numpy: Any, tmp_path: Path) -> None:
    """It has signatures alone."""
    import tensorflow

    v1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default(), v1.Session() as session:
        start = v1.placeholder(tensorflow.float32, [None, 3])
        weights = v1.get_variable("weights", initializer=2 * tensorflow.eye(3))
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(tmp_path / "m"), {"rows": start}, {"y": tensorflow.matmul(start, weights)})
    up = mlup.UP(
        conf=mlup.Config(
            storage_type="disk",
            storage_kwargs={"path_to_files": str(tmp_path / "m")},
            predict_method_name="signatures.serving_default",
        )
    )
    up.ml.load()
    assert numpy.array_equal(up.predict(X=numpy.ones((2, 3), "f4"))["y"], 2 * numpy.ones((2, 3)))


@pytest.fixture
def folder(saved: Saved, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved["saved"], tmp_path / "saved"))


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        ("saved_model.pb", r"expected saved_model\.pb or saved_model\.pbtxt"),
        ("variables/variables.index", r"expected variables/variables\.index"),
        ("variables/variables.data-00000-of-00001", r"expected variables/variables\.data-00000-of-00001"),
    ],
)
def test_a_folder_with_something_missing(folder: Path, removed: str, said: str) -> None:
    """Each part that is missing is named, before TensorFlow looks for it."""
    (folder / removed).unlink()
    with pytest.raises(CorruptModelError, match=said) as failed:
        deserialize(TensorFlowSavedBinarizer, Given(path=folder))
    assert str(folder) in str(failed.value)


def test_a_saved_model_is_a_folder(saved: Saved) -> None:
    """A file is not, and content cannot be."""
    with pytest.raises(NotAModelFileError, match="folder"):
        deserialize(TensorFlowSavedBinarizer, Given(path=saved["saved"] / "saved_model.pb"))
    with pytest.raises(ModelBinarizationError, match="give the folder's path"):
        deserialize(TensorFlowSavedBinarizer, Given(b"content"))


def test_what_is_not_the_folders_fault_is_not_called_damage(saved: Saved, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags that it does not have, an operator of another package, and what the system refuses, each with its words."""
    with pytest.raises(ModelBinarizationError, match="has one MetaGraph with tags") as failed:
        deserialize(TensorFlowSavedBinarizer, Given(path=folder), tags=["no such"])
    assert not isinstance(failed.value, CorruptModelError)
    graph = folder / "saved_model.pb"
    assert b"MatMul" in graph.read_bytes()
    graph.write_bytes(graph.read_bytes().replace(b"MatMul", b"MatMux"))
    with pytest.raises(MissingClassError, match=r"operator 'MatMux'.*import the package") as missing:
        deserialize(TensorFlowSavedBinarizer, Given(path=folder))
    assert missing.value.qualname == "MatMux"
    import tensorflow

    def denied(*_: Any, **__: Any) -> None:
        raise tensorflow.errors.PermissionDeniedError(None, None, "not for you")

    monkeypatch.setattr(tensorflow.saved_model, "load", denied)
    with pytest.raises(ModelBinarizationError, match="not for you") as refused:
        deserialize(TensorFlowSavedBinarizer, Given(path=saved["saved"]))
    assert not isinstance(refused.value, CorruptModelError)


def test_a_damaged_folder_never_ends_the_process(folder: Path, tmp_path: Path) -> None:
    """Each of its files cut anywhere, or garbled: a typed error or a model, in a process that lives on."""
    outcomes = run_child(
        """
        import os, shutil
        from mlup_stream.delivery.loaded_file import LoadedFile
        from mlup_stream.errors import LoadError
        from mlup_stream.ml.binarization.tensorflow import TensorFlowSavedBinarizer
        outcomes = []
        def attempt():
            try:
                TensorFlowSavedBinarizer.deserialize(LoadedFile(path=folder))
            except LoadError as error:
                said = str(error)
                outcomes.append("error" if folder in said and "\\n" not in said else said)
            else:
                outcomes.append("model")
        for name in ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"):
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                whole = file.read()
            for cut in (0, 1, 2, 17, *range(18, len(whole), len(whole) // 9), len(whole) - 1):
                with open(path, "wb") as file:
                    file.write(whole[:cut])
                attempt()
            garbled = bytearray(whole)
            for at in range(0, len(whole), len(whole) // 7):
                garbled[at : at + 16] = bytes(255 - each for each in garbled[at : at + 16])
            with open(path, "wb") as file:
                file.write(garbled)
            attempt()
            with open(path, "wb") as file:
                file.write(whole)
        attempt()
        answer(outcomes)
        """,
        folder=str(folder),
        environment={"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert set(outcomes) == {"error", "model"}
    assert outcomes[-1] == "model"
    assert outcomes.count("error") > 20


def test_nothing_is_printed_and_nothing_warned(saved: Saved) -> None:
    """A fresh process that loads writes nothing to its standard error; the user's log level is left alone.

    But for the note on oneDNN, which TensorFlow 2.21 prints on some processors before it reads the log level (3 shows it too).
    """
    said, level, layers = run_child(
        """
        import os, sys, tempfile, warnings
        warnings.simplefilter("error")
        os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)
        saved = os.dup(2)
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            import mlup_stream as mlup
            model = mlup.load(path)
            sys.stderr.flush()
            os.dup2(saved, 2)
            file.seek(0)
            answer([file.read().decode(), os.environ.get("TF_CPP_MIN_LOG_LEVEL"), len(model.layers)])
        """,
        path=str(saved["model.keras"]),
    )
    too_early = ("All log messages before absl::InitializeLog()", "oneDNN custom operations are on")
    assert [line for line in said.splitlines() if not any(words in line for words in too_early)] == []
    assert (level, layers) == (None, 4)


def test_without_its_library_the_error_says_what_to_install(saved: Saved) -> None:
    """The formats are recognised, and the line to paste is there."""
    said = run_child(
        """
        import sys
        sys.modules["keras"] = sys.modules["tensorflow"] = None
        import mlup_stream as mlup
        said = []
        for path in paths:
            try:
                mlup.load(path)
            except mlup.errors.MissingDependencyError as error:
                said.append(str(error))
        answer(said)
        """,
        paths=[str(saved["model.keras"]), str(saved["saved"])],
    )
    assert len(said) == 2
    assert all('pip install "mlup-stream[tensorflow]"' in each for each in said)
    assert issubclass(MissingDependencyError, ImportError)


WIDTH, LAYERS = 2048, 16

WARM_UP = """
import keras, numpy, tensorflow
small = keras.Sequential([keras.Input((2048,)), keras.layers.Dense(2048), keras.layers.Dense(64)])
small.predict(numpy.ones((1, 2048), "f4"), verbose=0)
del small
"""


@pytest.fixture(scope="module")
def big(keras: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """16 layers of 16 MB: in a child, so that the memory that making them takes is gone."""
    folder = tmp_path_factory.mktemp("big")
    run_child(
        """
        import warnings
        warnings.simplefilter("ignore")
        import keras
        keras.utils.set_random_seed(0)
        for name, initializer in (("model", "random_normal"), ("quick", "ones")):
            layers = [keras.layers.Dense(width, kernel_initializer=initializer) for _ in range(count)]
            model = keras.Sequential([keras.Input((width,)), *layers])
            model.save(folder + f"/{name}.keras")
            model.save(folder + f"/{name}.h5")
        model.export(folder + "/saved", verbose=False)
        answer(True)
        """,
        folder=str(folder),
        width=WIDTH,
        count=LAYERS,
        timeout_seconds=280,
        environment={"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    yield {path.name: path for path in folder.iterdir()}
    shutil.rmtree(folder)


on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the equations are about figures in /proc")
LAYER_BYTES = WIDTH * WIDTH * 4
WEIGHTS_BYTES = LAYERS * LAYER_BYTES
SUM = f"float(numpy.asarray(model.predict(numpy.ones((1, {WIDTH}), 'f4'), verbose=0)).astype('f8').sum())"
TENSORFLOW_SLACK_BYTES = 3 * SLACK_BYTES


@pytest.mark.big
@on_linux
@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
@pytest.mark.parametrize("delivery", ["path", "stream", "bytes"])
def test_keras_weights_are_in_memory_once(big: dict[str, Path], name: str, delivery: str) -> None:
    """peak = weights + 3 of the largest (drawn at random before it is read) + raw (of bytes); settled = weights; as estimated."""
    took = measure_load(BINARIZER, big[name], delivery, answer_of=SUM, warm_up=WARM_UP, imports=("numpy",))
    raw_bytes = big[name].stat().st_size if delivery == "bytes" else 0
    assert took.peak_bytes <= WEIGHTS_BYTES + 3 * LAYER_BYTES + raw_bytes + TENSORFLOW_SLACK_BYTES
    assert WEIGHTS_BYTES - SLACK_BYTES <= took.settled_bytes <= WEIGHTS_BYTES + TENSORFLOW_SLACK_BYTES
    assert took.estimate is not None
    assert took.peak_bytes <= took.estimate["peak_anon_bytes"] <= 1.2 * took.peak_bytes


@pytest.mark.big
@on_linux
def test_saved_model_variables_are_in_memory_once(big: dict[str, Path]) -> None:
    """peak = 1.05 of the variables + the functions, at most what was estimated."""
    variables_bytes = sum(path.stat().st_size for path in (big["saved"] / "variables").iterdir())
    took = measure_load(
        SAVED_BINARIZER,
        big["saved"],
        "path",
        answer_of=f"float(numpy.asarray(model.serve(numpy.ones((1, {WIDTH}), 'f4'))).astype('f8').sum())",
        warm_up=WARM_UP,
        imports=("numpy",),
    )
    assert took.peak_bytes <= 1.05 * variables_bytes + TENSORFLOW_SLACK_BYTES
    assert took.estimate is not None
    assert took.peak_bytes <= took.estimate["peak_anon_bytes"] <= 1.3 * took.peak_bytes


@pytest.mark.big
@on_linux
@pytest.mark.parametrize("name", ["quick.keras", "quick.h5", "saved"])
def test_unloading_gives_everything_back(big: dict[str, Path], name: str) -> None:
    """released - baseline <= 3% of the file, after the first unload and after each of 20 more cycles."""
    released = run_child(
        """
        import gc, os
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        import mlup_stream as mlup
        from mlup_stream.memory.meter import snapshot
        from mlup_stream.memory.reclaim import give_back
        exec(warm_up)
        up = mlup.UP(conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": path}, memory_learned=False))
        give_back()
        baseline = None
        released = []
        for _ in range(21):
            up.ml.load()
            baseline = baseline or up.ml.report.memory.baseline.rss_bytes
            model = up.ml.model_obj
            rows = numpy.ones((1, width), "f4")
            model(rows) if hasattr(model, "layers") else model.serve(rows)
            del model
            up.ml.unload()
            released.append(snapshot().rss_bytes - baseline)
        answer(released)
        """,
        path=str(big[name]),
        warm_up=WARM_UP,
        width=WIDTH,
        timeout_seconds=280,
    )
    assert max(released) <= 0.03 * WEIGHTS_BYTES

