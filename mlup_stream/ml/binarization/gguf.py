"""GGUF files as a mapping of arrays by name, with the metadata beside it.

A view leaves every tensor in the file: private memory is the metadata alone. The arrays are those that `gguf.GGUFReader` gives:
plain types as numpy has them, quantised blocks as bytes, which `dequantize` turns into floats. The reader itself is not used: it
believes every length in the file, and keeps two arrays for each word of a vocabulary (656 MB for 430 000 words and merges, 31
MB here).
"""

from __future__ import annotations

import array
import contextlib
import functools
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from mlup_stream.delivery.files import FileIdentity, checked_stat
from mlup_stream.delivery.kinds import Delivery, Optimize
from mlup_stream.delivery.kinds import Mapping as Policy
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.delivery.placement import Placement
from mlup_stream.delivery.reader import open_buffer
from mlup_stream.delivery.view import View
from mlup_stream.errors import CorruptModelError, LoadError
from mlup_stream.extras import require
from mlup_stream.formats.gguf import Header, Tensor, read_header
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
        """The tensor as float32, in memory of its own: 4 bytes for each item."""
        gguf = require("gguf", "GGUF models")
        kind = gguf.GGMLQuantizationType[self.types[name]]
        return require("gguf.quants", "GGUF models").dequantize(self._arrays[name], kind)


class GgufBinarizer(FormatBinarizer):
    """A `GgufModel`. Arrays of a view or of `bytes` are read-only unless `mapping="copy-on-write"`."""

    format = Format.GGUF
    deliveries = (Delivery.VIEW, Delivery.PATH, Delivery.STREAM, Delivery.BYTES)

    @classmethod
    def prepare(cls) -> None:
        require("numpy", "GGUF models")
        require("gguf", "GGUF models")

    @classmethod
    def estimate(cls, loaded_file: LoadedFile, delivery: Delivery) -> Estimate | None:
        try:
            if loaded_file.has_content or loaded_file.path is None:
                with loaded_file.open() as file:
                    payload_bytes, objects_bytes = _sizes(read_header(file, loaded_file.name))
            else:
                identity = FileIdentity.of(checked_stat(loaded_file.path))
                payload_bytes, objects_bytes = _sizes_of_file(loaded_file.path, identity)
        except (LoadError, OSError):
            return None  # the load will say what is wrong
        why = "the header of the GGUF file"
        if delivery is Delivery.VIEW and not loaded_file.has_content:
            return Estimate.in_place(
                payload_bytes,
                certainty=Certainty.EXACT,
                why=why,
                private_bytes=objects_bytes,
                copy_on_write=loaded_file.mapping is Policy.COPY_ON_WRITE,
            )
        # Delivery `bytes` too: the arrays lie in the copy that was read.
        return Estimate.private(payload_bytes + objects_bytes, certainty=Certainty.EXACT, why=why)

    @classmethod
    def from_view(cls, view: View, loaded: LoadedFile, **_: Any) -> GgufModel:
        header = read_header(view, loaded.name)
        arrays = _Arrays(header)
        buffer = view.writable if loaded.mapping is Policy.COPY_ON_WRITE else view.buffer
        found: dict[str, Any] = {}
        copied = []
        for tensor in header.tensors:
            if loaded.optimize is Optimize.SPEED and tensor.start % arrays.item_bytes(tensor):
                copied.append(tensor)
            else:
                found[tensor.name] = arrays.over(buffer, tensor)
        if copied:
            with view.open() as file:  # not from the map, a page of which may be gone by now
                found |= _read(file, copied, arrays, loaded.name)
        copied_bytes = sum(tensor.size_bytes for tensor in copied)
        reasons = ("not aligned to its items",) if copied else ()
        loaded.placement = Placement(header.payload_bytes - copied_bytes, copied_bytes, reasons)
        return _model(header, found)

    @classmethod
    def from_file(cls, file: BinaryIO, loaded: LoadedFile, **_: Any) -> GgufModel:
        header = read_header(file, loaded.name)
        return _model(header, _read(file, header.tensors, _Arrays(header), loaded.name))

    @classmethod
    def from_buffer(cls, buffer: bytes | bytearray | memoryview, loaded: LoadedFile, **_: Any) -> GgufModel:
        if isinstance(buffer, bytes) and loaded.mapping is not Policy.COPY_ON_WRITE:
            # Nobody can change `bytes`: the arrays may lie in it, and no second copy is made.
            header = read_header(buffer, loaded.name)
            arrays = _Arrays(header)
            return _model(header, {tensor.name: arrays.over(memoryview(buffer), tensor) for tensor in header.tensors})
        with open_buffer(buffer) as file:
            return cls.from_file(file, loaded)


class _Arrays:
    """How a tensor's bytes become an array, in the file's byte order."""

    def __init__(self, header: Header) -> None:
        self._numpy = require("numpy", "GGUF models")
        self._order = ">" if header.big_endian else "<"

    def over(self, buffer: memoryview, tensor: Tensor) -> Any:
        """The array over its bytes in the file's buffer, not copied."""
        dtype = self._dtype(tensor)
        if tensor.size_bytes == 0:
            return self._numpy.empty(self._shape(tensor), dtype)
        count = tensor.size_bytes // dtype.itemsize
        return self._numpy.frombuffer(buffer, dtype, count, tensor.start).reshape(self._shape(tensor))

    def room(self, tensor: Tensor) -> Any:
        """The array in memory of its own, its bytes not read yet."""
        return self._numpy.empty(self._shape(tensor), self._dtype(tensor))

    def target(self, room: Any) -> memoryview:
        """Where the bytes of `room` go."""
        return memoryview(room.reshape(-1).view(self._numpy.uint8))

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
    return found


def _model(header: Header, arrays: dict[str, Any]) -> GgufModel:
    numpy = require("numpy", "GGUF models")
    metadata = {key: numpy.asarray(value) if isinstance(value, array.array) else value for key, value in header.metadata.items()}
    return GgufModel(
        metadata,
        {tensor.name: tensor.type.name for tensor in header.tensors},
        {tensor.name: arrays[tensor.name] for tensor in header.tensors},
    )


@functools.lru_cache(maxsize=4)
def _sizes_of_file(path: str, identity: FileIdentity) -> tuple[int, int]:
    """The same for each delivery: a large vocabulary takes half a second to walk."""
    return _sizes(read_header(path))


def _sizes(header: Header) -> tuple[int, int]:
    """The bytes of the tensors, and of the objects that the model is made of beside them."""
    return header.payload_bytes, _ARRAY_BYTES * len(header.tensors) + sum(map(_object_bytes, header.metadata.values()))


def _object_bytes(value: Any) -> int:
    with contextlib.suppress(TypeError):
        if isinstance(value, list):
            return sys.getsizeof(value) + sum(map(_object_bytes, value))
        return sys.getsizeof(value)
    return 0
