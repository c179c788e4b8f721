"""The demo's models, trained and written by a process of their own: what they are, and how each library loads them itself.

Three files, because three things can happen to a model's memory:

- a scikit-learn network (`MLPClassifier`, two wide layers) in a pickle: few large arrays. Two thirds of the file are the
  optimizer's velocities and a copy of the first weights: scikit-learn keeps both in a fitted network;
- a scikit-learn forest (`ExtraTreesClassifier`) through joblib: thousands of arrays, which `Tree.__setstate__` copies;
- the same network in ONNX, its weights inside the file.

All are trained on scikit-learn's own digits (1797 images of 8 x 8 pixels).
"""

from __future__ import annotations

import math
import os
import pickle
import time
from typing import Any, NamedTuple

from mlup_stream.extras import require

__all__ = ["DEMO_MODELS", "ROWS_FILE", "DemoModel", "load_by_library", "prepare", "write_forest", "write_network"]

_PURPOSE = "the demo's models"
ROWS_FILE = "rows.npy"
"""The rows that every loaded model is asked about."""

_TRAINING_ROWS = 1000
_BATCH_ROWS = 250
_PASSES = 3  # over the rows; 12 seconds on two cores that are free
_LAST_PASS_BEGINS_SECONDS = 9  # on a slower machine fewer are enough to compare
_ASKED_ROWS = 100
_BYTES_PER_WEIGHT = 4  # float32
_PROBE_TREES = 16
_ONNX_OPSET = 13  # the oldest that every onnxruntime we accept runs without a conversion
_ONNX_IR_VERSION = 8  # what opset 13 to 16 were written with; the newest onnx writes one that older runtimes refuse


class DemoModel(NamedTuple):
    """One file of the demo.

    Attributes:
        file: Its name in the demo's folder.
        title: What it is.
        format: As a configuration names it.
        libraries: What has to be imported for it.
        predict_method: The method that answers with probabilities.
        library_call: The format's own way, as one would type it.
        tolerance: By how much a probability may differ from what the trained model said; 0 is bit for bit.
    """

    file: str
    title: str
    format: str
    libraries: tuple[str, ...]
    predict_method: str
    library_call: str
    tolerance: float


# onnxruntime adds up its products in an order of its own, in float32: 1e-5 is 80 times the smallest step at 1.0.
DEMO_MODELS = (
    DemoModel(
        "network.pkl",
        "scikit-learn MLPClassifier, pickle",
        "pickle",
        ("sklearn.neural_network",),
        "predict_proba",
        "pickle.load(file)",
        0.0,
    ),
    DemoModel(
        "forest.joblib",
        "scikit-learn ExtraTreesClassifier, joblib",
        "joblib",
        ("joblib", "sklearn.ensemble"),
        "predict_proba",
        "joblib.load(path)",
        0.0,
    ),
    DemoModel("network.onnx", "the same network, ONNX", "onnx", ("onnxruntime",), "predict", "InferenceSession(path)", 1e-5),
)


def prepare(folder: str, size_bytes: int) -> None:
    """Imports what `write_network` and `write_forest` will need; see `cli.fresh_process`."""
    for name in ("joblib", "onnx", "sklearn.datasets", "sklearn.ensemble", "sklearn.neural_network"):
        require(name, _PURPOSE)


def load_by_library(format: str, path: str) -> Any:
    """The model, by the format's own library, as its users call it."""
    if format == "pickle":
        with open(path, "rb") as file:
            return pickle.load(file)
    if format == "joblib":
        return require("joblib", _PURPOSE).load(path)
    return require("onnxruntime", _PURPOSE).InferenceSession(path, providers=["CPUExecutionProvider"])


