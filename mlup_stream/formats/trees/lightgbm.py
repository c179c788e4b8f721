"""A LightGBM text model, checked before LightGBM reads it.

LightGBM trusts its text: one that was cut off, or an index that points outside, does not raise but ends the process (SIGSEGV or
abort, seen with 4.7 for a file cut off in the middle of a tree and for a child index of 9999999), or loads as fewer trees that
predict something else. So the text is walked first, line by line: every tree is whole and as long as `tree_sizes` says, every
list has as many numbers as its tree has nodes or leaves, every index leads to something that is there, and further down.

Source: LightGBM 4's `gbdt_model_text.cpp` (`SaveModelToString`, `LoadModelFromString`) and `tree.cpp` (`Tree::ToString` and the
constructor from text). Peak memory: the lines of one tree, and its children's indices as numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from mlup_stream.errors import CorruptModelError
from mlup_stream.units import MIB

__all__ = ["CHARACTERS", "WALK_VERSION", "Checks", "LightGBMModel", "read_header", "walk"]

WALK_VERSION = 1
"""To be counted up with each change of what passes the walk: what passed is remembered with it."""

_MAX_LINE_BYTES = 64 * MIB
"""A list of a tree with millions of leaves. A longer line is no LightGBM model."""

_MOST_TREE_LINES = 22
"""As in the library, which looks at no more lines of a tree than it knows keys."""
_WITHOUT_END = ("", "v2")
_AFTER_TREES = (b"feature importances:", b"feature_importances:", b"parameters:")
_MAX_CLASSES = 1_000_000
CHARACTERS = b"0123456789+-.eE "
"""Of a list of numbers."""
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_NUMBER = re.compile(rb"[-+]?(?:inf|nan|\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)")
_PARAMETER = re.compile(rb"\[\w+: [^\x00-\x1f]*\]")

# What a tree lists once for each node, and once for each leaf.
_BY_NODE = frozenset(
    b"split_feature split_gain threshold decision_type left_child right_child internal_value internal_weight"
    b" internal_count".split()
)
_BY_LEAF = frozenset(b"leaf_value leaf_weight leaf_count leaf_const num_features".split())
_LISTS = _BY_NODE | _BY_LEAF | frozenset(b"cat_boundaries cat_threshold leaf_features leaf_coeff".split())
_NEEDED_BY_NODES = (b"split_feature", b"threshold", b"left_child", b"right_child")


@dataclass(frozen=True, slots=True)
class LightGBMModel:
    """What the first lines say.

    Attributes:
        version: Of the text format: `v4`.
        classes: How many values a prediction has.
        trees_per_iteration: One, or one for each class.
        features: How many columns a sample has.
        objective: What it was trained for, with its parameters.
        tree_sizes: The length of each tree's text in bytes; None in the oldest files.
        trees: How many trees there are; without `tree_sizes` only `walk` knows.
    """

    version: str
    classes: int
    trees_per_iteration: int
    features: int
    objective: str
    tree_sizes: tuple[int, ...] | None
    trees: int | None


def read_header(file: BinaryIO, name: str) -> LightGBMModel:
    """What the lines before the first tree say. Leaves the file behind them.

    Raises:
        CorruptModelError: It is no LightGBM model, or ends before its first tree.
    """
    lines = _Lines(file, name)
    model, _ = _header(lines)
    return model


def walk(file: BinaryIO, name: str, checks: Checks | None = None) -> LightGBMModel:
    """The same, after every line of the model has been checked.

    Args:
        file: From where it stands.
        name: What to call it in a message.
        checks: Faster ones than those below.

    Raises:
        CorruptModelError: It is cut off, or something in it would make LightGBM read what is not there.
    """
    lines = _Lines(file, name, checks)
    model, line = _header(lines)
    trees = slowly_until = 0
    while line.startswith(b"Tree="):
        begins = lines.position - len(line)
        if trees >= slowly_until:
            good, slowly_until = lines.pass_good_trees(begins, trees, model)
            if good:
                trees += good
                line = lines.next()
                continue
        line, content_bytes = _tree(lines, line, trees, model)
        if model.tree_sizes is not None:
            _check_size(lines, trees, model.tree_sizes, content_bytes, lines.position - len(line) - begins)
        trees += 1
    if line.rstrip(b"\r\n") != b"end of trees":
        # LightGBM before 2.2 wrote none: its last tree ends where `tree_sizes` says, or at the features' importances.
        ends = line.startswith(_AFTER_TREES) if model.tree_sizes is None else trees == len(model.tree_sizes)
        if not ends or model.version not in _WITHOUT_END:
            raise lines.corrupt("'end of trees' after the last tree", repr(line[:40]))
    if model.tree_sizes is not None and trees != len(model.tree_sizes):
        raise lines.corrupt(f"{len(model.tree_sizes)} trees, as tree_sizes says", str(trees))
    if model.classes > max(trees, 1):
        raise lines.corrupt(f"at most one class for each of {trees} trees", f"num_class={model.classes}")
    _rest(lines)
    return LightGBMModel(
        model.version, model.classes, model.trees_per_iteration, model.features, model.objective, model.tree_sizes, trees
    )


class Checks:
    """The two checks that are most of the work, for who has faster ones."""

    def good_trees(self, file: BinaryIO, first: int, model: LightGBMModel) -> tuple[int, int]:
        """Goes on from tree `first`, where the file stands, over as many trees at once as it likes.

        Returns:
            How many trees were looked at, and how many bytes they have if nothing is wrong with any of them; otherwise 0: they
            are then walked one by one, which tells what it is, or that it is only unusual.
        """
        return 0, 0

    def are_children(self, left: bytes, right: bytes, leaves: int) -> bool:
        """Whether every leaf and every node but the root lies below exactly one node.

        Then whoever goes down from the root arrives at a leaf. Nodes count from 0, which is the root; leaves from -1 down.

        Raises:
            ValueError: They are no whole numbers.
        """
        found = list(map(int, left.split())) + list(map(int, right.split()))
        nodes = leaves - 1
        return (
            len(found) == len(set(found)) == 2 * nodes
            and 0 not in found
            and min(found) == -leaves
            and max(found) == (nodes - 1 if nodes > 1 else -1)
        )


class _Lines:
    """A file line by line, with the place and a bound."""

    def __init__(self, file: BinaryIO, name: str, checks: Checks | None = None) -> None:
        self._file = file
        self._name = name
        self._start = file.tell() if file.seekable() else None
        self.position = 0
        self.ends_with_return = False
        self.checks = checks or Checks()

    def next(self) -> bytes:
        """The next line with its newline; empty at the end of the file."""
        line = self._file.readline(_MAX_LINE_BYTES)
        self.position += len(line)
        self.ends_with_return = line.endswith(b"\r\n")
        if len(line) == _MAX_LINE_BYTES:
            raise self.corrupt(f"lines of at most {_MAX_LINE_BYTES} bytes", "a longer one")
        if line.find(b"\r", 0, -2) >= 0:
            raise self.corrupt("lines", "a carriage return within one, at which LightGBM takes it to end")
        if b"\0" in line:
            raise self.corrupt("text", "a zero byte, at which LightGBM would take it to end")
        return line

    def pass_good_trees(self, position: int, first: int, model: LightGBMModel) -> tuple[int, int]:
        """Passes many trees at once, from `position` on, where tree `first` begins.

        Returns:
            How many were passed, and the tree before which that need not be tried again.
        """
        if self._start is None:
            return 0, first + 1
        self._file.seek(self._start + position)
        looked, size_bytes = self.checks.good_trees(self._file, first, model)
        good = looked if size_bytes else 0
        if good:
            self.position = position + size_bytes
        self._file.seek(self._start + self.position)
        return good, first + max(looked, 1)

    def corrupt(self, expected: str, found: str) -> CorruptModelError:
        return CorruptModelError(
            f"{self._name}: expected {expected}, found {found}, before byte {self.position};"
            " the file may be truncated or damaged: copy or save it again",
            path=self._name,
            format="lightgbm",
        )


def _header(lines: _Lines) -> tuple[LightGBMModel, bytes]:
    """The header, and the line after it."""
    first = lines.next()
    if first.rstrip(b"\r\n") != b"tree":
        raise lines.corrupt("a LightGBM text model, which begins with 'tree'", repr(first[:40]))
    values: dict[bytes, bytes] = {}
    while (line := lines.next()) and not line.startswith((b"Tree=", b"end of trees")):
        key, _, value = line.rstrip(b"\r\n").partition(b"=")
        values[key] = value
    if not line:
        raise lines.corrupt("a tree", "the end of the file")
    features = _integer(lines, values, b"max_feature_idx") + 1
    classes = _integer(lines, values, b"num_class")
    trees_per_iteration = _integer(lines, values, b"num_tree_per_iteration", b"%d" % classes)
    if not 1 <= classes <= _MAX_CLASSES or trees_per_iteration not in (1, classes) or features < 1:
        raise lines.corrupt("at least one class, tree and feature", f"{classes}, {trees_per_iteration} and {features}")
    for key in (b"feature_names", b"feature_infos"):
        if key in values and len(values[key].split(b" ")) != features:
            raise lines.corrupt(f"{features} {key.decode()}", f"{len(values[key].split(b' '))}")
    sizes = _sizes(lines, values.get(b"tree_sizes"))
    model = LightGBMModel(
        values.get(b"version", b"").decode("ascii", "replace"),
        classes,
        trees_per_iteration,
        features,
        values.get(b"objective", b"").decode("ascii", "replace"),
        sizes,
        None if sizes is None else len(sizes),
    )
    return model, line


def _sizes(lines: _Lines, value: bytes | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        return tuple(map(int, value.split()))
    except ValueError as error:
        raise lines.corrupt("numbers in tree_sizes", repr(value[:40])) from error


def _integer(lines: _Lines, values: dict[bytes, bytes], key: bytes, default: bytes = b"") -> int:
    try:
        return int(values.get(key, default))
    except ValueError as error:
        raise lines.corrupt(f"a number in {key.decode()}", repr(values.get(key, b"")[:40])) from error


class _Tree(NamedTuple):
    """A tree's lines by their keys, and its shape."""

    number: int
    values: dict[bytes, bytes]
    nodes: int
    leaves: int
    category_sets: int


