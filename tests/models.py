"""Model files of a given size, one builder per format, and how to ask what was loaded: the material of the memory tests.

A builder returns nothing and leaves `path`. `answer_of` is an expression over `model` that touches every payload byte and gives
a number that depends on it, so that a model whose weights were never really there cannot pass.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mlup_stream.units import MIB

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


class Kind(NamedTuple):
    """One kind of file.

    Attributes:
        file_name: With the suffix of its format.
        build: Called with the path and the size in bytes.
        imports: What to import before anything is measured.
        answer_of: A number, as an expression over `model`, that depends on the whole payload.
    """

    file_name: str
    build: Callable[[Path, int], None]
    imports: str
    answer_of: str


SUM_OF_ARRAYS = "float(sum(float(model[name].sum()) for name in sorted(model)))"
ONNX_ANSWER = "float(numpy.asarray(model.predict(numpy.ones((1, 1024), numpy.float32))[0]).sum())"

KINDS: dict[str, Kind] = {
    "pickle": Kind("m.pckl", pickle_arrays, "numpy", SUM_OF_ARRAYS),
    "joblib": Kind("m.joblib", joblib_arrays, "numpy, joblib", SUM_OF_ARRAYS),
    "npy": Kind("m.npy", npy, "numpy", "float(model.sum())"),
    "npz": Kind("m.npz", npz, "numpy", SUM_OF_ARRAYS),
    "safetensors": Kind("m.safetensors", safetensors, "numpy, safetensors", SUM_OF_ARRAYS),
    "onnx": Kind("m.onnx", onnx_matmuls, "numpy, onnxruntime", ONNX_ANSWER),
}

BIG_BYTES = 256 * MIB
