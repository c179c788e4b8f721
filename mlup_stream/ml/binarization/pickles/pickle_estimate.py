"""What unpickling will take, said before it starts, by what the file is made of.

Arrays take what they take in the file, or nothing where they stay in it. Objects take 4 to 14 times their pickled size (a list
of numbers, small dicts), which the file does not tell: where they are more than a trifle the estimate is a guess, which the store
of earlier loads replaces. And an estimator that copies its arrays takes them privately even when they were mapped; its class is
named in the pickle.
"""

from __future__ import annotations

from typing import Any

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.kinds import Delivery, Optimize
from mlup_stream.delivery.terms import Terms
from mlup_stream.errors import LoadError
from mlup_stream.formats.pickles.frames import PickleStructure
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.ml.binarization.pickles.structure import structure_of
from mlup_stream.units import MIB

__all__ = ["estimate_of"]

_TIMES_AS_OBJECTS = 10
_TRIFLE_BYTES = 1 * MIB
_TRIFLE_SHARE = 1 / 50
_COPIES_ITS_ARRAYS = (b"sklearn.tree._tree",)
_MAKES_ARRAYS = b"numpy"
_COPES = b"sklearn."
"""Whose arrays stay in the file even where they are not aligned; see `placing`."""


def estimate_of(artifact: Artifact, terms: Terms, *, in_place: Any) -> Estimate | None:
    """The estimate for a pickle; None if the file cannot be walked over, which the load will explain.

    Args:
        artifact: The file or its content.
        terms: How the bytes are to travel, and which arrays stay in the map of a view.
        in_place: Says of a structure whether any do.
    """
    try:
        structure, names, size_bytes = artifact.header(structure_of)
    except (LoadError, OSError):
        return None
    objects_bytes = structure.structure_bytes * _TIMES_AS_OBJECTS
    certainty, why = _certainty(structure, objects_bytes)
    copies = any(each in names for each in _COPIES_ITS_ARRAYS) or _MAKES_ARRAYS not in names
    if terms.delivery is Delivery.VIEW and not artifact.has_content and in_place(structure) and not copies:
        # Of what items the arrays are is not known here: those of fewer than 8 bytes may be aligned all the same.
        copied_bytes = 0 if terms.maps_unaligned or _stays(names, terms) else structure.not_aligned_bytes
        if copied_bytes and certainty is Certainty.EXACT:
            certainty = Certainty.CONSERVATIVE
        return Estimate.in_place(
            size_bytes,
            certainty=certainty,
            why=why,
            private_bytes=objects_bytes + structure.text_bytes + copied_bytes,
            copy_on_write=terms.writable,
        )
    settled_bytes = structure.payload_bytes + structure.text_bytes + objects_bytes
    # On the way: what is read before it is copied, one array or text at a time.
    peak_bytes = settled_bytes + (structure.largest_payload_bytes if copies else 0)
    estimate = Estimate.private(peak_bytes, settled_bytes, certainty=certainty, why=why)
    return estimate.with_raw(size_bytes) if terms.delivery is Delivery.BYTES and not artifact.has_content else estimate


def _stays(names: bytes, terms: Terms) -> bool:
    return terms.optimize is not Optimize.SPEED and _COPES in names


def _certainty(structure: PickleStructure, objects_bytes: int) -> tuple[Certainty, str]:
    unknown_bytes = objects_bytes + structure.text_bytes
    if structure.whole and unknown_bytes <= max(_TRIFLE_BYTES, structure.payload_bytes * _TRIFLE_SHARE):
        return Certainty.EXACT, "the frames of the pickle"
    return Certainty.UNKNOWN, f"the frames of the pickle, and objects at {_TIMES_AS_OBJECTS} times their pickled size"
