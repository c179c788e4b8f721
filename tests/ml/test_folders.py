"""A folder with one model in it, as people keep it or as a hub gives it, is that model, for `load` as for `inspect`."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
from child import run_child

import mlup_stream as mlup
from mlup_stream.errors import AmbiguousModelError, FormatNotRecognizedError, ModelNotFoundError, NotAModelFileError
from mlup_stream.ml.inspection import inspect
from mlup_stream.ml.storage.local_disk import DiskStorage

BESIDE = {
    "config.json": b'{\n  "architectures": ["BertModel"],\n  "model_type": "bert"\n}',
    "generation_config.json": b'{"transformers_version": "5.0.0"}',
    "tokenizer.json": b'{"version": "1.0", "truncation": null, "added_tokens": []}',
    "tokenizer_config.json": b'{"tokenizer_class": "BertTokenizer"}',
    "vocab.txt": b"[PAD]\n[UNK]\nthe\n",
    "README.md": b"# A model",
    ".gitattributes": b"*.bin filter=lfs",
}


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"abcd"


def torch_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/version", "3\n")


def index(suffix: str) -> bytes:
    return json.dumps({"metadata": {"total_size": 4}, "weight_map": {"w": f"x-00001-of-00002.{suffix}"}}).encode()


def hub(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in BESIDE.items():
        (folder / name).write_bytes(content)
    for name in names:
        if name.endswith(".index.json"):
            (folder / name).write_bytes(index(name.split(".")[-3]))
        elif name.endswith(".safetensors"):
            (folder / name).write_bytes(safetensors())
        elif name.endswith(".gguf"):
            (folder / name).write_bytes(b"GGUF\3\0\0\0" + bytes(16))
        else:
            torch_zip(folder / name)
    return folder


def found_in(folder: Path) -> list[str]:
    return [os.path.basename(str(each.path)) for each in DiskStorage(folder).load()]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.safetensors"], "model.safetensors"),
        (["pytorch_model.bin"], "pytorch_model.bin"),
        (["model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        (["model.safetensors", "pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth"], "model.safetensors"),
        (["adapter_model.safetensors", "training_args.bin", "scheduler.pt"], "adapter_model.safetensors"),
        (["optimizer.pt"], "optimizer.pt"),
        (
            ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "m.safetensors.index.json"],
            "m.safetensors.index.json",
        ),
        (
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"],
            "pytorch_model.bin.index.json",
        ),
        (
            [
                *("model.safetensors.index.json", "x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors"),
                *("pytorch_model.bin.index.json", "x-00001-of-00002.bin", "x-00002-of-00002.bin"),
            ],
            "model.safetensors.index.json",
        ),
        (["q-00001-of-00003.gguf", "q-00002-of-00003.gguf", "q-00003-of-00003.gguf"], "q-00001-of-00003.gguf"),
    ],
)
def test_a_folder_of_a_hub_is_one_model(tmp_path: Path, names: list[str], expected: str) -> None:
    """Configuration, tokenizer and vocabulary are no candidates; parts and other frameworks' weights are not further models."""
    assert found_in(hub(tmp_path, *names)) == [expected]


def test_an_index_stands_for_what_it_lists(tmp_path: Path) -> None:
    """Whatever its shards are called; a file that it does not list is a second model."""
    for name in ("language.safetensors", "vision.safetensors"):
        (tmp_path / name).write_bytes(safetensors())
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "language.safetensors", "b": "vision.safetensors"}}))
    assert found_in(tmp_path) == [index.name]
    (tmp_path / "other.safetensors").write_bytes(safetensors())
    assert found_in(tmp_path) == [index.name, "other.safetensors"]


def test_configurations_alone_are_no_models(tmp_path: Path) -> None:
    """Where a hub's folder has no weights, none of its other files is taken for a model, and the message has their names."""
    for act in (mlup.load, inspect):
        with pytest.raises((ModelNotFoundError, FormatNotRecognizedError), match=r"config\.json"):
            act(hub(tmp_path))


