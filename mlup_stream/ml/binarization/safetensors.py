"""safetensors files, and sharded models by their index, as a dict of numpy arrays or torch tensors.

A view leaves every tensor in the file: private memory is the dict alone. The other deliveries read each tensor straight into its
own memory, through the format's own walker: the library's numpy loader touches the whole file beside the copies, 2.00x of RSS
against 1.00x. The file's bytes are little-endian, and so are the arrays.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Any, BinaryIO, ClassVar

from mlup_stream.delivery.files import checked_stat
from mlup_stream.delivery.kinds import Delivery, Mapping, Optimize
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.delivery.placement import Placement
from mlup_stream.delivery.reader import open_buffer, open_stream
from mlup_stream.delivery.view import View
from mlup_stream.errors import ConfigError, CorruptModelError, LoadError, ModelBinarizationError
from mlup_stream.extras import require
from mlup_stream.formats.arrays.safetensors import BITS_OF, MAX_HEADER_BYTES, Header, Tensor, read_header, read_index
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.source import Source
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.ml.binarization.arrays.safetensors_arrays import Arrays, NumpyArrays, TorchTensors
from mlup_stream.ml.binarization.base import FormatBinarizer

__all__ = ["SafetensorsBinarizer"]

_FRAMEWORKS: dict[str, type[NumpyArrays] | type[TorchTensors]] = {"numpy": NumpyArrays, "torch": TorchTensors}
_OBJECT_BYTES = 1024
"""An array, its name and its place in the dict: about 500 bytes with numpy, 900 with torch."""


class SafetensorsBinarizer(FormatBinarizer):
    """A dict of arrays by name, in the order of their bytes.

    Options: `framework`, `"numpy"` (default) or `"torch"`. numpy arrays of a view or of `bytes` are read-only unless
    `mapping="copy-on-write"`.
    """

    format = Format.SAFETENSORS
    deliveries = (Delivery.VIEW, Delivery.PATH, Delivery.STREAM, Delivery.BYTES)
    options: ClassVar[frozenset[str]] = frozenset({"framework"})

    @classmethod
    def prepare(cls) -> None:
        require("numpy", "safetensors files")

    @classmethod
    def prepare_for(cls, options: dict[str, Any]) -> None:
        _arrays(options.get("framework", "numpy"), "safetensors")

    @classmethod
    def libraries_for(cls, options: dict[str, Any]) -> tuple[str, ...]:
        return (str(options.get("framework", "numpy")),)

    @classmethod
    def estimate(cls, loaded_file: LoadedFile, delivery: Delivery) -> Estimate | None:
        try:
            headers = [header for _, header in _parts(loaded_file)]
        except (LoadError, OSError):
            return None  # the load will say what is wrong
        payload_bytes = sum(header.payload_bytes for header in headers)
        objects_bytes = _OBJECT_BYTES * sum(len(header.tensors) for header in headers)
        why = "the header of the safetensors file"
        framework = _FRAMEWORKS.get(loaded_file.options.get("framework", "numpy"))
        writable = loaded_file.mapping is Mapping.COPY_ON_WRITE or (framework is not None and framework.needs_writable)
        if delivery is Delivery.VIEW and not loaded_file.has_content:
            return Estimate.in_place(
                payload_bytes,
                certainty=Certainty.EXACT,
                why=why,
                private_bytes=objects_bytes,
                copy_on_write=writable,
            )
        found = Estimate.private(payload_bytes + objects_bytes, certainty=Certainty.EXACT, why=why)
        if delivery is Delivery.BYTES and writable:
            return found.with_raw(loaded_file.size_bytes)
        return found  # delivery `bytes` too: the arrays lie in the copy that was read

    @classmethod
    def from_view(cls, view: View, loaded: LoadedFile, *, framework: str = "numpy", **_: Any) -> dict[str, Any]:
        arrays = _arrays(framework, loaded.name)
        if arrays.needs_writable and loaded.mapping is Mapping.READ_ONLY:
            raise ConfigError(
                f"{loaded.name}: mapping='read-only' is not possible with framework={framework!r}, which would die of a write;"
                " leave it at 'auto'",
                field="mapping",
                value=loaded.mapping.value,
                allowed=(Mapping.AUTO.value, Mapping.COPY_ON_WRITE.value),
            )
        writable = arrays.needs_writable or loaded.mapping is Mapping.COPY_ON_WRITE
        if not _is_index(view):
            return _in_place([(view, None)], arrays, loaded, writable=writable)
        with contextlib.ExitStack() as stack:
            shards: list[tuple[View, tuple[str, ...] | None]] = []
            for path, names in _shards(loaded):
                shard = View(path, on_window=loaded.on_window)
                stack.callback(shard.release)  # the maps live on with the arrays over them
                shards.append((shard, names))
            return _in_place(shards, arrays, loaded, writable=writable)

    @classmethod
    def from_file(cls, file: BinaryIO, loaded: LoadedFile, *, framework: str = "numpy", **_: Any) -> dict[str, Any]:
        arrays = _arrays(framework, loaded.name)
        if not _is_index(file):
            return _read(file, read_header(file, loaded.name).tensors, arrays)
        model: dict[str, Any] = {}
        for path, names in _shards(loaded):
            with open_stream(path, drop_behind=loaded.delivery is Delivery.STREAM, on_window=loaded.on_window) as shard:
                model |= _read(shard, _chosen(read_header(shard, path), names, path), arrays)
        return model

    @classmethod
    def from_buffer(
        cls, buffer: bytes | bytearray | memoryview, loaded: LoadedFile, *, framework: str = "numpy", **_: Any
    ) -> dict[str, Any]:
        arrays = _arrays(framework, loaded.name)
        may_share = isinstance(buffer, bytes) and not arrays.needs_writable and loaded.mapping is not Mapping.COPY_ON_WRITE
        if may_share and not _is_index(buffer):
            # Nobody can change `bytes`: the arrays may lie in it, and no second copy is made.
            return _over_bytes(buffer, arrays, loaded)
        with open_buffer(buffer) as file:
            return cls.from_file(file, loaded, framework=framework)


def _arrays(framework: Any, name: str) -> Arrays:
    if framework not in _FRAMEWORKS:
        raise ConfigError(
            f"binarization_kwargs: framework={framework!r} is not valid; expected one of {', '.join(_FRAMEWORKS)}",
            field="binarization_kwargs",
            value=framework,
            allowed=tuple(_FRAMEWORKS),
        )
    return _FRAMEWORKS[framework](name)


def _over_bytes(buffer: Any, arrays: Arrays, loaded: LoadedFile) -> dict[str, Any]:
    return {each.name: arrays.over(memoryview(buffer), each) for each in read_header(buffer, loaded.name).tensors}


def _in_place(
    views: Iterable[tuple[View, tuple[str, ...] | None]], arrays: Arrays, loaded: LoadedFile, *, writable: bool
) -> dict[str, Any]:
    model: dict[str, Any] = {}
    mapped_bytes = copied_bytes = 0
    for view, names in views:
        file_name = view.path or loaded.name
        header = read_header(view, file_name)
        buffer = view.writable if writable else view.buffer
        for tensor in _chosen(header, names, file_name):
            item_bytes = max(BITS_OF[tensor.dtype] // 8, 1)
            aligned = tensor.start % item_bytes == 0
            if aligned or not (arrays.needs_alignment or loaded.optimize is Optimize.SPEED):
                model[tensor.name] = arrays.over(buffer, tensor)
                mapped_bytes += tensor.size_bytes
            else:
                with view.open_structure() as file:  # not from the map, a page of which may be gone by now
                    model |= _read(file, (tensor,), arrays)
                copied_bytes += tensor.size_bytes
        view.check()
    loaded.placement = Placement(mapped_bytes, copied_bytes, ("not aligned to its items",) if copied_bytes else ())
    return model


def _read(file: BinaryIO, tensors: Iterable[Tensor], arrays: Arrays) -> dict[str, Any]:
    model = {}
    for tensor in tensors:
        room = arrays.room(tensor)
        file.seek(tensor.start)
        done = 0
        while done < tensor.size_bytes:
            count = file.readinto(room.target[done:])  # type: ignore[attr-defined]  # of a binary file, which BinaryIO leaves out
            if not count:
                raise CorruptModelError(
                    f"{tensor.name!r}: expected {tensor.size_bytes} bytes, found {done}; the file became shorter",
                    format=Format.SAFETENSORS.value,
                )
            done += count
        model[tensor.name] = room.tensor
    return model


def _is_index(given: Any) -> bool:
    """Whether this is the index of a sharded model: JSON from the first byte on, which no header's length can look like."""
    with Source(given) as source:
        first = source.read(0, min(8, source.size_bytes), "first bytes")
    return int.from_bytes(first, "little") > MAX_HEADER_BYTES and first.lstrip().startswith(b"{")


def _parts(loaded: LoadedFile) -> list[tuple[str, Header]]:
    """The headers of the file, or of the files that the index lists."""
    header = loaded.look(_header)
    if header is not None:
        return [(loaded.name, header)]
    return [(path, read_header(path)) for path, _ in _shards(loaded)]


def _header(file: BinaryIO, name: str) -> Header | None:
    """None of an index."""
    return None if _is_index(file) else read_header(file, name)


def _shards(loaded: LoadedFile) -> list[tuple[str, tuple[str, ...]]]:
    """The files of a sharded model and the tensors that the index wants of each."""
    if loaded.path is None:
        raise ModelBinarizationError(
            f"{loaded.name}: the index of a sharded model came without its path, so its files cannot be found; give the path",
            format=Format.SAFETENSORS.value,
        )
    folder = os.path.dirname(loaded.path)
    found = []
    for file_name, names in read_index(loaded.path).items():
        path = os.path.join(folder, file_name)
        checked_stat(path)
        found.append((path, names))
    return found


def _chosen(header: Header, names: tuple[str, ...] | None, file_name: str) -> tuple[Tensor, ...]:
    """The tensors that the index wants of a file, in the order of their bytes; all of them without an index."""
    if names is None:
        return header.tensors
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
