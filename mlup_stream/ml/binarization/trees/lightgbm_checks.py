"""Many trees of a LightGBM text checked at once with NumPy: `formats.lightgbm`, line by line, takes 3 to 7 times LightGBM's time.

A block of trees as LightGBM writes them has the same lines again and again, so its newlines make a table: a row for each tree, a
column for each key. What is looked at is the table; no line and no number becomes a Python object. Whatever is not laid out like
that, or is wrong, or longer than a block, is left to `formats.lightgbm`, which says what it is. Peak memory: 3.3 MiB were
measured with trees of 2048 leaves, 4.8 MiB with 16.

Source: `Tree::ToString` of LightGBM 4's `tree.cpp`, for trees without categories and linear models.
"""

from __future__ import annotations

import re
from typing import Any, BinaryIO

import numpy as np

from mlup_stream.formats.trees.lightgbm import CHARACTERS, Checks, LightGBMModel
from mlup_stream.ml.binarization.trees.heap import keep_small_arrays
from mlup_stream.units import KIB

__all__ = ["ArrayChecks"]

# Smaller ones take longer, because each call of NumPy costs something, and larger ones too, because they leave the caches.
_BLOCK_BYTES = 512 * KIB

_HEAD = (b"Tree=", b"num_leaves=", b"num_cat=")
_BY_NODE = (b"split_feature=", b"split_gain=", b"threshold=", b"decision_type=", b"left_child=", b"right_child=")
_BY_LEAF = (b"leaf_value=", b"leaf_weight=", b"leaf_count=")
_BY_NODE_TOO = (b"internal_value=", b"internal_weight=", b"internal_count=")
_TAIL = (b"is_linear=", b"shrinkage=", b"", b"")
_LINES = (*_HEAD, *_BY_NODE, *_BY_LEAF, *_BY_NODE_TOO, *_TAIL)
# The keys' characters one after the other: in which column each is, how far from its line's beginning, and which ends a key.
_COLUMN_OF = np.array([column for column, key in enumerate(_LINES) for _ in range(len(key))])
_OFFSET_OF = np.array([offset for key in _LINES for offset in range(len(key))])
_CHARACTER_OF = np.frombuffer(b"".join(_LINES), np.uint8)
_ENDS_KEY = np.flatnonzero(np.frombuffer(b"=", np.uint8) == _CHARACTER_OF)
_LENGTHS = np.array([len(key) for key in _LINES])
_TREE, _LEAVES, _CATEGORIES, _FEATURE, _DECISION, _LEFT, _RIGHT, _LINEAR, _SHRINKAGE = (
    _LINES.index(key)
    for key in (
        *_HEAD,
        *(b"split_feature=", b"decision_type=", b"left_child=", b"right_child="),
        *_TAIL[:2],
    )
)
_LISTS = slice(len(_HEAD), len(_LINES) - len(_TAIL))
# How many numbers there are in each, beyond those of the nodes.
_MORE = np.array([int(key in _BY_LEAF) for key in (*_BY_NODE, *_BY_LEAF, *_BY_NODE_TOO)])

_POSITIVE = re.compile(rb"\d+(?:\.\d*)?")
_SPACE, _MINUS, _ZERO, _NEWLINE = map(ord, " -0\n")
_MOST_DIGITS = 9  # of more leaves nobody has heard, and 32 bits hold them


class ArrayChecks(Checks):
    """The checks of a walk."""

    def __init__(self) -> None:
        keep_small_arrays()

    def good_trees(self, file: BinaryIO, first: int, model: LightGBMModel) -> tuple[int, int]:
        sizes = model.tree_sizes or ()
        last, size_bytes = first, 0
        while last < len(sizes) and 0 < sizes[last] <= _BLOCK_BYTES - size_bytes:
            size_bytes += sizes[last]
            last += 1
        if last == first:
            return 1, 0
        content = file.read(size_bytes)
        is_good = len(content) == size_bytes and _are_good(content, first, np.array(sizes[first:last]), model.features)
        return last - first, size_bytes if is_good else 0

    def are_children(self, left: bytes, right: bytes, leaves: int) -> bool:
        found = np.fromstring(left + b" " + right, dtype=np.int64, sep=" ")
        return len(found) == 2 * (leaves - 1) and _are_forest(found, np.array([leaves - 1]))


def _are_good(content: bytes, first: int, sizes: Any, features: int) -> bool:
    """Whether these are whole trees of the ordinary kind with nothing wrong in them; False also for what is only unusual."""
    text = np.frombuffer(content + b"00", np.uint8)
    newlines = np.flatnonzero(text == _NEWLINE)
    if len(newlines) != len(sizes) * len(_LINES):
        return False
    begins = np.concatenate(([0], newlines[:-1] + 1)).reshape(len(sizes), len(_LINES))
    ends = newlines.reshape(begins.shape)
    if (ends[:, -1] + 1 != np.cumsum(sizes)).any() or (ends - begins < _LENGTHS).any() or (ends[:, -2:] != begins[:, -2:]).any():
        return False
    # All that is no list of numbers becomes part of the number before it, and what comes after a key begins after a space.
    numbers = text.copy()
    numbers[ends] = _ZERO
    places = begins[:, _COLUMN_OF] + _OFFSET_OF
    if (text[places] != _CHARACTER_OF).any():
        return False
    numbers[places] = _ZERO
    numbers[places[:, _ENDS_KEY]] = _SPACE
    if numbers.tobytes().translate(None, CHARACTERS):
        return False
    is_space, is_digit = numbers == _SPACE, numbers - np.uint8(_ZERO) < 10
    begins_number = is_digit[1:-1] | ((numbers[1:-1] == _MINUS) & is_digit[2:])
    if (is_space[:-2] > begins_number).any():
        return False
    table = _Table(text, begins + _LENGTHS, ends, np.flatnonzero(is_space))
    return _is_shape_right(table, content, first) and _leads_everywhere(table, features)


