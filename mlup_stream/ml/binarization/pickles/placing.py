"""Where the payload of an array goes: it stays in the mapped file, or is copied; and what became of it all, for the report.

Measured on a matrix of 256 MiB that is not aligned to its items (x86-64, numpy 2.4, OpenBLAS): elementwise arithmetic and
indexing cost the same, while each BLAS call first copies the whole matrix (a matrix-vector product takes 177 ms instead of 32 ms,
and 256 MiB meanwhile). And some code in C does not take it at all: SciPy 1.17's `linalg.solve` and `linalg.inv`, and its
B-splines, `memoryview`, `ctypes`. Seven pickles of eight have such arrays, and who loads one does not know it. So it is copied
into aligned memory, as the library would have done (256 MiB: 0.06 s, `pickle.load` 0.16 s), with these exceptions:

- It belongs to an estimator of scikit-learn: all of 1.9 were tried, and cope (`COPES`), but for GaussianProcessClassifier and
  SplineTransformer (`NEEDS_ALIGNMENT`).
- Mapping was asked for: `mapping="copy-on-write"` or `"read-only"`. Then it stays in the file, unless its class is known to need
  it aligned, or it is small: such are copied up to 1% of the file in all.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from mlup_stream.delivery.kinds import Optimize
from mlup_stream.delivery.placement import Placement
from mlup_stream.delivery.terms import Terms
from mlup_stream.delivery.view import View
from mlup_stream.units import MIB, format_bytes

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Placer", "fill"]

_PIECE_BYTES = 1 * MIB

_SMALL_BYTES = 1 * MIB
_NOT_ALIGNED_COPIED = (
    "not aligned to their items, copied: code in C may need it; mapping='copy-on-write' leaves them in the file,"
    " `mlup-stream pack` aligns them"
)
_NOT_ALIGNED_MAPPED = "not aligned to their items, mapped: a BLAS call copies them each time; `mlup-stream pack` aligns them"
_COPIED_BY_MODEL = "copied by the model itself while it was built"
_NOT_A_FILE = "the content came as a buffer, not as a file"


NEEDS_ALIGNMENT = ("scipy.interpolate.", "sklearn.gaussian_process._gpc.")
"""How the full names of classes begin whose code takes aligned arrays only."""


COPES = ("sklearn.",)
"""How the full names of the other classes begin whose code was tried with arrays that are not aligned."""


def _is_one_of(owner: type[Any] | None, beginnings: tuple[str, ...]) -> bool:
    return owner is not None and f"{owner.__module__}.{owner.__qualname__}".startswith(beginnings)


class _Held(NamedTuple):
    """A payload on the map: it is in use as long as `reference` leads to something."""

    reference: weakref.ref[Any]
    start: int
    stop: int
    aligned: bool


class Placer:
    """Places payloads of one file, and keeps account of them.

    Args:
        terms: Say whether mapped arrays are to be writable, and what to prefer.
        view: The file; None when everything is to be copied.
        file: The same bytes to read from, for what is copied: the map's pages are not touched for that.
        allowance_bytes: How much to copy of small arrays that are not aligned; by default 1% of the file, or 1 MiB.
    """

    def __init__(self, terms: Terms, view: View | None, file: BinaryIO, *, allowance_bytes: int | None = None) -> None:
        self._view = view
        self._file = file
        self._prefers_speed = terms.optimize is Optimize.SPEED
        self._maps_unaligned = terms.maps_unaligned
        # A view of a buffer has no copy-on-write map: its `writable` is one whole copy; one for each array is freed sooner.
        self._copies_all = view is None or (view.path is None and terms.writable)
        self.writable = terms.writable
        size_bytes = view.size_bytes if view is not None else 0
        self._allowance_bytes = max(size_bytes // 100, _SMALL_BYTES) if allowance_bytes is None else allowance_bytes
        self._copied_bytes = 0
        self._because: dict[str, list[int]] = {}
        self._held: dict[int, _Held] = {}
        self._unused: list[int] = []
        self._last_number = 0

    @property
    def maps(self) -> bool:
        """Whether anything stays in the map at all."""
        return not self._copies_all

    def array(
        self,
        offset: int,
        dtype: np.dtype[Any],
        shape: Sequence[int],
        order: str = "C",
        subtype: type[np.ndarray[Any, Any]] | None = None,
        *,
        owner: type[Any] | None = None,
    ) -> np.ndarray[Any, Any]:
        """The array whose payload lies at `offset`, on the map or in memory of its own.

        Args:
            offset: From the start of the file, in bytes; the caller has made sure that the payload lies within it.
            dtype: Of the items, which hold no Python objects.
            shape: In items.
            order: `"C"` or `"F"`.
            subtype: A subclass to make, by default `numpy.ndarray`.
            owner: The class of the object that will have it, where that is known.
        """
        size_bytes = math.prod(shape) * dtype.itemsize
        held = self.hold(offset, size_bytes, dtype, owner=owner)
        if held is not None:
            return _over(held, dtype, shape, order, subtype)
        because = _NOT_ALIGNED_COPIED if not self._copies_all else None if self._view is None else _NOT_A_FILE
        before = self._file.tell()
        self._file.seek(offset)
        array = self.from_stream(self._file, dtype, shape, order, subtype, because=because)
        self._file.seek(before)
        return array

    def from_stream(
        self,
        stream: Any,
        dtype: np.dtype[Any],
        shape: Sequence[int],
        order: str = "C",
        subtype: type[np.ndarray[Any, Any]] | None = None,
        *,
        because: str | None = None,
    ) -> np.ndarray[Any, Any]:
        """The array whose payload comes next in a binary stream, in memory of its own; see `array`.

        Raises:
            EOFError: The stream ends before that.
        """
        import numpy as np

        size_bytes = math.prod(shape) * dtype.itemsize
        held = np.empty(size_bytes, np.uint8)
        fill(held.data, stream)
        self.copied(size_bytes, because if size_bytes else None)
        array = _over(held, dtype, shape, order, subtype)
        array.flags.writeable = self.writable
        return array

    def hold(
        self,
        offset: int,
        size_bytes: int,
        dtype: np.dtype[Any] | None = None,
        *,
        writable: bool = True,
        owner: type[Any] | None = None,
    ) -> np.ndarray[Any, Any] | None:
        """The bytes on the map as an array of bytes, which others are then made upon; None if they are to be copied.

        Args:
            offset: From the start of the file.
            size_bytes: How many.
            dtype: What the items will be, for their alignment.
            writable: False for bytes that must not be writable whatever the policy.
            owner: The class of the object that will have them, where that is known.
        """
        if self._copies_all or size_bytes == 0:
            return None
        import numpy as np

        buffer = self._buffer()
        if buffer is None:
            return None
        part = buffer[offset : offset + size_bytes]
        # frombuffer holds on to the map (an export), which ndarray(buffer=map) does not: the map could be closed under it.
        held = np.frombuffer(part if writable else part.toreadonly(), np.uint8)
        aligned = dtype is None or held.__array_interface__["data"][0] % dtype.alignment == 0
        if not aligned and not self._may_stay(owner):
            return None
        if not aligned and size_bytes <= min(_SMALL_BYTES, self._allowance_bytes):
            self._allowance_bytes -= size_bytes
            return None
        number = self._last_number = self._last_number + 1
        unused = self._unused
        reference = weakref.ref(held, lambda _: unused.append(number))
        self._held[number] = _Held(reference, offset, offset + size_bytes, aligned)
        return held

    def _may_stay(self, owner: type[Any] | None) -> bool:
        """Whether an array that is not aligned, of an object of this class, may stay in the map."""
        if self._prefers_speed or _is_one_of(owner, NEEDS_ALIGNMENT):
            return False
        return self._maps_unaligned or _is_one_of(owner, COPES)

    def _buffer(self) -> memoryview | None:
        assert self._view is not None  # or everything would be copied
        if not self.writable:
            return self._view.buffer
        try:
            return self._view.writable
        except OSError:
            # Under RLIMIT_DATA or strict overcommit (vm.overcommit_memory=2) a private writable map is charged, whatever is asked
            # for. An array that can be written to is then a copy, if that fits.
            self._copies_all = True
            return None

    def copied(self, size_bytes: int, because: str | None = None) -> None:
        """Takes note of a payload that was copied."""
        self._copied_bytes += size_bytes
        if because is not None:
            self.said(size_bytes, because)

    def said(self, size_bytes: int, because: str) -> None:
        """Takes note of what is to be told of an array of this size."""
        count = self._because.setdefault(because, [0, 0])
        count[0] += 1
        count[1] += size_bytes

    def check(self) -> None:
        """Makes sure that the file is as it was: to be called before code runs that may touch what is mapped.

        Raises:
            ModelFileChanged: It is not. Touching a page behind the new end would kill the process.
        """
        if self._held and self._view is not None:
            self._view.check()

    def drop_unused(self) -> None:
        """Takes out of RSS what was mapped and is no longer referred to: what an estimator copied while it was built."""
        while self._unused and self._view is not None:
            held = self._held.pop(self._unused.pop())
            self._view.drop(held.start, held.stop, writable=self.writable)
            self.copied(held.stop - held.start, _COPIED_BY_MODEL)

    def placement(self) -> Placement:
        """What became of the payloads so far."""
        mapped = [held.stop - held.start for held in self._held.values()]
        not_aligned = [held.stop - held.start for held in self._held.values() if not held.aligned]
        reasons = [_said(because, count, size) for because, (count, size) in self._because.items()]
        if not_aligned:
            reasons.append(_said(_NOT_ALIGNED_MAPPED, len(not_aligned), sum(not_aligned)))
        parts = tuple((held.start, held.stop) for held in self._held.values())
        return Placement(sum(mapped), self._copied_bytes, tuple(reasons), parts)


def _said(reason: str, count: int, size_bytes: int) -> str:
    return f"{count} {'array' if count == 1 else 'arrays'} ({format_bytes(size_bytes)}): {reason}"


def _over(
    held: np.ndarray[Any, Any], dtype: np.dtype[Any], shape: Sequence[int], order: str, subtype: type[Any] | None
) -> np.ndarray[Any, Any]:
    import numpy as np

    new: Any = np.ndarray.__new__
    if held.size == 0:
        empty: np.ndarray[Any, Any] = new(subtype or np.ndarray, tuple(shape), dtype, order=order)
        return empty
    array: np.ndarray[Any, Any] = new(subtype or np.ndarray, tuple(shape), dtype, buffer=held, order=order)
    return array


def fill(target: memoryview, stream: Any) -> None:
    """Fills `target` with what comes next in a binary stream, in pieces: some streams make one object of what is asked for.

    Raises:
        EOFError: The stream ends before that.
    """
    target = target.cast("B")
    position = 0
    while position < len(target):
        count = stream.readinto(target[position : position + _PIECE_BYTES])
        if not count:
            raise EOFError(f"expected {len(target)} bytes, found {position}")
        position += count
