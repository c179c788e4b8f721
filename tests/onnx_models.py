"""Small ONNX models whose weights lie wherever a model's weights can lie, written by the `onnx` package.

Each takes a batch of rows of `WIDTH` float32 numbers called `x` and gives `y`; weights are drawn from a seed, and differ.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["BUILDERS", "WIDTH", "build", "rows", "write_external"]

WIDTH = 64
_OPSET = 17
_IR_VERSION = 8


def rows(count: int = 3, width: int = WIDTH) -> Any:
    """Input for a model: no row is like another."""
    return numpy.random.default_rng(count).standard_normal((count, width), dtype=numpy.float32)


def _weights(seed: int, width: int, dtype: Any = numpy.float32) -> Any:
    values = numpy.random.default_rng(seed).standard_normal((width, width), dtype=numpy.float32)
    return (values / numpy.sqrt(numpy.float32(width))).astype(dtype)


def _model(nodes: list[Any], initializers: list[Any], width: int, outputs: tuple[str, ...] = ("y",), **more: Any) -> Any:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in outputs],
        initializers,
    )
    opsets = [helper.make_opsetid("", _OPSET), *more.pop("opsets", [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="tests", **more)


def _chain(weights: Callable[[int], tuple[list[Any], list[Any]]], layers: int, width: int) -> Any:
    """x @ w0, tanh, @ w1, tanh, ...; `weights` gives the nodes and initializers that make `w<index>`."""
    nodes, initializers, value = [], [], "x"
    for index in range(layers):
        more_nodes, more_initializers = weights(index)
        nodes += more_nodes
        initializers += more_initializers
        following = "y" if index == layers - 1 else f"h{index}"
        nodes.append(helper.make_node("MatMul", [value, f"w{index}"], [f"m{index}"]))
        nodes.append(helper.make_node("Tanh", [f"m{index}"], [following]))
        value = following
    return _model(nodes, initializers, width)


def initializers(layers: int = 3, width: int = WIDTH) -> Any:
    """Weights in `raw_data` of initializers, as most exporters write them."""
    return _chain(lambda index: ([], [numpy_helper.from_array(_weights(index, width), f"w{index}")]), layers, width)


def constants(layers: int = 3, width: int = WIDTH) -> Any:
    """Weights in `Constant` nodes."""

    def weights(index: int) -> tuple[list[Any], list[Any]]:
        value = numpy_helper.from_array(_weights(index, width))
        return [helper.make_node("Constant", [], [f"w{index}"], value=value)], []

    return _chain(weights, layers, width)


def packed(layers: int = 3, width: int = WIDTH) -> Any:
    """Weights in packed `float_data`, and the first one cast from packed `double_data`."""

    def weights(index: int) -> tuple[list[Any], list[Any]]:
        values = _weights(index, width).ravel()
        if index:
            return [], [helper.make_tensor(f"w{index}", TensorProto.FLOAT, [width, width], values)]
        double = helper.make_tensor("d0", TensorProto.DOUBLE, [width, width], values.astype(numpy.float64))
        return [helper.make_node("Cast", ["d0"], ["w0"], to=TensorProto.FLOAT)], [double]

    return _chain(weights, layers, width)


def function_bodies(layers: int = 2, width: int = WIDTH) -> Any:
    """Weights in `Constant` nodes of a function that is called for each layer."""
    value = numpy_helper.from_array(_weights(7, width))
    body = [
        helper.make_node("Constant", [], ["w"], value=value),
        helper.make_node("MatMul", ["a", "w"], ["m"]),
        helper.make_node("Tanh", ["m"], ["b"]),
    ]
    opset = helper.make_opsetid("", _OPSET)
    function = helper.make_function("tests", "Layer", ["a"], ["b"], body, [opset])
    names = ["x", *(f"h{index}" for index in range(layers - 1)), "y"]
    calls = [helper.make_node("Layer", [names[index]], [names[index + 1]], domain="tests") for index in range(layers)]
    return _model(calls, [], width, functions=[function], opsets=[helper.make_opsetid("tests", 1)])


def _branch(seed: int, name: str, width: int, weight: str, *, constant: bool, inner: Any = None) -> Any:
    """x @ w, where `w` has the same name in both branches of an `If`; `inner` is a further `If` after it."""
    tensor = numpy_helper.from_array(_weights(seed, width), weight)
    nodes = [helper.make_node("MatMul", ["x", weight], [name])]
    if constant:
        nodes.insert(0, helper.make_node("Constant", [], [weight], value=tensor))
    if inner is not None:
        nodes += inner
    output = nodes[-1].output[0]
    return helper.make_graph(
        nodes, name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], [] if constant else [tensor]
    )


def branches(layers: int = 1, width: int = WIDTH) -> Any:
    """Weights in initializers and `Constant` nodes of the branches of an `If`, and of one nested in a branch of it."""
    deep = helper.make_node(
        "If",
        ["positive"],
        ["deep"],
        then_branch=_branch(3, "deep_then", width, "v", constant=False),
        else_branch=_branch(4, "deep_else", width, "v", constant=True),
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(numpy.float32(0))),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node(
            "If",
            ["positive"],
            ["y"],
            then_branch=_branch(1, "then", width, "w", constant=True),
            else_branch=_branch(2, "other", width, "w", constant=False, inner=[deep]),
        ),
    ]
    return _model(nodes, [], width)


def loops(layers: int = 3, width: int = WIDTH) -> Any:
    """Weights in an initializer and in a `Constant` node of the body of a `Loop`."""
    body = helper.make_graph(
        [
            helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(_weights(6, width))),
            helper.make_node("MatMul", ["state", "w"], ["first"]),
            helper.make_node("MatMul", ["first", "v"], ["second"]),
            helper.make_node("Tanh", ["second"], ["next"]),
            helper.make_node("Identity", ["go_on"], ["go_on_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("iteration", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(_weights(5, width), "w")],
    )
    constants = [numpy_helper.from_array(numpy.int64(layers), "count"), numpy_helper.from_array(numpy.bool_(True), "true")]
    return _model([helper.make_node("Loop", ["count", "true", "x"], ["y"], body=body)], constants, width)


def transposed(layers: int = 3, width: int = WIDTH) -> Any:
    """Weights that the graph transposes before it multiplies by them, as torch's newer exporter leaves them."""

    def weights(index: int) -> tuple[list[Any], list[Any]]:
        tensor = numpy_helper.from_array(_weights(index, width), f"t{index}")
        return [helper.make_node("Transpose", [f"t{index}"], [f"w{index}"], perm=[1, 0])], [tensor]

    return _chain(weights, layers, width)


def two_outputs(layers: int = 1, width: int = WIDTH) -> Any:
    """Three outputs: `y`, and two more."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Tanh", ["y"], ["second"]),
        helper.make_node("Neg", ["y"], ["third"]),
    ]
    return _model(nodes, [numpy_helper.from_array(_weights(0, width), "w")], width, ("y", "second", "third"))


BUILDERS: dict[str, Callable[..., Any]] = {
    builder.__name__: builder
    for builder in (initializers, constants, packed, function_bodies, branches, loops, transposed, two_outputs)
}
"""Where the weights lie, and what builds such a model of so many layers and of such a width."""


def build(path: Path, where: str = "initializers", **sizes: int) -> Path:
    """Writes a model to `path`."""
    path.write_bytes(BUILDERS[where](**sizes).SerializeToString())
    return path


def write_external(path: Path, where: str = "initializers", **sizes: int) -> Path:
    """Writes a model to `path`, and its weights to a file beside it, `path` with `.data` at its end."""
    onnx.save_model(
        BUILDERS[where](**sizes),
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=path.name + ".data",
        size_threshold=256,
    )
    return path
