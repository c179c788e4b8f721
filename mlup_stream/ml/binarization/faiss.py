"""faiss's indexes.

A view leaves vectors, lists and graphs in the file, which faiss maps by its pinned name (`IO_FLAG_MMAP_IFC`; `IO_FLAG_MMAP` maps
inverted lists alone and says nothing of the rest). faiss holds the map as long as any part of the index lives. The other
deliveries read the index into memory once.

faiss's reader of a mapped file goes on behind its end: of 150 truncated files 7 end the process. Its reader of a buffer stops,
so a view is read twice, first as a buffer, which touches the same pages and takes a millisecond.

A mapped index is for searching: faiss ends the process when one is changed. Here its methods that change it raise;
`delivery="path"` gives an index that may be changed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.placement import Placement
from mlup_stream.delivery.terms import Built, Terms
from mlup_stream.delivery.view import View
from mlup_stream.errors import CorruptModelError, LoadError
from mlup_stream.extras import require
from mlup_stream.formats.arrays.faiss import read_index
from mlup_stream.formats.kinds import Format
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.ml.binarization.arrays.in_its_file import refusal
from mlup_stream.ml.binarization.base import FormatBinarizer
from mlup_stream.units import MIB

__all__ = ["FaissBinarizer"]

_FIRST_USE_BYTES = 4 * MIB
"""What faiss allocates once: its threads."""
_CHANGING = ("add", "add_with_ids", "merge_from", "permute_entries", "remove_ids", "reset", "train", "update_vectors")
_ROOM_BYTES = 256 * MIB
"""What faiss may allocate at once for a small file: tables that it makes itself."""
_limits = threading.Lock()


class FaissBinarizer(FormatBinarizer):
    """A `faiss.Index`, or an `IndexBinary`, of the class that was saved. Its method is `search`."""

    format = Format.FAISS
    libraries = ("faiss",)
    deliveries = (Delivery.VIEW, Delivery.PATH, Delivery.STREAM, Delivery.BYTES)
    corrupt = (*FormatBinarizer.corrupt, RuntimeError)

    @classmethod
    def prepare(cls) -> None:
        require("faiss", "faiss indexes")

    @classmethod
    def estimate(cls, artifact: Artifact, terms: Terms) -> Estimate | None:
        try:
            index = artifact.header(read_index)
        except (LoadError, OSError):
            return None  # the load will say what is wrong
        known = index.private_bytes is not None
        private_bytes = (index.private_bytes or 0) + _FIRST_USE_BYTES
        certainty, why = (Certainty.EXACT if known else Certainty.UNKNOWN), "the beginning of the faiss index"
        if terms.delivery is Delivery.VIEW and not artifact.has_content:
            return Estimate.in_place(artifact.size_bytes, certainty=certainty, why=why, private_bytes=private_bytes)
        estimate = Estimate.private(artifact.size_bytes + private_bytes, certainty=certainty, why=why)
        if terms.delivery is Delivery.BYTES and not artifact.has_content:
            return estimate.with_raw(artifact.size_bytes)
        return estimate

    @classmethod
    def from_path(cls, artifact: Artifact, terms: Terms) -> Built:
        with artifact.by_name() as path:
            return Built(_read(artifact, path, 0))

    @classmethod
    def from_view(cls, view: View, artifact: Artifact, terms: Terms) -> Built:
        if view.file is None:
            return super().from_view(view, artifact, terms)
        faiss = require("faiss", "faiss indexes")
        _check(faiss, view, artifact)
        with artifact.by_name() as path:
            index = _read(artifact, path, faiss.IO_FLAG_MMAP_IFC)
        for name in _CHANGING:
            if hasattr(index, name):
                setattr(index, name, refusal(artifact.name, name, Format.FAISS, ", which faiss answers by ending the process"))
        return Built(index, Placement(view.size_bytes, 0))

    @classmethod
    def from_file(cls, file: BinaryIO, artifact: Artifact, terms: Terms) -> Built:
        reader = require("faiss", "faiss indexes").PyCallbackIOReader(file.read, MIB)
        return Built(_read(artifact, reader, 0))

    @classmethod
    def is_corrupt(cls, error: Exception) -> bool:
        return super().is_corrupt(error) and "not recognized" not in str(error)  # of a newer faiss


def _check(faiss: Any, view: View, artifact: Artifact) -> None:
    """Makes sure that faiss's reader of a mapped file, which does the same steps, stays within the file."""
    content = require("numpy", "faiss indexes").frombuffer(view.buffer, "u1")
    reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(content), content.size)
    _read(artifact, reader, faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE)
    if reader.rp_ > content.size:  # it rounds up to a whole item
        raise CorruptModelError(
            f"{artifact.name}: expected a whole faiss index, of {reader.rp_} bytes, found {content.size}; it is truncated:"
            " copy or export it again",
            path=artifact.path,
            format=Format.FAISS.value,
        )


def _read(artifact: Artifact, source: Any, flags: int) -> Any:
    faiss = require("faiss", "faiss indexes")
    read = faiss.read_index_binary if artifact.header(read_index).is_binary else faiss.read_index
    with _bounded(faiss, artifact.size_bytes):
        return read(source, flags)


@contextlib.contextmanager
def _bounded(faiss: Any, size_bytes: int) -> Iterator[None]:
    """Lets faiss allocate nothing for a vector that the file could not hold: its own limit is a tebibyte."""
    with _limits:
        before_bytes = faiss.get_deserialization_vector_byte_limit()
        faiss.set_deserialization_vector_byte_limit(min(before_bytes, size_bytes + _ROOM_BYTES))
        try:
            yield
        finally:
            faiss.set_deserialization_vector_byte_limit(before_bytes)