def _check_size(lines: _Lines, index: int, sizes: tuple[int, ...], content_bytes: int, size_bytes: int) -> None:
    """A tree is as long as `tree_sizes` says: the library begins the next one there.

    The last may be followed by more blank lines than it counts.
    """
    expected = sizes[index] if index < len(sizes) else None
    if expected == size_bytes or (expected is not None and index == len(sizes) - 1 and content_bytes <= expected <= size_bytes):
        return
    if lines.ends_with_return and expected is not None and expected < size_bytes:
        raise lines.corrupt(
            f"tree {index} to be as long as tree_sizes says, {expected}",
            f"{size_bytes} bytes with the line ends of Windows, which a copy as text has made: turn them back (dos2unix)",
        )
    wanted = "no further tree" if expected is None else f"tree {index} to be as long as tree_sizes says, {expected}"
    raise lines.corrupt(wanted, f"{size_bytes} bytes")


def _tree(lines: _Lines, line: bytes, index: int, model: LightGBMModel) -> tuple[bytes, int]:
    """Checks one tree, and gives the line after it, and the length of the tree without the blank lines behind it."""
    if line.rstrip(b"\r\n") != b"Tree=%d" % index:
        raise lines.corrupt(f"tree {index}", repr(line[:40]))
    begins = lines.position - len(line)
    values: dict[bytes, bytes] = {}
    read = 0
    # As the library: up to a blank line, or so many; what comes after it does not see, whatever key is missing then.
    while (line := lines.next()).rstrip(b"\r\n") and read < _MOST_TREE_LINES:
        if not line.endswith(b"\n"):
            raise lines.corrupt("a whole line", "the end of the file")
        key, separator, value = line.rstrip(b"\r\n").partition(b"=")
        if not separator:
            raise lines.corrupt(f"name=value in tree {index}", repr(line[:40]))
        values[key] = value
        read += 1
    content_bytes = lines.position - len(line) - begins
    while line in (b"\n", b"\r\n"):
        line = lines.next()
    leaves = _integer(lines, values, b"num_leaves")
    tree = _Tree(index, values, leaves - 1, leaves, _integer(lines, values, b"num_cat"))
    if not _NUMBER.fullmatch(values.get(b"shrinkage", b"1")):
        raise lines.corrupt(f"a number as shrinkage of tree {index}", repr(values[b"shrinkage"][:40]))
    if leaves < 1 or tree.category_sets < 0:
        raise lines.corrupt(f"leaves in tree {index}", f"num_leaves={leaves}")
    _check_lists(lines, tree)
    if tree.nodes:
        _check_nodes(lines, tree, model.features)
    _check_linear(lines, tree, model.features)
    return line, content_bytes