def write_network(folder: str, size_bytes: int) -> dict[str, Any]:
    """Trains the network and writes it as pickle and as ONNX, each of `size_bytes` and more, and what it answers.

    Returns:
        `seconds` of the training, `accuracy` on the rows that it did not see, `answers`: the probabilities of the asked rows.
    """
    neural_network = require("sklearn.neural_network", _PURPOSE)
    width = math.ceil(math.sqrt(size_bytes / _BYTES_PER_WEIGHT))
    images, digits = _digits(folder)
    network = neural_network.MLPClassifier(
        (width, width), solver="sgd", learning_rate_init=0.1, batch_size=_BATCH_ROWS, random_state=0
    )
    started, classes = time.perf_counter(), sorted(set(digits.tolist()))
    for _ in range(_PASSES):
        network.partial_fit(images[:_TRAINING_ROWS], digits[:_TRAINING_ROWS], classes=classes)
        if time.perf_counter() - started > _LAST_PASS_BEGINS_SECONDS:
            break
    trained = _facts(network, images, digits, started)
    with open(os.path.join(folder, "network.pkl"), "wb") as file:
        pickle.dump(network, file, protocol=5)
    coefficients, intercepts = network.coefs_, network.intercepts_
    del network  # its optimizer's state is twice the weights: not to be held while ONNX makes its copies
    _write_onnx(os.path.join(folder, "network.onnx"), coefficients, intercepts)
    return trained


def write_forest(folder: str, size_bytes: int) -> dict[str, Any]:
    """Trains a forest of as many trees as make `size_bytes`, and writes it through joblib. Returns as `write_network`."""
    ensemble, joblib = require("sklearn.ensemble", _PURPOSE), require("joblib", _PURPOSE)
    images, digits = _digits(folder)
    # One random feature at each split: the trees become as large as these few images allow.
    forest = ensemble.ExtraTreesClassifier(_PROBE_TREES, max_features=1, random_state=0, n_jobs=2, warm_start=True)
    started = time.perf_counter()
    forest.fit(images[:_TRAINING_ROWS], digits[:_TRAINING_ROWS])
    bytes_per_tree = len(pickle.dumps(forest, protocol=5)) / _PROBE_TREES
    forest.n_estimators = max(_PROBE_TREES + 1, math.ceil(size_bytes / bytes_per_tree * 1.05))
    forest.fit(images[:_TRAINING_ROWS], digits[:_TRAINING_ROWS])
    trained = _facts(forest, images, digits, started)
    forest.n_jobs = 1  # threads would add their stacks and arenas to what is measured
    joblib.dump(forest, os.path.join(folder, "forest.joblib"))
    return trained


def _digits(folder: str) -> tuple[Any, Any]:
    """The images, 0.0 to 1.0, and what they show; writes the rows that every child asks about to `ROWS_FILE`."""
    numpy, datasets = require("numpy", _PURPOSE), require("sklearn.datasets", _PURPOSE)
    images, digits = datasets.load_digits(return_X_y=True)
    images = (images / 16).astype(numpy.float32)
    numpy.save(os.path.join(folder, ROWS_FILE), images[-_ASKED_ROWS:])
    return images, digits


def _facts(model: Any, images: Any, digits: Any, started: float) -> dict[str, Any]:
    seconds = time.perf_counter() - started
    asked = images[-_ASKED_ROWS:]
    accuracy = float((model.predict(asked) == digits[-_ASKED_ROWS:]).mean())
    return {"seconds": seconds, "accuracy": accuracy, "answers": model.predict_proba(asked).tolist()}


def _write_onnx(path: str, coefficients: list[Any], intercepts: list[Any]) -> None:
    """The layers as Gemm and Relu, a Softmax at the end: what `MLPClassifier.predict_proba` computes."""
    onnx = require("onnx", _PURPOSE)
    make, tensors = onnx.helper, onnx.numpy_helper
    nodes, weights, flows = [], [], "X"
    for layer, (matrix, bias) in enumerate(zip(coefficients, intercepts)):  # noqa: B905  # one of each, by construction
        weights += [tensors.from_array(matrix, f"W{layer}"), tensors.from_array(bias, f"b{layer}")]
        nodes.append(make.make_node("Gemm", [flows, f"W{layer}", f"b{layer}"], [f"sum{layer}"]))
        kind, flows, after = "Softmax", f"sum{layer}", "probabilities"
        if layer < len(coefficients) - 1:
            kind, after = "Relu", f"relu{layer}"
        nodes.append(make.make_node(kind, [flows], [after]))
        flows = after
    number = onnx.TensorProto.FLOAT
    graph = make.make_graph(
        nodes,
        "digits",
        [make.make_tensor_value_info("X", number, ["rows", coefficients[0].shape[0]])],
        [make.make_tensor_value_info(flows, number, ["rows", coefficients[-1].shape[1]])],
        weights,
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", _ONNX_OPSET)], ir_version=_ONNX_IR_VERSION)
    onnx.save(model, path)
