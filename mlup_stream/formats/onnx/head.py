"""Whether bytes are an ONNX ModelProto: protobuf has no magic number, so its outermost fields are walked, not what they hold.

A file is taken for a model if its fields are all of ModelProto with the right wire types, it has `ir_version` and `graph`, the
graph begins with a field of GraphProto, and the last field ends where the file ends; or if it begins so and is cut off, which
its loader then says. Source: onnx.proto3, messages ModelProto and GraphProto; protobuf's tags (field number << 3 | wire type).
"""

from __future__ import annotations

from typing import Any

from mlup_stream.formats.listing import listed
from mlup_stream.formats.peek import Peek
from mlup_stream.formats.source import Source

__all__ = ["detect", "detect_ort", "inspect"]

_VARINT, _LENGTH = 0, 2

# Field number: wire type.
_MODEL_FIELDS = {
    1: _VARINT,  # ir_version
    2: _LENGTH,  # producer_name
    3: _LENGTH,  # producer_version
    4: _LENGTH,  # domain
    5: _VARINT,  # model_version
    6: _LENGTH,  # doc_string
    7: _LENGTH,  # graph
    8: _LENGTH,  # opset_import
    14: _LENGTH,  # metadata_props
    20: _LENGTH,  # training_info
    25: _LENGTH,  # functions
    26: _LENGTH,  # configuration
}
_IR_VERSION, _GRAPH = 1, 7
_ORT_HEAD_BYTES = 8
_GRAPH_FIELDS = frozenset({1, 2, 5, 10, 11, 12, 13, 14, 15, 16})  # all of them length-delimited
_MAX_IR_VERSION = 100
_MAX_FIELDS = 4096
"""Models have a few fields, and one for each function and metadata property; this bounds the walk, not the model."""


def detect(peek: Peek) -> str | None:
    """What says that it is an ONNX model, or None."""
    position = 0
    ir_version: int | None = None
    has_graph = False
    for _ in range(_MAX_FIELDS):
        if position == peek.size_bytes:
            break
        tag, value_at = _varint(peek, position)
        if tag is None or _MODEL_FIELDS.get(tag >> 3) != tag & 7:
            return None
        value, after = _varint(peek, value_at)
        if value is None:
            return None
        if tag >> 3 == _IR_VERSION:
            ir_version = value
            if not 0 < ir_version <= _MAX_IR_VERSION:
                return None
        if tag & 7 == _LENGTH:
            if tag >> 3 == _GRAPH:
                has_graph = True
                if not _begins_like_a_graph(peek, after, value):
                    return None
            after += value
        position = after
        if position > peek.size_bytes:
            if has_graph and ir_version is not None:
                return f"protobuf fields of an ONNX ModelProto, ir_version {ir_version}, cut off at {peek.size_bytes} bytes"
            return None
    if ir_version is None or not has_graph:
        return None
    return f"protobuf fields of an ONNX ModelProto, ir_version {ir_version}, with a graph"


def _begins_like_a_graph(peek: Peek, position: int, size_bytes: int) -> bool:
    """Whether the first field of the graph is one that a graph has. (An empty graph is one too.)"""
    if size_bytes == 0:
        return True
    data = peek.at(position, 1)
    if not data:
        return True  # cut off right here
    tag = data[0]
    length, after = _varint(peek, position + 1)
    return tag & 7 == _LENGTH and tag >> 3 in _GRAPH_FIELDS and length is not None and after + length <= position + size_bytes


def _varint(peek: Peek, position: int) -> tuple[int | None, int]:
    """The varint at `position` and where it ends; None if there is none (the file ends, or more than 64 bits)."""
    value = 0
    for index, byte in enumerate(peek.at(position, 10)):
        value |= (byte & 0x7F) << 7 * index
        if not byte & 0x80:
            return value, position + index + 1
    return None, position


def detect_ort(peek: Peek) -> str | None:
    """What says that it is a model in onnxruntime's own format, a flatbuffer with the file identifier `ORTM`, or None."""
    return "the file identifier ORTM of onnxruntime's own format" if peek.size_bytes > _ORT_HEAD_BYTES else None


def inspect(given: Any, name: str) -> dict[str, Any]:
    # Not imported for detection.
    from mlup_stream.formats.onnx.layout import walk
    from mlup_stream.formats.onnx.ort import describe, is_ort, read_ort

    with Source(given, name) as source:
        if is_ort(source):
            return describe(read_ort(given, name))
        found = walk(source)
    tensors = [
        {"name": each.name, "dtype": each.type_name, "shape": list(each.dims), "size_bytes": each.size_bytes, "where": each.where}
        for each in found.tensors
    ]
    return {
        "ir_version": found.ir_version,
        "producer": f"{found.producer_name} {found.producer_version}".strip(),
        "opsets": {domain or "ai.onnx": version for domain, version in found.opsets.items()},
        "graph": found.graph_name,
        "inputs": [_value(each) for each in found.inputs],
        "outputs": [_value(each) for each in found.outputs],
        "nodes": found.node_count,
        "payload_bytes": found.payload_bytes,
        "structure_bytes": found.structure_bytes,
        "external_bytes": found.external_bytes,
        "external_files": list(found.external_locations),
        **listed("tensors", tensors),
    }


def _value(value: Any) -> dict[str, Any]:
    return {"name": value.name, "type": value.type_name, "shape": None if value.shape is None else list(value.shape)}