def _check_lists(lines: _Lines, tree: _Tree) -> None:
    """Every list holds numbers, as many as there are nodes or leaves."""
    for key in (b"leaf_value", *(_NEEDED_BY_NODES if tree.nodes else ())):
        if not tree.values.get(key):
            raise lines.corrupt(f"{key.decode()} in tree {tree.number}", "none")
    lists = [(key, tree.values[key]) for key in tree.values if key in _LISTS]
    counts = [value.count(b" ") + 1 if value else 0 for _, value in lists]
    # All in one: a call for each list of a small tree would take longer than the work.
    if not _are_numbers(b" ".join(value for _, value in lists if value), sum(counts)):
        for key, value in lists:
            if not all(_NUMBER.fullmatch(each) for each in value.split()):
                raise lines.corrupt(f"numbers in {key.decode()} of tree {tree.number}", "something else")
    for (key, _), count in zip(lists, counts, strict=True):
        expected = tree.nodes if key in _BY_NODE else tree.leaves if key in _BY_LEAF else None
        # A tree of one leaf lists little more than that leaf's value.
        optional = key not in (*_NEEDED_BY_NODES, b"leaf_value") and (count == 0 or tree.nodes == 0)
        if expected is not None and count != expected and not optional:
            raise lines.corrupt(f"{expected} values of {key.decode()} in tree {tree.number}", str(count))


