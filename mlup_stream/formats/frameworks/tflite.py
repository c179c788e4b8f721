"""TensorFlow Lite (LiteRT) models: a flatbuffer with the file identifier `TFL3` at offset 4.

Source: TensorFlow's `schema.fbs`. Read is where the weights lie and how large the tensors are, not the graph: the interpreter
verifies the whole flatbuffer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mlup_stream.formats.flatbuffers import FlatBuffer, Table
from mlup_stream.formats.listing import listed, plain
from mlup_stream.formats.peek import Peek
from mlup_stream.formats.source import Source

__all__ = ["TfliteModel", "detect", "inspect", "read_model"]

# The numbers of the fields, in the order of the schema.
_VERSION, _OPERATORS, _GRAPHS, _DESCRIPTION, _BUFFERS = range(5)
_SIGNATURES = 7
_TENSORS, _INPUTS, _OUTPUTS, _NODES = range(4)
_SHAPE, _TYPE, _BUFFER, _NAME = range(4)
_DATA, _OFFSET, _SIZE = range(3)
_MAX_DIMENSIONS = 64
_TYPES = (
    *(("float32", 4), ("float16", 2), ("int32", 4), ("uint8", 1), ("int64", 8), ("string", 1), ("bool", 1), ("int16", 2)),
    *(("complex64", 8), ("int8", 1), ("float64", 8), ("complex128", 16), ("uint64", 8), ("resource", 1), ("variant", 1)),
    *(("uint32", 4), ("uint16", 2), ("int4", 1), ("bfloat16", 2), ("int2", 1)),
)


@dataclass(frozen=True, slots=True)
class TfliteModel:
    """What a model holds.

    Attributes:
        description: What wrote it.
        weights_bytes: Of all buffers.
        working_bytes: Of all tensors that are computed: more than the interpreter needs, which lets them share their place.
        inputs: Of the first graph, as `{"name", "dtype", "shape"}`.
        outputs: The same.
        nodes: How many there are.
        signatures: By name.
    """

    description: str
    weights_bytes: int
    working_bytes: int
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    nodes: int
    signatures: tuple[str, ...]


def detect(peek: Peek) -> str | None:
    return "the file identifier TFL3 of TensorFlow Lite"


def read_model(given: Any, name: str | None = None) -> TfliteModel:
    """What the model holds.

    Args:
        given: A view, a path, a buffer or a seekable binary file.
        name: What to call it in a message.

    Raises:
        CorruptModelError: It is not what the format says, or is truncated.
    """
    with Source(given, name) as source:
        if source.read(4, 4, "a TensorFlow Lite model") != b"TFL3":
            raise source.corrupt("a TensorFlow Lite model, with TFL3 at offset 4", "none")
        model = FlatBuffer(source, "the flatbuffer of a TensorFlow Lite model").root()
        # Of a model of more than 2 GB they lie behind the flatbuffer.
        sizes = [buffer.vector(_DATA, 1)[1] or buffer.number(_SIZE, "Q") for buffer in model.tables(_BUFFERS)]
        graphs = list(model.tables(_GRAPHS))
        if not graphs:
            raise source.corrupt("a TensorFlow Lite model", "one without a graph")
        first: list[Table] = []
        working_bytes = 0
        for graph in graphs:
            tensors = list(graph.tables(_TENSORS))
            first = first or tensors
            for tensor in tensors:
                number = tensor.number(_BUFFER, "I")
                if not (number < len(sizes) and sizes[number]):
                    working_bytes += _size_bytes(tensor)
        return TfliteModel(
            model.text(_DESCRIPTION),
            min(sum(sizes), source.size_bytes),
            working_bytes,
            _described(graphs[0], _INPUTS, first),
            _described(graphs[0], _OUTPUTS, first),
            sum(graph.vector(_NODES, 4)[1] for graph in graphs),
            tuple(each.text(2) for each in model.tables(_SIGNATURES)),
        )


def _shape(tensor: Table) -> list[int]:
    return list(tensor.numbers(_SHAPE, "i", _MAX_DIMENSIONS))


def _type(tensor: Table) -> tuple[str, int]:
    number = tensor.number(_TYPE, "b")
    return _TYPES[number] if 0 <= number < len(_TYPES) else (str(number), 1)


def _size_bytes(tensor: Table) -> int:
    return _type(tensor)[1] * math.prod(max(each, 1) for each in _shape(tensor))


def _described(graph: Table, field: int, tensors: list[Table]) -> list[dict[str, Any]]:
    numbers = graph.numbers(field, "i", 1 << 16)
    chosen = [tensors[number] for number in numbers if 0 <= number < len(tensors)]
    return [{"name": plain(each.text(_NAME)), "dtype": _type(each)[0], "shape": _shape(each)} for each in chosen]


def inspect(given: Any, name: str) -> dict[str, Any]:
    model = read_model(given, name)
    return {
        "description": plain(model.description),
        **listed("inputs", model.inputs),
        **listed("outputs", model.outputs),
        "nodes": model.nodes,
        "signatures": plain(list(model.signatures)),
        "weights_bytes": model.weights_bytes,
    }
