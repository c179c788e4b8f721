"""Trees of an XGBoost model in UBJSON that are laid out like one that has been read, told by one comparison of bytes.

The library writes all trees of a file alike: the same keys in the same order, the same types, and lists of which each has a
number for each node, or none. What differs is how many nodes there are, the numbers, and the tree's own number. Of a tree that
has been read value by value, what is not numbers is kept. A later tree of which all that is the same, for its number of nodes,
has the same structure, and need not be read value by value, which takes longer than XGBoost's own reading of a small tree.

Source: `RegTree::SaveModel` of dmlc/xgboost, `UBJWriter` in its `json.cc`. Peak memory: 2 KB for each number of nodes that
occurs, at most 1024 of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["ITEM_TYPES", "ORDER", "AlikeTrees", "Layouts", "SeenList"]

ITEM_TYPES = {
    "d": ("f", 4),
    "D": ("d", 8),
    "U": ("B", 1),
    "i": ("b", 1),
    "I": ("h", 2),
    "l": ("i", 4),
    "L": ("q", 8),
}
"""The library's numbers: the type of an array of them, and their size; big-endian in the file."""

_BY_NODE = frozenset(
    {
        "base_weights",
        "default_left",
        "left_children",
        "loss_changes",
        "parents",
        "right_children",
        "split_conditions",
        "split_indices",
        "split_type",
        "sum_hessian",
    }
)
_EMPTY = frozenset({"categories", "categories_nodes", "categories_segments", "categories_sizes"})
ORDER = ("id", "left_children", "parents", "right_children", "split_indices", "split_type")
"""What is handed over of a tree: that of the alphabet, in which the library writes its keys."""
_WANTED = ORDER[1:]
_NUMPY_TYPES = {"U": ">u1", "i": ">i1", "I": ">i2", "l": ">i4", "L": ">i8"}
_MOST_LAYOUTS = 1024
_COUNT = struct.Struct(">q")


class SeenList(NamedTuple):
    """A list of numbers as it was met: its key, where its numbers begin, their marker, and how many there are."""

    key: str
    at: int
    kind: str
    length: int


class AlikeTrees(NamedTuple):
    """Trees of one model, one after the other.

    Attributes:
        nodes: How many each has.
        lists: Of each the bytes of what `ORDER` says.
        types: Of what type they are, as numpy calls it; the same object until another tree is learned from.
        end: Where in the buffer they end.
    """

    nodes: list[int]
    lists: list[tuple[bytes, ...]]
    types: tuple[str, ...]
    end: int


class _Layout(NamedTuple):
    """Where everything is in a tree of so many nodes: what is as in every one, and what is not."""

    size_bytes: int
    fixed: tuple[bytes, ...]
    fixed_of: Callable[[bytearray, int], tuple[Any, ...]]
    lists_of: Callable[[bytearray, int], tuple[Any, ...]]


class _Model(NamedTuple):
    """What every tree of a layout has: pieces that stay, and what is between them: a list's key and its numbers' size."""

    pieces: tuple[bytes, ...]
    between: tuple[tuple[str, int], ...]
    nodes: int
    types: tuple[str, ...]


