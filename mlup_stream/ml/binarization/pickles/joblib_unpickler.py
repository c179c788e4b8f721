"""The unpickler of joblib files: the one in C, which stops where the bytes of an array follow (`joblib_feed`).

Source: `joblib.numpy_pickle.NumpyArrayWrapper`, joblib 0.10 to 1.6. Behind the pickled wrapper comes: from joblib 1.2 on a byte,
which says how many bytes of padding follow it, so that the payload begins at a multiple of 16; then the payload, in the order of
the array; or, for an array of objects, a pickle of its own. joblib itself is not needed for that.

Peak memory: the objects and what was copied, and what `joblib_memo` allows.
"""

from __future__ import annotations

import math
import pickle
import sys
from typing import Any, BinaryIO

from mlup_stream.errors import MLupError
from mlup_stream.ml.binarization.pickles.checked_input import FindsClasses
from mlup_stream.ml.binarization.pickles.joblib_feed import Feed
from mlup_stream.ml.binarization.pickles.joblib_memo import MemoKeeper
from mlup_stream.ml.binarization.pickles.placing import Placer
from mlup_stream.trust.policy import FULL, Policy
from mlup_stream.units import KIB

__all__ = ["JOBLIB_MODULES", "ArraysBeside", "JoblibUnpickler", "MustKeepMemo"]

_MAPPED_BYTES = 1 * KIB
"""A smaller array takes less when it is copied: an array in a map takes 600 bytes besides its own."""
_SWAPPED = ">" if sys.byteorder == "little" else "<"
_SWAPPED_COPIED = "of the other byte order, turned into this machine's"
JOBLIB_MODULES = ("joblib.numpy_pickle", "joblib.numpy_pickle_compat")
_BEFORE_010 = ("NDArrayWrapper", "ZNDArrayWrapper")


class ArraysBeside(Exception):
    """The file is of the format before joblib 0.10, with arrays in files beside it: only joblib itself reads that."""


class MustKeepMemo(Exception):
    """The pickle asks for something that was let go; to be loaded again with `keeps_memo`."""


class _Wrapper:
    """Stands for joblib's `NumpyArrayWrapper`. What an unpickler builds is of a subclass that knows its feed.

    `shape`, `order`, `dtype`, `subclass` and `numpy_array_alignment_bytes` are the state that was pickled.
    """

    feed: Feed

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.feed.stop_for(self)


class _Unpickler(FindsClasses, pickle.Unpickler):
    """What the unpickler of the file, and that of an array of objects in it, have in common."""

    format_name = "joblib file"

    def __init__(self, file: BinaryIO, keeper: MemoKeeper, encoding: str) -> None:
        self._encoding = encoding
        self._feed = Feed(file)
        self._feed.between_frames = self._look
        self._keeper = keeper
        super().__init__(self._feed, encoding=encoding)

    def load(self) -> Any:
        try:
            model = super().load()
            self._feed.finish()
            return model
        finally:
            # This and the feed refer to each other, and the memo would live on with them.
            self.memo.clear()
            self._feed.between_frames = None

    def _look(self) -> None:
        passed_bytes = self._feed.passed_bytes
        if self._keeper.is_due(passed_bytes):
            self._feed.push(self._keeper.opcodes(self.memo.copy(), passed_bytes))

    def persistent_load(self, pid: Any, /) -> Any:
        if pid is None and self._feed.awaited is None and self._keeper.stand_in is not None:
            return self._keeper.stand_in
        raise pickle.UnpicklingError("a persistent id, which joblib does not write")


