"""Where the payloads of an ONNX model lie, and what its headers say; nothing is built and no payload is read.

An ONNX file is one `ModelProto` (see `onnx_schema`). Its tensors lie in

- the initializers of the main graph and of the graphs in the attributes of `If`, `Loop` and `Scan`, at any depth;
- the `value` attribute of `Constant` nodes in these graphs and in the bodies of functions;
- sparse initializers, attributes of other operators and training information, which have to stay where they are.

A tensor keeps its elements as `raw_data` (little-endian, which is how they lie in memory too), as packed `float_data` or
`double_data` (the same bytes), as one varint for each element (`int32_data` and the like), as strings, or in another file.

Only what is large enough to hold a payload is descended into: a node of 200 bytes is stepped over. Peak memory: one window,
and one record for each tensor found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mlup_stream.formats.onnx.schema import (
    AttributeField,
    FunctionField,
    GraphField,
    ModelField,
    NodeField,
    OpsetField,
    SparseField,
)
from mlup_stream.formats.onnx.tensor import CONSTANT, INITIALIZER, Home, Tensor, read_tensor
from mlup_stream.formats.onnx.values import ValueInfo, read_value_info
from mlup_stream.formats.onnx.wire import LENGTH_DELIMITED, Field, WireReader, signed
from mlup_stream.formats.source import Source
from mlup_stream.units import KIB

__all__ = ["MIN_PAYLOAD_BYTES", "Layout", "Region", "Tensor", "ValueInfo", "walk"]

MIN_PAYLOAD_BYTES = 4 * KIB
"""What is smaller is structure: shapes, axes, biases. A page of a map costs as much as a copy of it."""

_MAX_GRAPH_DEPTH = 24
"""Graphs in graphs. Each is three messages deeper than the one around it, and protobuf's own parser gives up at 100 messages."""

_FIRST_VERSION_WITH_OPSETS = 3
_FIRST_VERSION_WITH_PURE_INPUTS = 4
"""Before it, every initializer was an input as well: https://github.com/onnx/onnx/blob/main/docs/IR.md."""

_SMALL_NODE_BYTES = 4 * KIB
_LOCATION = b"location"
_TRANSPOSE, _MATMUL_NBITS = b"\x22\x09Transpose", b"\x22\x0bMatMulNBits"
"""The field `op_type` as it lies in a node: what tells the few nodes that are worth reading, in one search of each."""

_SCALAR_LISTS = (AttributeField.FLOATS, AttributeField.INTS, AttributeField.STRINGS)


@dataclass(frozen=True)
class Region:
    """A message that holds listed tensors, directly or deeper: what has to be written anew when they leave it."""

    field: Field
    children: tuple[Region | Tensor, ...]


@dataclass(frozen=True)
class Layout:
    """What the headers of a model say.

    Attributes:
        size_bytes: The length of the model, without other files that it refers to.
        opsets: Version by domain; `""` is the domain of ONNX itself.
        inputs: The graph's inputs, without those that an initializer gives.
        node_count: Nodes of the main graph.
        tensors: Every tensor of at least the size asked for, and every one whose elements lie in another file.
        regions: The tree of the messages that hold these tensors.
        transposes_weights: Whether a listed tensor is the input of a `Transpose`.
        unpacks_weights: Whether there are weights of less than a byte, which a runtime unpacks to multiply by them.
    """

    size_bytes: int
    ir_version: int
    producer_name: str
    producer_version: str
    model_version: int
    opsets: dict[str, int]
    graph_name: str
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    node_count: int
    tensors: tuple[Tensor, ...]
    regions: tuple[Region | Tensor, ...]
    transposes_weights: bool
    unpacks_weights: bool

    @property
    def payload_bytes(self) -> int:
        """Bytes of this file that are the elements of listed tensors and can be left in it."""
        return sum(tensor.payload.body_bytes for tensor in self.tensors if tensor.payload and not tensor.stays_because)

    @property
    def structure_bytes(self) -> int:
        """All other bytes of this file: what has to be read."""
        return self.size_bytes - self.payload_bytes

    @property
    def external_bytes(self) -> int:
        """Bytes in other files, by the types and shapes of the tensors that lie there."""
        return sum(tensor.size_bytes for tensor in self.tensors if tensor.external)

    @property
    def external_locations(self) -> tuple[str, ...]:
        """The other files, as the model names them, sorted."""
        return tuple(sorted({tensor.external.get("location", "") for tensor in self.tensors if tensor.external}))


def walk(given: Any, *, min_payload_bytes: int = MIN_PAYLOAD_BYTES) -> Layout:
    """What the headers of the model in `given` say.

    Args:
        given: A view, a `LoadedFile`, a path, a buffer, a seekable binary file, or a `Source` of one of these.
        min_payload_bytes: Tensors whose message is smaller than this are part of the structure, and not listed.

    Raises:
        CorruptModelError: It is not an ONNX model, or not a whole one.
    """
    if isinstance(given, Source):
        return _Walk(WireReader(given), min_payload_bytes).model()
    with Source(given) as source:
        return _Walk(WireReader(source), min_payload_bytes).model()