class _Table:
    """The lines of some trees, a row for each tree, and where the numbers of each line are.

    Args:
        text: All of it.
        begins: Where the value of each line begins.
        ends: And ends.
        spaces: What stands before each number: a space, or the sign after the key.
    """

    def __init__(self, text: Any, begins: Any, ends: Any, spaces: Any) -> None:
        self._text = text
        self.begins, self.ends = begins, ends
        self._spaces = spaces
        self._first = np.searchsorted(spaces, begins - 1)
        self.counts = np.searchsorted(spaces, ends) - self._first

    def integers(self, *columns: int) -> Any:
        """The whole numbers in these columns, tree after tree, and in each tree column after column; None if some are not."""
        at = list(columns)
        first, counts = self._first[:, at].ravel(), self.counts[:, at].ravel()
        total = int(counts.sum())
        # The places of all numbers of a line after those of the line before it.
        before = np.cumsum(counts) - counts
        index = np.arange(total) + np.repeat(first - before, counts)
        begins = self._spaces[index] + 1
        ends = np.empty(total, begins.dtype)
        ends[:-1] = self._spaces[index[1:]]
        ends[before[counts > 0] + counts[counts > 0] - 1] = self.ends[:, at].ravel()[counts > 0]
        is_negative = self._text[begins] == _MINUS
        lengths = ends - begins - is_negative
        longest = int(lengths.max(initial=0))
        if longest > _MOST_DIGITS or int(lengths.min(initial=1)) < 1:
            return None
        # From the last digit to the first; what stands before a number that is shorter counts as zero.
        lengths, found, power = lengths.astype(np.uint8), np.zeros(total, np.int32), np.int32(1)
        for place in range(longest):
            ends -= 1
            digits = (self._text[ends] - np.uint8(_ZERO)) * (lengths > place)
            if int(digits.max(initial=0)) > 9:
                return None
            found += digits * power
            power *= np.int32(10)
        return np.where(is_negative, -found, found)


def _is_shape_right(table: _Table, content: bytes, first: int) -> bool:
    """Whether there are as many numbers of everything as there are nodes and leaves, and the trees are in order."""
    scalars = table.integers(_TREE, _LEAVES, _CATEGORIES, _LINEAR)
    single = table.counts[:, [_TREE, _LEAVES, _CATEGORIES, _LINEAR, _SHRINKAGE]]
    if scalars is None or (single != 1).any():
        return False
    scalars = scalars.reshape(-1, 4)
    nodes = scalars[:, 1] - 1
    numbers = range(first, first + len(nodes))
    widths = table.ends[:, _TREE] - table.begins[:, _TREE]
    if (scalars[:, 0] != numbers).any() or (widths != [len(str(each)) for each in numbers]).any():
        return False
    if scalars[:, 2:].any() or (nodes < 1).any():
        return False
    shrinkages = {
        content[begin:end] for begin, end in zip(table.begins[:, _SHRINKAGE], table.ends[:, _SHRINKAGE], strict=True)
    }
    return bool((table.counts[:, _LISTS] == nodes[:, None] + _MORE).all()) and all(map(_POSITIVE.fullmatch, shrinkages))


def _leads_everywhere(table: _Table, features: int) -> bool:
    """Whether every node splits on a feature that is there, by a number, and all lie below the first."""
    used, decisions = table.integers(_FEATURE), table.integers(_DECISION)
    if used is None or decisions is None or (decisions & 1).any() or used.min() < 0 or used.max() >= features:
        return False
    children = table.integers(_LEFT, _RIGHT)
    return children is not None and _are_forest(children, table.counts[:, _LEFT])


def _are_forest(children: Any, nodes: Any) -> bool:
    """As `Checks.are_children`, for many trees: the children of each tree's nodes, left ones and then right ones."""
    # Each tree has a piece of one line of numbers: its leaves, the last of them first, and then its nodes.
    begins = np.cumsum(2 * nodes + 1) - (2 * nodes + 1)
    tree_nodes, roots = np.repeat(nodes, 2 * nodes), begins + nodes + 1
    if (children < -tree_nodes - 1).any() or (children >= tree_nodes).any():
        return False
    counts = np.bincount(children + np.repeat(roots, 2 * nodes), minlength=int((2 * nodes + 1).sum()))
    counts[roots] += 1  # below which everything lies
    return bool((counts == 1).all())
