"""An XGBoost model, UBJSON or JSON, checked before XGBoost reads it.

XGBoost trusts what it reads: of 400 files with one to three bytes changed, 3.2 died of 38 and ran out of memory for 67. A length
makes it allocate, deep nesting uses up its stack, and a node that is not there is followed when it predicts. So the file is
walked first: every value ends where the file says, every list of a tree has as many numbers as the tree has nodes, every child is
there and below one node, every split is on a feature that there is.

Source: `tree_model.cc`, `gbtree_model.cc` and `learner.cc` of dmlc/xgboost, and its `doc/model.schema`. Peak memory: 4 MB, or the
lists of one tree and as much again for each of them while it is looked at.
"""

from __future__ import annotations

import array
import operator
from typing import Any, BinaryIO

from mlup_stream.errors import ModelBinarizationError
from mlup_stream.extras import require
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.trees.xgboost_alike import ORDER, AlikeTrees
from mlup_stream.formats.trees.xgboost_json import JsonValues
from mlup_stream.formats.trees.xgboost_ubjson import Numbers, UbjValues, Values
from mlup_stream.ml.binarization.trees.heap import keep_small_arrays

__all__ = ["WALK_VERSION", "check"]

WALK_VERSION = 1
"""To be counted up with each change of what passes the walk: what passed is remembered with it."""

_BY_NODE = ("left_children", "right_children", "parents", "split_indices", "split_conditions", "default_left")
_BY_CATEGORY = ("categories_nodes", "categories_segments", "categories_sizes")
_NODE_LISTS = ("left_children", "right_children", "parents", "split_indices")
_OF_NODES = frozenset({*_NODE_LISTS, "split_type"})
_OF_CATEGORIES = frozenset({"categories", *_BY_CATEGORY})
_OF_MODEL = frozenset({"tree_info", "iteration_indptr"})

_LEAF_LISTS_SINCE = (3, 2)
"""The version that keeps the vectors of leaves in `leaf_weights`, and follows a null pointer without (tried with 2.1 to 3.2)."""
_MOST_CATEGORIES = 1 << 24
"""As in the library: a category is a float, which has no odd numbers above. A set takes a bit for each up to its largest."""
_MOST_OUTPUTS = 1_000_000
_TOGETHER = 1 << 15
"""So many nodes are looked at together, and those of one window more: 4 MB. Of fewer each call costs more than its work."""


def check(file: BinaryIO, name: str, *, is_json: bool, library: tuple[int, ...] = _LEAF_LISTS_SINCE) -> None:
    """Walks the whole model.

    Args:
        file: From its beginning.
        name: What to call it in a message.
        is_json: JSON, not UBJSON.
        library: The version of XGBoost that is to read it.

    Raises:
        ModelBinarizationError: It is whole, and of a layout that this XGBoost does not survive.
        CorruptModelError: It is cut off, or something in it would make the library read or allocate what it must not.
    """
    trees = _Trees(name, has_leaf_lists=library >= _LEAF_LISTS_SINCE)
    wanted, items_of = _OF_NODES | _OF_CATEGORIES | _OF_MODEL, ("trees", trees.add)
    values = JsonValues(file, name, wanted, items_of) if is_json else UbjValues(file, name, wanted, items_of, trees.add_alike)
    trees.values = values
    model = values.model()
    trees.check()
    learner = _inside(values, model, "learner")
    booster = _inside(values, learner, "gradient_booster")
    parameters = _inside(values, learner, "learner_model_param")
    outputs = max(1, _number(values, parameters, "num_class", 0), 1) * max(1, _number(values, parameters, "num_target", 1))
    features = _number(values, parameters, "num_feature", 0)
    if not 1 <= outputs <= _MOST_OUTPUTS or features < 0:
        raise values.corrupt(f"at most {_MOST_OUTPUTS} outputs", f"{outputs} of {features} features")
    if booster.get("name") == "gblinear":
        weights = _inside(values, booster, "model").get("weights")
        if not isinstance(weights, Numbers) or weights.length != (features + 1) * outputs:
            raise values.corrupt(f"{(features + 1) * outputs} weights", str(weights and weights.length))
        return
    inner = _inside(values, booster, "gbtree") if "gbtree" in booster else booster
    dropped = booster.get("weight_drop")
    if booster is not inner and (not isinstance(dropped, Numbers) or dropped.length != trees.count):
        raise values.corrupt(f"a weight for each of {trees.count} trees", str(dropped and dropped.length))
    _check_forest(values, _inside(values, inner, "model"), trees, outputs)
    if trees.leaf_sizes - {1} and trees.leaf_sizes != {outputs}:
        raise values.corrupt(f"leaves of {outputs} numbers in every tree", f"of {sorted(trees.leaf_sizes)}")
    if trees.most_features > features:
        raise values.corrupt(f"trees that split on one of {features} features", f"feature {trees.most_features - 1}")


