"""GGUF files as a mapping of arrays by name, with the metadata beside it.

A view leaves every tensor in the file: private memory is the metadata alone. The arrays are those that `gguf.GGUFReader` gives:
plain types as numpy has them, quantised blocks as bytes, which `dequantize` turns into floats. The reader itself is not used: it
believes every length in the file, and keeps two arrays for each word of a vocabulary (656 MB for 430 000 words and merges, 31
MB here).

A model that was split over several files (`model-00001-of-00003.gguf`, as llama.cpp writes it) is loaded whole, whichever of them
is given.
"""

from __future__ import annotations

import array
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.kinds import Delivery, MappingMode, Optimize
from mlup_stream.delivery.placement import Placement
from mlup_stream.delivery.reader import open_buffer
from mlup_stream.delivery.terms import Built, Terms
from mlup_stream.delivery.view import View
from mlup_stream.errors import CorruptModelError, LoadError, ModelBinarizationError
from mlup_stream.extras import require
from mlup_stream.formats.arrays.gguf import SPLIT_TENSORS, Header, Tensor, read_header, split_paths
from mlup_stream.formats.kinds import Format
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.ml.binarization.base import FormatBinarizer

__all__ = ["GgufBinarizer", "GgufModel"]

_ITEMS = {"F16": "f2", "F32": "f4", "F64": "f8", "I8": "i1", "I16": "i2", "I32": "i4", "I64": "i8"}
"""The types that numpy has. All others are bytes, as in the library."""
_ARRAY_BYTES = 1024
"""An array, its name and its place in the mappings."""


class GgufModel(Mapping[str, Any]):
    """The tensors of a GGUF file by name.

    Attributes:
        metadata: The entries by key: numbers, text, lists of text, and numpy arrays of numbers.
        types: The name of each tensor's type, such as `Q4_K`.
    """

    def __init__(self, metadata: dict[str, Any], types: dict[str, str], arrays: dict[str, Any]) -> None:
        self.metadata = metadata
        self.types = types
        self._arrays = arrays

    def __getitem__(self, name: str) -> Any:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        name = self.metadata.get("general.name") or self.metadata.get("general.architecture", "")
        return f"<GgufModel {name!r}: {len(self)} tensors, {len(self.metadata)} metadata entries>"

    def dequantize(self, name: str) -> Any:
        """The tensor as float32, in memory of its own: 4 bytes for each item; whole numbers and doubles are rounded.

        Raises:
            KeyError: There is no such tensor.
            ModelBinarizationError: The gguf that is installed does not know how its type is packed.
        """
        kind = self.types[name]
        if kind in _ITEMS:
            return self._arrays[name].astype("f4")
        gguf = require("gguf", "GGUF models")
        quants = require("gguf.quants", "GGUF models")
        try:
            return quants.dequantize(self._arrays[name], gguf.GGMLQuantizationType[kind])
        except (KeyError, NotImplementedError) as error:
            raise ModelBinarizationError(
                f"{name!r} is of type {kind}, which the gguf that is installed cannot turn into floats; install a newer one, or"
                " take its blocks as they are",
                format=Format.GGUF.value,
            ) from error


