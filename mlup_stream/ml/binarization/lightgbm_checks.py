"""The lists of a LightGBM text, checked with NumPy: what `formats.lightgbm` does by itself, in half the time for long lists.

Many trees are looked at together, because below some KiB the calls cost more than the work; a single short list is left to
`formats.lightgbm`, and so is what is unusual. Peak memory: 16 bytes for each character of 256 KiB, or of one larger tree.
"""

from __future__ import annotations

import re
import warnings
from typing import Any, BinaryIO

import numpy as np

from mlup_stream.formats.lightgbm import CHARACTERS, Checks, LightGBMModel
from mlup_stream.units import KIB

__all__ = ["ArrayChecks"]

_FROM_BYTES = 4 * KIB
_BLOCK_BYTES = 256 * KIB

# A tree as LightGBM 4 writes it, without categories and linear models. Whatever differs is left to the walk line by line.
_NODE_LISTS = ("split_feature", "split_gain", "threshold", "decision_type", "left_child", "right_child")
_LEAF_LISTS = ("leaf_value", "leaf_weight", "leaf_count")
_INTERNAL_LISTS = ("internal_value", "internal_weight", "internal_count")
_KEYS = (*_NODE_LISTS, *_LEAF_LISTS, *_INTERNAL_LISTS)
_LISTS = "".join(f"{key}=([^\n]+)\n" for key in _KEYS)
_TREE = re.compile(
    rf"Tree=(\d{{1,9}})\nnum_leaves=(\d{{1,9}})\nnum_cat=0\n{_LISTS}(?:is_linear=0\n)?shrinkage=\d+(?:\.\d*)?\n\n\n".encode()
)
# How many numbers there are of each, beyond those of the nodes.
_MORE = tuple(int(key in _LEAF_LISTS) for key in _KEYS)
_FEATURE, _DECISION, _LEFT, _RIGHT = (_KEYS.index(key) for key in ("split_feature", "decision_type", "left_child", "right_child"))
_SPACE, _MINUS, _ZERO = b" -0"


class ArrayChecks(Checks):
    """The checks of a walk."""

    def good_trees(self, file: BinaryIO, first: int, model: LightGBMModel) -> tuple[int, int]:
        sizes = model.tree_sizes or ()
        last, size_bytes = first, 0
        while last < len(sizes) and 0 < sizes[last] <= _BLOCK_BYTES - size_bytes:
            size_bytes += sizes[last]
            last += 1
        text = file.read(size_bytes) if last > first else b""
        looked = max(1, last - first)
        is_good = bool(text) and len(text) == size_bytes and self._are_good(text, first, sizes[first:last], model.features)
        return looked, size_bytes if is_good else 0

    def _are_good(self, text: bytes, first: int, sizes: tuple[int, ...], features: int) -> bool:
        """Whether these are whole trees of the ordinary kind with nothing wrong in them; False also for what is only unusual."""
        lists: list[bytes] = []
        nodes: list[int] = []
        begin = 0
        for number, size_bytes in enumerate(sizes, first):
            found = _TREE.fullmatch(text, begin, begin + size_bytes)
            if found is None or int(found[1]) != number:
                return False
            splits = int(found[2]) - 1
            values = found.groups()[2:]
            if splits < 1 or [value.count(b" ") for value in values] != [splits - 1 + more for more in _MORE]:
                return False
            lists.extend(values)
            nodes.append(splits)
            begin += size_bytes
        kinds = len(_KEYS)
        count = sum(splits * kinds + sum(_MORE) for splits in nodes)
        if not self.are_numbers(b" ".join(lists), count):
            return False
        children = [each for pair in zip(lists[_LEFT::kinds], lists[_RIGHT::kinds], strict=True) for each in pair]
        try:
            if self.any_odd(b" ".join(lists[_DECISION::kinds])):
                return False
            used, below = _integers(b" ".join(lists[_FEATURE::kinds])), _integers(b" ".join(children))
        except ValueError:
            return False
        return bool(used.min() >= 0 and used.max() < features) and _are_forest(below, np.array(nodes))

    def are_numbers(self, value: bytes, count: int) -> bool:
        if len(value) < _FROM_BYTES:
            return super().are_numbers(value, count)
        if value.translate(None, CHARACTERS):
            return False
        # A space before the first makes it like the others, and the zeros spare a look at the end.
        text = np.frombuffer(b" " + value + b"00", np.uint8)
        digits, minuses = (text - np.uint8(_ZERO)) < 10, text == _MINUS
        begins = (text == _SPACE)[:-2] & (digits[1:-1] | (minuses[1:-1] & digits[2:]))
        return bool(np.count_nonzero(begins) == count)

    def range_of(self, value: bytes) -> tuple[int, int]:
        if len(value) < _FROM_BYTES:
            return super().range_of(value)
        try:
            found = _integers(value)
        except ValueError:
            return super().range_of(value)
        return int(found.min()), int(found.max())

    def are_children(self, left: bytes, right: bytes, leaves: int) -> bool:
        if len(left) < _FROM_BYTES:
            return super().are_children(left, right, leaves)
        try:
            found = _integers(left + b" " + right)
        except ValueError:
            return super().are_children(left, right, leaves)
        return _are_forest(found, np.array([leaves - 1]))


def _are_forest(children: Any, nodes: Any) -> bool:
    """As `are_children`, for many trees: the children of each tree's nodes, left ones and then right ones, tree after tree."""
    if len(children) != 2 * nodes.sum():
        return False
    # Each tree has a piece of one line of numbers: its leaves, the last of them first, and then its nodes.
    begins = np.cumsum(2 * nodes + 1) - (2 * nodes + 1)
    tree_nodes, roots = np.repeat(nodes, 2 * nodes), begins + nodes + 1
    if (children < -tree_nodes - 1).any() or (children >= tree_nodes).any():
        return False
    counts = np.bincount(children + np.repeat(roots, 2 * nodes), minlength=int((2 * nodes + 1).sum()))
    counts[roots] += 1  # below which everything lies
    return bool((counts == 1).all())


def _integers(value: bytes) -> Any:
    """Whole numbers with one space between, as an array.

    Raises:
        ValueError: They are something else.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what NumPy says of text that goes on after the last number
        found = np.fromstring(value, dtype=np.int64, sep=" ")
    if len(found) != value.count(b" ") + 1:
        raise ValueError("expected whole numbers with one space between")
    return found
