"""usearch's indexes: vectors, a header of 64 bytes, and a graph.

    rows, bytes of a row (uint32, or both uint64), the rows; "usearch", version (3 of uint16), metric, scalar, kind of key, kind
    of slot (a byte each), vectors that are there and that were removed (uint64), dimensions (uint64), several vectors for a key
    (a byte)
    nodes, connectivity, connectivity of level 0, highest level, entry (uint64); each node's level (int16); the nodes
    of a node: key (uint64), level (int16), and for each level from 0 on how many neighbours (uint32), and room for them (uint32)

Little-endian. Source: usearch 2's `index_dense.hpp` and `index.hpp`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from mlup_stream.formats.peek import Peek
from mlup_stream.formats.source import Source

__all__ = ["UsearchIndex", "detect", "inspect", "read_index"]

_MAGIC = b"usearch"
_HEAD = struct.Struct("<7s3H4BQQQB")
_HEAD_BYTES = 64
_GRAPH = struct.Struct("<5Q")
_METRICS = {
    105: "inner product", 99: "cosine", 101: "L2, squared", 104: "haversine", 100: "divergence", 112: "Pearson",
    106: "Jaccard", 98: "Hamming", 116: "Tanimoto", 115: "Sorensen",
}
_SCALARS = {10: ("f64", 64), 11: ("f32", 32), 4: ("bf16", 16), 12: ("f16", 16), 23: ("i8", 8), 17: ("u8", 8), 1: ("b1", 1)}
_KEY, _SLOT = 14, 15  # uint64 and uint32, those of the index that Python has
_MOST_NEIGHBOURS = 1 << 16


@dataclass(frozen=True, slots=True)
class UsearchIndex:
    """What an index holds, and where its graph lies.

    Attributes:
        version: Of usearch.
        metric: How vectors are compared.
        scalar: What their numbers are.
        is_known: Whether the scalars, keys and places are of kinds that are known here.
        dimensions: Of a vector.
        vectors: How many are there; `removed` were removed.
        nodes: Of the graph.
        neighbours: How many a node may have above level 0; `neighbours_below`, on it.
        highest: The highest level.
        entry: Where a search begins.
        levels_at: Where the levels begin.
    """

    version: str
    metric: str
    scalar: str
    is_known: bool
    dimensions: int
    vectors: int
    removed: int
    nodes: int
    neighbours: int
    neighbours_below: int
    highest: int
    entry: int
    levels_at: int

    @property
    def nodes_at(self) -> int:
        return self.levels_at + 2 * self.nodes


def detect(peek: Peek) -> str | None:
    for rows_bytes in (4, 8):
        at = _header_at(peek.head, rows_bytes)
        if at is not None and (peek.at(at, len(_MAGIC)) == _MAGIC):
            return "the word usearch behind a matrix of the size that the file says"
    return None


def _header_at(head: bytes, rows_bytes: int) -> int | None:
    if len(head) < 2 * rows_bytes:
        return None
    rows, row_bytes = (int.from_bytes(head[at : at + rows_bytes], "little") for at in (0, rows_bytes))
    return 2 * rows_bytes + rows * row_bytes


def read_index(given: Any, name: str | None = None) -> UsearchIndex:
    """What the headers say.

    Raises:
        CorruptModelError: They do not agree with each other or with the size of the file.
    """
    with Source(given, name) as source:
        head = source.read(0, min(16, source.size_bytes), "a usearch index")
        for rows_bytes in (4, 8):
            at = _header_at(head, rows_bytes)
            if at is not None and at + _HEAD_BYTES <= source.size_bytes and source.read(at, 7, "the header") == _MAGIC:
                return _read(source, head, rows_bytes, at)
        raise source.corrupt("a usearch index, with a header behind its vectors", "none")


def _read(source: Source, head: bytes, rows_bytes: int, at: int) -> UsearchIndex:
    _, *version, metric, scalar, key, slot, present, removed, dimensions, _ = _HEAD.unpack(
        source.read(at, _HEAD.size, "the header")
    )
    rows, row_bytes = (int.from_bytes(head[begin : begin + rows_bytes], "little") for begin in (0, rows_bytes))
    nodes, neighbours, below, highest, entry = _GRAPH.unpack(source.read(at + _HEAD_BYTES, _GRAPH.size, "the graph"))
    scalar_name, bits = _SCALARS.get(scalar, (str(scalar), 0))
    levels_at = at + _HEAD_BYTES + _GRAPH.size
    if bits and row_bytes != -(-dimensions * bits // 8):
        raise source.corrupt(f"vectors of {dimensions} {scalar_name}", f"rows of {row_bytes} bytes")
    if nodes != rows or present + removed != rows:
        raise source.corrupt(f"{rows} vectors, as many as rows", f"{present} and {removed}, and a graph of {nodes}")
    if nodes and not (0 < neighbours <= _MOST_NEIGHBOURS and 0 < below <= _MOST_NEIGHBOURS and entry < nodes):
        raise source.corrupt("a graph with neighbours and an entry", f"{neighbours} and {below} neighbours, {entry}")
    if levels_at + 2 * nodes > source.size_bytes:
        raise source.corrupt(f"the levels of {nodes} nodes", f"a file of {source.size_bytes} bytes")
    return UsearchIndex(
        ".".join(map(str, version)),
        _METRICS.get(metric, str(metric)),
        scalar_name,
        bool(bits) and (key, slot) == (_KEY, _SLOT) and metric in _METRICS,
        dimensions,
        present,
        removed,
        nodes,
        neighbours,
        below,
        highest,
        entry,
        levels_at,
    )


def inspect(given: Any, name: str) -> dict[str, Any]:
    index = read_index(given, name)
    return {
        "version": index.version,
        "metric": index.metric,
        "scalar": index.scalar,
        "dimensions": index.dimensions,
        "vectors": index.vectors,
        "connectivity": index.neighbours,
    }
