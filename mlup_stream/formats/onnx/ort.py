"""Models in onnxruntime's own format (`.ort`): a flatbuffer that onnxruntime can use from where it lies.

Source: onnxruntime's `ort.fbs`; the file identifier `ORTM` lies at offset 4. Read are the numbers that an estimate needs and what
people ask for, not the graph: whether it is one is onnxruntime's to say, which verifies the whole flatbuffer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlup_stream.formats.flatbuffers import FlatBuffer, Table
from mlup_stream.formats.listing import listed
from mlup_stream.formats.onnx.schema import TYPE_NAMES
from mlup_stream.formats.source import Source

__all__ = ["OrtModel", "OrtTensor", "describe", "is_ort", "read_ort"]

_HEAD_BYTES = 8
_MAX_DIMENSIONS = 64
_MAX_DEPTH = 64
_UNPACKED_OPERATORS = frozenset({"MatMulNBits", "MatMulBnb4", "GatherBlockQuantized", "QMoE", "MatMulFpQ4"})
"""Operators that unpack their weights at every prediction where they were not packed anew while the session was made."""

# The numbers of the fields, in the order of the schema.
_SESSION_VERSION, _SESSION_MODEL = 0, 1
_MODEL_IR, _MODEL_OPSETS, _MODEL_PRODUCER, _MODEL_PRODUCER_VERSION, _MODEL_GRAPH = 0, 1, 2, 3, 7
_OPSET_DOMAIN, _OPSET_VERSION = 0, 1
_GRAPH_INITIALIZERS, _GRAPH_NODES, _GRAPH_INPUTS, _GRAPH_OUTPUTS = 0, 2, 5, 6
_NODE_OPERATOR, _NODE_ATTRIBUTES = 5, 10
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 6, 7, 12
_TENSOR_NAME, _TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_RAW = 0, 2, 3, 4


@dataclass(frozen=True, slots=True)
class OrtTensor:
    """An initializer of the model and where its elements lie."""

    name: str
    data_type: int
    dims: tuple[int, ...]
    start: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class OrtModel:
    """What a model holds.

    Attributes:
        size_bytes: Of the file.
        version: Of the format.
        ir_version: Of the ONNX model that it was made from.
        producer: What wrote that.
        opsets: The operators' versions, by their domain.
        inputs: The names of its inputs.
        outputs: The names of its outputs.
        nodes: How many there are.
        tensors: The initializers, those of graphs within the graph too.
        unpacks_weights: Whether an operator unpacks weights at every prediction if they are not packed anew before.
    """

    size_bytes: int
    version: str
    ir_version: int
    producer: str
    opsets: dict[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: int
    tensors: tuple[OrtTensor, ...]
    unpacks_weights: bool

    @property
    def payload_bytes(self) -> int:
        """Of all tensors; offsets may lead to one place more than once, and no more stays in a file than it has."""
        return min(self.size_bytes, sum(each.size_bytes for each in self.tensors))


def is_ort(source: Source) -> bool:
    """Whether it is a model in onnxruntime's own format."""
    return source.size_bytes > _HEAD_BYTES and source.read(4, 4, "the model") == b"ORTM"


def read_ort(given: Any, name: str | None = None) -> OrtModel:
    """What the model holds.

    Args:
        given: A view, a path, a buffer or a seekable binary file.
        name: What to call it in a message.

    Raises:
        CorruptModelError: It is not what the format says, or is truncated.
    """
    with Source(given, name) as source:
        session = FlatBuffer(source, "the flatbuffer of an .ort model").root()
        model = session.table(_SESSION_MODEL)
        graph = None if model is None else model.table(_MODEL_GRAPH)
        if model is None or graph is None:
            raise source.corrupt("an .ort model", "a flatbuffer without a graph")
        found = _Found(source)
        found.add(graph, 0)
        return OrtModel(
            source.size_bytes,
            session.text(_SESSION_VERSION),
            model.number(_MODEL_IR, "q"),
            f"{model.text(_MODEL_PRODUCER)} {model.text(_MODEL_PRODUCER_VERSION)}".strip(),
            {each.text(_OPSET_DOMAIN) or "ai.onnx": each.number(_OPSET_VERSION, "q") for each in model.tables(_MODEL_OPSETS)},
            tuple(graph.texts(_GRAPH_INPUTS)),
            tuple(graph.texts(_GRAPH_OUTPUTS)),
            found.nodes,
            tuple(found.tensors),
            found.unpacks_weights,
        )


class _Found:
    """What a graph and those within it hold."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.nodes = 0
        self.tensors: list[OrtTensor] = []
        self.unpacks_weights = False

    def add(self, graph: Table, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise self._source.corrupt(f"graphs at most {_MAX_DEPTH} deep", "one deeper")
        self.tensors += map(_tensor, graph.tables(_GRAPH_INITIALIZERS))
        for node in graph.tables(_GRAPH_NODES):
            self.nodes += 1
            self.unpacks_weights |= node.text(_NODE_OPERATOR) in _UNPACKED_OPERATORS
            for attribute in node.tables(_NODE_ATTRIBUTES):
                for inner in _graphs(attribute):
                    self.add(inner, depth + 1)
                tensor = attribute.table(_ATTRIBUTE_TENSOR)
                if tensor is not None:
                    self.tensors.append(_tensor(tensor))


def _graphs(attribute: Table) -> Iterator[Table]:
    one = attribute.table(_ATTRIBUTE_GRAPH)
    if one is not None:
        yield one
    yield from attribute.tables(_ATTRIBUTE_GRAPHS)


def _tensor(table: Table) -> OrtTensor:
    start, size_bytes = table.vector(_TENSOR_RAW, 1)
    dims = table.numbers(_TENSOR_DIMS, "q", _MAX_DIMENSIONS)
    return OrtTensor(table.text(_TENSOR_NAME), table.number(_TENSOR_TYPE, "i"), dims, start, size_bytes)


def describe(model: OrtModel) -> dict[str, Any]:
    """What `inspect` says of it."""
    tensors = [
        {
            "name": each.name,
            "dtype": TYPE_NAMES.get(each.data_type, f"type {each.data_type}"),
            "shape": list(each.dims),
            "size_bytes": each.size_bytes,
        }
        for each in model.tensors
    ]
    return {
        "container": "ort",
        "ort_version": model.version,
        "ir_version": model.ir_version,
        "producer": model.producer,
        "opsets": model.opsets,
        "inputs": list(model.inputs),
        "outputs": list(model.outputs),
        "nodes": model.nodes,
        "payload_bytes": model.payload_bytes,
        **listed("tensors", tensors),
    }