_Children = tuple["Region | Tensor", ...]


class _Walk:
    """One walk over one model: a method for each kind of message, which gives the tree of what it holds."""

    def __init__(self, reader: WireReader, min_payload_bytes: int) -> None:
        self._reader = reader
        self._min_payload_bytes = min_payload_bytes
        self._tensors: list[Tensor] = []
        self._initializers: set[str] = set()
        self._values: dict[int, list[ValueInfo]] = {GraphField.INPUT: [], GraphField.OUTPUT: []}
        self._node_count = 0
        self._graph_name = ""
        self._ir_version = 0
        self._transposed: set[str] = set()
        self._has_matmul_nbits = False

    def model(self) -> Layout:
        reader = self._reader
        numbers: dict[int, int] = {}
        texts: dict[int, str] = {}
        opsets: dict[str, int] = {}
        regions: list[Region | Tensor] = []
        graphs = 0
        for each in reader.fields(0, reader.size_bytes, "the model"):
            if each.wire_type != LENGTH_DELIMITED:
                numbers[each.number] = each.value
                self._ir_version = numbers.get(ModelField.IR_VERSION, 0)
            elif each.number in (ModelField.PRODUCER_NAME, ModelField.PRODUCER_VERSION):
                texts[each.number] = reader.text(each, "the producer's name", 256)
            elif each.number == ModelField.OPSET_IMPORT:
                opsets.update([self._opset(each)])
            elif each.number == ModelField.GRAPH:
                graphs += 1
                regions += self._graph(each, Home(each, 0))
            elif each.number == ModelField.FUNCTIONS and self._may_hold_tensors(each):
                home = Home(None, 0, in_function=True)
                regions += self._holder(each, "a function", {FunctionField.NODE: self._node}, home)
        if graphs != 1:
            raise reader.corrupt("an ONNX model, which has one graph", f"{graphs}" if graphs else "none")
        if not opsets and self._ir_version >= _FIRST_VERSION_WITH_OPSETS:
            raise reader.corrupt("an ONNX model, which names the operator sets that it uses", "none")
        return Layout(
            size_bytes=reader.size_bytes,
            ir_version=self._ir_version,
            producer_name=texts.get(ModelField.PRODUCER_NAME, ""),
            producer_version=texts.get(ModelField.PRODUCER_VERSION, ""),
            model_version=signed(numbers.get(ModelField.MODEL_VERSION, 0)),
            opsets=opsets,
            graph_name=self._graph_name,
            inputs=tuple(value for value in self._values[GraphField.INPUT] if value.name not in self._initializers),
            outputs=tuple(self._values[GraphField.OUTPUT]),
            node_count=self._node_count,
            tensors=tuple(self._tensors),
            regions=tuple(regions),
            transposes_weights=any(tensor.name in self._transposed for tensor in self._tensors),
            unpacks_weights=self._has_matmul_nbits or any(tensor.is_packed for tensor in self._tensors),
        )

    def _opset(self, message: Field) -> tuple[str, int]:
        domain, version = "", 0
        for each in self._reader.fields(message.body, message.stop, "an operator set"):
            if each.number == OpsetField.DOMAIN and each.wire_type == LENGTH_DELIMITED:
                domain = self._reader.text(each, "a domain", 256)
            elif each.number == OpsetField.VERSION:
                version = signed(each.value)
        return ("" if domain == "ai.onnx" else domain), version

    def _graph(self, message: Field, home: Home) -> _Children:
        if home.depth > _MAX_GRAPH_DEPTH:
            raise self._reader.corrupt(f"graphs in graphs at most {_MAX_GRAPH_DEPTH} deep", "deeper ones")
        return self._holder(
            message,
            "a graph",
            {
                GraphField.NODE: self._node,
                GraphField.INITIALIZER: self._initializer,
                GraphField.SPARSE_INITIALIZER: lambda each, home: self._sparse(each, "sparse initializer", home),
            },
            home,
            also=self._describe if home.depth == 0 else None,
        )

    def _holder(
        self,
        message: Field,
        what: str,
        held: dict[int, Callable[[Field, Home], _Children]],
        home: Home,
        also: Callable[[Field], None] | None = None,
    ) -> _Children:
        children: list[Region | Tensor] = []
        for each in self._reader.fields(message.body, message.stop, what):
            if each.wire_type != LENGTH_DELIMITED:
                continue
            if each.number in held:
                children += held[each.number](each, home)
            if also is not None:
                also(each)
        return (Region(message, tuple(children)),) if children else ()

    def _describe(self, each: Field) -> None:
        """Notes what a field of the main graph says about it."""
        if each.number == GraphField.NODE:
            self._node_count += 1
        elif each.number == GraphField.NAME:
            self._graph_name = self._reader.text(each, "the graph's name", 1024)
        elif each.number in self._values:
            self._values[each.number].append(read_value_info(self._reader, each))

    def _may_hold_tensors(self, message: Field) -> bool:
        if message.body_bytes >= self._min_payload_bytes:
            return True
        # A reference to another file is short, whatever the size of the tensor.
        return _LOCATION in self._reader.read(message.body, message.stop, "a small message")

    def _node(self, message: Field, home: Home) -> _Children:
        if message.body_bytes < _SMALL_NODE_BYTES:
            content = self._reader.read(message.body, message.stop, "a small node")
            self._has_matmul_nbits = self._has_matmul_nbits or _MATMUL_NBITS in content
            interesting = _LOCATION in content or _TRANSPOSE in content
            if message.body_bytes < self._min_payload_bytes and not interesting:
                return ()
        op_type = domain = ""
        inputs: list[Field] = []
        outputs: list[Field] = []
        attributes: list[Field] = []
        for each in self._reader.fields(message.body, message.stop, "a node"):
            if each.wire_type != LENGTH_DELIMITED:
                continue
            if each.number == NodeField.OP_TYPE:
                op_type = self._reader.text(each, "an operator's name", 256)
            elif each.number == NodeField.DOMAIN:
                domain = self._reader.text(each, "a domain", 256)
            elif each.number in (NodeField.INPUT, NodeField.OUTPUT):
                (inputs if each.number == NodeField.INPUT else outputs).append(each)
            elif each.number == NodeField.ATTRIBUTE and self._may_hold_tensors(each):
                attributes.append(each)
        operator = op_type if domain in ("", "ai.onnx") else f"{domain}.{op_type}"
        if operator == "Transpose":
            self._transposed.update(self._name(each) for each in inputs[:1])
        name = self._name(outputs[0]) if operator == "Constant" and outputs else ""
        inside = replace(home, node=message)
        children = [child for each in attributes for child in self._attribute(each, operator, name, inside)]
        return (Region(message, tuple(children)),) if children else ()

    def _name(self, field: Field) -> str:
        return self._reader.text(field, "a name", 4 * KIB)

    def _attribute(self, message: Field, operator: str, constant_name: str, home: Home) -> _Children:
        name = ""
        graphs: list[Field] = []
        tensors: list[Field] = []
        sparse: list[Field] = []
        for each in self._reader.fields(message.body, message.stop, "an attribute"):
            if each.number in _SCALAR_LISTS:
                return ()  # a field for each number where they are not packed; and what is a list of numbers is no tensor
            if each.wire_type != LENGTH_DELIMITED:
                continue
            if each.number == AttributeField.NAME:
                name = self._name(each)
            elif each.number in (AttributeField.G, AttributeField.GRAPHS):
                graphs.append(each)
            elif each.number in (AttributeField.T, AttributeField.TENSORS):
                tensors.append(each)
            elif each.number in (AttributeField.SPARSE_TENSOR, AttributeField.SPARSE_TENSORS):
                sparse.append(each)
        is_constant = (operator, name) == ("Constant", "value") and len(tensors) == 1
        where = CONSTANT if is_constant else f"attribute {name!r} of {operator}"
        stays = "" if is_constant else "onnxruntime reads attributes while it builds the operator"
        children: list[Region | Tensor] = []
        for each in graphs:
            children += self._graph(each, Home(each, home.depth + 1, in_function=home.in_function))
        for each in tensors:
            children += self._tensor(each, where, home, stays, constant_name)
        for each in sparse:
            children += self._sparse(each, where, home)
        # In the order of the file, in which they are written anew.
        return (Region(message, tuple(sorted(children, key=lambda child: child.field.start))),) if children else ()

    def _initializer(self, message: Field, home: Home) -> _Children:
        is_input = home.depth == 0 and self._ir_version < _FIRST_VERSION_WITH_PURE_INPUTS
        if not is_input and not self._may_hold_tensors(message):
            return ()
        tensor = read_tensor(self._reader, message, INITIALIZER, home, "")
        if is_input:
            self._initializers.add(tensor.name)
        return self._listed(tensor)

    def _sparse(self, message: Field, where: str, home: Home) -> _Children:
        stays = "onnxruntime makes a dense tensor of it"
        held: dict[int, Callable[[Field, Home], _Children]] = dict.fromkeys(
            (SparseField.VALUES, SparseField.INDICES), lambda each, home: self._tensor(each, where, home, stays)
        )
        return self._holder(message, "a sparse tensor", held, home)

    def _tensor(self, message: Field, where: str, home: Home, stays_because: str, name: str = "") -> _Children:
        if not self._may_hold_tensors(message):
            return ()
        tensor = read_tensor(self._reader, message, where, home, stays_because)
        return self._listed(replace(tensor, name=name) if name else tensor)

    def _listed(self, tensor: Tensor) -> _Children:
        if not tensor.external and tensor.field.body_bytes < self._min_payload_bytes:
            return ()
        self._tensors.append(tensor)
        return (tensor,)
