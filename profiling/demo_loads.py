"""One load of the demo, measured in the process that this module is imported in: a fresh one, see `cli.fresh_process`."""

from __future__ import annotations

import os
from typing import Any

from demo_models import DEMO_MODELS, ROWS_FILE, DemoModel, load_by_library
from measurement import measured, warm_up

from mlup_stream.config import Config
from mlup_stream.constants import StorageType
from mlup_stream.extras import require
from mlup_stream.registry import binarizer_class
from mlup_stream.up import UP

__all__ = ["LIBRARY", "measure", "prepare"]

LIBRARY = "library"
"""What stands in a delivery's place for the format's own library."""


def prepare(folder: str, model: str, delivery: str) -> None:
    """Imports what `measure` will need, so that imports are not measured as part of a load."""
    for name in _chosen(model).libraries:
        require(name, "the demo's models")
    binarizer_class(_chosen(model).format).prepare()
    warm_up()


def _chosen(model: str) -> DemoModel:
    return next(each for each in DEMO_MODELS if each.file == model)


def measure(folder: str, model: str, delivery: str) -> dict[str, Any]:
    """Loads one demo file, asks it, and says what that took.

    Args:
        folder: Where the files are.
        model: The file's name, as in `DEMO_MODELS`.
        delivery: A delivery, or `LIBRARY`.

    Returns:
        As `measured`, the probabilities as the answer; and the `delivery` that was used, with its `reason`.
    """
    chosen = _chosen(model)
    path = os.path.join(folder, model)
    numpy = require("numpy", "the demo's models")
    rows = numpy.load(os.path.join(folder, ROWS_FILE))

    def as_lists(answer: Any) -> Any:
        return numpy.asarray(answer).reshape(len(rows), -1).tolist()

    if delivery == LIBRARY:

        def ask(loaded: Any) -> Any:
            method = getattr(loaded, chosen.predict_method, None)
            return as_lists(loaded.run(None, {"X": rows})[0] if method is None else method(rows))

        found = measured(lambda: load_by_library(chosen.format, path), ask)
        return {"delivery": delivery, "reason": "", **found}

    up = UP(
        conf=Config(
            storage_type=StorageType.disk,
            storage_kwargs={"path_to_files": path, "delivery": delivery},
            predict_method_name=chosen.predict_method,
        )
    )
    found = measured(up.ml.load, lambda _: as_lists(up.predict(X=rows)))
    report = up.ml.report
    assert report is not None  # a load that returns has a report
    return {"delivery": report.delivery, "reason": report.delivery_reason, **found}
