"""The tensors of a safetensors file and where their bytes lie, from its header alone.

Source: the format's description in the README of huggingface/safetensors, and its `tensor.rs` for what is checked: 8 bytes of
header length (little-endian), a JSON object of that length, then the data. The object maps each name to a `dtype`, a `shape` and
`data_offsets`, counted from the end of the header; `__metadata__` maps text to text. A header is at most 100 MB; every byte of
the data belongs to exactly one tensor; keys are not repeated. For models in several files see `formats.shards`.

Hardened: the header's length is checked against the file before it is read, and everything in it before it is used. Peak memory:
the header and, while it is parsed, about ten times its size.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mlup_stream.formats.listing import LISTED, listed, plain
from mlup_stream.formats.peek import Peek
from mlup_stream.formats.shards import index_in, inspect_index, is_index, parsed
from mlup_stream.formats.source import Source

__all__ = [
    "BITS_OF",
    "INDEX_SUFFIX",
    "MAX_HEADER_BYTES",
    "Header",
    "Tensor",
    "detect",
    "detect_index",
    "inspect",
    "read_header",
]

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

INDEX_SUFFIX = ".safetensors.index.json"

BITS_OF = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
"""The bits of one item of each type."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the header describes it: `start` and `stop` (exclusive) count from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Header:
    """What a file holds, the tensors in the order of their bytes."""

    tensors: tuple[Tensor, ...]
    metadata: dict[str, str]
    header_bytes: int

    @property
    def payload_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)


def read_header(given: Any, name: str | None = None) -> Header:
    """The tensors in a file, in the order of their bytes.

    Args:
        given: A view, a path, a buffer or a seekable binary file.
        name: What to call it in a message.

    Raises:
        CorruptModelError: It is not what the format says, or is truncated.
        OSError: The path cannot be opened.
    """
    with Source(given, name) as source:
        length = int.from_bytes(source.read(0, 8, "length of the safetensors header"), "little")
        if length > MAX_HEADER_BYTES:
            raise source.corrupt(f"a safetensors header of at most {MAX_HEADER_BYTES} bytes", f"one of {length}")
        header = parsed(source, source.read(8, length, "safetensors header"))
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise source.corrupt("text in __metadata__", repr(metadata)[:80])
        data_start = 8 + length
        tensors = sorted(
            (_tensor(source, each, value, data_start) for each, value in header.items()), key=lambda each: (each.start, each.stop)
        )
        end = data_start
        for tensor in tensors:
            if tensor.start != end:
                raise source.corrupt(f"tensor {tensor.name!r} to begin where the one before ends, at {end}", f"{tensor.start}")
            end = tensor.stop
        if end != source.size_bytes:
            raise source.corrupt(f"tensors up to the end of the file at {source.size_bytes}", f"an end at {end}")
        return Header(tuple(tensors), metadata, data_start)


def _tensor(source: Source, name: str, value: Any, data_start: int) -> Tensor:
    fields = value if isinstance(value, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), _sizes(fields.get("shape")), _sizes(fields.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2 or not isinstance(dtype, str):
        raise source.corrupt(f"dtype, shape and data_offsets of tensor {name!r}", repr(value)[:120])
    if dtype not in BITS_OF:
        raise source.corrupt(f"a known dtype of tensor {name!r} ({', '.join(BITS_OF)})", repr(dtype)[:80])
    begin, end = offsets
    claimed_bits = BITS_OF[dtype]
    for length in (0,) if 0 in shape else shape:
        claimed_bits *= length
        if claimed_bits > 8 * source.size_bytes:
            break  # a million dimensions would make this number longer with each
    if begin > end or claimed_bits != 8 * (end - begin):
        raise source.corrupt(f"tensor {name!r} to be as long as its shape {shape[:8]} of {dtype} says", f"{offsets}")
    if data_start + end > source.size_bytes:
        raise source.corrupt(f"tensor {name!r} up to {data_start + end}", f"a file of {source.size_bytes} bytes")
    return Tensor(name, dtype, tuple(shape), data_start + begin, data_start + end)


def _sizes(value: Any) -> list[int] | None:
    return value if isinstance(value, list) and all(type(each) is int and each >= 0 for each in value) else None


def detect(peek: Peek) -> str | None:
    length = int.from_bytes(peek.head[:8], "little")
    if not 2 <= length <= MAX_HEADER_BYTES or not re.match(rb"\{[\"} \n]", peek.head[8:10]):
        return None
    cut_off = ", cut off" if 8 + length > peek.size_bytes else ""
    return f"a header length of {length} and JSON after it, as in safetensors{cut_off}"


def detect_index(peek: Peek) -> str | None:
    return index_in(peek, ".safetensors")


def inspect(given: Any, name: str) -> dict[str, Any]:
    if is_index(given):
        return inspect_index(given, name)
    header = read_header(given, name)
    tensors = [
        {"name": each.name, "dtype": each.dtype, "shape": list(each.shape), "size_bytes": each.size_bytes}
        for each in header.tensors
    ]
    metadata = {key: plain(value) for key, value in list(header.metadata.items())[:LISTED]}
    return {"metadata": metadata, "payload_bytes": header.payload_bytes, **listed("tensors", tensors)}
