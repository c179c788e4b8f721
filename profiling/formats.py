"""The formats that the scripts compare: for each, how a model of a size is made and how its own library loads it.

`write` and `library` run in fresh processes; nothing here imports a framework before that.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import writers
from common import LIBRARY

if TYPE_CHECKING:
    from mlup_stream.ml.model import MLupModel

@dataclass(frozen=True)
class Case:
    """One format.

    Attributes:
        name: What the tables call it.
        format: What `binarization_type` and detection call it.
        suffix: Of the file's name; empty for a folder.
        write: Writes a model of a given size in bytes to a path.
        library: Loads it as the users of its library do.
        call: That call, as one would type it.
        modules: What to import before anything is measured.
        packages: Whose versions matter.
        share: How much of the asked size is made: less where a model takes many times its file's size, or long to make.
        options: Our binarizer's options for the same result.
        ask: What to ask it (see `answers.answer`), where it cannot be known otherwise.
    """

    name: str
    format: str
    suffix: str
    write: Callable[[str, int], None]
    library: Callable[[str], Any]
    call: str
    modules: tuple[str, ...] = ("numpy",)
    packages: tuple[str, ...] = ("numpy",)
    share: float = 1.0
    options: tuple[tuple[str, Any], ...] = ()
    ask: str | None = None


def _pickle(path: str) -> Any:
    with open(path, "rb") as file:
        return pickle.load(file)


def _joblib(path: str) -> Any:
    return importlib.import_module("joblib").load(path)


def _npy(path: str) -> Any:
    return importlib.import_module("numpy").load(path)


def _npz(path: str) -> Any:
    with importlib.import_module("numpy").load(path) as archive:
        return dict(archive)


def _onnx(path: str) -> Any:
    return importlib.import_module("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])


def _safetensors(path: str) -> Any:
    return importlib.import_module("safetensors.numpy").load_file(path)


def _safetensors_torch(path: str) -> Any:
    return importlib.import_module("safetensors.torch").load_file(path)


def _torch(path: str) -> Any:
    return importlib.import_module("torch").load(path)


def _torchscript(path: str) -> Any:
    return importlib.import_module("torch").jit.load(path)


def _lightgbm(path: str) -> Any:
    return importlib.import_module("lightgbm").Booster(model_file=path)


def _xgboost(path: str) -> Any:
    booster = importlib.import_module("xgboost").Booster()
    booster.load_model(path)
    return booster


def _keras(path: str) -> Any:
    return importlib.import_module("keras").models.load_model(path)


def _saved_model(path: str) -> Any:
    return importlib.import_module("tensorflow").saved_model.load(path)


def _skops(path: str) -> Any:
    return importlib.import_module("skops.io").load(path, trusted=_TREES)


def _gensim(path: str) -> Any:
    return importlib.import_module("gensim.models").KeyedVectors.load(path)


def _tflite(path: str) -> Any:
    interpreter = importlib.import_module("ai_edge_litert.interpreter").Interpreter(path)
    interpreter.allocate_tensors()
    return interpreter


def _usearch(path: str) -> Any:
    return importlib.import_module("usearch.index").Index.restore(path)


def _faiss(path: str) -> Any:
    return importlib.import_module("faiss").read_index(path)


def _catboost(path: str) -> Any:
    return importlib.import_module("catboost").CatBoost().load_model(path)


def _arrow(path: str) -> Any:
    return importlib.import_module("pyarrow.feather").read_table(path, memory_map=False)


def _gguf(path: str) -> Any:
    return importlib.import_module("gguf").GGUFReader(path)


_TREES = ["sklearn.tree._tree.Tree"]
_SKLEARN = ("numpy", "joblib", "sklearn.ensemble")
_THREE_FIELDS = "[len(model), model[-1]['id'], model[len(model) // 2]['score']]"

CASES = (
    Case("pickle-arrays", "pickle", ".pkl", writers.pickled_arrays, _pickle, "pickle.load(file)"),
    Case("pickle-forest", "pickle", ".pkl", writers.pickled_forest, _pickle, "pickle.load(file)", _SKLEARN, ("scikit-learn",)),
    Case("pickle-dicts", "pickle", ".pkl", writers.pickled_dicts, _pickle, "pickle.load(file)", share=0.25, ask=_THREE_FIELDS),
    Case("joblib-arrays", "joblib", ".joblib", writers.joblib_arrays, _joblib, "joblib.load(path)", ("joblib",), ("joblib",)),
    Case("joblib-forest", "joblib", ".joblib", writers.joblib_forest, _joblib, "joblib.load(path)", _SKLEARN, ("joblib",)),
    Case("joblib-zlib", "joblib", ".joblib", writers.joblib_zlib, _joblib, "joblib.load(path)", ("joblib",), ("joblib",), 0.5),
    Case("npy", "npy", ".npy", writers.npy, _npy, "numpy.load(path)"),
    Case("npz", "npz", ".npz", writers.npz, _npz, "dict(numpy.load(path))"),
    Case("onnx", "onnx", ".onnx", writers.onnx_inside, _onnx, "InferenceSession(path)", ("onnxruntime",), ("onnxruntime",)),
    Case("onnx-external", "onnx", ".onnx", writers.onnx_external, _onnx, "InferenceSession(path)", ("onnxruntime",)),
    Case("ort", "onnx", ".ort", writers.ort, _onnx, "InferenceSession(path)", ("onnxruntime",), ("onnxruntime",)),
    Case(
        "safetensors-numpy",
        "safetensors",
        ".safetensors",
        writers.safetensors,
        _safetensors,
        "safetensors.numpy.load_file(path)",
        ("safetensors.numpy",),
        ("safetensors",),
    ),
    Case(
        "safetensors-torch",
        "safetensors",
        ".safetensors",
        writers.safetensors,
        _safetensors_torch,
        "safetensors.torch.load_file(path)",
        ("safetensors.torch",),
        ("safetensors",),
        options=(("framework", "torch"),),
    ),
    Case("torch", "torch", ".pt", writers.torch_state_dict, _torch, "torch.load(path)", ("torch",), ("torch",)),
    Case("torchscript", "torchscript", ".pt", writers.torchscript, _torchscript, "torch.jit.load(path)", ("torch",), ("torch",)),
    Case(
        "lightgbm",
        "lightgbm",
        ".txt",
        writers.lightgbm,
        _lightgbm,
        "Booster(model_file=path)",
        ("lightgbm",),
        ("lightgbm",),
    ),
    Case(
        "xgboost", "xgboost", ".ubj", writers.xgboost, _xgboost, "Booster().load_model(path)", ("xgboost",), ("xgboost",), 0.25
    ),
    Case("keras", "keras", ".keras", writers.keras, _keras, "keras.models.load_model(path)", ("keras",), ("keras",)),
    Case("keras-h5", "keras", ".h5", writers.keras, _keras, "keras.models.load_model(path)", ("keras",), ("h5py",)),
    Case(
        "savedmodel",
        "savedmodel",
        "",
        writers.saved_model,
        _saved_model,
        "tensorflow.saved_model.load(path)",
        ("tensorflow",),
        ("tensorflow-cpu",),
    ),
    Case("skops-arrays", "skops", ".skops", writers.skops_arrays, _skops, "skops.io.load(path)", ("skops.io",), ("skops",)),
    Case(
        "skops-forest",
        "skops",
        ".skops",
        writers.skops_forest,
        _skops,
        "skops.io.load(path)",
        (*_SKLEARN, "skops.io"),
        ("skops", "scikit-learn"),
        options=(("trusted", _TREES),),
    ),
    Case(
        "arrow",
        "arrow",
        ".arrow",
        writers.arrow,
        _arrow,
        "feather.read_table(path)",
        ("numpy", "pyarrow.feather"),
        ("pyarrow",),
        ask="[memoryview(part.buffers()[1]).cast('f')[-1] for column in model.columns for part in column.chunks]",
    ),
    Case(
        "gensim",
        "pickle",
        ".kv",
        writers.gensim,
        _gensim,
        "KeyedVectors.load(path)",
        ("numpy", "gensim.models"),
        ("gensim",),
        ask="model.vectors[:: len(model) - 1, 0]",
    ),
    Case(
        "tflite",
        "tflite",
        ".tflite",
        writers.tflite,
        _tflite,
        "Interpreter(path)",
        ("numpy", "ai_edge_litert.interpreter"),
        ("ai-edge-litert",),
        ask=(
            "(model.set_tensor(0, __import__('numpy').ones(model.get_input_details()[0]['shape'], 'f4')), model.invoke(),"
            " model.get_tensor(model.get_output_details()[0]['index'])[0])[2]"
        ),
    ),
    Case(
        "usearch",
        "usearch",
        ".usearch",
        writers.usearch,
        _usearch,
        "Index.restore(path)",
        ("numpy", "usearch.index"),
        ("usearch",),
        ask="model.search(__import__('numpy').ones(768, 'f4'), 3).distances",
    ),
    Case(
        "faiss",
        "faiss",
        ".faiss",
        writers.faiss,
        _faiss,
        "faiss.read_index(path)",
        ("numpy", "faiss"),
        ("faiss-cpu",),
        ask="model.search(__import__('numpy').ones((2, 64), 'f4'), 3)[0][0]",
    ),
    Case(
        "catboost",
        "catboost",
        ".cbm",
        writers.catboost,
        _catboost,
        "CatBoost().load_model(path)",
        ("numpy", "catboost"),
        ("catboost",),
        ask="model.predict([[1.0] * 16])",
    ),
    Case("gguf", "gguf", ".gguf", writers.gguf, _gguf, "GGUFReader(path)", ("gguf",), ("gguf",)),
)


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def case_of_format(name: str) -> Case:
    """The first case of a format; its library's call fits every file of the format."""
    return next(case for case in CASES if case.format == name)


