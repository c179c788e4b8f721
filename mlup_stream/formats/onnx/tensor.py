"""One tensor of an ONNX model: its type and shape, and where its elements lie (`TensorProto`).

The elements are `raw_data` (little-endian, which is how they lie in memory too), packed `float_data` or `double_data` (the same
bytes), one varint for each element (`int32_data` and the like), strings, or in another file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlup_stream.formats.onnx.schema import ELEMENT_BITS, TYPE_NAMES, EntryField, TensorField
from mlup_stream.formats.onnx.wire import LENGTH_DELIMITED, Field, WireReader, signed
from mlup_stream.units import KIB

__all__ = ["CONSTANT", "EXTERNAL", "INITIALIZER", "Home", "Tensor", "read_tensor"]

INITIALIZER = "initializer"
CONSTANT = "Constant"
"""What holds a tensor that is the value of a `Constant` node."""

_PREPACKED = "prepacked_"
"""What the keys of these entries begin with. Source: onnxruntime's `tensor_external_data_info.cc`."""

EXTERNAL = 1
"""`TensorProto.DataLocation.EXTERNAL`."""

_AS_IN_MEMORY = {TensorField.RAW_DATA: None, TensorField.FLOAT_DATA: 1, TensorField.DOUBLE_DATA: 11}
"""The fields whose packed form is the array's bytes, and the only element type for which it is so."""

_COMPLEX = (14, 15)  # two numbers, each aligned for itself

_NOT_AS_IN_MEMORY = {
    TensorField.INT32_DATA: "int32_data",
    TensorField.INT64_DATA: "int64_data",
    TensorField.UINT64_DATA: "uint64_data",
    TensorField.STRING_DATA: "string_data",
}


@dataclass(frozen=True)
class Home:
    """What a tensor lies in.

    Attributes:
        graph: The graph; None for the body of a function.
        depth: 0 in the main graph or a function's body, 1 in the graphs in its nodes' attributes, and so on.
        node: The node whose attribute it is; None for an initializer.
        in_function: Whether it is in a function's body, however deep.
    """

    graph: Field | None
    depth: int
    node: Field | None = None
    in_function: bool = False


@dataclass(frozen=True)
class Tensor:
    """A tensor, where it lies, and where its elements do.

    Attributes:
        field: The `TensorProto`, in the message that holds it.
        name: Its name; for the value of a `Constant` node the name of what the node gives; often empty for other attributes.
        where: What holds it: `INITIALIZER`, `CONSTANT`, or something else that a runtime wants to find whole.
        home: In which graph it lies.
        data_type: A number of `TensorProto.DataType`.
        dims: Its shape.
        payload: The field whose body is its elements as they lie in memory; None if there is none.
        external: The entries `location`, `offset`, `length` and others when its elements lie in another file.
        stays_because: Why its elements cannot be handed to a runtime from where they lie; empty if they can.
    """

    field: Field
    name: str
    where: str
    home: Home
    data_type: int
    dims: tuple[int, ...]
    payload: Field | None
    external: dict[str, str]
    stays_because: str

    @property
    def size_bytes(self) -> int:
        """The length of its elements in memory, by its type and shape; 0 for strings and unknown types."""
        return _size_bytes(self.data_type, self.dims)

    @property
    def alignment_bytes(self) -> int:
        """What its address has to be a multiple of for its elements to be aligned."""
        bits = ELEMENT_BITS.get(self.data_type, 0) // (2 if self.data_type in _COMPLEX else 1)
        return max(1, bits // 8)

    @property
    def is_packed(self) -> bool:
        """Whether its elements have less than a byte each."""
        return 0 < ELEMENT_BITS.get(self.data_type, 0) < 8

    @property
    def prepacked(self) -> tuple[tuple[str, str], ...]:
        """The entries that say where in that file onnxruntime has left its elements as a kernel wants them."""
        return tuple((key, value) for key, value in self.external.items() if key.startswith(_PREPACKED))

    @property
    def type_name(self) -> str:
        return TYPE_NAMES.get(self.data_type, f"type {self.data_type}")


def read_tensor(reader: WireReader, message: Field, where: str, home: Home, stays_because: str) -> Tensor:
    """The tensor whose `TensorProto` is the field `message`.

    Args:
        where: What holds it.
        home: In which graph it lies.
        stays_because: Why what holds it does not let its elements lie elsewhere; empty if it does.

    Raises:
        CorruptModelError: It is no such message.
    """
    name, data_type, location = "", 0, 0
    dims: list[int] = []
    entries: dict[str, str] = {}
    payloads: list[Field] = []
    reasons = [stays_because]
    for each in reader.fields(message.body, message.stop, "a tensor"):
        if each.number == TensorField.DIMS:
            dims += [signed(number) for number in reader.varints(each, "a tensor's shape")]
        elif each.number == TensorField.DATA_TYPE:
            data_type = each.value
        elif each.number == TensorField.DATA_LOCATION:
            location = each.value
        elif each.number in _NOT_AS_IN_MEMORY:
            reasons.append(f"{_NOT_AS_IN_MEMORY[TensorField(each.number)]} does not lie as it would in memory")
            if each.wire_type != LENGTH_DELIMITED or each.number == TensorField.STRING_DATA:
                break  # a field for each element, and nothing after them would change the verdict
        elif each.number in _AS_IN_MEMORY:
            payloads.append(each)
            if each.wire_type != LENGTH_DELIMITED:
                reasons.append("its elements are not packed")
                break
        elif each.number == TensorField.SEGMENT:
            reasons.append("it is one segment of a tensor")
        elif each.number == TensorField.NAME and each.wire_type == LENGTH_DELIMITED:
            name = reader.text(each, "a tensor's name", 4 * KIB)
        elif each.number == TensorField.EXTERNAL_DATA and each.wire_type == LENGTH_DELIMITED:
            entries.update([_read_entry(reader, each)])
    external = entries if location == EXTERNAL else {}
    payload = payloads[0] if len(payloads) == 1 else None
    if entries and not external:
        reasons.append("it says both that its data is here and that it is elsewhere")
    if not external:
        reasons.append(_why_it_stays(payload, data_type, tuple(dims)))
    why = next(filter(None, reasons), "")
    return Tensor(message, name, where, home, data_type, tuple(dims), payload, external, why)


def _read_entry(reader: WireReader, message: Field) -> tuple[str, str]:
    key = value = ""
    for each in reader.fields(message.body, message.stop, "an external data entry"):
        if each.number == EntryField.KEY and each.wire_type == LENGTH_DELIMITED:
            key = reader.text(each, "an external data entry", 4 * KIB)
        elif each.number == EntryField.VALUE and each.wire_type == LENGTH_DELIMITED:
            value = reader.text(each, "an external data entry", 4 * KIB)
    return key, value


def _size_bytes(data_type: int, dims: tuple[int, ...]) -> int:
    return max(0, math.prod(dims) * ELEMENT_BITS.get(data_type, 0) + 7) // 8


def _why_it_stays(payload: Field | None, data_type: int, dims: tuple[int, ...]) -> str:
    if payload is None:
        return "it has no data of its own in one piece"
    only_type = _AS_IN_MEMORY[TensorField(payload.number)]
    if only_type is not None and data_type != only_type:
        return "its elements do not lie as they would in memory"
    if not ELEMENT_BITS.get(data_type):
        return "its type has no fixed size"
    if any(dim < 0 for dim in dims) or _size_bytes(data_type, dims) != payload.body_bytes:
        return "its data has not the length of its shape"
    return ""
