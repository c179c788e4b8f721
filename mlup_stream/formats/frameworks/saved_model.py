"""What lies in a SavedModel folder, by names and sizes alone: the graph, the variables, and whether they are all there.

Source: the "SavedModel format on disk" part of TensorFlow's guide, and `tensor_bundle.h` for the names of the shards: the graph
in `saved_model.pb` or `saved_model.pbtxt`; in `variables/`, an index and its shards, `variables.data-00000-of-00002`, numbered
from zero. Nothing is read. A model may have no variables at all.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from mlup_stream.errors import CorruptModelError, NotAModelFileError
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.listing import LISTED
from mlup_stream.formats.peek import Peek

__all__ = ["SavedModelFolder", "detect", "inspect", "read_folder"]

_GRAPHS = ("saved_model.pb", "saved_model.pbtxt")
_VARIABLES = "variables"
_INDEX = "variables.index"
_SHARD = re.compile(r"variables\.data-(\d{5})-of-(\d{5})")


@dataclass(frozen=True, slots=True)
class SavedModelFolder:
    """The files of a SavedModel: each name below the folder with its size in bytes."""

    files: dict[str, int]

    @property
    def graph_bytes(self) -> int:
        """The size of the graph with its functions."""
        return sum(size_bytes for name, size_bytes in self.files.items() if name in _GRAPHS)

    @property
    def variables_bytes(self) -> int:
        """The size of the variables' shards."""
        return sum(size_bytes for name, size_bytes in self.files.items() if _SHARD.fullmatch(os.path.basename(name)))


def read_folder(path: str) -> SavedModelFolder:
    """The files in the folder at `path`.

    Raises:
        NotAModelFileError: It is no folder.
        CorruptModelError: The graph, the variables' index or a shard of them is missing.
    """
    if not os.path.isdir(path):
        raise NotAModelFileError(f"{path}: expected the folder of a SavedModel, found a file; give the folder", path=path)
    files = {}
    for root, _, names in os.walk(path):
        for name in names:
            full = os.path.join(root, name)
            if os.path.isfile(full):
                files[os.path.relpath(full, path).replace(os.sep, "/")] = os.stat(full).st_size
    if not any(name in files for name in _GRAPHS):
        raise _incomplete(path, " or ".join(_GRAPHS), sorted(files))
    _check_variables(path, files)
    return SavedModelFolder(dict(sorted(files.items())))


def _check_variables(path: str, files: dict[str, int]) -> None:
    inside = sorted(name.partition("/")[2] for name in files if name.startswith(_VARIABLES + "/"))
    if not os.path.isdir(os.path.join(path, _VARIABLES)):
        return
    if _INDEX not in inside:
        raise _incomplete(path, f"{_VARIABLES}/{_INDEX}", inside)
    shards = [found for found in map(_SHARD.fullmatch, inside) if found]
    count = int(shards[0][2]) if shards else 1
    numbers = {int(found[1]) for found in shards if int(found[2]) == count}
    missing = next((number for number in range(min(count, len(shards) + 1)) if number not in numbers), None)
    if missing is not None:
        raise _incomplete(path, f"{_VARIABLES}/variables.data-{missing:05}-of-{count:05}", inside)


def _incomplete(path: str, expected: str, found: Any) -> CorruptModelError:
    shown = ", ".join(found[:5]) or "nothing"
    return CorruptModelError(
        f"{path}: expected {expected} in the SavedModel folder, found {shown}; copy or export it again",
        path=path,
        format=Format.SAVED_MODEL.value,
    )


def detect(peek: Peek) -> str | None:
    for name in ("saved_model.pb", "saved_model.pbtxt"):
        if peek.entries and name in peek.entries:
            return f"a folder with {name}"
    return None


def inspect(given: Any, name: str) -> dict[str, Any]:
    folder = read_folder(given)
    return {
        "graph_bytes": folder.graph_bytes,
        "variables_bytes": folder.variables_bytes,
        "files": dict(list(folder.files.items())[:LISTED]),
    }