def _check_forest(values: Values, model: dict[str, Any], trees: _Trees, outputs: int) -> None:
    """The lists that say what each tree is for."""
    parameters = _inside(values, model, "gbtree_model_param")
    groups, ends = model.get("tree_info"), model.get("iteration_indptr")
    listed = model.get("trees")
    if not isinstance(listed, Numbers) or not listed.length == trees.count == _number(values, parameters, "num_trees"):
        raise values.corrupt(f"{parameters.get('num_trees')} trees, as num_trees says", str(trees.count))
    if not isinstance(groups, Numbers) or groups.length != trees.count or not _within(groups, 0, outputs - 1):
        raise values.corrupt(f"the output of each of {trees.count} trees in tree_info, below {outputs}", "something else")
    if ends is not None:
        if not isinstance(ends, Numbers) or not ends.items or not _within(ends, 0, trees.count):
            raise values.corrupt("where each iteration's trees end in iteration_indptr", "something else")
        if any(map(operator.gt, ends.items, ends.items[1:])) or (ends.items[0], ends.items[-1]) != (0, trees.count):
            raise values.corrupt(f"ends that rise from 0 to {trees.count} in iteration_indptr", "others")
    if _number(values, parameters, "num_parallel_tree", 1) not in range(max(trees.count, 1) + 1):
        raise values.corrupt(f"at most {trees.count} parallel trees", str(parameters["num_parallel_tree"]))