class GgufBinarizer(FormatBinarizer):
    """A `GgufModel`. Its arrays are read-only, as the library's, unless `mapping="copy-on-write"`; whatever the delivery."""

    format = Format.GGUF
    libraries = ("numpy", "gguf")
    deliveries = (Delivery.VIEW, Delivery.PATH, Delivery.STREAM, Delivery.BYTES)

    @classmethod
    def prepare(cls) -> None:
        require("numpy", "GGUF models")
        require("gguf", "GGUF models")

    @classmethod
    def estimate(cls, artifact: Artifact, terms: Terms) -> Estimate | None:
        try:
            headers = [part.header(read_header) for part in _files(artifact)]
        except (LoadError, OSError):
            return None  # the load will say what is wrong
        payload_bytes = sum(header.payload_bytes for header in headers)
        objects_bytes = sum(map(_objects_bytes, headers))
        why = "the header of the GGUF file"
        if terms.delivery is Delivery.VIEW and not artifact.has_content:
            return Estimate.in_place(
                payload_bytes,
                certainty=Certainty.EXACT,
                why=why,
                private_bytes=objects_bytes,
                copy_on_write=_is_writable(terms),
            )
        estimate = Estimate.private(payload_bytes + objects_bytes, certainty=Certainty.EXACT, why=why)
        # The arrays lie in the copy that `bytes` reads, unless those of other files come beside them.
        several = terms.delivery is Delivery.BYTES and len(headers) > 1
        return estimate.with_raw(artifact.size_bytes) if several else estimate

    @classmethod
    def arrays_writable(cls, terms: Terms) -> bool | None:
        return _is_writable(terms)

    @classmethod
    def from_view(cls, view: View, artifact: Artifact, terms: Terms) -> Built:
        parts = []
        copied_bytes = 0
        for file in _files(artifact):
            part, copied = _in_place(view if file is artifact else file.view(terms.on_window), file, terms)
            parts.append(part)
            copied_bytes += copied
        reasons = ("not aligned to its items",) if copied_bytes else ()
        mapped_bytes = sum(part.header.payload_bytes for part in parts) - copied_bytes
        return Built(_joined(parts, artifact.name), Placement(mapped_bytes, copied_bytes, reasons))

    @classmethod
    def from_file(cls, file: BinaryIO, artifact: Artifact, terms: Terms) -> Built:
        parts = []
        for each in _files(artifact):
            with contextlib.ExitStack() as stack:
                source = file
                if each is not artifact:
                    source = stack.enter_context(each.open(drop_behind=terms.drops_behind, on_window=terms.on_window))
                header = each.header(read_header)
                arrays = _read(source, header.tensors, _Arrays(header, writable=_is_writable(terms)), each.name)
                parts.append(_Part(header, arrays))
        return Built(_joined(parts, artifact.name))

    @classmethod
    def from_buffer(cls, buffer: bytes | bytearray | memoryview, artifact: Artifact, terms: Terms) -> Built:
        writable = _is_writable(terms)
        # Nobody else has what was read for this load, and nobody can change `bytes`: the arrays may lie there, without a copy.
        ours = not artifact.has_content
        if len(_files(artifact)) == 1 and (ours or (isinstance(buffer, bytes) and not writable)):
            header = artifact.header(read_header)
            arrays = _Arrays(header, writable=writable)
            over = memoryview(buffer) if writable else memoryview(buffer).toreadonly()
            found = {tensor.name: arrays.over(over, tensor) for tensor in header.tensors}
            return Built(_joined([_Part(header, found)], artifact.name))
        with open_buffer(buffer) as file:
            return cls.from_file(file, artifact, terms)


def _is_writable(terms: Terms) -> bool:
    return terms.mapping is MappingMode.COPY_ON_WRITE


def _files(artifact: Artifact) -> list[Artifact]:
    """The files of the model, of which the artifact is one."""
    paths = split_paths(artifact.header(read_header), artifact.path, artifact.name)
    return [artifact if path is None else artifact.beside(os.path.basename(path)) for path in paths]


class _Part(NamedTuple):
    """One file of the model."""

    header: Header
    arrays: dict[str, Any]


def _in_place(view: View, file: Artifact, terms: Terms) -> tuple[_Part, int]:
    """The arrays over a view, and how many bytes had to be copied all the same."""
    header = file.header(read_header)
    arrays = _Arrays(header, writable=_is_writable(terms))
    buffer = view.writable if _is_writable(terms) else view.buffer
    found: dict[str, Any] = {}
    copied = []
    for tensor in header.tensors:
        if terms.optimize is Optimize.SPEED and tensor.start % arrays.item_bytes(tensor):
            copied.append(tensor)
        else:
            found[tensor.name] = arrays.over(buffer, tensor)
    if copied:
        with view.open_structure() as source:  # not from the map, a page of which may be gone by now
            found |= _read(source, copied, arrays, file.name)
    return _Part(header, found), sum(tensor.size_bytes for tensor in copied)


