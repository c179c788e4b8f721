"""faiss's indexes: how they begin, and how much of one is not left in a mapped file.

    4 characters that name the class, dimensions (int32), vectors (int64), 2 times 1 << 20 (int64), trained (1 byte),
    metric (int32), and for metrics above 1 an argument (float32)
    of a binary index: 4 characters, dimensions (int32), bytes of a vector (int32), vectors (int64), trained (1 byte),
    metric (int32)

then what the class has, little-endian; indexes lie in each other. Source: faiss's `index_write.cpp`. Only beginnings are read:
faiss checks what it reads, since 1.13 each number before it is used.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

from mlup_stream.errors import CorruptModelError
from mlup_stream.formats.peek import Peek
from mlup_stream.formats.source import Source

__all__ = ["FaissIndex", "detect", "inspect", "read_index"]

_FLOAT, _BINARY = struct.Struct("<4siqqqBi"), struct.Struct("<4siiqBi")
_UNUSED = 1 << 20
_METRICS = ("inner product", "L2", "L1", "Linf", "Lp")
_KINDS = {
    b"IxF": "flat",
    b"IxS": "scalar quantizer",
    b"IxP": "product quantizer",
    b"IxH": "LSH",
    b"IxM": "with ids",
    b"IxR": "refined",
    b"IwF": "inverted lists",
    b"IwS": "inverted lists, scalar quantizer",
    b"IwP": "inverted lists, product quantizer",
    b"IHN": "HNSW",
    b"INS": "NSG",
    b"IBx": "flat, of bits",
    b"IBw": "inverted lists, of bits",
    b"IBH": "HNSW, of bits",
}
_SIMPLE = (b"IxFI", b"IxF2", b"IxFl", b"IxSQ", b"IxPq", b"IxHe", b"IHNf", b"IHNs", b"IBxF", b"IBHf")
_LISTS = (b"IwFl", b"IwSq", b"IwSQ", b"IwPQ")
_WITH_IDS = b"IxMp"
_LIST_BYTES = 512
_MOST_PRECOMPUTED_BYTES = 1 << 31
"""Beyond which faiss makes no table (`precomputed_table_max_bytes`)."""


@dataclass(frozen=True, slots=True)
class FaissIndex:
    """What the beginning of an index says.

    Attributes:
        code: The four characters.
        dimensions: Of a vector; of one of bits, bits.
        vectors: How many there are.
        metric: How they are compared.
        lists: How many lists there are; None if it has none.
        private_bytes: What faiss keeps of it in memory though the file is mapped; None where the beginning does not say.
    """

    code: str
    dimensions: int
    vectors: int
    metric: int
    lists: int | None
    private_bytes: int | None

    @property
    def is_binary(self) -> bool:
        return self.code.startswith("IB")


def detect(peek: Peek) -> str | None:
    return "the beginning of a faiss index" if _plausible(peek.head) else None


def read_index(given: Any, name: str | None = None) -> FaissIndex:
    """What the beginning of an index says.

    Raises:
        CorruptModelError: It is none.
    """
    with Source(given, name) as source:
        head = source.read(0, min(64, source.size_bytes), "the beginning of a faiss index")
        if not _plausible(head):
            raise source.corrupt("a faiss index", repr(head[:4]))
        if head.startswith(b"IB"):
            code, dimensions, _, vectors, _, metric = _BINARY.unpack_from(head)
        else:
            code, dimensions, vectors, _, _, _, metric = _FLOAT.unpack_from(head)
        try:
            lists, private_bytes = _private(source, 0)
        except CorruptModelError:
            lists, private_bytes = None, None  # faiss will say what is wrong
        return FaissIndex(code.decode("ascii"), dimensions, vectors, metric, lists, private_bytes)


def _plausible(head: bytes) -> bool:
    if not re.match(rb"I[A-Za-z][A-Za-z0-9]{2}", head):
        return False
    if head.startswith(b"IB"):
        if len(head) < _BINARY.size:
            return False
        _, dimensions, code_bytes, vectors, trained, _ = _BINARY.unpack_from(head)
        return dimensions > 0 and dimensions == code_bytes * 8 and vectors >= 0 and trained in (0, 1)
    if len(head) < _FLOAT.size:
        return False
    _, dimensions, vectors, first, second, trained, _ = _FLOAT.unpack_from(head)
    return dimensions >= 0 and vectors >= 0 and first == second == _UNUSED and trained in (0, 1)


def _after_header(source: Source, at: int) -> tuple[bytes, int, int]:
    """The four characters of the index at a place, how many vectors it has, and where its own part begins."""
    code = source.read(at, 4, "a faiss index")
    if code.startswith(b"IB"):
        return code, _BINARY.unpack(source.read(at, _BINARY.size, "a faiss index"))[3], at + _BINARY.size
    found = _FLOAT.unpack(source.read(at, _FLOAT.size, "a faiss index"))
    return code, found[2], at + _FLOAT.size + (4 if found[6] > 1 else 0)


def _private(source: Source, at: int) -> tuple[int | None, int | None]:
    """How many lists the index at a place has, and what of it is private memory."""
    code, vectors, at = _after_header(source, at)
    if code in _SIMPLE:
        return None, 0
    if code == _WITH_IDS:
        lists, private_bytes = _private(source, at)
        # Which vector has which id: read into memory.
        return lists, None if private_bytes is None else private_bytes + min(8 * vectors, source.size_bytes)
    if code not in _LISTS:
        return None, None
    lists = _number(source, at)
    private_bytes = _LIST_BYTES * min(lists, source.size_bytes)
    if code == b"IwPQ":
        private_bytes += _precomputed_bytes(source, at + 16, lists)
    return lists, private_bytes


def _precomputed_bytes(source: Source, at: int, lists: int) -> int:
    """The table of distances that faiss makes for a product quantizer when it reads one."""
    code, _, at = _after_header(source, at)
    if not code.startswith(b"IxF"):
        raise source.corrupt("a flat quantizer", repr(code))  # another kind: nobody knows
    at += 8 + 4 * _number(source, at)
    at += 1 + 8 + 8 * _number(source, at + 1)  # the map from ids to places
    parts, bits = _number(source, at + 9 + 8), _number(source, at + 9 + 16)
    table_bytes = int(4 * lists * parts << min(bits, 24))
    return table_bytes if table_bytes <= _MOST_PRECOMPUTED_BYTES else 0


def _number(source: Source, at: int) -> int:
    return int.from_bytes(source.read(at, 8, "a number of a faiss index"), "little")


def inspect(given: Any, name: str) -> dict[str, Any]:
    index = read_index(given, name)
    return {
        "class": f"{index.code} ({_KINDS.get(index.code[:3].encode(), 'another')})",
        "dimensions": index.dimensions,
        "vectors": index.vectors,
        "metric": _METRICS[index.metric] if 0 <= index.metric < len(_METRICS) else index.metric,
        "lists": index.lists,
    }