class _Trees:
    """The trees as they come. They are looked at many at a time: of small ones each would cost more than the library's reading.

    Args:
        name: What to call the file in a message.
        has_leaf_lists: Whether the library reads vectors of leaves from a list of their own.

    Attributes:
        count: How many have come.
        leaf_sizes: How many numbers a leaf has.
        most_features: How many features a sample must have for them; known after `check`.
    """

    values: Values

    def __init__(self, name: str, *, has_leaf_lists: bool) -> None:
        self._name = name
        self._wants_leaf_lists = has_leaf_lists
        self.leaf_sizes: set[int] = set()
        self._numpy = require("numpy", "XGBoost models")
        keep_small_arrays()
        self.count = 0
        self.most_features = 0
        self._begin()

    def _begin(self) -> None:
        self._nodes: list[int] = []
        self._sets: list[int] = []
        self._categories: list[int] = []
        self._has_leaf_lists: list[bool] = []
        self._parts: dict[str, list[Any]] = {key: [] for key in (*_OF_NODES, *_OF_CATEGORIES)}
        self._alike: list[tuple[bytes, ...]] = []
        self._alike_types: tuple[str, ...] = ()
        self._held = 0

    def add_alike(self, trees: AlikeTrees) -> None:
        """Takes some of one output, without categories, whose lists were found to be whole.

        Raises:
            CorruptModelError: They are not the next ones, or one before them is not whole.
        """
        if trees.types is not self._alike_types:
            self._join_alike()
            self._alike_types = trees.types
        self._alike += trees.lists
        self._nodes += trees.nodes
        self._held += sum(trees.nodes)
        self.leaf_sizes.add(1)
        self.count += len(trees.nodes)
        if self._held >= _TOGETHER:
            self.check()

    def _join_alike(self) -> None:
        """Puts the lists that came as bytes with the others."""
        missing = len(self._nodes) - len(self._sets)
        self._sets += [0] * missing
        self._categories += [0] * missing
        self._has_leaf_lists += [False] * missing
        if self._alike:
            numpy = self._numpy
            for key, type_, parts in zip(ORDER, self._alike_types, zip(*self._alike, strict=True), strict=True):
                numbers = numpy.frombuffer(b"".join(parts), type_)
                if key != "id":
                    self._parts[key].append(numbers)
                elif not numpy.array_equal(numbers, numpy.arange(self.count - len(numbers), self.count)):
                    raise self._corrupt("trees in their order", "others")
            self._alike.clear()

    def add(self, tree: dict[str, Any]) -> None:
        """Takes one.

        Raises:
            CorruptModelError: It, or one before it, is not whole.
        """
        parameters = _inside(self.values, tree, "tree_param")
        nodes = _number(self.values, parameters, "num_nodes")
        outputs = max(1, _number(self.values, parameters, "size_leaf_vector", 1))
        if nodes < 1 or outputs > _MOST_OUTPUTS or tree.get("id", self.count) != self.count:
            raise self._corrupt("its number and its nodes", f"{tree.get('id')!r} and {nodes}")
        has_leaf_lists = "leaf_weights" in tree
        self.leaf_sizes.add(outputs)
        for key in _BY_NODE:
            self._check_count(tree, key, nodes)
        for key in ("loss_changes", "sum_hessian"):
            # Trees of several outputs have these since they have `leaf_weights`, and the library then reads all three.
            if key in tree or outputs == 1 or has_leaf_lists:
                self._check_count(tree, key, nodes)
        if outputs == 1:
            self._check_count(tree, "base_weights", nodes)
        else:
            self._check_vectors(tree, nodes, outputs)
        self._join_alike()
        for key in _NODE_LISTS:
            self._parts[key].append(self._items(tree, key))
        self._take_categories(tree, nodes)
        self._nodes.append(nodes)
        self._has_leaf_lists.append(has_leaf_lists)
        self._held += nodes + self._categories[-1]
        self.count += 1
        if self._held >= _TOGETHER:
            self.check()

    def check(self) -> None:
        """Looks at those that have not been looked at.

        Raises:
            CorruptModelError: One is not whole.
        """
        if self._nodes:
            self._join_alike()
            self._check_children()
            self._check_categories()
            self._begin()

    def _corrupt(self, expected: str, found: str) -> Exception:
        return self.values.corrupt(f"{expected} in tree {self.count} or a little before it", found)

    def _check_count(self, tree: dict[str, Any], key: str, count: int) -> None:
        found = tree.get(key)
        if not isinstance(found, Numbers) or found.length != count:
            raise self._corrupt(f"{count} numbers of {key}", str(found.length) if isinstance(found, Numbers) else "none")

    def _check_vectors(self, tree: dict[str, Any], nodes: int, outputs: int) -> None:
        """Leaves of several outputs: a vector for each node, or for each leaf in a list of their own."""
        weights, of_leaves = tree.get("base_weights"), tree.get("leaf_weights")
        wanted = (nodes * outputs,) if of_leaves is None else (nodes * outputs, nodes)
        if not isinstance(weights, Numbers) or weights.length not in wanted:
            raise self._corrupt(f"{nodes * outputs} base_weights", "another number")
        if of_leaves is None and self._wants_leaf_lists:
            raise ModelBinarizationError(
                f"{self._name}: a whole model whose trees have several outputs, in the layout of XGBoost before 3.2, which ends"
                ' the process in 3.2: load it with "xgboost<3.2", or train it again and save it with 3.2',
                path=self._name,
                format=Format.XGBOOST.value,
            )
        if of_leaves is not None:
            self._check_count(tree, "leaf_weights", self._items(tree, "left_children").count(-1) * outputs)

    def _items(self, tree: dict[str, Any], key: str) -> Any:
        found = tree.get(key)
        if not isinstance(found, Numbers) or found.items is None:
            raise self._corrupt(f"numbers in {key}", "none")
        return found.items

    def _take_categories(self, tree: dict[str, Any], nodes: int) -> None:
        """The sets of categories; a tree from before there were any has none of the lists."""
        if not any(key in tree for key in (*_OF_CATEGORIES, "split_type")):
            self._parts["split_type"].append(array.array("b", bytes(nodes)))
            self._sets.append(0)
            self._categories.append(0)
            return
        self._check_count(tree, "split_type", nodes)
        self._parts["split_type"].append(self._items(tree, "split_type"))
        if not any(key in tree for key in _OF_CATEGORIES):
            self._sets.append(0)
            self._categories.append(0)
            return
        sets = len(self._items(tree, "categories_nodes"))
        if sets > nodes:
            raise self._corrupt("categories for nodes that rise", "others")
        for key in _BY_CATEGORY:
            self._check_count(tree, key, sets)
        for key in _OF_CATEGORIES:
            self._parts[key].append(self._items(tree, key))
        self._sets.append(sets)
        self._categories.append(len(self._items(tree, "categories")))

    def _whole(self, key: str) -> Any:
        """All of a list's items, as whole numbers of 32 bits if their types fit them, or of 64."""
        numpy, parts = self._numpy, self._parts[key]
        items = numpy.concatenate(parts) if len(parts) > 1 else numpy.asarray(parts[0] if parts else ())
        if items.dtype.kind == "f":
            if not (numpy.abs(items) < 2**53).all() or (items != numpy.trunc(items)).any():
                raise self._corrupt(f"whole numbers in {key}", "others")
            return items.astype(numpy.int64)
        return items.astype(numpy.promote_types(items.dtype.newbyteorder("="), numpy.int32), copy=False)

    def _check_children(self) -> None:
        numpy = self._numpy
        left, right, parents, features = map(self._whole, _NODE_LISTS)
        # Half as wide where they fit: what this takes is what it moves.
        counts = numpy.array(self._nodes, numpy.int32 if len(left) < 1 << 31 else numpy.int64)
        starts = numpy.cumsum(counts, dtype=counts.dtype) - counts
        is_split = left != -1
        if any(self._has_leaf_lists):
            # A leaf says there which of `leaf_weights` is its own.
            leaves = numpy.add.reduceat(~is_split, starts)
            begins_of, ends_of = (
                numpy.repeat(numpy.where(self._has_leaf_lists, *bounds), counts) for bounds in ((0, -1), (leaves, 0))
            )
            is_whole = bool((is_split | ((right >= begins_of) & (right < ends_of))).all())
        else:
            is_whole = bool((is_split | (right == -1)).all())
        if not is_whole:
            raise self._corrupt("leaves without children", "a child on the right alone")
        splits = numpy.flatnonzero(is_split)
        if not len(splits):
            return
        # Of each split: where its tree begins, and of how many nodes it is.
        of_tree = numpy.diff(numpy.searchsorted(splits, starts), append=len(splits))
        begins, ends = numpy.repeat(starts, of_tree), numpy.repeat(counts, of_tree)
        own = (splits - begins).astype(counts.dtype)
        lefts, rights = left[splits], right[splits]
        for children in (lefts, rights):
            if children.min() < 1 or (children >= ends).any():
                raise self._corrupt("children among the nodes", "others")
            if (parents.take(children + begins, mode="clip") != own).any():
                raise self._corrupt("every node below its parent", "another")
        # One with two parents was found above: what is left is one that is both children of one.
        if (lefts == rights).any():
            raise self._corrupt("every node below its parent", "another")
        used = features[splits]
        if used.min() < 0:
            raise self._corrupt("features", "one before the first")
        self.most_features = max(self.most_features, int(used.max()) + 1)

    def _check_categories(self) -> None:
        numpy = self._numpy
        kinds = self._whole("split_type")
        if kinds.min() < 0 or kinds.max() > 1:
            raise self._corrupt("splits by number or by category", "another kind")
        sets = sum(self._sets)
        # Every set is of a node that splits by category, and no two of one: so there are as many such nodes in each tree.
        if numpy.count_nonzero(kinds) != sets:
            raise self._corrupt("categories for the nodes that split by them", "others")
        categories = self._whole("categories")
        if len(categories) and not 0 <= categories.min() <= categories.max() < _MOST_CATEGORIES:
            raise self._corrupt(f"categories below {_MOST_CATEGORIES}", "others")
        if not sets:
            return
        owners, begins, sizes = map(self._whole, _BY_CATEGORY)
        counts = numpy.array(self._nodes)
        nodes, room = numpy.repeat(counts, self._sets), numpy.repeat(self._categories, self._sets)
        if begins.min() < 0 or sizes.min() < 0 or (begins > room).any() or (sizes > room - begins).any():
            raise self._corrupt("sets among the tree's categories", "others")
        if owners.min() < 0 or (owners >= nodes).any():
            raise self._corrupt("categories for nodes that rise", "others")
        owners = owners + numpy.repeat(numpy.cumsum(counts) - counts, self._sets)
        if (owners[1:] <= owners[:-1]).any():
            raise self._corrupt("categories for nodes that rise", "others")
        if not kinds[owners].all():
            raise self._corrupt("categories for the nodes that split by them", "others")


def _inside(values: Values, found: dict[str, Any], key: str) -> dict[str, Any]:
    inner = found.get(key)
    if not isinstance(inner, dict):
        raise values.corrupt(f"an object {key!r}", "none" if inner is None else type(inner).__name__)
    return inner


def _number(values: Values, found: dict[str, Any], key: str, default: int | None = None) -> int:
    value = found.get(key, default)
    try:
        if isinstance(value, (str, int)) and len(str(value)) < 20:
            return int(value)
    except ValueError:
        pass
    raise values.corrupt(f"a number in {key}", repr(value)[:40])


def _within(numbers: Numbers, least: int, most: int) -> bool:
    if not numbers.length or numbers.items is None:
        return not numbers.length
    items = require("numpy", "XGBoost models").asarray(numbers.items)
    # What is not a number is not between any two, and what is infinite neither.
    return bool((items >= least).all() and (items <= most).all() and (items == items.astype("int64")).all())
