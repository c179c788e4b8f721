"""CatBoost's binary models (`.cbm`).

From a path CatBoost holds the file twice. From a buffer it uses trees and tables where they lie: private memory is the buffer,
read once, and a few objects. A CatBoost that takes a memoryview (after 1.2.10) gets the mapped file, and private memory is the
objects alone.

The file is checked before CatBoost sees it, because a damaged one would end the process (`trees.catboost_checks`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, BinaryIO, ClassVar

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.placement import Placement
from mlup_stream.delivery.terms import Built, Terms
from mlup_stream.delivery.view import View
from mlup_stream.errors import ConfigError, LoadError
from mlup_stream.extras import require
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.trees.catboost import read_model
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.ml.binarization.base import FormatBinarizer
from mlup_stream.units import MIB

__all__ = ["CatBoostBinarizer"]

_CLASSES = ("CatBoost", "CatBoostClassifier", "CatBoostRegressor", "CatBoostRanker")
_BIN_BYTES = 256
"""A condition of a tree, as an object of CatBoost's. Measured: 170 to 240."""
_SPLIT_BYTES = 8
_TREE_BYTES = 32
"""What the checks hold of a tree, and its first leaf."""
_FIRST_USE_BYTES = 1 * MIB


class CatBoostBinarizer(FormatBinarizer):
    """What `save_model` wrote, as a `catboost.CatBoost`, whose `predict` gives raw values.

    Option: `model_class`, the name of the class to make instead, `"CatBoostClassifier"` for labels. A file does not say which
    class wrote it.
    """

    format = Format.CATBOOST
    libraries = ("catboost",)
    deliveries = (Delivery.VIEW, Delivery.BYTES, Delivery.PATH)
    option_names: ClassVar[frozenset[str]] = frozenset({"model_class"})

    @classmethod
    def prepare(cls) -> None:
        require("catboost", "CatBoost models")
        from mlup_stream.ml.binarization.trees import catboost_checks  # which imports NumPy, as CatBoost does

        del catboost_checks

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        super().check_options(options)
        name = options.get("model_class", _CLASSES[0])
        if name not in _CLASSES:
            raise ConfigError(
                f"binarization_kwargs: model_class={name!r} is not valid; expected one of {', '.join(_CLASSES)}",
                field="binarization_kwargs",
                value=name,
                allowed=_CLASSES,
            )

    @classmethod
    def estimate(cls, artifact: Artifact, terms: Terms) -> Estimate | None:
        try:
            model = artifact.header(read_model)
        except (LoadError, OSError):
            return None  # the load will say what is wrong
        size_bytes = artifact.size_bytes
        objects_bytes = _BIN_BYTES * model.bins + _SPLIT_BYTES * model.splits.size + _TREE_BYTES * model.sizes.size
        objects_bytes += _FIRST_USE_BYTES + 2 * model.info_bytes
        why = "the header of the CatBoost model"
        if artifact.has_content:
            return Estimate.private(size_bytes + objects_bytes, certainty=Certainty.CONSERVATIVE, why=why)
        if terms.delivery is Delivery.VIEW and _takes_views():
            return Estimate.in_place(size_bytes, certainty=Certainty.EXACT, why=why, private_bytes=objects_bytes)
        once_bytes = size_bytes + objects_bytes
        if terms.delivery is Delivery.VIEW:
            return Estimate.private(once_bytes, certainty=Certainty.EXACT, why=why)
        settled_bytes = once_bytes + (size_bytes if terms.delivery is Delivery.PATH else 0)
        return Estimate.private(once_bytes + size_bytes, settled_bytes, certainty=Certainty.CONSERVATIVE, why=why)

    @classmethod
    def from_path(cls, artifact: Artifact, terms: Terms) -> Built:
        _check(artifact.view(terms.on_window).buffer, artifact)
        with artifact.by_name() as path:
            return Built(_new(terms).load_model(path))

    @classmethod
    def from_view(cls, view: View, artifact: Artifact, terms: Terms) -> Built:
        if view.file is not None and _takes_views():
            # A memoryview of its own, which keeps the map: the view's is released with the view.
            return Built(_model(memoryview(view.buffer), artifact, terms), Placement(view.size_bytes, 0))
        blob = artifact.given(read=True).raw_data if view.file is not None else bytes(view.buffer)
        reason = f"CatBoost {require('catboost', 'CatBoost models').__version__} takes nothing but bytes"
        return Built(_model(blob, artifact, terms), Placement(0, len(blob), (reason,)))

    @classmethod
    def from_file(cls, file: BinaryIO, artifact: Artifact, terms: Terms) -> Built:
        return Built(_model(file.read(), artifact, terms))

    @classmethod
    def from_buffer(cls, buffer: bytes | bytearray | memoryview, artifact: Artifact, terms: Terms) -> Built:
        return Built(_model(bytes(buffer), artifact, terms))

    @classmethod
    def is_corrupt(cls, error: Exception) -> bool:
        return super().is_corrupt(error) or type(error).__name__ == "CatBoostError"


@functools.cache
def _takes_views() -> bool:
    """Whether CatBoost takes a memoryview in place of bytes (catboost#3102)."""
    catboost = require("catboost", "CatBoost models")
    try:
        catboost.CatBoost().load_model(blob=memoryview(b"no model"))
    except catboost.CatBoostError:
        return True
    except Exception:
        pass  # an AssertionError in 1.2.10
    return False


def _check(blob: Any, artifact: Artifact) -> None:
    from mlup_stream.ml.binarization.trees.catboost_checks import check

    check(blob, read_model(blob, artifact.name), artifact.name)


def _new(terms: Terms) -> Any:
    return getattr(require("catboost", "CatBoost models"), terms.options.get("model_class", _CLASSES[0]))()


def _model(blob: bytes | memoryview, artifact: Artifact, terms: Terms) -> Any:
    _check(blob, artifact)
    model = _new(terms)
    model.load_model(blob=blob)
    # As `load_model` does it with a path and forgets to with a buffer: without its parameters a model with a link function, as
    # that of `Poisson`, answers with raw values (catboost#3103).
    model._init_params = model._get_params_from_model_updated_with_init_params()
    model._canonized_params = None
    # CatBoost lets go of the buffer in `fit` while it still uses it (catboost#2905).
    model._mlup_stream_blob = blob
    return model
