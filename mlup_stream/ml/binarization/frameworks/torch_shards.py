"""A torch model in several files, as `transformers` writes what is large: an index that says which file has which tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.placement import Placement
from mlup_stream.delivery.terms import Built
from mlup_stream.errors import CorruptModelError, ModelBinarizationError
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.shards import is_index, read_index

__all__ = ["joined", "shards_of"]

_Shards = list[tuple[Artifact, tuple[str, ...]]]


def shards_of(artifact: Artifact) -> _Shards:
    """The files that the index lists, open from now on, each with the names of its tensors; none if the artifact is no index.

    Raises:
        CorruptModelError: The index is damaged, or names a file elsewhere.
        ModelNotFoundError: A file is missing.
    """
    files = artifact.header(_files) if artifact.is_rewindable else {}
    if files and artifact.path is None:
        raise ModelBinarizationError(
            f"{artifact.name}: the index of a sharded model came without its path, so its files cannot be found; give the path",
            format=Format.TORCH.value,
        )
    return [(artifact.beside(file_name), names) for file_name, names in files.items()]


def joined(parts: Iterable[tuple[Artifact, tuple[str, ...], Built]]) -> Built:
    """One dict of the tensors that the index names, in its order of files.

    Raises:
        CorruptModelError: A file does not have them.
    """
    model: dict[str, Any] = {}
    placements = []
    for shard, names, built in parts:
        found = built.model if isinstance(built.model, Mapping) else {}
        missing = [name for name in names if name not in found]
        if missing:
            raise CorruptModelError(
                f"{shard.name}: expected tensor {missing[0]!r}, as the index says, found {len(found)} others; the index and its"
                " files are not of one model",
                path=shard.path,
                format=Format.TORCH.value,
            )
        model |= {name: found[name] for name in names}
        placements.append(built.placement)
    told = [each for each in placements if each is not None]
    if len(told) < len(placements):
        return Built(model)
    reasons = tuple(dict.fromkeys(reason for each in told for reason in each.reasons))
    return Built(model, Placement(sum(each.mapped_bytes for each in told), sum(each.copied_bytes for each in told), reasons))


def _files(file: BinaryIO, name: str) -> dict[str, tuple[str, ...]]:
    return read_index(file, name) if is_index(file) else {}