class _Arrays:
    """How a tensor's bytes become an array, in the file's byte order."""

    def __init__(self, header: Header, *, writable: bool) -> None:
        self._numpy = require("numpy", "GGUF models")
        self._writable = writable
        self._order = ">" if header.big_endian else "<"

    def over(self, buffer: memoryview, tensor: Tensor) -> Any:
        """The array over its bytes in the file's buffer, not copied."""
        dtype = self._dtype(tensor)
        if tensor.size_bytes == 0:
            empty = self._numpy.empty(self._shape(tensor), dtype)
            self.finish(empty)
            return empty
        count = tensor.size_bytes // dtype.itemsize
        return self._numpy.frombuffer(buffer, dtype, count, tensor.start).reshape(self._shape(tensor))

    def room(self, tensor: Tensor) -> Any:
        """The array in memory of its own, its bytes not read yet."""
        return self._numpy.empty(self._shape(tensor), self._dtype(tensor))

    def target(self, room: Any) -> memoryview:
        """Where the bytes of `room` go."""
        return memoryview(room.reshape(-1).view(self._numpy.uint8))

    def finish(self, array: Any) -> None:
        """Lets an array be written to or not, once its bytes are there."""
        array.flags.writeable = self._writable

    def item_bytes(self, tensor: Tensor) -> int:
        return int(self._dtype(tensor).itemsize)

    def _dtype(self, tensor: Tensor) -> Any:
        return self._numpy.dtype(self._order + _ITEMS.get(tensor.type.name, "u1"))

    def _shape(self, tensor: Tensor) -> tuple[int, ...]:
        if tensor.type.name in _ITEMS or not tensor.shape:
            return tensor.shape
        return (*tensor.shape[:-1], tensor.shape[-1] // tensor.type.block_items * tensor.type.block_bytes)


def _read(file: BinaryIO, tensors: Iterable[Tensor], arrays: _Arrays, name: str) -> dict[str, Any]:
    found = {}
    for tensor in sorted(tensors, key=lambda each: each.start):
        found[tensor.name] = arrays.room(tensor)
        target = arrays.target(found[tensor.name])
        file.seek(tensor.start)
        done = 0
        while done < tensor.size_bytes:
            count = file.readinto(target[done:])  # type: ignore[attr-defined]  # of a binary file, which BinaryIO leaves out
            if not count:
                raise CorruptModelError(
                    f"{name}: expected {tensor.size_bytes} bytes of {tensor.name[:80]!r}, found {done}; the file became shorter",
                    path=name,
                    format=Format.GGUF.value,
                )
            done += count
        arrays.finish(found[tensor.name])
    return found


def _joined(parts: list[_Part], name: str) -> GgufModel:
    """The model: the metadata of its first file, and the tensors of all."""
    numpy = require("numpy", "GGUF models")
    first = parts[0].header.metadata
    metadata = {key: numpy.asarray(value) if isinstance(value, array.array) else value for key, value in first.items()}
    tensors = [(tensor, part.arrays[tensor.name]) for part in parts for tensor in part.header.tensors]
    found = len({tensor.name for tensor, _ in tensors})
    wanted = first.get(SPLIT_TENSORS, len(tensors)) if len(parts) > 1 else found
    if found != wanted:
        raise CorruptModelError(
            f"{name}: expected {wanted} tensors in its {len(parts)} files, found {found}; they are not of one model",
            path=name,
            format=Format.GGUF.value,
        )
    types = {tensor.name: tensor.type.name for tensor, _ in tensors}
    return GgufModel(metadata, types, {tensor.name: over for tensor, over in tensors})


def _objects_bytes(header: Header) -> int:
    """What the objects take that the model is made of beside its tensors."""
    return _ARRAY_BYTES * len(header.tensors) + sum(map(_object_bytes, header.metadata.values()))


def _object_bytes(value: Any) -> int:
    with contextlib.suppress(TypeError):
        if isinstance(value, list):
            return sys.getsizeof(value) + sum(map(_object_bytes, value))
        return sys.getsizeof(value)
    return 0
