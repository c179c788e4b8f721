"""The unpickler of joblib files: a pickle in which the bytes of each array follow the description of it.

Source: `joblib.numpy_pickle.NumpyArrayWrapper`, joblib 0.10 to 1.6. Where the unpickler has just built one, what follows is: from
joblib 1.2 on one byte, which says how many bytes of padding come after it, so that the payload begins at a multiple of 16;
then the payload, in the order of the array; or, for an array of objects, a pickle of its own.

Peak memory: the objects and what was copied; one window of 1 MiB for what was compressed.
"""

from __future__ import annotations

import io
import math
import pickle
import sys
from collections.abc import Callable
from typing import Any, ClassVar

from joblib.numpy_pickle import NDArrayWrapper, NumpyArrayWrapper, ZNDArrayWrapper

from mlup_stream.ml.binarization.pickle_input import CheckedFile, FindsClasses
from mlup_stream.ml.binarization.unpickler import InPlaceUnpickler
from mlup_stream.units import MIB

__all__ = ["BeforeJoblib010", "HasArrays", "JoblibUnpickler", "ObjectUnpickler", "Unpacked"]

_SWAPPED = ">" if sys.byteorder == "little" else "<"
_SWAPPED_COPIED = "of the other byte order, turned into this machine's"
_PIECE_BYTES = 1 * MIB


class BeforeJoblib010(Exception):
    """The file is of the format before joblib 0.10, with arrays in files beside it: only joblib itself reads that."""


class HasArrays(Exception):
    """What looked like a plain pickle is not one: it has arrays in it."""


class Unpacked(io.RawIOBase):
    """What a decompressor gives, from one end to the other: going back would mean unpacking it all again."""

    def __init__(self, decompressor: Any) -> None:
        super().__init__()
        self._decompressor = decompressor

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]  # collections.abc.Buffer needs 3.12
        target = memoryview(buffer).cast("B")
        # Some decompressors make one piece of bytes of what they are asked for.
        piece = self._decompressor.read(min(len(target), _PIECE_BYTES))
        target[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._decompressor.close()
        super().close()


class ObjectUnpickler(FindsClasses, pickle.Unpickler):
    """The unpickler in C, for a joblib file that has no arrays."""

    format_name = "joblib file"

    def find_class(self, module: str, name: str, /) -> Any:
        found = super().find_class(module, name)
        if found in (NumpyArrayWrapper, NDArrayWrapper, ZNDArrayWrapper):
            raise HasArrays
        return found


class JoblibUnpickler(FindsClasses, InPlaceUnpickler):
    """See `InPlaceUnpickler`; arrays are left in the file wherever the placer leaves them there."""

    format_name = "joblib file"
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(InPlaceUnpickler.dispatch)

    def load_build(self) -> None:
        super().load_build()
        built = self.stack[-1]
        if type(built) is NumpyArrayWrapper:
            self.stack[-1] = self._array_after(built)
        elif isinstance(built, NDArrayWrapper):
            raise BeforeJoblib010

    dispatch[pickle.BUILD[0]] = load_build

    def _array_after(self, wrapper: Any) -> Any:
        """The array whose bytes follow in the file."""
        import numpy as np

        if self._ahead_bytes():
            raise pickle.UnpicklingError("an array that lies within a frame")
        if wrapper.dtype.hasobject:
            return self._objects()
        # Absent in what joblib before 1.2 wrote.
        if getattr(wrapper, "numpy_array_alignment_bytes", None) is not None:
            padding = self._exactly(1)[0]
            self._exactly(padding)
        array = self._payload(wrapper)
        if _is_swapped(array.dtype):
            array = array.byteswap(inplace=True).view(array.dtype.newbyteorder("="))
        # NumPy 2 has no __array_prepare__, and joblib leaves it at an ndarray then.
        if hasattr(array, "__array_prepare__") and wrapper.subclass not in (np.ndarray, np.memmap):
            return np.ndarray.__new__(wrapper.subclass, (0,), "b").__array_prepare__(array)
        return array

    def _payload(self, wrapper: Any) -> Any:
        dtype, order = wrapper.dtype, wrapper.order
        shape = tuple(int(each) for each in wrapper.shape)
        size_bytes = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or order not in ("C", "F"):
            raise pickle.UnpicklingError(f"an array of shape {shape} in order {order!r}")
        assert self._placer is not None  # a joblib file is never read without one
        if self._size_bytes is None:
            return self._placer.from_stream(self._file, dtype, shape, order)
        offset = self._file.tell()
        if offset + size_bytes > self._size_bytes:
            raise EOFError(f"expected {size_bytes} bytes of an array at {offset}, found {self._size_bytes - offset}")
        if _is_swapped(dtype):
            return self._placer.from_stream(self._file, dtype, shape, order, because=_SWAPPED_COPIED)
        # From now on, what a __setstate__ has copied is dropped from the map.
        self.has_late = self._leaves_unread
        array = self._placer.array(offset, dtype, shape, order)
        self._file.seek(offset + size_bytes)
        return array

    def _exactly(self, size_bytes: int) -> bytes:
        data: bytes = self._file.read(size_bytes)
        if len(data) != size_bytes:
            raise EOFError(f"expected {size_bytes} bytes of padding, found {len(data)}")
        return data

    def _objects(self) -> Any:
        inner = _Inner(CheckedFile(self._file))
        inner.outer_find_class = self.find_class
        return inner.load()


class _Inner(pickle.Unpickler):
    """Reads the pickle of an array of objects, with the classes that the outer one finds."""

    outer_find_class: Callable[[str, str], Any]

    def find_class(self, module: str, name: str, /) -> Any:
        return self.outer_find_class(module, name)


def _is_swapped(dtype: Any) -> bool:
    """Whether joblib turns such an array into this machine's byte order when it loads it."""
    if dtype.byteorder == "|" and dtype.fields:
        return all(field[0].byteorder == _SWAPPED for field in dtype.fields.values())
    return bool(dtype.byteorder == _SWAPPED)


