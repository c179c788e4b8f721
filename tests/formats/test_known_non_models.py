"""What is no model here and often given as one: the message says what it is and what to do, and never calls it something else."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from child import run_child
from given import detected

import mlup_stream as mlup
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.errors import FormatNotRecognizedError, ModelNotFoundError
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.shards import read_index
from mlup_stream.ml.binarization.detection import formats_of
from mlup_stream.ml.inspection import inspect
from mlup_stream.ml.storage.local_disk import DiskStorage


def said_of(data: bytes | str, tmp_path: Path, name: str = "model") -> str:
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(FormatNotRecognizedError) as caught:
        detected(LoadedFile(path=path))
    message = str(caught.value)
    assert "\n" not in message
    return message


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


META_GRAPH = field(1, field(4, b"serve") + field(5, b"2.21.0")) + field(2, b"x" * 3000)
DESCRIPTION = field(1, field(1, b"image") + field(3, b"\x22\x00")) + field(100, field(1, b"A classifier"))
NODE = field(1, b"input") + field(2, b"Placeholder") + field(5, field(1, b"dtype"))


@pytest.mark.parametrize(
    ("data", "says", "never"),
    [
        (b"\x08\x01" + field(2, DESCRIPTION) + field(500, b"y" * 900), "CoreML", "SavedModel"),
        (b"\x08\x07" + field(2, DESCRIPTION) + field(502, b"y" * 900), "CoreML", "SavedModel"),
        (b"\x08\x01" + field(2, META_GRAPH), "SavedModel; give its folder", "CoreML"),
        (b"\x08\x01" + field(2, META_GRAPH) * 2, "SavedModel; give its folder", "CoreML"),
        (field(1, NODE) + field(1, field(1, b"w") + field(2, b"Const")) + field(4, b"\x08\x1b"), "GraphDef", "CoreML"),
        ('node {\n  name: "x"\n  op: "Placeholder"\n}\n', "GraphDef", "script"),
        ('<?xml version="1.0"?>\n<net name="model" version="11">\n<layers>', "OpenVINO", "web page"),
        ('<net name="model" version="11">', "OpenVINO", "web page"),
        ('<?xml version="1.0"?>\n<!-- by X -->\n<!-- now -->\n<net name="model">', "openvino.Core().read_model", "web page"),
        ("<?xml version='1.0'?>" + "<!-- --><!-- -->" * 25 + "<html>", "web page", "OpenVINO"),
        ('<?xml version="1.0"?>\n<PMML version="4.4">', "PMML", "web page"),
        (b"\xba\x16\x4f\x2f\x0c" + bytes(90), "fasttext.load_model", "pickle,"),
        (b"\x06\0\0\0\x10\0TransformerSpec\0" + bytes(90), "CTranslate2", "pickle,"),
        (b"ftrt\0\0\0\0" + bytes(90), "TensorRT", "zeros"),
        (b"ptrt\0\0\0\0" + bytes(90), "TensorRT", "zeros"),
        (b"FEA1" + bytes(90), "Feather table of version 1", "Arrow file"),
        (b"PAR1" + bytes(90), "write it as an Arrow file", "zeros"),
        ("7767517\n2 2\nInput data 0 1 data\n", "ncnn", "script"),
        ("svm_type c_svc\nkernel_type rbf\n", "LIBSVM", "script"),
        ('{"format": "layers-model", "generatedBy": "keras"}', "TensorFlow.js", "configuration of"),
        ('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "error page", "OpenVINO"),
        ('{\n  "features_info":\n  {"float_features": []}}', "CatBoost", "configuration of"),
        (b"\x1c\0\0\0ET12" + bytes(100), "ExecuTorch", "zeros"),
        ('model_checkpoint_path: "model.ckpt-100"\n', "checkpoints", "script"),
        (bytes(100) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "TensorFlow checkpoint", "zeros"),
        ('{"weight_map": {"a": "tf_model-00001-of-00002.h5"}}', "a model in several files", "tokenizer"),
        ('{\n  "metadata": {\n    "total_size": 7\n  },\n  "weight_map": {"a": "m.h5"}}', "a model in several", "tokenizer"),
        ('{\n  "architectures": [\n    "BertModel"\n  ],\n  "model_type": "bert"}', "configuration of a model", "tokenizer"),
        ('{\n  "version": "1.0",\n  "truncation": null,\n  "added_tokens": []}', "tokenizer", "configuration of"),
    ],
)
def test_what_it_is_and_what_to_do(tmp_path: Path, data: bytes | str, says: str, never: str) -> None:
    """Each by its own mark; what shares its first bytes is told apart."""
    message = said_of(data, tmp_path)
    assert says in message
    assert never not in message.partition("; known are")[0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.onnx_data", "give the .onnx beside it"),
        ("model.onnx.data", "give the .onnx beside it"),
        ("variables.data-00000-of-00001", "TensorFlow checkpoint"),
        ("model.ckpt.meta", "TensorFlow checkpoint"),
    ],
)
def test_bare_numbers_are_told_by_their_name(tmp_path: Path, name: str, says: str) -> None:
    """Weights without a header have no mark."""
    assert says in said_of(b"\x3f\x80\x11\x22" * 300, tmp_path, name)


def test_dumps_of_lightgbm_are_told(tmp_path: Path) -> None:
    """`Booster.dump_model` makes JSON for people, which no library loads."""
    pytest.importorskip("lightgbm", reason="writes the dump")
    dump = run_child(
        """
        import lightgbm, numpy
        booster = lightgbm.train({"verbose": -1}, lightgbm.Dataset(numpy.eye(60), numpy.arange(60.0)), 2)
        answer(booster.dump_model())
        """
    )
    for text in (json.dumps(dump), json.dumps(dump, indent=2)):
        assert "dump of a LightGBM model" in said_of(text, tmp_path)


def test_dumps_of_xgboost_are_told(tmp_path: Path) -> None:
    """`Booster.dump_model` as JSON and as text; and `save_config`, which has no trees and is not damaged."""
    pytest.importorskip("xgboost", reason="writes the dump")
    for kind in ("json", "text"):
        run_child(
            """
            import numpy, xgboost
            booster = xgboost.train({"max_depth": 2}, xgboost.DMatrix(numpy.eye(60), numpy.arange(60.0)), 2)
            booster.dump_model(path, dump_format=kind)
            answer(True)
            """,
            path=str(tmp_path / kind),
            kind=kind,
        )
        assert "dump of an XGBoost model" in said_of((tmp_path / kind).read_bytes(), tmp_path)
    config = run_child(
        """
        import numpy, xgboost
        answer(xgboost.train({"max_depth": 2}, xgboost.DMatrix(numpy.eye(60), numpy.arange(60.0)), 2).save_config())
        """
    )
    assert "settings of an XGBoost model" in said_of(config, tmp_path)


@pytest.mark.tensorflow
def test_what_keras_and_tensorflow_write_beside_models_is_told(tmp_path: Path) -> None:
    """`to_json`, a graph, the file in a SavedModel, the files of a checkpoint and its folder."""
    pytest.importorskip("tensorflow", reason="writes the files")
    run_child(
        """
        import os, warnings
        warnings.simplefilter("ignore")
        import keras, tensorflow
        os.chdir(folder)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        open("layers.json", "w").write(model.to_json())
        graph = tensorflow.function(lambda x: x + 1).get_concrete_function(tensorflow.TensorSpec([3])).graph.as_graph_def()
        open("graph.pb", "wb").write(graph.SerializeToString())
        model.export("exported", verbose=False)
        os.mkdir("training")
        tensorflow.train.Checkpoint(w=tensorflow.Variable([1.0])).save("training/ckpt")
        answer(True)
        """,
        environment={"TF_CPP_MIN_LOG_LEVEL": "3"},
        folder=str(tmp_path),
    )
    found = {"layers.json": "layers of a Keras model", "graph.pb": "GraphDef"}
    found["exported/saved_model.pb"] = "SavedModel; give its folder"
    found |= {f"training/{each.name}": "heckpoint" for each in (tmp_path / "training").iterdir()}
    assert len(found) == 6
    for name, says in {**found, "training": "checkpoint"}.items():
        with pytest.raises(FormatNotRecognizedError, match=says):
            detected(LoadedFile(path=tmp_path / name))


def test_a_folder_that_is_no_model_here_is_told(tmp_path: Path) -> None:
    """A CoreML package, as coremltools writes it: its manifest is not taken for the model."""
    (tmp_path / "Data" / "com.apple.CoreML").mkdir(parents=True)
    (tmp_path / "Manifest.json").write_text('{"fileFormatVersion": "1.0.0", "itemInfoEntries": {}}')
    for act in (mlup.load, inspect):
        with pytest.raises((ModelNotFoundError, FormatNotRecognizedError), match="CoreML package"):
            act(tmp_path)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("model.bin", "config.json", "shared_vocabulary.json"), "CTranslate2"),
        (("m.bin", "m.xml", "readme.md"), "OpenVINO"),
        (("config.json", "tokenizer.json", "tokenizer_config.json"), "without its weights"),
        (("config.cfg", "meta.json", "tokenizer"), "spaCy"),
        (("inference.pdmodel", "inference.pdiparams"), "PaddlePaddle"),
        (("coremldata.bin", "model.mil"), "compiled CoreML"),
    ],
)
def test_folders_of_other_libraries_are_told(tmp_path: Path, names: tuple[str, ...], says: str) -> None:
    """By the names in them, however many others are there."""
    for name in (*names, *(f"x{i}.md" for i in range(50))):
        (tmp_path / name).write_bytes(b'{"a": 1}' if name.endswith(".json") else b"\x3f\x80\x11\x22" * 300)
    for act in (mlup.load, inspect):
        with pytest.raises((ModelNotFoundError, FormatNotRecognizedError), match=says):
            act(tmp_path)


def test_weights_are_told_by_the_graph_beside_them(tmp_path: Path) -> None:
    """An OpenVINO `.bin` is bare numbers; the `.xml` beside it says whose."""
    weights = b"\x3f\x80\x11\x22" * 300
    assert "OpenVINO" not in said_of(weights, tmp_path, "alone.bin")
    (tmp_path / "model.xml").write_text("<net name='m'>")
    assert "weights of an OpenVINO model" in said_of(weights, tmp_path, "model.bin")


def test_a_torchserve_archive_is_told(tmp_path: Path) -> None:
    """A `.mar` is a zip with its manifest in MAR-INF."""
    with zipfile.ZipFile(tmp_path / "m.mar", "w") as archive:
        archive.writestr("model.pt", b"abc")
        archive.writestr("MAR-INF/MANIFEST.json", "{}")
    assert "TorchServe archive; unpack it" in said_of((tmp_path / "m.mar").read_bytes(), tmp_path, "m2.mar")


@pytest.mark.parametrize("address", ["https://example.org/model.onnx", "s3://bucket/model.pkl", "hf://org/model"])
def test_an_address_is_told_from_a_path(address: str) -> None:
    """What lies on a server has to be fetched first."""
    with pytest.raises(ModelNotFoundError, match=f"{re.escape(address)}: expected a path on the local disk, found an address"):
        DiskStorage(address).load()


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("order", [lambda index: index, lambda index: dict(reversed(index.items()))], ids=["first", "last"])
def test_an_index_is_recognised_behind_long_metadata(
    tmp_path: Path, indent: int | None, order: Callable[[dict[str, object]], dict[str, object]]
) -> None:
    """Metadata of any length may come before the map of weights, or after it."""
    index = order(
        {"metadata": {"note": "x" * 5000}, "weight_map": {f"layer.{i}": "m-00001-of-00002.safetensors" for i in range(99)}}
    )
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index, indent=indent))
    assert formats_of(LoadedFile(path=path)) == (Format.SAFETENSORS,)
    assert set(read_index(path)) == {"m-00001-of-00002.safetensors"}
