"""An ONNX model written anew without its payloads: each becomes external data, which says where its bytes lie.

Source: https://github.com/onnx/onnx/blob/main/docs/ExternalData.md. Everything else is copied byte for byte, unknown fields and
all; only the lengths of the messages around a payload change.

A tensor in the graph of an attribute (a branch of `If`, the body of `Loop`) is checked by runtimes in a way that knows nothing of
where external data lies. It becomes an initializer of the main graph, under a name that the model does not have, and what was a
`Constant` or an initializer in its own graph becomes an `Identity` of that, under the name that it had. Optimisers remove it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from mlup_stream.formats.onnx.layout import Layout, Region
from mlup_stream.formats.onnx.schema import EntryField, GraphField, ModelField, NodeField, TensorField
from mlup_stream.formats.onnx.tensor import CONSTANT, EXTERNAL, Tensor
from mlup_stream.formats.onnx.wire import LENGTH_DELIMITED, Field, WireReader, encode_field, encode_varint
from mlup_stream.formats.source import Source

__all__ = ["Place", "without_payloads"]

_REFERENCE = (TensorField.EXTERNAL_DATA, TensorField.DATA_LOCATION)
_HOISTED_NAME = "mlup_stream.payload.at.%d"


class Place(NamedTuple):
    """Where a payload lies: the file's name as the model gives it, and from which byte; and what else is said of that file."""

    location: str
    offset: int
    more: tuple[tuple[str, str], ...] = ()


_Piece = bytes | tuple[int, int]  # what is new, or from where to where it is copied


@dataclass(frozen=True)
class _Edits:
    """What is written instead of fields of the model, and besides; the keys are these fields."""

    instead: dict[Field, list[_Piece]] = field(default_factory=dict)
    before: dict[Field, bytes] = field(default_factory=dict)
    """What the body of a message begins with."""
    after: dict[Field, bytes] = field(default_factory=dict)
    """What it ends with."""


def without_payloads(source: Source, layout: Layout, place: Callable[[Tensor], Place | None]) -> bytes:
    """The model in `source` as a serialised `ModelProto` without the payloads that `place` gives a place.

    Args:
        source: What `layout` was walked from.
        layout: The walk.
        place: Where a tensor's elements will be found; None leaves them where they are. Those of another file may be given a
            place as well.

    Peak memory: the structure, that is what is written, and a record for each tensor.
    """
    edits = _Edits()
    for tensor in layout.tensors:
        target = place(tensor)
        if target is None:
            continue
        if tensor.home.depth == 0:
            body = _without_reference(source, tensor) if tensor.external else _without_payload(tensor)
            edits.instead[tensor.field] = _as_field(tensor.field.number, [*body, _external(tensor, target)])
        else:
            _hoist(tensor, target, layout, edits)
    written = io.BytesIO()
    for piece in _pieces(0, layout.size_bytes, layout.regions, edits):
        if isinstance(piece, bytes):
            written.write(piece)
        else:
            written.write(source.read(piece[0], piece[1] - piece[0], "the structure of the model"))
    return written.getvalue()


def _pieces(start: int, stop: int, children: tuple[Region | Tensor, ...], edits: _Edits) -> list[_Piece]:
    """What stands for the bytes from `start` to `stop`."""
    pieces: list[_Piece] = []
    for child in children:
        instead = edits.instead.get(child.field)
        if instead is None:
            if isinstance(child, Tensor):
                continue  # copied with what is around it
            body = _pieces(child.field.body, child.field.stop, child.children, edits)
            body = [edits.before.get(child.field, b""), *body, edits.after.get(child.field, b"")]
            instead = _as_field(child.field.number, body)
        pieces += [(start, child.field.start), *instead]
        start = child.field.stop
    pieces.append((start, stop))
    return pieces


def _as_field(number: int, body: list[_Piece]) -> list[_Piece]:
    """A length-delimited field with this body."""
    size_bytes = sum(len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in body)
    return [encode_varint(number << 3 | LENGTH_DELIMITED) + encode_varint(size_bytes), *body]


def _without_payload(tensor: Tensor) -> list[_Piece]:
    """The body of the `TensorProto`, with everything that it says but its elements."""
    field, payload = tensor.field, tensor.payload
    assert payload is not None, "a tensor without a payload was given a place"
    return [(field.body, payload.start), (payload.stop, field.stop)]


def _without_reference(source: Source, tensor: Tensor) -> list[_Piece]:
    """The body of the `TensorProto` of a tensor in another file, with everything that it says but where."""
    said = WireReader(source).fields(tensor.field.body, tensor.field.stop, "a tensor")
    return [(each.start, each.stop) for each in said if each.number not in _REFERENCE]


def _external(tensor: Tensor, target: Place) -> bytes:
    """The fields of a `TensorProto` that say where its elements lie."""
    entries = {
        b"location": os.fsencode(target.location),
        b"offset": b"%d" % target.offset,
        b"length": b"%d" % tensor.size_bytes,
        **{os.fsencode(key): os.fsencode(value) for key, value in target.more},
    }
    fields = [
        encode_field(TensorField.EXTERNAL_DATA, encode_field(EntryField.KEY, key) + encode_field(EntryField.VALUE, value))
        for key, value in entries.items()
    ]
    return b"".join(fields) + encode_field(TensorField.DATA_LOCATION, EXTERNAL)


def _hoist(tensor: Tensor, target: Place, layout: Layout, edits: _Edits) -> None:
    """Makes the tensor an initializer of the main graph, and what it was an `Identity` of that."""
    name = (_HOISTED_NAME % tensor.field.start).encode()
    dims = b"".join(encode_field(TensorField.DIMS, dim) for dim in tensor.dims)
    initializer = dims + encode_field(TensorField.DATA_TYPE, tensor.data_type) + encode_field(TensorField.NAME, name)
    main = next(region.field for region in layout.regions if region.field.number == ModelField.GRAPH)
    hoisted = encode_field(GraphField.INITIALIZER, initializer + _external(tensor, target))
    edits.after[main] = edits.after.get(main, b"") + hoisted
    identity = encode_field(
        GraphField.NODE,
        encode_field(NodeField.INPUT, name)
        + encode_field(NodeField.OUTPUT, tensor.name.encode())
        + encode_field(NodeField.OP_TYPE, b"Identity"),
    )
    if tensor.where == CONSTANT and tensor.home.node is not None:
        edits.instead[tensor.home.node] = [identity]
    elif tensor.home.graph is not None:
        edits.instead[tensor.field] = []
        edits.before[tensor.home.graph] = edits.before.get(tensor.home.graph, b"") + identity
