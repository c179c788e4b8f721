"""CatBoost's binary models (`.cbm`): a flatbuffer of trees, and behind it the tables of categorical features.

    "CBM1", length, flatbuffer of the model, parts that it names: for "static_provider_v1" a count, and so many times a length
    and a flatbuffer

Lengths are 4 bytes, or 0xffffffff and 8 bytes. Source: CatBoost 1.2's `model.cpp`, `model.fbs`, `features.fbs`,
`ctr_data.fbs` and `static_ctr_provider.cpp`. Read is where the numbers lie and how many there are, not the numbers themselves.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from mlup_stream.formats.flatbuffers import FlatBuffer, Table
from mlup_stream.formats.listing import plain
from mlup_stream.formats.peek import Peek
from mlup_stream.formats.source import Source

__all__ = ["CatBoostModel", "CategoryTable", "Vector", "detect", "inspect", "read_model"]

_MAGIC = b"CBM1"
_LARGE = 0xFFFFFFFF
_TABLES_PART = "static_provider_v1"
_MAX_BINS_PER_BUCKET = 254  # MAX_VALUES_PER_BIN of model.h

# The numbers of the fields, in the order of the schemas.
_CORE_FORMAT, _CORE_TREES, _CORE_INFO, _CORE_PARTS = range(4)
_DIMENSION, _SPLITS, _SIZES, _STARTS, _CATEGORICAL, _FLOATS, _ONE_HOT, _CTRS, _LEAVES, _WEIGHTS, _STEPS, _LEAF_IDS = range(12)
_TEXTS, _ESTIMATED, _PACKED, _EMBEDDINGS = 12, 13, 17, 18
_FLOAT_BORDERS, _ESTIMATED_BORDERS, _ONE_HOT_VALUES, _CTR_BORDERS = 3, 3, 1, 1
_CTR, _CTR_BASE, _CTR_BORDER = 0, 0, 1
_TABLE_BASE, _TABLE_HASHES, _TABLE_BLOB, _TABLE_CLASSES = 0, 1, 2, 4
_BASE_COMBINATION, _BASE_TYPE = 0, 1
_BORDERS, _BUCKETS, _MEANS, _FLOAT_MEANS = range(4)
_BUCKET_BYTES = 12
_USED_INFO = ("params", "catboost_version_info")


class Vector(NamedTuple):
    """Where in the file the items of a vector begin, and how many there are."""

    start: int
    size: int


class CategoryTable(NamedTuple):
    """What a model learned of the values of one or more categorical features.

    Attributes:
        hashes: Buckets of 12 bytes: a hash, and the number of an item.
        values: How many items there are.
    """

    hashes: Vector
    values: int


@dataclass(frozen=True, slots=True)
class CatBoostModel:
    """What a model holds.

    Attributes:
        dimension: How many numbers a leaf has.
        bins: How many conditions there are, which splits name by number.
        buckets: How many groups of them there are, which `packed` names by number.
        sizes: The splits of each tree: its depth, or of a tree that is not symmetric its nodes (int32).
        starts: The first of them (int32).
        splits: The condition of each (int32).
        packed: The same as CatBoost evaluates it (uint16, 2 of uint8); may be left out.
        steps: How far it is to the left and to the right node (2 of uint16); empty for symmetric trees.
        leaf_ids: The first number of each node's leaf (uint32).
        leaves: The numbers (float64).
        weights: How many rows came to each leaf (float64); may be left out.
        tables: Of categorical features.
        features: How many there are of each kind.
        parts: What follows the trees.
        info: What CatBoost wrote about the model, where it is of use here.
        info_bytes: How much it wrote.
    """

    dimension: int
    bins: int
    buckets: int
    sizes: Vector
    starts: Vector
    splits: Vector
    packed: Vector
    steps: Vector
    leaf_ids: Vector
    leaves: Vector
    weights: Vector
    tables: tuple[CategoryTable, ...]
    features: dict[str, int]
    parts: tuple[str, ...]
    info: dict[str, str]
    info_bytes: int


def detect(peek: Peek) -> str | None:
    return "the mark of CatBoost's binary models, CBM1"


def read_model(given: Any, name: str | None = None) -> CatBoostModel:
    """What the model holds.

    Args:
        given: A view, a path, a buffer or a seekable binary file.
        name: What to call it in a message.

    Raises:
        CorruptModelError: It is not what the format says, or is truncated.
    """
    with Source(given, name) as source:
        if source.read(0, 4, "a CatBoost model") != _MAGIC:
            raise source.corrupt("a CatBoost model, which begins with CBM1", repr(source.read(0, 4, "a CatBoost model")))
        start, size_bytes = _sized(source, 4)
        core = FlatBuffer(source, "the flatbuffer of a CatBoost model", start, size_bytes).root()
        trees = core.table(_CORE_TREES)
        if trees is None:
            raise source.corrupt("a CatBoost model", "one without trees")
        parts = tuple(core.texts(_CORE_PARTS))
        tables, least_classes = _tables(source, start + size_bytes) if _TABLES_PART in parts[:1] else ((), None)
        for feature in trees.tables(_CTRS):
            _check_ctr(source, feature, least_classes)
        counts = [
            feature.vector(borders, 4)[1]
            for field, borders in (
                (_FLOATS, _FLOAT_BORDERS),
                (_ESTIMATED, _ESTIMATED_BORDERS),
                (_ONE_HOT, _ONE_HOT_VALUES),
                (_CTRS, _CTR_BORDERS),
            )
            for feature in trees.tables(field)
        ]
        kinds = {"float": _FLOATS, "categorical": _CATEGORICAL, "text": _TEXTS, "embedding": _EMBEDDINGS}
        return CatBoostModel(
            trees.number(_DIMENSION, "i"),
            sum(counts),
            sum(-(-count // _MAX_BINS_PER_BUCKET) for count in counts),
            Vector(*trees.vector(_SIZES, 4)),
            Vector(*trees.vector(_STARTS, 4)),
            Vector(*trees.vector(_SPLITS, 4)),
            Vector(*trees.vector(_PACKED, 4)),
            Vector(*trees.vector(_STEPS, 4)),
            Vector(*trees.vector(_LEAF_IDS, 4)),
            Vector(*trees.vector(_LEAVES, 8)),
            Vector(*trees.vector(_WEIGHTS, 8)),
            tables=tables,
            features={kind: trees.vector(field, 4)[1] for kind, field in kinds.items()},
            parts=parts,
            info={each.text(0): each.text(1) for each in core.tables(_CORE_INFO) if each.text(0) in _USED_INFO},
            info_bytes=sum(each.vector(1, 1)[1] for each in core.tables(_CORE_INFO)),
        )


def _sized(source: Source, at: int) -> tuple[int, int]:
    """Where something begins that is preceded by its length, and the length."""
    size_bytes = int.from_bytes(source.read(at, 4, "a length"), "little")
    at += 4
    if size_bytes == _LARGE:
        size_bytes = int.from_bytes(source.read(at, 8, "a length"), "little")
        at += 8
    if at + size_bytes > source.size_bytes:
        raise source.corrupt(f"{size_bytes} bytes at {at}", f"a file of {source.size_bytes} bytes")
    return at, size_bytes


def _tables(source: Source, at: int) -> tuple[tuple[CategoryTable, ...], int | None]:
    """The tables of categorical features, and the fewest classes that one has which keeps counts of them."""
    count = int.from_bytes(source.read(at, 4, "the number of tables"), "little")
    at += 4
    tables: list[CategoryTable] = []
    least_classes = None
    for _ in range(count):
        start, size_bytes = _sized(source, at)
        table = FlatBuffer(source, "a table of a categorical feature", start, size_bytes).root()
        base = table.table(_TABLE_BASE)
        hashes, hash_bytes = table.vector(_TABLE_HASHES, 1)
        blob, blob_bytes = table.vector(_TABLE_BLOB, 1)
        if base is None or not hashes or not blob or hash_bytes % _BUCKET_BYTES:
            raise source.corrupt("a table of a categorical feature", f"one without its parts at {start}")
        kind, classes = _kind(source, base), table.number(_TABLE_CLASSES, "i")
        item_bytes = 8 if kind in (_MEANS, _FLOAT_MEANS) else 4
        if kind in (_BORDERS, _BUCKETS):
            if classes < 1:
                raise source.corrupt("a table of one class or more", str(classes))
            item_bytes *= max(classes, 2 if kind == _BORDERS else 1)
            least_classes = classes if least_classes is None else min(classes, least_classes)
        tables.append(CategoryTable(Vector(hashes, hash_bytes // _BUCKET_BYTES), blob_bytes // item_bytes))
        at = start + size_bytes
    return tuple(tables), least_classes


def _check_ctr(source: Source, feature: Table, least_classes: int | None) -> None:
    ctr = feature.table(_CTR)
    base = None if ctr is None else ctr.table(_CTR_BASE)
    if ctr is None or base is None:
        raise source.corrupt("a feature made of categories", "one without its parts")
    border = ctr.number(_CTR_BORDER, "i")
    if _kind(source, base) in (_BORDERS, _BUCKETS) and not 0 <= border < (least_classes or 0):
        raise source.corrupt(f"one of {least_classes or 0} classes", f"number {border}")


def _kind(source: Source, base: Table) -> int:
    """The kind of a feature made of categories; the vectors that say of which ones lie where they should."""
    combination = base.table(_BASE_COMBINATION)
    if combination is None:
        raise source.corrupt("a feature made of categories", "one that does not say of which")
    for field, item_bytes in enumerate((4, 8, 8)):
        combination.vector(field, item_bytes)
    kind = base.number(_BASE_TYPE, "b")
    if not 0 <= kind < 6:
        raise source.corrupt("a kind of feature from 0 to 5", str(kind))
    return kind


def inspect(given: Any, name: str) -> dict[str, Any]:
    model = read_model(given, name)
    try:
        options = json.loads(model.info.get("params", "{}"))
        objective = options.get("loss_function", {}).get("type")
    except (ValueError, AttributeError, RecursionError):
        objective = None
    return {
        "version": plain(" ".join(model.info.get("catboost_version_info", "").split())),
        "objective": plain(objective),
        "outputs": model.dimension,
        "trees": model.sizes.size,
        "symmetric": not model.steps.size,
        "leaves": model.leaves.size // max(model.dimension, 1),
        "features": model.features,
        "tables_of_categories": len(model.tables),
    }
