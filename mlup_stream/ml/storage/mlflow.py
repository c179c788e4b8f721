"""The model's file in a folder that MLflow wrote: `MLmodel` names its flavours and, for each, the file or folder with the
model.

The file is loaded by what it is, as any other: a scikit-learn flavour is a skops file or a pickle, and so on. What `MLmodel`
says of trust (`skops_trusted_types`) is not used: it lies beside the file, and who can write one can write the other. Source:
what `save_model` of MLflow 2.9 to 3.17 writes.
"""

from __future__ import annotations

import os
from typing import Any

import yaml

from mlup_stream.errors import CorruptModelError, ModelNotFoundError
from mlup_stream.units import MIB

__all__ = ["model_file_of"]

_MARK = "MLmodel"
_MAX_BYTES = 1 * MIB

_PLACES = {
    "sklearn": "pickled_model",
    "xgboost": "data",
    "lightgbm": "data",
    "catboost": "data",
    "onnx": "data",
    "pytorch": "model_data",
    "tensorflow": "data",
    "keras": "data",
    "paddle": "pickled_model",
    "python_function": "data",
}
"""The key of each flavour that says where the model is; the first flavour of these that is there is taken."""


def model_file_of(folder: str) -> str:
    """The path of the model within the folder, from there: a file, or a folder whose files are to be looked at.

    Raises:
        CorruptModelError: `MLmodel` is not what MLflow writes, or leads out of the folder.
        ModelNotFoundError: None of its flavours is known here, or what it names is not there.
    """
    mark = os.path.join(folder, _MARK)
    flavors = _read(mark)
    for flavor, key in _PLACES.items():
        said = flavors.get(flavor)
        name = said.get(key) or said.get("model_path") if isinstance(said, dict) else None
        if isinstance(name, str):
            return _within(folder, mark, name)
    raise ModelNotFoundError(
        f"{folder}: an MLflow model of the flavours {', '.join(map(str, flavors))}; expected one of {', '.join(_PLACES)}; give"
        " the model's own file, or its name as file_mask",
        path=folder,
    )


def _read(mark: str) -> dict[Any, Any]:
    with open(mark, "rb") as file:
        text = file.read(_MAX_BYTES + 1)
    try:
        said = yaml.safe_load(text) if len(text) <= _MAX_BYTES else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _damaged(mark, f"no YAML ({' '.join(str(error).split())[:200]})") from error
    flavors = said.get("flavors") if isinstance(said, dict) else None
    if not isinstance(flavors, dict) or not flavors:
        raise _damaged(mark, "none" if len(text) <= _MAX_BYTES else f"more than {_MAX_BYTES} bytes")
    return flavors


def _within(folder: str, mark: str, name: str) -> str:
    if os.path.isabs(name) or "\0" in name or os.path.normpath(name).split(os.sep)[0] == os.pardir:
        raise _damaged(mark, f"one that leads out of its folder, {name[:200]!r}")
    if not os.path.exists(os.path.join(folder, name)):
        raise ModelNotFoundError(f"{mark}: names {name[:200]!r}, which is not there; copy the whole folder", path=mark)
    return name


def _damaged(mark: str, found: str) -> CorruptModelError:
    return CorruptModelError(
        f"{mark}: expected the flavours of an MLflow model, each with its file, found {found}; save the model again", path=mark
    )
