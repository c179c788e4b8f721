"""safetensors files, and sharded models by their index, as a dict of numpy arrays or torch tensors.

A view leaves every tensor in the file: private memory is the dict alone. The other deliveries read each tensor straight into its
own memory, through the format's own walker: the library's numpy loader touches the whole file beside the copies, 2.00x of RSS
against 1.00x. The file's bytes are little-endian, and so are the arrays.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, ClassVar, NamedTuple

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.kinds import Delivery, MappingMode
from mlup_stream.delivery.placement import Placement
from mlup_stream.delivery.reader import open_buffer
from mlup_stream.delivery.terms import Built, Terms
from mlup_stream.delivery.view import View
from mlup_stream.delivery.writers import announced
from mlup_stream.errors import ConfigError, CorruptModelError, LoadError, ModelBinarizationError
from mlup_stream.extras import require
from mlup_stream.formats.arrays.safetensors import BITS_OF, Header, Tensor, read_header
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.shards import is_index, read_index
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.ml.binarization.arrays.safetensors_arrays import Arrays, NumpyArrays, TorchTensors
from mlup_stream.ml.binarization.base import FormatBinarizer

__all__ = ["SafetensorsBinarizer"]

_FRAMEWORKS: dict[str, type[NumpyArrays] | type[TorchTensors]] = {"numpy": NumpyArrays, "torch": TorchTensors}
_FIRST_THAT_RENAMES = (0, 8)
"""The version of safetensors from which on `save_file` writes another file and renames it."""
_OBJECT_BYTES = 1024
"""An array, its name and its place in the dict: about 500 bytes with numpy, 900 with torch."""


class SafetensorsBinarizer(FormatBinarizer):
    """A dict of arrays by name, in the order of their bytes.

    Options: `framework`, `"numpy"` (default) or `"torch"`. The arrays can be written to, as the library's, whatever the delivery;
    with `mapping="read-only"` none can.
    """

    format = Format.SAFETENSORS
    deliveries = (Delivery.VIEW, Delivery.PATH, Delivery.STREAM, Delivery.BYTES)
    option_names: ClassVar[frozenset[str]] = frozenset({"framework"})

    @classmethod
    def prepare(cls) -> None:
        require("numpy", "safetensors files")

    @classmethod
    def prepare_for(cls, options: Mapping[str, Any]) -> None:
        _kind(options)

    @classmethod
    def libraries_for(cls, options: Mapping[str, Any]) -> tuple[str, ...]:
        return (str(options.get("framework", "numpy")),)

    @classmethod
    def estimate(cls, artifact: Artifact, terms: Terms) -> Estimate | None:
        try:
            parts = _parts(artifact)
        except (LoadError, OSError):
            return None  # the load will say what is wrong
        tensors = [tensor for part in parts for tensor in part.tensors]
        payload_bytes = sum(tensor.size_bytes for tensor in tensors)
        objects_bytes = _OBJECT_BYTES * sum(len(part.tensors) for part in parts)
        why = "the header of the safetensors file"
        if terms.delivery is Delivery.VIEW and not artifact.has_content:
            kind = _FRAMEWORKS.get(terms.options.get("framework", "numpy"), NumpyArrays)
            copied_bytes = sum(tensor.size_bytes for tensor in tensors if not _stays(tensor, kind, terms))
            return Estimate.in_place(
                payload_bytes - copied_bytes,
                certainty=Certainty.EXACT,
                why=why,
                private_bytes=objects_bytes + copied_bytes,
                copy_on_write=terms.writable,
            )
        # Delivery `bytes` too: the arrays lie in the copy that was read, unless those of other files come beside them.
        return Estimate.private(payload_bytes + objects_bytes, certainty=Certainty.EXACT, why=why)

    @classmethod
    def arrays_writable(cls, terms: Terms) -> bool | None:
        return terms.writable

    @classmethod
    def from_view(cls, view: View, artifact: Artifact, terms: Terms) -> Built:
        arrays = _arrays(artifact, terms)
        _announce_writers()
        model: dict[str, Any] = {}
        mapped_bytes = copied_bytes = 0
        for part in _parts(artifact):
            part_view = view if part.artifact is artifact else part.artifact.view(terms.on_window)
            buffer = part_view.writable if terms.writable else part_view.buffer
            for tensor in part.tensors:
                if _stays(tensor, arrays, terms):
                    model[tensor.name] = arrays.over(buffer, tensor)
                    mapped_bytes += tensor.size_bytes
                else:
                    with part_view.open_structure() as file:  # not from the map, a page of which may be gone by now
                        model |= _read(file, (tensor,), arrays, part.artifact.name)
                    copied_bytes += tensor.size_bytes
        return Built(model, Placement(mapped_bytes, copied_bytes, ("not aligned to its items",) if copied_bytes else ()))

    @classmethod
    def from_file(cls, file: BinaryIO, artifact: Artifact, terms: Terms) -> Built:
        arrays = _arrays(artifact, terms)
        model: dict[str, Any] = {}
        for part in _parts(artifact):
            with contextlib.ExitStack() as stack:
                source = file
                if part.artifact is not artifact:
                    source = stack.enter_context(
                        part.artifact.open(drop_behind=terms.drops_behind, on_window=terms.on_window)
                    )
                model |= _read(source, part.tensors, arrays, part.artifact.name)
        return Built(model)

    @classmethod
    def from_buffer(cls, buffer: bytes | bytearray | memoryview, artifact: Artifact, terms: Terms) -> Built:
        arrays = _arrays(artifact, terms)
        parts = _parts(artifact)
        # Nobody else has what was read for this load, and nobody can change `bytes`: the arrays may lie there, without a copy.
        ours = not artifact.has_content
        if parts[0].artifact is artifact and (ours or (isinstance(buffer, bytes) and not terms.writable)):
            over = memoryview(buffer) if terms.writable else memoryview(buffer).toreadonly()
            return Built({tensor.name: arrays.over(over, tensor) for tensor in parts[0].tensors})
        with open_buffer(buffer) as file:
            return cls.from_file(file, artifact, terms)


def _stays(tensor: Tensor, arrays: Arrays | type[Arrays], terms: Terms) -> bool:
    """Whether a view leaves a tensor in the file; see `pickles.placing` for those that are not aligned."""
    if tensor.start % max(BITS_OF[tensor.dtype] // 8, 1) == 0:
        return True
    return terms.maps_unaligned and not arrays.needs_alignment


def _announce_writers() -> None:
    library = require("safetensors", "safetensors files")
    if tuple(map(int, library.__version__.split(".")[:2])) < _FIRST_THAT_RENAMES:
        for module in ("safetensors", "safetensors.numpy", "safetensors.torch"):
            announced(sys.modules.get(module), "serialize_file", 1)


def _kind(options: Mapping[str, Any]) -> type[NumpyArrays] | type[TorchTensors]:
    framework = options.get("framework", "numpy")
    if framework not in _FRAMEWORKS:
        raise ConfigError(
            f"binarization_kwargs: framework={framework!r} is not valid; expected one of {', '.join(_FRAMEWORKS)}",
            field="binarization_kwargs",
            value=framework,
            allowed=tuple(_FRAMEWORKS),
        )
    kind = _FRAMEWORKS[framework]
    kind("safetensors")  # imports it
    return kind


def _arrays(artifact: Artifact, terms: Terms) -> Arrays:
    kind = _kind(terms.options)
    if kind.needs_writable and not terms.writable:
        raise ConfigError(
            f"{artifact.name}: mapping='read-only' is not possible with framework='torch', which would die of a write;"
            " leave it at 'auto'",
            field="mapping",
            value=terms.mapping.value,
            allowed=(MappingMode.AUTO.value, MappingMode.COPY_ON_WRITE.value),
        )
    return kind(artifact.name, writable=terms.writable)


class _Part(NamedTuple):
    """One file of the model and what the model takes of it."""

    artifact: Artifact
    tensors: tuple[Tensor, ...]


def _parts(artifact: Artifact) -> list[_Part]:
    """The file itself, or the files that the index lists, in the order of the index."""
    header = artifact.header(_header)
    if isinstance(header, Header):
        return [_Part(artifact, header.tensors)]
    if artifact.path is None:
        raise ModelBinarizationError(
            f"{artifact.name}: the index of a sharded model came without its path, so its files cannot be found; give the path",
            format=Format.SAFETENSORS.value,
        )
    shards = [(artifact.beside(file_name), names) for file_name, names in header.items()]
    return [_Part(shard, _chosen(shard.header(read_header), names, shard.name)) for shard, names in shards]


def _header(file: BinaryIO, name: str) -> Header | dict[str, tuple[str, ...]]:
    """The header, or of the index of a sharded model the tensors by the files that have them."""
    return read_index(file, name) if is_index(file) else read_header(file, name)


def _read(file: BinaryIO, tensors: Iterable[Tensor], arrays: Arrays, name: str) -> dict[str, Any]:
    model = {}
    for tensor in tensors:
        room = arrays.room(tensor)
        file.seek(tensor.start)
        done = 0
        while done < tensor.size_bytes:
            count = file.readinto(room.target[done:])  # type: ignore[attr-defined]  # of a binary file, which BinaryIO leaves out
            if not count:
                raise CorruptModelError(
                    f"{name}: expected {tensor.size_bytes} bytes of {tensor.name!r}, found {done}; the file became shorter",
                    path=name,
                    format=Format.SAFETENSORS.value,
                )
            done += count
        model[tensor.name] = arrays.finished(room)
    return model



def _chosen(header: Header, names: tuple[str, ...], file_name: str) -> tuple[Tensor, ...]:
    """The tensors that the index wants of a file, in the order of their bytes."""
    missing = set(names) - {tensor.name for tensor in header.tensors}
    if missing:
        raise CorruptModelError(
            f"{file_name}: expected tensor {min(missing)!r}, as the index says, found {len(header.tensors)} others;"
            " the index and its files are not of one model",
            path=file_name,
            format=Format.SAFETENSORS.value,
        )
    wanted = set(names)
    return tuple(tensor for tensor in header.tensors if tensor.name in wanted)
