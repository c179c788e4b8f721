"""An XGBoost model, UBJSON or JSON, checked before XGBoost reads it.

XGBoost trusts what it reads: of 400 files with one to three bytes changed, 3.2 died of 38 and ran out of memory for 67. A length
makes it allocate, deep nesting uses up its stack, and a node that is not there is followed when it predicts. So the file is
walked first: every value ends where the file says, every list of a tree has as many numbers as the tree has nodes, every child is
there and below one node, every split is on a feature that there is.

Source: `tree_model.cc`, `gbtree_model.cc` and `learner.cc` of dmlc/xgboost, and its `doc/model.schema`. Peak memory: the lists of
one tree, or of a few thousand nodes.
"""

from __future__ import annotations

import array
from typing import Any, BinaryIO

from mlup_stream.extras import require
from mlup_stream.formats.xgboost_values import JsonValues, Numbers, UbjValues, Values

__all__ = ["check"]

_BY_NODE = ("left_children", "right_children", "parents", "split_indices", "split_conditions", "default_left")
_BY_CATEGORY = ("categories_nodes", "categories_segments", "categories_sizes")
_NODE_LISTS = ("left_children", "right_children", "parents", "split_indices")
_OF_NODES = frozenset({*_NODE_LISTS, "split_type"})
_OF_CATEGORIES = frozenset({"categories", *_BY_CATEGORY})
_OF_MODEL = frozenset({"tree_info", "iteration_indptr"})

_MOST_CATEGORIES = 1 << 24
"""As in the library: a category is a float, which has no odd numbers above. A set takes a bit for each up to its largest."""
_MOST_OUTPUTS = 1_000_000
_TOGETHER = 1 << 16
"""So many nodes are looked at together: 3 MB."""


def check(file: BinaryIO, name: str, *, is_json: bool) -> None:
    """Walks the whole model.

    Args:
        file: From its beginning.
        name: What to call it in a message.
        is_json: JSON, not UBJSON.

    Raises:
        CorruptModelError: It is cut off, or something in it would make the library read or allocate what it must not.
    """
    trees = _Trees(name)
    values = (JsonValues if is_json else UbjValues)(file, name, _OF_NODES | _OF_CATEGORIES | _OF_MODEL, ("trees", trees.add))
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
        if list(ends.items) != sorted(ends.items) or (ends.items[0], ends.items[-1]) != (0, trees.count):
            raise values.corrupt(f"ends that rise from 0 to {trees.count} in iteration_indptr", "others")
    if _number(values, parameters, "num_parallel_tree", 1) not in range(max(trees.count, 1) + 1):
        raise values.corrupt(f"at most {trees.count} parallel trees", str(parameters["num_parallel_tree"]))


class _Trees:
    """The trees as they come. They are looked at many at a time: of small ones each would cost more than the library's reading.

    Attributes:
        count: How many have come.
        most_features: How many features a sample must have for them; known after `check`.
    """

    values: Values

    def __init__(self, name: str) -> None:
        self._numpy = require("numpy", "XGBoost models")
        self.count = 0
        self.most_features = 0
        self._begin()

    def _begin(self) -> None:
        self._nodes: list[int] = []
        self._categories: list[int] = []
        self._has_leaf_lists: list[bool] = []
        self._parts: dict[str, list[Any]] = {key: [] for key in (*_OF_NODES, *_OF_CATEGORIES)}
        self._held = 0

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
        if not isinstance(weights, Numbers) or weights.length not in (nodes * outputs, nodes):
            raise self._corrupt(f"{nodes * outputs} base_weights", "another number")
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
            self._categories.append(0)
            return
        self._check_count(tree, "split_type", nodes)
        self._parts["split_type"].append(self._items(tree, "split_type"))
        if not any(key in tree for key in _OF_CATEGORIES):
            self._categories.append(0)
            return
        sets = len(self._items(tree, "categories_nodes"))
        for key in _BY_CATEGORY:
            self._check_count(tree, key, sets)
        for key in _OF_CATEGORIES:
            self._parts[key].append(self._items(tree, key))
        self._categories.append(len(self._items(tree, "categories")))
        # The places of a tree's own sets, of which the library makes one after the other.
        if sets:
            owners, starts, sizes = (self._whole([self._items(tree, key)], key) for key in _BY_CATEGORY)
            if starts.min() < 0 or sizes.min() < 0 or (starts + sizes).max() > self._categories[-1]:
                raise self._corrupt(f"sets among {self._categories[-1]} categories", "others")
            if owners.min() < 0 or owners.max() >= nodes or (owners[1:] <= owners[:-1]).any():
                raise self._corrupt("categories for nodes that rise", "others")
            kinds = self._whole([self._items(tree, "split_type")], "split_type")
            if int(kinds.sum()) != sets or not kinds[owners].all():
                raise self._corrupt("categories for the nodes that split by them", "others")
        elif any(self._items(tree, "split_type")):
            raise self._corrupt("categories for the nodes that split by them", "none")

    def _whole(self, parts: list[Any], key: str) -> Any:
        """All of a list's items, as whole numbers."""
        numpy = self._numpy
        items = numpy.concatenate([numpy.asarray(part) for part in parts]) if parts else numpy.empty(0, numpy.int64)
        if items.dtype.kind != "f":
            return items.astype(numpy.int64)
        if not (numpy.abs(items) < 2**53).all() or (items != numpy.trunc(items)).any():
            raise self._corrupt(f"whole numbers in {key}", "others")
        return items.astype(numpy.int64)

    def _check_children(self) -> None:
        numpy = self._numpy
        left, right, parents, features = (self._whole(self._parts[key], key) for key in _NODE_LISTS)
        counts = numpy.array(self._nodes)
        counts_of = numpy.repeat(counts, counts)  # of each node's tree
        starts_of = numpy.repeat(numpy.cumsum(counts) - counts, counts)
        is_leaf = left == -1
        # A leaf may say there which of `leaf_weights` is its own.
        owns = numpy.repeat(numpy.array(self._has_leaf_lists), counts)
        if (is_leaf & ((right < -1) | (right >= numpy.where(owns, counts_of, 0)))).any():
            raise self._corrupt("leaves without children", "a child on the right alone")
        splits = numpy.flatnonzero(~is_leaf)
        if not len(splits):
            return
        begins, ends = starts_of[splits], counts_of[splits]
        children = numpy.concatenate([left[splits], right[splits]])
        if children.min() < 1 or (children >= numpy.concatenate([ends, ends])).any():
            raise self._corrupt("children among the nodes", "others")
        children += numpy.concatenate([begins, begins])
        own = numpy.concatenate([splits - begins, splits - begins])
        if (parents[children] != own).any() or int(numpy.bincount(children).max()) > 1:
            raise self._corrupt("every node below its parent", "another")
        used = features[splits]
        if used.min() < 0:
            raise self._corrupt("features", "one before the first")
        self.most_features = max(self.most_features, int(used.max()) + 1)

    def _check_categories(self) -> None:
        kinds = self._whole(self._parts["split_type"], "split_type")
        if ((kinds != 0) & (kinds != 1)).any():
            raise self._corrupt("splits by number or by category", "another kind")
        categories = self._whole(self._parts["categories"], "categories")
        if len(categories) and not 0 <= categories.min() <= categories.max() < _MOST_CATEGORIES:
            raise self._corrupt(f"categories below {_MOST_CATEGORIES}", "others")


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
    return not numbers.length or (
        bool(numbers.items) and all(each == int(each) for each in numbers.items or ()) and least <= min(numbers.items or ())
        and max(numbers.items or ()) <= most
    )
