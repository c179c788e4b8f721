"""The arrays that gensim saves beside a pickle: `model.kv.vectors.npy` beside `model.kv`.

An object of gensim's names the attributes that it keeps in files of their own. Each file is pinned and read as any `.npy` is: a
view leaves the array in it. The pickle alone would be an object that lacks its vectors. Source: gensim 4's `utils.SaveLoad`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from typing import Any

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.placement import Placement
from mlup_stream.delivery.terms import Built, Terms
from mlup_stream.errors import ModelBinarizationError
from mlup_stream.formats.kinds import Format
from mlup_stream.memory.estimate import Estimate

__all__ = ["with_side_files", "with_side_files_estimated"]

_NAME = b"gensim."
_ARRAYS, _SPARSE, _PARTS = "__numpys", "__scipys", "__recursive_saveloads"
_MOST_DEPTH = 8


def with_side_files(built: Built, artifact: Artifact, terms: Terms) -> Built:
    """The model with its arrays, if it is one of gensim's that keeps some beside it; otherwise as it was built.

    Raises:
        ModelBinarizationError: There is no telling where they are, or they are of a kind that is not read here.
        ModelNotFoundError: One is missing.
    """
    utils = sys.modules.get("gensim.utils")  # which the pickle imported, if it is one of gensim's
    if utils is None or not isinstance(built.model, utils.SaveLoad):
        return built
    wanted = list(_wanted(built.model, os.path.basename(artifact.path or ""), artifact))
    if not wanted:
        return built
    if artifact.path is None or artifact.has_content:
        raise _refused(artifact, f"its array {wanted[0][1]!r} lies in a file beside it: give the path, not the content")
    from mlup_stream.ml.binarization.numpy import NpyBinarizer  # which imports NumPy, as gensim does

    plain = dataclasses.replace(terms, options={})
    mapped_bytes = copied_bytes = 0
    for owner, attribute, file_name in wanted:
        read = NpyBinarizer.build(artifact.beside(file_name), plain)
        setattr(owner, attribute, read.model)
        where = read.placement or Placement(0, read.model.nbytes)
        mapped_bytes, copied_bytes = mapped_bytes + where.mapped_bytes, copied_bytes + where.copied_bytes
    with _as_if_read(owner for owner, _, _ in wanted):
        built.model._load_specials(artifact.path, None, False, None)  # what an older version wrote becomes what this one has
    own = built.placement or Placement(0, 0)
    return built._replace(placement=Placement(own.mapped_bytes + mapped_bytes, own.copied_bytes + copied_bytes, own.reasons))


def _wanted(model: Any, prefix: str, artifact: Artifact, depth: int = 0) -> Iterator[tuple[Any, str, str]]:
    """Each object, the attribute that it lacks, and the file that has it."""
    state = vars(model)
    if state.get(_SPARSE):
        raise _refused(artifact, "it keeps sparse arrays in files beside it; load it with gensim")
    for part in state.get(_PARTS, ()):
        if depth < _MOST_DEPTH and isinstance(part, str) and hasattr(getattr(model, part, None), "__dict__"):
            yield from _wanted(getattr(model, part), f"{prefix}.{part}", artifact, depth + 1)
    for attribute in state.get(_ARRAYS, ()):
        if not (isinstance(attribute, str) and attribute.isidentifier()):  # it becomes a part of a file's name
            raise _refused(artifact, f"an attribute in a file of its own has the name {attribute!r}")
        yield model, attribute, f"{prefix}.{attribute}.npy"


@contextlib.contextmanager
def _as_if_read(owners: Iterator[Any]) -> Iterator[None]:
    """Lets gensim find nothing to read."""
    listed = [(vars(owner), vars(owner)[_ARRAYS]) for owner in owners]
    try:
        for state, _ in listed:
            state[_ARRAYS] = []
        yield
    finally:
        for state, names in reversed(listed):
            state[_ARRAYS] = names


def _refused(artifact: Artifact, why: str) -> ModelBinarizationError:
    return ModelBinarizationError(
        f"{artifact.name}: a model of gensim's: {why}", path=artifact.path, format=Format.PICKLE.value
    )


def with_side_files_estimated(estimate: Estimate | None, names: bytes, artifact: Artifact, terms: Terms) -> Estimate | None:
    """The estimate, and what the files beside it take; `names` is what the pickle names."""
    if estimate is None or _NAME not in names or artifact.path is None or artifact.has_content:
        return estimate
    folder, name = os.path.split(artifact.path)
    size_bytes = 0
    with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
        beside = (each for each in entries if each.name.startswith(f"{name}.") and each.name.endswith(".npy"))
        size_bytes = sum(each.stat().st_size for each in beside)
    if terms.delivery is Delivery.VIEW:
        writable_bytes = size_bytes if terms.writable else 0
        return dataclasses.replace(
            estimate,
            mapped_bytes=estimate.mapped_bytes + size_bytes,
            copy_on_write_bytes=estimate.copy_on_write_bytes + writable_bytes,
        )
    return dataclasses.replace(
        estimate,
        peak_anon_bytes=estimate.peak_anon_bytes + size_bytes,
        settled_anon_bytes=estimate.settled_anon_bytes + size_bytes,
    )
