"""Model files of a given size, one builder per format, and how to ask what was loaded: the material of the memory tests.

A builder returns nothing and leaves `path`. `answer_of` is an expression over `model` that touches every payload byte, or goes
through every tree, and gives a number that depends on it, so that a model whose weights were never really there cannot pass.

What only its own library can write is made by `profiling/writers.py`, in a child process: frameworks warn when they are imported,
and warnings are errors here.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from child import run_child

from mlup_stream.units import MIB

_PROFILING = Path(__file__).resolve().parent.parent / "profiling"

ARRAYS = 8


def arrays(size_bytes: int) -> dict[str, object]:
    """`ARRAYS` float64 arrays of `size_bytes` in all, no two alike."""
    import numpy

    each = size_bytes // 8 // ARRAYS
    return {f"w{index}": numpy.arange(each, dtype=numpy.float64) + index for index in range(ARRAYS)}


def pickle_arrays(path: Path, size_bytes: int, protocol: int = 5) -> None:
    with open(path, "wb") as file:
        pickle.dump(arrays(size_bytes), file, protocol=protocol)


def joblib_arrays(path: Path, size_bytes: int, compress: int = 0) -> None:
    import joblib

    joblib.dump(arrays(size_bytes), path, compress=compress)


def npy(path: Path, size_bytes: int) -> None:
    import numpy

    numpy.save(path, numpy.arange(size_bytes // 8, dtype=numpy.float64))


def npz(path: Path, size_bytes: int) -> None:
    import numpy

    numpy.savez(path, **arrays(size_bytes))


def safetensors(path: Path, size_bytes: int) -> None:
    from safetensors.numpy import save_file

    save_file(arrays(size_bytes), path)


def onnx_matmuls(path: Path, size_bytes: int, width: int = 1024) -> None:
    """A chain of float32 matrix products with their weights inside the file; needs onnx and numpy."""
    import numpy
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    layers = max(1, size_bytes // (width * width * 4))
    random = numpy.random.default_rng(7)
    nodes, weights = [], []
    for layer in range(layers):
        weight = (random.standard_normal((width, width), dtype=numpy.float32) / numpy.sqrt(width)).astype(numpy.float32)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [f"h{layer}", f"w{layer}"], [f"h{layer + 1}"]))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info(f"h{layers}", TensorProto.FLOAT, ["n", width])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def by_library(writer: str) -> Callable[[Path, int], None]:
    """A builder that calls a function of `profiling/writers.py`."""

    def build(path: Path, size_bytes: int) -> None:
        run_child(
            """
            import sys, warnings
            warnings.simplefilter("ignore")
            sys.path.append(profiling)
            import writers
            getattr(writers, writer)(path, size_bytes)
            answer(True)
            """,
            environment={"TF_CPP_MIN_LOG_LEVEL": "3"},
            writer=writer,
            profiling=str(_PROFILING),
            path=str(path),
            size_bytes=size_bytes,
        )

    return build


class Kind(NamedTuple):
    """One kind of file.

    Attributes:
        file_name: With the suffix of its format.
        build: Called with the path and the size in bytes.
        imports: What to import before anything is measured.
        answer_of: A number, as an expression over `model`, that depends on the whole payload.
        binarizer: What `binarization_type` calls it, where that is not the name of the kind.
        deliveries: Those that its binarizer accepts.
        framework: Whose mark its tests carry; empty for what `make test` has.
        ample: What is enough for any delivery of it, as a multiple of the file: twice the file and a half.
        quick_bytes: The size to take where a load is repeated twenty times and a file of 256 MB would take minutes.
    """

    file_name: str
    build: Callable[[Path, int], None]
    imports: str
    answer_of: str
    binarizer: str = ""
    deliveries: tuple[str, ...] = ("view", "path", "stream", "bytes")
    framework: str = ""
    ample: float = 2.5
    quick_bytes: int = 256 * MIB


SUM_OF_ARRAYS = "float(sum(float(model[name].sum()) for name in sorted(model)))"
# In an order of its own whether the array is aligned or not: float32 is summed in another where it is not.
WIDE_SUM_OF_ARRAYS = "float(sum(float(model[name].sum(dtype='f8')) for name in sorted(model)))"
# Without `to_numpy`, which imports pandas where it is installed.
SUM_OF_COLUMNS = "float(sum(float(numpy.frombuffer(p.buffers()[1], 'f4').sum()) for c in model.columns for p in c.chunks))"
ORT_ANSWER = "float(model.predict(numpy.ones((1, model.get_inputs()[0].shape[1]), numpy.float32))[0].sum())"
ONNX_ANSWER = "float(numpy.asarray(model.predict(numpy.ones((1, 1024), numpy.float32))[0]).sum())"
LIGHTGBM_ANSWER = "float(model.predict(numpy.ones((1, 16)))[0])"
XGBOOST_ANSWER = "float(model.predict(xgboost.DMatrix(numpy.ones((1, 16))))[0])"
SUM_OF_STATE = "float(sum(float(each.sum()) for each in model.state_dict().values()))"
SUM_OF_TENSORS = "float(sum(float(each.sum()) for each in model.values()))"
# One variable at a time, without the pool of threads that a prediction starts.
SUM_OF_WEIGHTS = "float(sum(float(each.numpy().sum()) for each in model.variables))"
# Without the copy that `numpy()` makes of each, for which a limit that just held the model has no room.
SUM_OF_VARIABLES = "float(sum(float(numpy.asarray(memoryview(each.read_value())).sum()) for each in model.variables))"

TFLITE_ANSWER = (
    "(model.set_tensor(0, numpy.ones(model.get_input_details()[0]['shape'], 'f4')), model.invoke(),"
    " float(model.get_tensor(model.get_output_details()[0]['index']).sum()))[2]"
)

PATH_AND_BYTES = ("path", "bytes")
VIEW_PATH_BYTES = ("view", "path", "bytes")

KINDS: dict[str, Kind] = {
    "pickle": Kind("m.pckl", pickle_arrays, "numpy", SUM_OF_ARRAYS),
    "joblib": Kind("m.joblib", joblib_arrays, "numpy, joblib", SUM_OF_ARRAYS),
    "npy": Kind("m.npy", npy, "numpy", "float(model.sum())"),
    "npz": Kind("m.npz", npz, "numpy", SUM_OF_ARRAYS),
    "safetensors": Kind("m.safetensors", safetensors, "numpy, safetensors", SUM_OF_ARRAYS),
    "onnx": Kind("m.onnx", onnx_matmuls, "numpy, onnxruntime", ONNX_ANSWER),
    "ort": Kind(
        "m.ort",
        by_library("ort"),
        "numpy, onnxruntime",
        ORT_ANSWER,
        "onnx",
        framework="formats",
        ample=4.5,
        quick_bytes=64 * MIB,
    ),
    "gguf": Kind("m.gguf", by_library("gguf"), "numpy, gguf", SUM_OF_ARRAYS),
    "arrow": Kind("m.arrow", by_library("arrow"), "numpy, pyarrow", SUM_OF_COLUMNS, framework="formats"),
    "skops": Kind(
        "m.skops",
        by_library("skops_arrays"),
        "numpy, skops",
        WIDE_SUM_OF_ARRAYS,
        framework="formats",
        quick_bytes=128 * MIB,
    ),
    "tflite": Kind(
        "m.tflite",
        by_library("tflite"),
        "numpy, ai_edge_litert.interpreter",
        TFLITE_ANSWER,
        deliveries=VIEW_PATH_BYTES,
        framework="formats",
        quick_bytes=64 * MIB,
    ),
    "usearch": Kind(
        "m.usearch",
        by_library("usearch"),
        "numpy, usearch.index",
        "float(model.search(numpy.ones(768, 'f4'), 5).distances.sum())",
        deliveries=VIEW_PATH_BYTES,
        framework="formats",
        ample=3,
        quick_bytes=64 * MIB,
    ),
    "faiss": Kind(
        "m.faiss",
        by_library("faiss"),
        "numpy, faiss",
        "float(model.search(numpy.ones((1, 64), 'f4'), 5)[0].sum())",
        framework="formats",
        quick_bytes=64 * MIB,
    ),
    "catboost": Kind(
        "m.cbm",
        by_library("catboost"),
        "numpy, catboost",
        "float(model.predict(numpy.ones((1, 16)))[0])",
        deliveries=("view", "bytes", "path"),
        framework="formats",
        quick_bytes=64 * MIB,
    ),
    "lightgbm": Kind(
        "m.txt",
        by_library("lightgbm"),
        "numpy, lightgbm",
        LIGHTGBM_ANSWER,
        deliveries=VIEW_PATH_BYTES,
        quick_bytes=16 * MIB,
    ),
    "xgboost": Kind(
        "m.ubj",
        by_library("xgboost"),
        "numpy, xgboost",
        XGBOOST_ANSWER,
        deliveries=VIEW_PATH_BYTES,
        ample=5.25,
        quick_bytes=32 * MIB,
    ),
    "torch": Kind("m.pt", by_library("torch_state_dict"), "torch", SUM_OF_TENSORS, framework="torch"),
    "torchscript": Kind(
        "m.script.pt", by_library("torchscript"), "torch", SUM_OF_STATE, deliveries=PATH_AND_BYTES, framework="torch"
    ),
    "keras": Kind(
        "m.keras",
        by_library("keras"),
        "tensorflow, keras",
        SUM_OF_WEIGHTS,
        deliveries=("path", "stream", "view", "bytes"),
        framework="tensorflow",
        ample=3,
    ),
    "keras-h5": Kind(
        "m.h5",
        by_library("keras"),
        "tensorflow, keras",
        SUM_OF_WEIGHTS,
        "keras",
        deliveries=("path", "stream", "view", "bytes"),
        framework="tensorflow",
        ample=3,
    ),
    "savedmodel": Kind(
        "saved", by_library("saved_model"), "tensorflow, numpy", SUM_OF_VARIABLES, deliveries=("path",), framework="tensorflow"
    ),
}

BIG_BYTES = 256 * MIB


def each_of(kinds: Iterable[str]) -> list[Any]:
    """The kinds by name, in order, as parameters of a test: with the mark of the framework that each needs."""
    marks = {kind: getattr(pytest.mark, KINDS[kind].framework) for kind in KINDS if KINDS[kind].framework}
    return [pytest.param(kind, marks=marks.get(kind, ())) for kind in sorted(kinds)]


def need(kind: str) -> None:
    """Skips the test without the libraries of `kind`, which it does not import."""
    for module in KINDS[kind].imports.split(", "):
        if not installed(module):
            pytest.skip(f"{kind} needs {module}")


def installed(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


def size_of(path: Path) -> int:
    """The size in bytes of a file, or of all files in a folder."""
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file()) if path.is_dir() else path.stat().st_size


def remove(path: Path) -> None:
    """A file or a folder that may be there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
