"""The metadata and tensors of a GGUF file and where their bytes lie, from its header alone; no tensor is read.

Source: `docs/gguf.md` of ggml-org/ggml, versions 2 and 3. The magic number `GGUF`, a version, the counts of tensors and of
metadata entries; the entries, each a key, a type and a value; the tensors, each a name, its dimensions (the fastest first), a
type and an offset; then, at a multiple of `general.alignment` (32 by default), the data, which the offsets count from. Numbers
are little-endian, or big-endian throughout, which shows in the version. Text is its length in 8 bytes and then UTF-8. Quantised
types pack a block of items into so many bytes (`ggml-common.h`).

Hardened: counts are checked against what is left of the file before anything is made by them, arrays nest at most four deep, a
header is at most `MAX_HEADER_BYTES`, tensors lie within the file and do not overlap. Peak memory: the metadata as Python objects
(numbers in arrays of their own size) and a window of 1 MiB.
"""

from __future__ import annotations

import array
import itertools
import math
import re
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from mlup_stream.errors import ModelBinarizationError
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.listing import LISTED, listed, plain
from mlup_stream.formats.peek import Peek
from mlup_stream.formats.source import Source
from mlup_stream.units import MIB

__all__ = [
    "MAX_HEADER_BYTES",
    "SPLIT_TENSORS",
    "TYPES",
    "Header",
    "Tensor",
    "TensorType",
    "detect",
    "inspect",
    "read_header",
    "split_paths",
]

MAX_HEADER_BYTES = 256 * MIB
"""A vocabulary of 150 000 words with its merges takes 10 MiB."""

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_ALIGNMENT_KEY = "general.alignment"
_MAX_DIMENSIONS = 8  # ggml has four
_MAX_DEPTH = 4
_MAX_NAME_BYTES = 64 * 1024
_WINDOW_BYTES = 1 * MIB
_SMALLEST_ENTRY_BYTES = 8 + 4 + 1
_SMALLEST_TENSOR_BYTES = 8 + 4 + 4 + 8

_TEXT, _ARRAY, _BOOL = 8, 9, 7
# The number of a metadata type, and the code of its items for `struct` and `array`.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_SMALLEST = {_TEXT: 8, _ARRAY: 12, _BOOL: 1, **{kind: struct.calcsize(code) for kind, code in _NUMBERS.items()}}
"""The bytes that one item takes at least."""


SPLIT_TENSORS = "split.tensors.count"
"""The key of the number of tensors in all the files that a model was split into."""
_SPLIT_COUNT, _SPLIT_NUMBER = "split.count", "split.no"
_SPLIT_NAME = re.compile(r"(.*-)\d{5}-of-(\d{5})(\.gguf)", re.IGNORECASE | re.DOTALL)


class TensorType(NamedTuple):
    """How items are packed: `block_items` of them in `block_bytes`."""

    name: str
    block_items: int
    block_bytes: int


TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    9: TensorType("Q8_1", 32, 40),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    15: TensorType("Q8_K", 256, 292),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
}
"""The types by their numbers, as ggml.h has them; those that are missing were removed from it."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the header describes it: `shape` has the slowest dimension first, `start` counts from the file's start."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    start: int
    size_bytes: int

    @property
    def stop(self) -> int:
        """Where its bytes end, exclusive."""
        return self.start + self.size_bytes


@dataclass(frozen=True, slots=True)
class Header:
    """What a file holds, the tensors in its own order; arrays of numbers in the metadata are `array.array`."""

    version: int
    big_endian: bool
    alignment: int
    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]
    header_bytes: int

    @property
    def payload_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)


def read_header(given: Any, name: str | None = None) -> Header:
    """The metadata and the tensors of a file.

    Args:
        given: A view, a path, a buffer or a seekable binary file.
        name: What to call it in a message.

    Raises:
        CorruptModelError: It is not what the format says, or is truncated.
        ModelBinarizationError: A version or tensor type that is not known here.
        OSError: The path cannot be opened.
    """
    with Source(given, name) as source:
        if source.read(0, 4, "GGUF magic number") != _MAGIC:
            raise source.corrupt("the GGUF magic number", repr(source.read(0, 4, "first bytes")))
        version, big_endian = _version(source)
        cursor = _Cursor(source, 8, ">" if big_endian else "<")
        tensor_count, entry_count = cursor.number("Q"), cursor.number("Q")
        cursor.refuse_too_many(entry_count, _SMALLEST_ENTRY_BYTES, "metadata entries")
        metadata = _metadata(cursor, entry_count)
        alignment = _alignment(source, metadata)
        cursor.refuse_too_many(tensor_count, _SMALLEST_TENSOR_BYTES, "tensors")
        infos = [_info(cursor) for _ in range(tensor_count)]
        data_start = -(-cursor.position // alignment) * alignment
        tensors = tuple(_tensor(source, info, data_start) for info in infos)
        _refuse_overlaps(source, tensors)
        return Header(version, big_endian, alignment, metadata, tensors, cursor.position)


def split_paths(header: Header, path: str | None, name: str) -> tuple[str | None, ...]:
    """The files of the model in order, None for the one whose header this is: `(None,)` for a model in one file.

    Source: llama.cpp's `gguf-split`: `split.count` files, named `PREFIX-00001-of-00003.gguf`, and the first has all metadata.

    Raises:
        ModelBinarizationError: The name of the file, or that it came without one, does not say where the others are.
    """
    count, number = header.metadata.get(_SPLIT_COUNT, 1), header.metadata.get(_SPLIT_NUMBER, 0)
    if type(count) is not int or count <= 1:
        return (None,)
    found = _SPLIT_NAME.fullmatch(path) if path is not None else None
    if found is None or int(found[2]) != count or type(number) is not int or not 0 <= number < count:
        raise ModelBinarizationError(
            f"{name}: part {number!r} of a model in {count} files, expected a name like model-00001-of-{count:05}.gguf beside the"
            " others; give the path, and the files their own names back",
            path=path,
            format=Format.GGUF.value,
        )
    return tuple(None if each == number else f"{found[1]}{each + 1:05}-of-{found[2]}{found[3]}" for each in range(count))


def _version(source: Source) -> tuple[int, bool]:
    raw = source.read(4, 4, "GGUF version")
    little, big = int.from_bytes(raw, "little"), int.from_bytes(raw, "big")
    for version, big_endian in ((little, False), (big, True)):
        if version in _VERSIONS:
            return version, big_endian
    raise ModelBinarizationError(
        f"{source.name}: expected GGUF version 2 or 3, found {min(little, big)}; convert it with llama.cpp's own scripts",
        path=source.name,
        format=Format.GGUF.value,
    )


class _Cursor:
    """Reads the header from front to back through a window."""

    def __init__(self, source: Source, position: int, order: str) -> None:
        self.source = source
        self.position = position
        self.order = order
        self._window = b""
        self._start = position

    def take(self, size_bytes: int, what: str) -> bytes:
        """The next bytes."""
        at = self.position - self._start
        if at + size_bytes > len(self._window):
            if self.position + size_bytes > MAX_HEADER_BYTES:
                raise self.source.corrupt(f"a GGUF header of at most {MAX_HEADER_BYTES} bytes", f"{what} beyond")
            left = self.source.size_bytes - self.position
            self._window = self.source.read(self.position, max(size_bytes, min(_WINDOW_BYTES, left)), what)
            self._start, at = self.position, 0
        self.position += size_bytes
        return self._window[at : at + size_bytes]

    def number(self, code: str) -> Any:
        """The next number, of a `struct` code."""
        return struct.unpack(self.order + code, self.take(struct.calcsize(self.order + code), "a number of the GGUF header"))[0]

    def text(self, what: str, limit_bytes: int = MAX_HEADER_BYTES) -> str:
        """The next string."""
        length = self.number("Q")
        if length > limit_bytes:
            raise self.source.corrupt(f"{what} of at most {limit_bytes} bytes", f"{length}")
        data = self.take(length, what)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            cause = ValueError(error.reason)  # the error itself holds the text
        raise self.source.corrupt(f"{what} in UTF-8", repr(data[:80])) from cause

    def refuse_too_many(self, count: int, smallest_bytes: int, what: str) -> None:
        """Nothing is made by a count that the rest of the file has no room for."""
        left = self.source.size_bytes - self.position
        if count * smallest_bytes > left:
            raise self.source.corrupt(f"{count} {what}", f"{left} bytes left in the file")


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.text("a metadata key", _MAX_NAME_BYTES)
        if key in metadata:
            raise cursor.source.corrupt("each metadata key once", f"{key[:80]!r} twice")
        metadata[key] = _value(cursor, cursor.number("I"), key, 0)
    return metadata


def _value(cursor: _Cursor, kind: int, key: str, depth: int) -> Any:
    if kind in _NUMBERS:
        return cursor.number(_NUMBERS[kind])
    if kind == _TEXT:
        return cursor.text(f"the text of {key[:80]!r}")
    if kind == _BOOL:
        return cursor.take(1, "a truth value") != b"\0"
    if kind == _ARRAY and depth < _MAX_DEPTH:
        return _array(cursor, key, depth + 1)
    wanted = f"a value of type 0 to 12 for {key[:80]!r}"
    raise cursor.source.corrupt(wanted, "arrays nested too deep" if kind == _ARRAY else f"type {kind}")


def _array(cursor: _Cursor, key: str, depth: int) -> Any:
    kind, count = cursor.number("I"), cursor.number("Q")
    if kind not in _SMALLEST:
        raise cursor.source.corrupt(f"an array of type 0 to 12 for {key[:80]!r}", f"type {kind}")
    cursor.refuse_too_many(count, _SMALLEST[kind], f"items of {key[:80]!r}")
    if kind in _NUMBERS:
        numbers = array.array(_NUMBERS[kind])
        if numbers.itemsize != _SMALLEST[kind]:  # a machine whose C int is not of 4 bytes
            return [cursor.number(_NUMBERS[kind]) for _ in range(count)]
        numbers.frombytes(cursor.take(count * numbers.itemsize, f"the numbers of {key[:80]!r}"))
        if (cursor.order == ">") != (sys.byteorder == "big"):
            numbers.byteswap()
        return numbers
    return [_value(cursor, kind, key, depth) for _ in range(count)]


def _alignment(source: Source, metadata: dict[str, Any]) -> int:
    alignment = metadata.get(_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= 1 * MIB or alignment & (alignment - 1):
        raise source.corrupt(f"a power of two in {_ALIGNMENT_KEY}", repr(alignment)[:80])
    return alignment


class _Info(NamedTuple):
    name: str
    dimensions: tuple[int, ...]
    type_number: int
    offset: int


def _info(cursor: _Cursor) -> _Info:
    name = cursor.text("a tensor's name", _MAX_NAME_BYTES)
    count = cursor.number("I")
    if count > _MAX_DIMENSIONS:
        raise cursor.source.corrupt(f"at most {_MAX_DIMENSIONS} dimensions of tensor {name[:80]!r}", str(count))
    dimensions = tuple(cursor.number("Q") for _ in range(count))
    return _Info(name, dimensions, cursor.number("I"), cursor.number("Q"))


def _tensor(source: Source, info: _Info, data_start: int) -> Tensor:
    kind = TYPES.get(info.type_number)
    if kind is None:
        raise ModelBinarizationError(
            f"{source.name}: tensor {info.name[:80]!r} is of type {info.type_number}, which is not known here;"
            f" expected one of {', '.join(each.name for each in TYPES.values())}",
            path=source.name,
            format=Format.GGUF.value,
        )
    items = math.prod(info.dimensions)
    if kind.block_items > 1 and (not info.dimensions or info.dimensions[0] % kind.block_items):
        rows = f"rows of a multiple of {kind.block_items} items in tensor {info.name[:80]!r} of type {kind.name}"
        raise source.corrupt(rows, f"dimensions {info.dimensions}")
    start, size_bytes = data_start + info.offset, items // kind.block_items * kind.block_bytes
    if start + size_bytes > source.size_bytes:
        raise source.corrupt(f"tensor {info.name[:80]!r} up to {start + size_bytes}", f"a file of {source.size_bytes} bytes")
    return Tensor(info.name, kind, info.dimensions[::-1], start, size_bytes)


def _refuse_overlaps(source: Source, tensors: tuple[Tensor, ...]) -> None:
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise source.corrupt("each tensor's name once", "one of them twice")
    for before, after in _neighbours(tensors):
        if after.start < before.stop:
            raise source.corrupt(f"tensor {after.name[:80]!r} to begin after {before.name[:80]!r}", "an overlap")


def _neighbours(tensors: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    ordered = sorted((tensor for tensor in tensors if tensor.size_bytes), key=lambda tensor: tensor.start)
    return itertools.pairwise(ordered)


def detect(peek: Peek) -> str | None:
    # The version is small in one byte order or the other.
    return "the GGUF magic number" if re.match(rb"GGUF(?:[^\0]\0\0\0|\0\0\0[^\0])", peek.head) else None


def inspect(given: Any, name: str) -> dict[str, Any]:
    header = read_header(given, name)
    tensors = [
        {"name": each.name, "dtype": each.type.name, "shape": list(each.shape), "size_bytes": each.size_bytes}
        for each in header.tensors
    ]
    return {
        "version": header.version,
        "byte_order": "big-endian" if header.big_endian else "little-endian",
        "metadata": {key: plain(value) for key, value in list(header.metadata.items())[:LISTED]},
        "payload_bytes": header.payload_bytes,
        **listed("tensors", tensors),
    }
