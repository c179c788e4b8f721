"""Do two ONNX models predict the same? Both are loaded in place, one after the other, and asked about the same made-up rows."""

from __future__ import annotations

from typing import Any

from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.errors import ModelBinarizationError
from mlup_stream.extras import require
from mlup_stream.ml.binarization.onnx import InferenceSessionBinarizer
from mlup_stream.pack.pieces import differs

__all__ = ["compare_predictions"]

_LENGTHS = (1, 2, 8, 32, 224)
"""What a dimension without a number may be: a batch, a text, a picture. The first with which the model runs is taken."""

_SILENT = {"log_severity_level": 4}
"""onnxruntime writes to standard error what it thinks of rows that do not suit it."""

_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class _NotKnown(Exception):
    """Why predictions could not be compared."""


def compare_predictions(source: str, written: str) -> str:
    """Makes sure that both models answer the same, bit for bit.

    Peak memory: what onnxruntime takes for one model and one prediction.

    Returns:
        Why that could not be told; empty if they do.

    Raises:
        PackError: They do not.
        MissingDependencyError: onnxruntime is not installed.
    """
    require("onnxruntime", "ONNX models")
    try:
        rows, answers = _first_answers(source)
    except _NotKnown as why:
        return str(why)
    if not _same(answers, _answers(source, rows)):
        return "the model does not answer twice the same"
    if not _same(answers, _answers(written, rows)):
        raise differs(source, "a model that predicts something else")
    return ""


def _first_answers(path: str) -> tuple[dict[str, Any], list[Any]]:
    session = _session(path)
    said = ""
    for length in _LENGTHS:
        rows = {each.name: _made_up(each, length) for each in session.get_inputs()}
        try:
            return rows, session.run(None, rows)
        except MemoryError:
            raise
        except Exception as error:  # onnxruntime's own, and numpy's
            said = said or str(error).strip().partition("\n")[0][:200]
    raise _NotKnown(f"it does not run on made-up rows ({said})")


def _answers(path: str, rows: dict[str, Any]) -> list[Any]:
    answers: list[Any] = _session(path).run(None, rows)
    return answers


def _session(path: str) -> Any:
    loaded = LoadedFile(path=path, delivery=Delivery.VIEW)
    try:
        return InferenceSessionBinarizer.deserialize(loaded, sess_options=_SILENT)
    except ModelBinarizationError as error:
        raise _NotKnown(f"onnxruntime does not load it ({error})") from error


def _made_up(given: Any, length: int) -> Any:
    import numpy

    kind = _TYPES.get(given.type)
    if kind is None:
        raise _NotKnown(f"no rows can be made up for {given.type}")
    shape = [each if isinstance(each, int) else length for each in given.shape or ()]
    random = numpy.random.default_rng(0)
    if kind.startswith("float"):
        return random.standard_normal(shape).astype(kind)
    return random.integers(0, 2, shape).astype(kind)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return isinstance(other, (list, tuple)) and len(one) == len(other) and all(map(_same, one, other))
    if hasattr(one, "tobytes"):
        return hasattr(other, "tobytes") and (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    return bool(one == other)