def is_installed(case: Case) -> bool:
    return all(importlib.util.find_spec(name.partition(".")[0]) is not None for name in case.modules)


def write(case: str, path: str, size_bytes: int) -> None:
    """Makes a model of the case. For a fresh process."""
    chosen = case_named(case)
    if not chosen.suffix:
        os.makedirs(path, exist_ok=True)
    chosen.write(path, size_bytes)


def import_modules(case: Case) -> None:
    for name in case.modules:
        importlib.import_module(name)


def _detected(path: str) -> Any:
    from mlup_stream.delivery.artifact import artifact_of
    from mlup_stream.delivery.loaded_file import LoadedFile
    from mlup_stream.ml.binarization.detection import detect

    artifact = artifact_of(LoadedFile(path=path))
    try:
        return detect(artifact)
    finally:
        artifact.release()


def ways_of(path: str) -> tuple[str, list[str]]:
    """The file's format as detection finds it, and: the library's own call, `auto`, every delivery that is accepted."""
    from mlup_stream.registry import binarization_type_of, binarizer_class

    found = _detected(path)
    deliveries = binarizer_class(binarization_type_of(found)).deliveries
    return found.value, [LIBRARY, "auto", *(kind.value for kind in deliveries)]


def prepared(
    path: str, delivery: str, *, optimize: str = "memory", options: tuple[tuple[str, Any], ...] = ()
) -> Callable[[], MLupModel]:
    """A function that loads `path` as its users do, by detection; everything it will import is imported already."""
    from measurement import warm_up

    from mlup_stream.config import Config
    from mlup_stream.ml.model import MLupModel
    from mlup_stream.registry import binarization_type_of, binarizer_class

    warm_up()
    binarizer_class(binarization_type_of(_detected(path))).prepare_for(dict(options))
    conf = Config(
        storage_type="disk",
        storage_kwargs={"path_to_files": path, "delivery": delivery},
        binarization_kwargs=dict(options),
        optimize=optimize,
    )
    return MLupModel(conf=conf).load
