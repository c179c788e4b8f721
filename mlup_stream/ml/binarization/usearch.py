"""usearch's indexes.

A view leaves vectors and graph in the file, which usearch maps by its pinned name; private memory is its table of keys. The other
deliveries have usearch load the index. The graph is walked before a search may follow it (`arrays.usearch_walk`).

An index that lies in its file is for searching: usearch itself refuses to add to it or to remove from it.
"""

from __future__ import annotations

from typing import Any, BinaryIO

from mlup_stream.delivery.artifact import Artifact, artifact_of
from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.delivery.placement import Placement
from mlup_stream.delivery.terms import Built, Terms
from mlup_stream.delivery.view import View
from mlup_stream.errors import LoadError, ModelBinarizationError
from mlup_stream.extras import require
from mlup_stream.formats.arrays.usearch import read_index
from mlup_stream.formats.kinds import Format
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.ml.binarization.arrays.in_its_file import refusal
from mlup_stream.ml.binarization.base import FormatBinarizer
from mlup_stream.units import MIB

__all__ = ["UsearchBinarizer"]

_NODE_BYTES = 64
"""Of a node beside the file: its key and places. Measured: 32 to 64."""
_FIRST_USE_BYTES = 4 * MIB


class UsearchBinarizer(FormatBinarizer):
    """A `usearch.index.Index` with the dimensions, metric and scalars of the file. Its method is `search`."""

    format = Format.USEARCH
    libraries = ("usearch",)
    deliveries = (Delivery.VIEW, Delivery.PATH, Delivery.BYTES)
    corrupt = (*FormatBinarizer.corrupt, RuntimeError)

    @classmethod
    def prepare(cls) -> None:
        require("usearch.index", "usearch indexes")
        from mlup_stream.ml.binarization.arrays import usearch_walk  # which imports NumPy, as usearch does

        del usearch_walk

    @classmethod
    def estimate(cls, artifact: Artifact, terms: Terms) -> Estimate | None:
        try:
            index = artifact.header(read_index)
        except (LoadError, OSError):
            return None  # the load will say what is wrong
        private_bytes, why = _NODE_BYTES * index.nodes + _FIRST_USE_BYTES, "the headers of the usearch index"
        if terms.delivery is Delivery.VIEW and not artifact.has_content:
            return Estimate.in_place(artifact.size_bytes, certainty=Certainty.CONSERVATIVE, why=why, private_bytes=private_bytes)
        # usearch puts nodes of all sizes into blocks of its own.
        estimate = Estimate.private(artifact.size_bytes * 5 // 4 + private_bytes, certainty=Certainty.CONSERVATIVE, why=why)
        return estimate if artifact.has_content or terms.delivery is Delivery.PATH else estimate.with_raw(artifact.size_bytes)

    @classmethod
    def from_path(cls, artifact: Artifact, terms: Terms) -> Built:
        _check(artifact.view(terms.on_window).buffer, artifact)
        with artifact.by_name() as path:
            return Built(_restored(path, artifact, view=False))

    @classmethod
    def from_view(cls, view: View, artifact: Artifact, terms: Terms) -> Built:
        if view.file is None:
            return cls.from_buffer(view.buffer, artifact, terms)
        _check(view.buffer, artifact)
        with artifact.by_name() as path:
            index = _restored(path, artifact, view=True)
        index.rename = refusal(artifact.name, "rename", Format.USEARCH)
        return Built(index, Placement(view.size_bytes, 0))

    @classmethod
    def from_file(cls, file: BinaryIO, artifact: Artifact, terms: Terms) -> Built:
        buffer = file.read()
        return cls.from_buffer(buffer, artifact_of(LoadedFile(buffer, artifact.path)), terms)  # which may have come as a stream

    @classmethod
    def from_buffer(cls, buffer: bytes | bytearray | memoryview, artifact: Artifact, terms: Terms) -> Built:
        _check(buffer, artifact)
        return Built(_restored(buffer, artifact, view=False))


def _check(buffer: Any, artifact: Artifact) -> None:
    from mlup_stream.ml.binarization.arrays.usearch_walk import walk

    index = artifact.header(read_index)
    if not index.is_known:
        raise ModelBinarizationError(
            f"{artifact.name}: expected a usearch index with keys of 64 bits and a metric and scalars that are known here, found"
            f" {index.metric} of {index.scalar}; load it with usearch.index.Index.restore",
            path=artifact.path,
            format=Format.USEARCH.value,
        )
    walk(buffer, index, artifact.name)


def _restored(source: Any, artifact: Artifact, *, view: bool) -> Any:
    return require("usearch.index", "usearch indexes").Index.restore(source, view=view)
