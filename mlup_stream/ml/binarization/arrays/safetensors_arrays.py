"""How numpy and torch make a tensor of a safetensors file: over the file's own bytes, or in memory of its own."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple, Protocol

from mlup_stream.errors import ModelBinarizationError
from mlup_stream.extras import require
from mlup_stream.formats.arrays.safetensors import Tensor
from mlup_stream.formats.kinds import Format

__all__ = ["Arrays", "NumpyArrays", "Room", "TorchTensors"]


class Room(NamedTuple):
    """A tensor whose bytes are still to be read, and where to."""

    tensor: Any
    target: memoryview


class Arrays(Protocol):
    """One framework's tensors."""

    needs_writable: bool
    """Whether a tensor over a buffer that may not be written to would be a danger."""
    needs_alignment: bool
    """Whether a tensor's bytes must begin at a multiple of its items' size."""

    def over(self, buffer: memoryview, tensor: Tensor) -> Any:
        """The tensor over its bytes in the file's buffer, not copied."""

    def room(self, tensor: Tensor) -> Room:
        """The tensor in memory of its own, its bytes not read yet."""

    def finished(self, room: Room) -> Any:
        """The tensor, once its bytes were read."""


class NumpyArrays:
    """`numpy.ndarray`. The types that NumPy does not have come from `ml_dtypes`, where that is installed."""

    needs_writable = False
    needs_alignment = False

    _NAMES: ClassVar[dict[str, str]] = {
        "BOOL": "?",
        "U8": "u1",
        "I8": "i1",
        "U16": "<u2",
        "I16": "<i2",
        "U32": "<u4",
        "I32": "<i4",
        "U64": "<u8",
        "I64": "<i8",
        "F16": "<f2",
        "F32": "<f4",
        "F64": "<f8",
        "C64": "<c8",
    }
    _ML_DTYPES: ClassVar[dict[str, str]] = {
        "BF16": "bfloat16",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "F8_E8M0": "float8_e8m0fnu",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
    }

    def __init__(self, file_name: str, *, writable: bool = True) -> None:
        self._numpy = require("numpy", "safetensors files")
        self._file_name = file_name
        self._writable = writable

    def over(self, buffer: memoryview, tensor: Tensor) -> Any:
        dtype = self._dtype(tensor)
        if tensor.size_bytes == 0:
            return self._with_flags(self._numpy.empty(tensor.shape, dtype))
        count = tensor.size_bytes // dtype.itemsize
        return self._numpy.frombuffer(buffer, dtype, count, tensor.start).reshape(tensor.shape)

    def room(self, tensor: Tensor) -> Room:
        array = self._numpy.empty(tensor.shape, self._dtype(tensor))
        return Room(array, memoryview(array.reshape(-1).view(self._numpy.uint8)))

    def finished(self, room: Room) -> Any:
        return self._with_flags(room.tensor)

    def _with_flags(self, array: Any) -> Any:
        array.flags.writeable = self._writable
        return array

    def _dtype(self, tensor: Tensor) -> Any:
        name = self._NAMES.get(tensor.dtype)
        if name is not None:
            return self._numpy.dtype(name)
        try:
            import ml_dtypes

            return self._numpy.dtype(getattr(ml_dtypes, self._ML_DTYPES[tensor.dtype]))
        except (ImportError, AttributeError, KeyError) as error:
            install = ", or install ml_dtypes" if tensor.dtype in self._ML_DTYPES else ""
            raise ModelBinarizationError(
                f"{self._file_name}: tensor {tensor.name!r} is of type {tensor.dtype}, which numpy has not; load it with"
                f' binarization_kwargs={{"framework": "torch"}}{install}',
                path=self._file_name,
                format=Format.SAFETENSORS.value,
            ) from error


class TorchTensors:
    """`torch.Tensor`, on the CPU. torch has no read-only tensors: a write to one over a read-only map would kill the process."""

    needs_writable = True
    needs_alignment = True

    _NAMES: ClassVar[dict[str, str]] = {
        "BOOL": "bool",
        "U8": "uint8",
        "I8": "int8",
        "U16": "uint16",
        "I16": "int16",
        "U32": "uint32",
        "I32": "int32",
        "U64": "uint64",
        "I64": "int64",
        "F16": "float16",
        "BF16": "bfloat16",
        "F32": "float32",
        "F64": "float64",
        "C64": "complex64",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "F8_E8M0": "float8_e8m0fnu",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F4": "float4_e2m1fn_x2",
    }

    def __init__(self, file_name: str, *, writable: bool = True) -> None:
        self._torch = require("torch", "safetensors files as torch tensors")
        self._numpy = require("numpy", "safetensors files")
        self._file_name = file_name

    def over(self, buffer: memoryview, tensor: Tensor) -> Any:
        if tensor.size_bytes == 0:
            return self._torch.empty(self._shape(tensor), dtype=self._dtype(tensor))
        # Through numpy, whose arrays keep the buffer exported: `torch.frombuffer` lets the map be closed under its tensors.
        flat = self._torch.from_numpy(self._numpy.frombuffer(buffer, self._numpy.uint8, tensor.size_bytes, tensor.start))
        return flat.view(self._dtype(tensor)).reshape(self._shape(tensor))

    def room(self, tensor: Tensor) -> Room:
        flat = self._torch.empty(tensor.size_bytes, dtype=self._torch.uint8)
        target = memoryview(flat.numpy())
        return Room(flat.view(self._dtype(tensor)).reshape(self._shape(tensor)), target)

    def finished(self, room: Room) -> Any:
        return room.tensor

    def _shape(self, tensor: Tensor) -> tuple[int, ...]:
        """The shape in torch's items, of which one holds two of F4."""
        if tensor.dtype != "F4":
            return tensor.shape
        return (*tensor.shape[:-1], tensor.shape[-1] // 2) if math.prod(tensor.shape[-1:]) % 2 == 0 else tensor.shape

    def _dtype(self, tensor: Tensor) -> Any:
        dtype = getattr(self._torch, self._NAMES.get(tensor.dtype, ""), None)
        if dtype is None:
            raise ModelBinarizationError(
                f"{self._file_name}: tensor {tensor.name!r} is of type {tensor.dtype}, which this torch"
                f" ({self._torch.__version__}) has not; a newer one may",
                path=self._file_name,
                format=Format.SAFETENSORS.value,
            )
        return dtype