def _are_numbers(value: bytes, count: int) -> bool:
    """Whether these are numbers with one space between, each of which begins with a digit: what the library reads to its end.

    Fast: it looks at no number by itself. False also for infinity and where there are more spaces.
    """
    if value.translate(None, CHARACTERS):
        return False
    zeros = value.translate(_DIGITS_TO_ZERO)
    return zeros.count(b" 0") + zeros.count(b" -0") + zeros.startswith((b"0", b"-0")) == count


def _integers(lines: _Lines, tree: _Tree, key: bytes) -> list[int]:
    try:
        return list(map(int, tree.values.get(key, b"").split()))
    except ValueError as error:
        raise lines.corrupt(f"whole numbers in {key.decode()} of tree {tree.number}", "others") from error


def _few(lines: _Lines, tree: _Tree, key: bytes) -> set[int]:
    """The different numbers of a list that has few of them: much faster than all of them."""
    try:
        return set(map(int, set(tree.values.get(key, b"").split())))
    except ValueError as error:
        raise lines.corrupt(f"whole numbers in {key.decode()} of tree {tree.number}", "others") from error


def _check_nodes(lines: _Lines, tree: _Tree, features: int) -> None:
    """Every index of a node leads to something that is there."""
    used = _few(lines, tree, b"split_feature")
    if not 0 <= min(used) <= max(used) < features:
        raise lines.corrupt(f"tree {tree.number} to split on one of {features} features", "another")
    try:
        are_children = lines.checks.are_children(tree.values[b"left_child"], tree.values[b"right_child"], tree.leaves)
    except (ValueError, DeprecationWarning):  # the latter from numpy, where warnings are errors
        are_children = False
    if not are_children:
        raise lines.corrupt(f"every node and leaf of tree {tree.number} below one node", "something else")
    if tree.category_sets == 0 and not any(decision & 1 for decision in _few(lines, tree, b"decision_type")):
        return
    boundaries = _integers(lines, tree, b"cat_boundaries")
    ends = (tree.category_sets + 1, 0, len(_integers(lines, tree, b"cat_threshold")))
    if boundaries != sorted(boundaries) or (len(boundaries), *boundaries[:1], *boundaries[-1:]) != ends:
        raise lines.corrupt(f"{tree.category_sets} sets of categories in tree {tree.number}", "others")
    decisions, thresholds = _integers(lines, tree, b"decision_type"), tree.values[b"threshold"].split()
    if len(decisions) != len(thresholds):
        raise lines.corrupt(f"as many kinds of decisions as thresholds in tree {tree.number}", f"{len(decisions)}")
    for decision, threshold in zip(decisions, thresholds, strict=True):
        if decision & 1 and not (threshold.isdigit() and int(threshold) < tree.category_sets):
            raise lines.corrupt(f"one of {tree.category_sets} sets of categories in tree {tree.number}", repr(threshold))


def _check_linear(lines: _Lines, tree: _Tree, features: int) -> None:
    """The models in the leaves of a linear tree."""
    if tree.values.get(b"is_linear", b"0") != b"1":
        return
    used = _few(lines, tree, b"leaf_features") or {0}
    counts = [len(tree.values.get(key, b"").split()) for key in (b"leaf_features", b"leaf_coeff")]
    wanted = _integers(lines, tree, b"num_features")
    if not 0 <= min(used) <= max(used) < features or min(wanted, default=0) < 0 or counts != [sum(wanted)] * 2:
        raise lines.corrupt(f"the leaves of tree {tree.number} to have models of {features} features", "others")


def _rest(lines: _Lines) -> None:
    """After the trees: LightGBM looks for the end of the parameters wherever they begin."""
    in_parameters = False
    while line := lines.next():
        line = line.rstrip(b"\r\n")
        in_parameters = (in_parameters or line == b"parameters:") and line != b"end of parameters"
        if in_parameters and line not in (b"", b"parameters:") and not _PARAMETER.fullmatch(line):
            raise lines.corrupt("[name: value] among the parameters", repr(line[:40]))
    if in_parameters:
        raise lines.corrupt("'end of parameters'", "the end of the file")
