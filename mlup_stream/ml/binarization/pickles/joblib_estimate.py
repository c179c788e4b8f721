"""What loading a joblib file will take, said before it starts, by what the file is made of.

Not compressed: the survey of its pickle tells where the arrays lie. They take what they take in the file, or nothing where they
stay in it; an estimator that copies its arrays, whose class is named in the pickle, takes them privately even when they were
mapped. Objects take 4 to 14 times their pickled size: where they are more than a trifle the estimate is a guess, which the store
of earlier loads replaces.

Compressed: a guess. Some compressors write down how much there was (`formats.unpacked_size`), and a load takes that or more;
for the others the beginning is unpacked, and the rest taken to be like it.
"""

from __future__ import annotations

import dataclasses
from typing import BinaryIO

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.terms import Terms
from mlup_stream.errors import LoadError
from mlup_stream.formats.pickles.joblib import JoblibStructure, survey
from mlup_stream.formats.pickles.unpacked_size import claimed_size_bytes
from mlup_stream.formats.source import Source
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.ml.binarization.pickles.decompression import compressor_of, open_unpacked
from mlup_stream.units import KIB, MIB

__all__ = ["estimate_of"]

_MAX_STEPS = 20_000  # 40 ms
_TIMES_AS_OBJECTS = 10
_TRIFLE_BYTES = 1 * MIB
_TRIFLE_SHARE = 1 / 50
_NAMES_BYTES = 64 * KIB  # in which a class is named when it first comes
_COPIES_ITS_ARRAYS = (b"sklearn.tree._tree",)
_SAMPLE_BYTES = 1 * MIB
"""How much is unpacked for a guess; a smaller file is not worth one."""
_READ_ON_BYTES = 512 * KIB  # see `joblib_memo`


@dataclasses.dataclass(frozen=True)
class _Found:
    """What was found out about a file, whatever the delivery.

    Attributes:
        size_bytes: Of the file.
        structure: None if it is compressed.
        copies: Whether an estimator in it copies its arrays.
        unpacked_bytes: What a compressed one holds, as claimed or guessed; None if neither can be.
        claimed: Whether it is claimed.
    """

    size_bytes: int
    structure: JoblibStructure | None
    copies: bool = False
    unpacked_bytes: int | None = None
    claimed: bool = False


def estimate_of(artifact: Artifact, terms: Terms) -> Estimate | None:
    """The estimate for a joblib file; None if nothing can be said: it is damaged, which the load will explain."""
    try:
        found = artifact.header(_find_out)
    except (LoadError, OSError):
        return None
    in_view = terms.delivery is Delivery.VIEW and not artifact.has_content
    estimate = _compressed(found) if found.structure is None else _plain(found, found.structure, terms, in_view=in_view)
    if estimate is None or terms.delivery is not Delivery.BYTES or artifact.has_content:
        return estimate
    return estimate.with_raw(found.size_bytes)


def _plain(found: _Found, structure: JoblibStructure, terms: Terms, *, in_view: bool) -> Estimate:
    objects_bytes = structure.structure_bytes * _TIMES_AS_OBJECTS
    trifle_bytes = max(_TRIFLE_BYTES, structure.payload_bytes * _TRIFLE_SHARE)
    if structure.whole and objects_bytes <= trifle_bytes:
        certainty, why = Certainty.EXACT, "the survey of the joblib file"
    else:
        certainty = Certainty.UNKNOWN
        why = f"the survey of the joblib file, and objects at {_TIMES_AS_OBJECTS} times their pickled size"
    if in_view and not found.copies:
        copied_bytes = 0 if terms.maps_unaligned else structure.not_aligned_bytes
        return Estimate.in_place(
            found.size_bytes,
            certainty=certainty,
            why=why,
            private_bytes=objects_bytes + copied_bytes,
            copy_on_write=terms.writable,
        )
    settled_bytes = structure.payload_bytes + objects_bytes
    if in_view and found.copies:  # one array after the other is touched in the map while it is copied
        touched_bytes = structure.largest_payload_bytes + _READ_ON_BYTES
        writable_bytes = found.size_bytes if terms.writable else 0
        return Estimate(
            settled_bytes, touched_bytes, settled_bytes, 0, certainty, why, found.size_bytes, writable_bytes
        )
    read_on_bytes = structure.largest_payload_bytes + _READ_ON_BYTES if found.copies else 0
    return Estimate.private(settled_bytes + read_on_bytes, settled_bytes, certainty=certainty, why=why)


def _compressed(found: _Found) -> Estimate | None:
    if found.unpacked_bytes is None:
        return None
    why = "the unpacked size that the file claims" if found.claimed else "how much the beginning of the file grows when unpacked"
    guess = Estimate.private(found.unpacked_bytes, certainty=Certainty.UNKNOWN, why=f"{why}; objects take more than that")
    # Opcodes become nothing, a few bytes each; everything else takes its own size at least.
    return dataclasses.replace(guess, at_least_bytes=found.unpacked_bytes // 2 if found.claimed else 0)


def _find_out(file: BinaryIO, name: str) -> _Found:
    with Source(file, name) as source:
        head = source.read(0, min(16, source.size_bytes), "first bytes")
        if compressor_of(head) is None:
            structure = survey(file, name, max_steps=_MAX_STEPS)
            names = source.read(0, min(_NAMES_BYTES, source.size_bytes), "pickle")
            return _Found(source.size_bytes, structure, any(each in names for each in _COPIES_ITS_ARRAYS))
        claimed_bytes = claimed_size_bytes(file, name)
        if claimed_bytes is not None:
            return _Found(source.size_bytes, None, unpacked_bytes=claimed_bytes, claimed=True)
        return _Found(source.size_bytes, None, unpacked_bytes=_guessed_bytes(file, name, source.size_bytes))


def _guessed_bytes(file: BinaryIO, name: str, size_bytes: int) -> int | None:
    file.seek(0)
    unpacked = open_unpacked(file, name) if size_bytes >= _SAMPLE_BYTES else None
    if unpacked is None:
        return None
    with unpacked:
        sample_bytes = len(unpacked.read(_SAMPLE_BYTES))
    # Up to a window more than that was read, which makes the guess a little too small.
    return max(size_bytes, sample_bytes * size_bytes // max(file.tell(), 1))
