"""What a pickle is made of, as the plan and the build both ask for it: found once for each file."""

from __future__ import annotations

from typing import BinaryIO, NamedTuple

from mlup_stream.formats.pickles.frames import PickleStructure, walk
from mlup_stream.formats.source import Source
from mlup_stream.units import KIB

__all__ = ["Found", "structure_of"]

_NAMES_BYTES = 64 * KIB  # the first frame, in which a class is named when it first comes


class Found(NamedTuple):
    """What was found out about a pickle.

    Attributes:
        structure: What its frames say.
        names: Its beginning, in which classes are named.
        size_bytes: Of all of it.
    """

    structure: PickleStructure
    names: bytes
    size_bytes: int


def structure_of(file: BinaryIO, name: str) -> Found:
    """To be given to `Artifact.header`. Raises CorruptModelError where the file is no pickle, as far as its frames show."""
    with Source(file, name) as source:
        return Found(walk(file, name), source.read(0, min(_NAMES_BYTES, source.size_bytes), "pickle"), source.size_bytes)