class JoblibUnpickler(_Unpickler):
    """`pickle.Unpickler` for a joblib file that is not compressed, or for what a compressed one holds.

    Args:
        file: A binary file, read from where it stands.
        placer: Says where arrays go. A file that cannot seek has none of them left in place.
        name: The file, for messages.
        keeps_memo: Whether to keep everything that the pickle might ask for, as the standard unpickler does.
        native: Whether arrays of the other byte order are turned into this machine's, as joblib does by default.
        encoding: Of the text that Python 2 wrote, as `pickle.Unpickler` has it.
        trust: What the file may name.
    """

    def __init__(
        self,
        file: BinaryIO,
        placer: Placer,
        *,
        name: str,
        keeps_memo: bool = False,
        native: bool = True,
        encoding: str = "ASCII",
        trust: Policy = FULL,
    ) -> None:
        self.model_name, self.trust = name, trust
        self._file: Any = file
        self._placer = placer
        self._native = native
        super().__init__(file, MemoKeeper(not keeps_memo), encoding)
        self._wrapper: type[_Wrapper] = type("NumpyArrayWrapper", (_Wrapper,), {"feed": self._feed})

    def load(self) -> Any:
        """The model.

        Raises:
            MustKeepMemo: What was let go is asked for.
            ArraysBeside: The file is older than joblib 0.10.
        """
        try:
            model = super().load()
        except (ArraysBeside, MLupError, MemoryError, OSError, EOFError):
            raise
        except Exception as error:
            if self._keeper.let_go:  # somebody may have stumbled over a stand-in
                raise MustKeepMemo from error
            raise
        finally:
            del self._wrapper.feed
        if self._keeper.was_asked_for():
            raise MustKeepMemo
        return model

    def find_class(self, module: str, name: str, /) -> Any:
        if module.endswith(JOBLIB_MODULES):  # scikit-learn before 0.23 had joblib in it, under another name
            if name == "NumpyArrayWrapper":
                return self._wrapper
            if name in _BEFORE_010:
                raise ArraysBeside
        return super().find_class(module, name)

    def persistent_load(self, pid: Any, /) -> Any:
        if not isinstance(pid, _Wrapper):
            return super().persistent_load(pid)
        self._feed.arrived(pid)
        # Arrays that came before may since have been copied by whom they belong to, and those that follow may be now.
        self._placer.drop_unused()
        self._placer.check()
        array = self._array(pid)
        self._look()
        return array

    def _array(self, wrapper: Any) -> Any:
        """The array whose bytes follow in the file."""
        import numpy as np

        if wrapper.dtype.hasobject:
            return _ObjectsUnpickler(self._file, self).load()
        # Absent in what joblib before 1.2 wrote.
        if wrapper.__dict__.get("numpy_array_alignment_bytes") is not None:
            self._exactly(self._exactly(1)[0])
        array = self._payload(wrapper.dtype, tuple(int(each) for each in wrapper.shape), wrapper.order)
        if self._native and _is_swapped(array.dtype):
            array = array.byteswap(inplace=True).view(array.dtype.newbyteorder("="))
        # NumPy 2 has no __array_prepare__, and joblib leaves it at an ndarray then.
        if hasattr(array, "__array_prepare__") and wrapper.subclass not in (np.ndarray, np.memmap):
            return np.ndarray.__new__(wrapper.subclass, (0,), "b").__array_prepare__(array)
        return array

    def _payload(self, dtype: Any, shape: tuple[int, ...], order: str) -> Any:
        size_bytes = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or order not in ("C", "F"):
            raise pickle.UnpicklingError(f"an array of shape {shape} in order {order!r}")
        left_bytes = self._feed.left()
        if left_bytes is not None and size_bytes > left_bytes:
            raise EOFError(f"expected {size_bytes} bytes of an array, found {left_bytes}")
        self._feed.passed_bytes += size_bytes
        swaps = self._native and _is_swapped(dtype)
        if left_bytes is None or not self._placer.maps or swaps or size_bytes < _MAPPED_BYTES:
            because = _SWAPPED_COPIED if swaps and self._placer.maps else None
            return self._placer.from_stream(self._file, dtype, shape, order, because=because)
        offset = self._file.tell()
        array = self._placer.array(offset, dtype, shape, order)
        self._file.seek(offset + size_bytes)
        return array

    def _exactly(self, size_bytes: int) -> bytes:
        data: bytes = self._file.read(size_bytes)
        if len(data) != size_bytes:
            raise EOFError(f"expected {size_bytes} bytes of padding, found {len(data)}")
        return data


class _ObjectsUnpickler(_Unpickler):
    """Reads the pickle of an array of objects, with the classes that the outer one finds, and counts as part of it."""

    def __init__(self, file: BinaryIO, outer: JoblibUnpickler) -> None:
        super().__init__(file, outer._keeper, outer._encoding)
        self._outer = outer
        self._feed.passed_bytes = outer._feed.passed_bytes

    def find_class(self, module: str, name: str, /) -> Any:
        found = self._outer.find_class(module, name)
        if isinstance(found, type) and issubclass(found, _Wrapper):
            raise pickle.UnpicklingError("an array within the pickle of an array of objects")
        return found

    def load(self) -> Any:
        array = super().load()
        self._outer._feed.passed_bytes = self._feed.passed_bytes
        return array


def _is_swapped(dtype: Any) -> bool:
    """Whether joblib turns such an array into this machine's byte order when it loads it."""
    if dtype.byteorder == "|" and dtype.fields:
        return all(field[0].byteorder == _SWAPPED for field in dtype.fields.values())
    return bool(dtype.byteorder == _SWAPPED)
