"""Which files of a folder are its models, where nobody said which: by name where the name says it, else by content.

Many files are called `.json`, `.txt` or `.bin` and few of them are models: these are looked at, a few hundred bytes each. A model
in several files counts once: an index stands for its shards, the first part of a split GGUF for the others, a folder that is a
model for what is in it. In a folder as it comes from a model hub, which may have the same weights for several frameworks, the
first of `_HUB` is the model.
"""

from __future__ import annotations

import contextlib
import os
import re

from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.errors import LoadError
from mlup_stream.plugins import plugged_in
from mlup_stream.registry import KNOWN_SUFFIXES

__all__ = ["is_model_folder", "models_in", "seems"]

_VAGUE_SUFFIXES = (".json", ".txt", ".bin")
_INDEX_SUFFIX = ".index.json"
_LOOKED_AT = 100
"""How many files are looked at, of those whose name says nothing."""

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")
_FIRST_STANDS_FOR_ALL = ".gguf"
"""llama.cpp's parts have no index; the first has all metadata."""

_HUB = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "tf_model.h5",
)
"""The names that Hugging Face's `transformers` gives to the weights of a model, in the order of its preference."""
_BESIDE_A_MODEL = re.compile(
    r"(?:training_args|optimizer|scheduler|scaler|rng_state)(?:_\d+)?\.(?:bin|pt|pth)|random_states_\d+\.pkl"
)
"""What the trainers of `transformers` and `accelerate` leave beside the weights; taken only where nothing else is."""


def models_in(folder: str, names: list[str]) -> list[str]:
    """The names, of those of all files in the folder, that are models; several if nothing says which is meant.

    Args:
        folder: Where they lie.
        names: Of files, and of folders that are models.
    """
    suffixes = (*KNOWN_SUFFIXES, *(suffix for row in plugged_in() for suffix in row.suffixes))
    known = [name for name in names if name.lower().endswith(suffixes) or os.path.isdir(os.path.join(folder, name))]
    vague = [name for name in known if name.lower().endswith(_VAGUE_SUFFIXES) and not name.endswith(_INDEX_SUFFIX)]
    found = [name for name in known if name not in vague or _is_model(folder, name)]
    if not found:
        others = [name for name in names if name not in known]
        found = [name for name in others[:_LOOKED_AT] if _is_model(folder, name)]
        if not found and len(vague) == 1 and not seems(folder):
            found = vague  # whose load says what is wrong with it
    return _one_of_a_hub(_without_parts(folder, found))


def is_model_folder(path: str) -> bool:
    """Whether the folder itself is a model, as a SavedModel is."""
    return os.path.isdir(path) and _is_model(*os.path.split(path))


def seems(folder: str) -> str:
    """What a folder looks like that is no model here, in words for a message; empty if nobody knows."""
    from mlup_stream.formats.peek import Peek
    from mlup_stream.formats.recognition.known_non_models import known_non_model

    with Peek(folder, folder) as peek:
        return known_non_model(peek) or ""


def _is_model(folder: str, name: str) -> bool:
    # Not imported before it is needed: a folder of clear names has no use for detection.
    from mlup_stream.ml.binarization.detection import formats_of

    return bool(formats_of(LoadedFile(path=os.path.join(folder, name))))


def _without_parts(folder: str, names: list[str]) -> list[str]:
    indexes = [name for name in names if name.endswith(_INDEX_SUFFIX)]
    indexed = {os.path.splitext(name.removesuffix(_INDEX_SUFFIX))[1] for name in indexes}
    listed: set[str] = set()
    if indexes:
        from mlup_stream.formats.shards import read_index
    for name in indexes:
        with contextlib.suppress(LoadError, OSError):  # one that is damaged is a candidate, and its load says so
            listed.update(read_index(os.path.join(folder, name)))
    kept = []
    for name in names:
        if name in listed:
            continue
        part = _SHARD.fullmatch(name)
        if part is not None and (part[4] in indexed or (part[4] == _FIRST_STANDS_FOR_ALL and int(part[2]) > 1)):
            continue
        kept.append(name)
    return kept


def _one_of_a_hub(found: list[str]) -> list[str]:
    models = [name for name in found if not _BESIDE_A_MODEL.fullmatch(name)] or found
    weights = [name for name in _HUB if name in models]
    return weights[:1] if weights and len(weights) == len(models) else models
