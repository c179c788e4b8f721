"""The part of ONNX's schema that a walk needs: field numbers by message, and the element types.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. Protobuf never gives a number out twice, and ONNX has never moved
one: these hold from its first version to IR version 13.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "ELEMENT_BITS",
    "TYPE_NAMES",
    "AttributeField",
    "DimensionField",
    "EntryField",
    "FunctionField",
    "GraphField",
    "ModelField",
    "NodeField",
    "OpsetField",
    "SparseField",
    "TensorField",
    "TensorTypeField",
    "TypeField",
    "ValueField",
]


class ModelField(IntEnum):
    IR_VERSION = 1
    PRODUCER_NAME = 2
    PRODUCER_VERSION = 3
    MODEL_VERSION = 5
    GRAPH = 7
    OPSET_IMPORT = 8
    FUNCTIONS = 25


class OpsetField(IntEnum):
    DOMAIN = 1
    VERSION = 2


class GraphField(IntEnum):
    NODE = 1
    NAME = 2
    INITIALIZER = 5
    INPUT = 11
    OUTPUT = 12
    SPARSE_INITIALIZER = 15


class FunctionField(IntEnum):
    NODE = 7


class NodeField(IntEnum):
    INPUT = 1
    OUTPUT = 2
    OP_TYPE = 4
    ATTRIBUTE = 5
    DOMAIN = 7


class AttributeField(IntEnum):
    NAME = 1
    T = 5
    G = 6
    FLOATS = 7
    INTS = 8
    STRINGS = 9
    TENSORS = 10
    GRAPHS = 11
    SPARSE_TENSOR = 22
    SPARSE_TENSORS = 23


class SparseField(IntEnum):
    VALUES = 1
    INDICES = 2


class TensorField(IntEnum):
    DIMS = 1
    DATA_TYPE = 2
    SEGMENT = 3
    FLOAT_DATA = 4
    INT32_DATA = 5
    STRING_DATA = 6
    INT64_DATA = 7
    NAME = 8
    RAW_DATA = 9
    DOUBLE_DATA = 10
    UINT64_DATA = 11
    EXTERNAL_DATA = 13
    DATA_LOCATION = 14


class EntryField(IntEnum):
    """StringStringEntryProto: a key and its value."""

    KEY = 1
    VALUE = 2


class ValueField(IntEnum):
    """ValueInfoProto: an input or output."""

    NAME = 1
    TYPE = 2


class TypeField(IntEnum):
    """TypeProto: which kind of value."""

    TENSOR = 1
    SEQUENCE = 4
    MAP = 5
    SPARSE_TENSOR = 8
    OPTIONAL = 9


class TensorTypeField(IntEnum):
    """TypeProto.Tensor, and TypeProto.SparseTensor, which is alike."""

    ELEMENT = 1
    SHAPE = 2


class DimensionField(IntEnum):
    """TensorShapeProto.Dimension: a number, or the name of one."""

    VALUE = 1
    PARAMETER = 2


# Name and bits of an element, by TensorProto.DataType; elements of fewer than 8 bits are packed, and the last byte is filled up.
_TYPES = {
    1: ("float", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    4: ("uint16", 16),
    5: ("int16", 16),
    6: ("int32", 32),
    7: ("int64", 64),
    8: ("string", 0),
    9: ("bool", 8),
    10: ("float16", 16),
    11: ("double", 64),
    12: ("uint32", 32),
    13: ("uint64", 64),
    14: ("complex64", 64),
    15: ("complex128", 128),
    16: ("bfloat16", 16),
    17: ("float8e4m3fn", 8),
    18: ("float8e4m3fnuz", 8),
    19: ("float8e5m2", 8),
    20: ("float8e5m2fnuz", 8),
    21: ("uint4", 4),
    22: ("int4", 4),
    23: ("float4e2m1", 4),
    24: ("float8e8m0", 8),
    25: ("uint2", 2),
    26: ("int2", 2),
}

TYPE_NAMES = {number: name for number, (name, _) in _TYPES.items()}
ELEMENT_BITS = {number: bits for number, (_, bits) in _TYPES.items()}
