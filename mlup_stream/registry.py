"""The one table of binarizers: its type, the format it reads, the short names for a configuration, the file names it knows.

To add a format: a member in `formats.kinds.Format` and in `constants.BinarizationType`, a recogniser in `formats.detect`, a
binarizer module, and a row here.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any, NamedTuple

from mlup_stream.constants import BinarizationType, StorageType
from mlup_stream.errors import ConfigError
from mlup_stream.formats.kinds import Format

__all__ = ["AUTO", "KNOWN_SUFFIXES", "TABLE", "binarization_type_of", "binarizer_class", "import_class", "storage_class"]

AUTO = "auto"


class Row(NamedTuple):
    type: BinarizationType
    format: Format | None
    names: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()


# The first row of a format is the one that detection chooses.
TABLE = (
    Row(BinarizationType.MEMORY, None, ("memory",)),
    Row(BinarizationType.PICKLE, Format.PICKLE, ("pickle",), (".pckl", ".pkl", ".pickle")),
    Row(BinarizationType.JOBLIB, Format.JOBLIB, ("joblib",), (".joblib", ".jbl")),
    Row(BinarizationType.NPY, Format.NPY, ("npy",), (".npy",)),
    Row(BinarizationType.NPZ, Format.NPZ, ("npz",), (".npz",)),
    Row(BinarizationType.ONNX_INFERENCE_SESSION, Format.ONNX, ("onnx",), (".onnx",)),
    Row(BinarizationType.ONNX_INFERENCE_SESSION_FULL_RETURN, Format.ONNX, ("onnx-full-return",), ()),
    Row(BinarizationType.LIGHTGBM, Format.LIGHTGBM, ("lightgbm",), (".txt", ".lgb")),
    Row(BinarizationType.XGBOOST, Format.XGBOOST, ("xgboost",), (".ubj", ".json")),
    Row(BinarizationType.TORCH, Format.TORCH, ("torch",), (".pt", ".pth", ".ckpt")),
    Row(BinarizationType.TORCH_JIT, Format.TORCHSCRIPT, ("torchscript", "torch-jit"), (".torchscript", ".ts")),
    Row(BinarizationType.SAFETENSORS, Format.SAFETENSORS, ("safetensors",), (".safetensors", ".safetensors.index.json")),
    Row(BinarizationType.TENSORFLOW, Format.KERAS, ("tensorflow", "keras"), (".keras", ".h5", ".hdf5")),
    Row(BinarizationType.TENSORFLOW_ZIP, Format.SAVED_MODEL, ("savedmodel", "tensorflow-zip"), ()),
    Row(BinarizationType.GGUF, Format.GGUF, ("gguf",), (".gguf",)),
)

KNOWN_SUFFIXES = tuple(suffix for row in TABLE for suffix in row.suffixes)

_OF_FORMAT = {row.format: row.type for row in reversed(TABLE) if row.format is not None}


def binarization_type_of(format: Format) -> BinarizationType:
    """The type that detection writes into the configuration for `format`."""
    return _OF_FORMAT[format]


def binarizer_class(value: Any) -> type[Any]:
    """The binarizer that a configuration means: a class, a `BinarizationType`, its name, a short name, or an import path."""
    names = {name: row.type for row in TABLE for name in row.names} | {member.name: member for member in BinarizationType}
    return _resolve("binarization_type", value, BinarizationType, names, requires="deserialize")


def storage_class(value: Any) -> type[Any]:
    """The storage that a configuration means: a class, a `StorageType`, its name, or an import path."""
    return _resolve("storage_type", value, StorageType, {member.name: member for member in StorageType}, requires="load")


def _resolve(field: str, value: Any, kind: type[Any], names: dict[str, Any], *, requires: str) -> type[Any]:
    chosen = value
    if isinstance(value, str):
        chosen = names.get(value) or names.get(value.replace("_", "-").lower()) or names.get(value.upper()) or value
    if isinstance(chosen, kind):
        chosen = chosen.value
    if isinstance(chosen, str):
        chosen = import_class(field, chosen, tuple(names))
    if not isinstance(chosen, type) or not callable(getattr(chosen, requires, None)):
        raise ConfigError(
            f"{field}={value!r} is not valid; expected a class with a method {requires!r}, its import path, or one of"
            f" {', '.join(sorted(names))}",
            field=field,
            value=value,
            allowed=tuple(sorted(names)),
        )
    return chosen


def import_class(field: str, path: str, names: tuple[str, ...] = ()) -> type[Any]:
    """The class at a dotted import path. A path of the old `mlup` package leads to the class of the same name here.

    Raises:
        ConfigError: There is no such module or class; the message suggests the nearest known name.
    """
    module_name, _, class_name = path.rpartition(".")
    if module_name.startswith("mlup.ml."):
        module_name = module_name.replace("mlup.", "mlup_stream.", 1)
    problem: Exception | None = None
    if module_name:
        try:
            found = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError, ValueError) as error:
            problem = error
        else:
            return found  # type: ignore[no-any-return]  # what it is, the caller checks
    near = difflib.get_close_matches(path, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected an import path or one of {', '.join(sorted(names))}"
    why = f" ({problem})" if problem else ""
    raise ConfigError(f"{field}={path!r} cannot be resolved{why}; {hint}", field=field, value=path, allowed=names) from problem
