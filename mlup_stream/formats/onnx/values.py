"""What an ONNX graph says of its inputs and outputs: names, types and shapes (`ValueInfoProto` and what lies in it)."""

from __future__ import annotations

from dataclasses import dataclass

from mlup_stream.formats.onnx.schema import TYPE_NAMES, DimensionField, TensorTypeField, TypeField, ValueField
from mlup_stream.formats.onnx.wire import LENGTH_DELIMITED, Field, WireReader, signed

__all__ = ["ValueInfo", "read_value_info"]

_NOT_TENSORS = {
    TypeField.SEQUENCE: "sequence",
    TypeField.MAP: "map",
    TypeField.OPTIONAL: "optional",
}
_MAX_RANK = 1024


@dataclass(frozen=True)
class ValueInfo:
    """An input or output: its name, its type, and its shape, with a name or `"?"` for a dimension that is not fixed.

    The shape is None where the model does not say, and for what is not a tensor.
    """

    name: str
    type_name: str
    shape: tuple[int | str, ...] | None


def read_value_info(reader: WireReader, message: Field) -> ValueInfo:
    """The `ValueInfoProto` in the field `message`.

    Raises:
        CorruptModelError: It is none.
    """
    name, type_name, shape = "", "?", None
    for each in _submessages(reader, message, "an input or output"):
        if each.number == ValueField.NAME:
            name = reader.text(each, "a name", 4096)
        elif each.number == ValueField.TYPE:
            type_name, shape = _read_type(reader, each)
    return ValueInfo(name, type_name, shape)


def _read_type(reader: WireReader, message: Field) -> tuple[str, tuple[int | str, ...] | None]:
    for each in _submessages(reader, message, "a type"):
        if each.number in (TypeField.TENSOR, TypeField.SPARSE_TENSOR):
            return _read_tensor_type(reader, each)
        if each.number in _NOT_TENSORS:
            return _NOT_TENSORS[TypeField(each.number)], None
    return "?", None


def _read_tensor_type(reader: WireReader, message: Field) -> tuple[str, tuple[int | str, ...] | None]:
    type_name, shape = "?", None
    for each in reader.fields(message.body, message.stop, "a tensor's type"):
        if each.number == TensorTypeField.ELEMENT:
            type_name = TYPE_NAMES.get(each.value, f"type {each.value}")
        elif each.number == TensorTypeField.SHAPE and each.wire_type == LENGTH_DELIMITED:
            shape = tuple(_read_dimension(reader, one) for one in _submessages(reader, each, "a shape"))
            if len(shape) > _MAX_RANK:
                raise reader.corrupt(f"a shape of at most {_MAX_RANK} dimensions", f"{len(shape)}")
    return type_name, shape


def _read_dimension(reader: WireReader, message: Field) -> int | str:
    for each in reader.fields(message.body, message.stop, "a dimension"):
        if each.number == DimensionField.VALUE:
            return signed(each.value)
        if each.number == DimensionField.PARAMETER and each.wire_type == LENGTH_DELIMITED:
            return reader.text(each, "a dimension's name", 256) or "?"
    return "?"


def _submessages(reader: WireReader, message: Field, what: str) -> list[Field]:
    return [each for each in reader.fields(message.body, message.stop, what) if each.wire_type == LENGTH_DELIMITED]