class Layouts:
    """Learns from trees that were read, and knows others by them."""

    def __init__(self) -> None:
        self._model: _Model | None = None
        self._known: dict[int, _Layout] = {}
        self._head = b""

    def run(self, buffer: bytearray, at: int, end: int, most: int | None) -> AlikeTrees | None:
        """Those that begin there, up to the first that is different or not all there; None if that is the first.

        Args:
            buffer: A part of the file.
            at: Where in it the first begins.
            end: How far it is filled.
            most: At most so many.
        """
        if self._model is None:
            return None
        nodes_at, nodes_end = len(self._head), len(self._head) + 8
        nodes: list[int] = []
        lists: list[tuple[bytes, ...]] = []
        known, count_of = self._known, _COUNT.unpack_from
        while at + nodes_end <= end and len(nodes) != most:
            (count,) = count_of(buffer, at + nodes_at)
            layout = known.get(count) or self._laid_out(count, buffer, at)
            if layout is None or at + layout.size_bytes > end or layout.fixed_of(buffer, at) != layout.fixed:
                break
            nodes.append(count)
            lists.append(layout.lists_of(buffer, at))
            at += layout.size_bytes
        return AlikeTrees(nodes, lists, self._model.types, at) if nodes else None

    def learn(self, data: bytes, tree: dict[str, Any], seen: list[SeenList]) -> None:
        """Takes a tree that has been read and found whole as the model for those that follow.

        It is left when anything in it is not as the library writes a tree of one output without sets of categories.

        Args:
            data: The whole of it.
            tree: What was read.
            seen: Its lists, in their order.
        """
        model = _model_of(data, tree, seen, next((each.length for each in seen), 0))
        if model is not None:
            self._model, self._known, self._head = model, {}, model.pieces[0][:-8]

    def _laid_out(self, nodes: int, buffer: bytearray, at: int) -> _Layout | None:
        model = self._model
        if model is None or not 0 < nodes < 1 << 31 or not buffer.startswith(self._head, at):
            return None
        fixed_form, lists_form = [">"], [">"]
        fixed, held = [], b""
        for piece, (key, item_bytes) in zip(model.pieces, (*model.between, ("", 0)), strict=True):
            held += piece[:-8] + _COUNT.pack(nodes) if key in _BY_NODE else piece
            if not item_bytes and key:
                continue
            if not key:
                held = held.replace(_nodes_text(model.nodes), _nodes_text(nodes))
            size_bytes = item_bytes * (nodes if key in _BY_NODE else 1)
            fixed_form.append(f"{len(held)}s{size_bytes}x")
            lists_form.append(f"{len(held)}x{size_bytes}{'s' if key in ORDER else 'x'}")
            fixed.append(held)
            held = b""
        if len(self._known) >= _MOST_LAYOUTS:
            self._known.clear()
        fields = struct.Struct("".join(fixed_form))
        unpack_lists = struct.Struct("".join(lists_form)).unpack_from
        layout = self._known[nodes] = _Layout(fields.size, tuple(fixed), fields.unpack_from, unpack_lists)
        return layout


def _nodes_text(nodes: int) -> bytes:
    text = str(nodes).encode()
    return _key("num_nodes") + b"SL" + _COUNT.pack(len(text)) + text


def _key(name: str) -> bytes:
    return b"L" + _COUNT.pack(len(name)) + name.encode()


def _model_of(data: bytes, tree: dict[str, Any], seen: list[SeenList], nodes: int) -> _Model | None:
    lists = {each.key: each for each in seen}
    parameters = tree.get("tree_param")
    if (
        not isinstance(parameters, dict)
        or parameters.get("num_nodes") != str(nodes)
        or parameters.get("size_leaf_vector") not in ("0", "1")
        or any(not isinstance(each, str) for each in parameters.values())
        or len(lists) != len(seen)
        or set(tree) != {*lists, "id", "tree_param"}
        or not set(lists) <= _BY_NODE | _EMPTY
        or not set(_WANTED) <= set(lists)
        or any(each.length != (nodes if each.key in _BY_NODE else 0) for each in seen)
        or any(lists[key].kind not in _NUMPY_TYPES for key in _WANTED)
        or seen[0].key not in _BY_NODE
        or next(iter(tree)) != seen[0].key
    ):
        return None
    between = {each.at: (each.key, ITEM_TYPES[each.kind][1] if each.length else 0) for each in seen}
    before = data.find(_key("id"))
    kind = chr(data[before + len(_key("id"))])
    if data.count(_key("id")) != 1 or kind not in "iIlL" or data.count(_nodes_text(nodes)) != 1:
        return None
    between[before + len(_key("id")) + 1] = ("id", ITEM_TYPES[kind][1])
    pieces, end = [], 0
    for at in sorted(between):
        key, item_bytes = between[at]
        pieces.append(data[end:at])
        end = at + item_bytes * (nodes if key in _BY_NODE else 1)
    pieces.append(data[end:])
    if _nodes_text(nodes) not in pieces[-1]:
        return None
    kinds = {**{key: lists[key].kind for key in _WANTED}, "id": kind}
    order = tuple(between[at][0] for at in sorted(between) if between[at][0] in kinds)
    if order != ORDER:
        return None
    types = tuple(_NUMPY_TYPES[kinds[key]] for key in order)
    return _Model(tuple(pieces), tuple(between[at] for at in sorted(between)), nodes, types)