def test_what_the_name_does_not_say_the_content_does(tmp_path: Path) -> None:
    """`.json`, `.txt` and names without a suffix are candidates if they hold a model, and only then."""
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "trees.txt").write_text("tree\nversion=v4\nnum_class=1\n")
    assert found_in(tmp_path) == ["trees.txt"]
    (tmp_path / "trees.txt").unlink()
    (tmp_path / "estimator").write_bytes(pickle.dumps([1, 2]))
    assert found_in(tmp_path) == ["estimator"]
    assert mlup.load(tmp_path) == [1, 2]


def test_a_damaged_model_is_not_passed_over(tmp_path: Path) -> None:
    """What is named as a model is one, whatever it holds: another file is not taken in its place without a word."""
    (tmp_path / "a.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "a.onnx.bak").write_bytes(pickle.dumps([1]))
    assert found_in(tmp_path) == ["a.onnx"]
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY\1\0")
    assert found_in(tmp_path) == ["a.onnx", "b.npy"]


def test_two_models_are_ambiguous_for_load_and_inspect(tmp_path: Path) -> None:
    """Beside a hub's weights another model is a second one; both verbs say so, with the names."""
    hub(tmp_path, "model.safetensors")
    (tmp_path / "fraud.pkl").write_bytes(pickle.dumps([1]))
    for act in (mlup.load, inspect):
        with pytest.raises(AmbiguousModelError, match=r"expected one model, found 2: .*fraud\.pkl.*model\.safetensors"):
            act(tmp_path)


def test_a_scaler_of_scikit_learn_is_a_second_model(tmp_path: Path) -> None:
    """Only what a trainer of torch leaves is passed over: which of two pickles is meant, nobody can say."""
    for name in ("model.pkl", "scaler.pkl", "optimizer.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps([name]))
    with pytest.raises(AmbiguousModelError, match="found 3"):
        mlup.load(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "estimator.pkl"])
def test_inspect_says_what_load_takes(tmp_path: Path, name: str) -> None:
    """`inspect FOLDER` is `inspect` of the file that `load FOLDER` loads."""
    hub(tmp_path)
    (tmp_path / name).write_bytes(safetensors() if name.endswith("s") else pickle.dumps({"w": 1}))
    assert inspect(tmp_path) == inspect(tmp_path / name)
    up = mlup.UP(conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": tmp_path}))
    up.ml.load()
    assert up.ml.report.file == inspect(tmp_path)["file"]


def test_a_folder_without_a_model_says_what_is_there(tmp_path: Path) -> None:
    """Both verbs have the names in their message."""
    (tmp_path / "notes.md").write_text("nothing")
    with pytest.raises(ModelNotFoundError, match=r"notes\.md"):
        mlup.load(tmp_path)
    with pytest.raises(FormatNotRecognizedError, match=r"notes\.md"):
        inspect(tmp_path)
    (tmp_path / "inner").mkdir()
    with pytest.raises(NotAModelFileError, match="found a folder"):
        DiskStorage(tmp_path, "inner").load()


@pytest.mark.tensorflow
def test_an_unzipped_keras_model_is_one_model(tmp_path: Path) -> None:
    """The folder is detected, inspected, planned and loaded as the `.keras` file is, given directly and inside another folder."""
    pytest.importorskip("keras", reason="writes the model")
    found = run_child(
        """
        import os, warnings, zipfile
        warnings.simplefilter("ignore")
        import keras, numpy
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model.save(folder + "/m.keras")
        with zipfile.ZipFile(folder + "/m.keras") as archive:
            archive.extractall(folder + "/in/unzipped")
        import mlup_stream as mlup
        from mlup_stream.ml.inspection import inspect
        rows = numpy.ones((2, 3), "float32")
        expected = model.predict(rows, verbose=0)
        same, said = [], []
        for path in (folder + "/in/unzipped", folder + "/in"):
            up = mlup.UP(conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": path}))
            up.ml.load()
            same.append(bool(numpy.array_equal(up.ml.model_obj.predict(rows, verbose=0), expected)))
            said.append([inspect(path)["format"], inspect(path)["container"], inspect(path)["layers"]])
            said[-1].append(up.ml.report.delivery)
        answer([same, said])
        """,
        environment={"TF_CPP_MIN_LOG_LEVEL": "3"},
        folder=str(tmp_path),
    )
    assert found == [[True, True], [["keras", "folder", {"InputLayer": 1, "Dense": 1}, "path"]] * 2]
