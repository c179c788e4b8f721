"""Which payloads of a pickle or joblib file stay in the map when this package loads it: found by a load that builds nothing.

The unpicklers are those of a real load. What they look up is replaced by stand-ins that do nothing, but for NumPy's own functions
that make arrays; so no code that the file chooses runs, and nothing of the model is imported.
"""

from __future__ import annotations

import copyreg
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar, NamedTuple

from mlup_stream.delivery.kinds import MappingMode
from mlup_stream.delivery.terms import Terms
from mlup_stream.delivery.view import View
from mlup_stream.extras import require
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.pickles.dry_unpickler import Inert
from mlup_stream.ml.binarization.pickles.in_place_unpickler import InPlaceUnpickler
from mlup_stream.ml.binarization.pickles.placing import Placer
from mlup_stream.ml.binarization.pickles.unread_payloads import Late, LateTuple
from mlup_stream.units import MIB

__all__ = ["Found", "find_payloads"]

_READ_BYTES = 1 * MIB
"""What is read although nothing is built of it: small arrays that the placer copies because they are not aligned."""


class Found(NamedTuple):
    """A payload that stayed in the map.

    Attributes:
        start: Where it lies in the file.
        size_bytes: Its length.
        aligned: Whether its items are aligned.
    """

    start: int
    size_bytes: int
    aligned: bool


def find_payloads(path: str, format: Format) -> list[Found]:
    """The payloads that stay in the file, in the order of their arrays.

    Raises:
        Exception: Whatever the unpickler raises for a file that it cannot read.
    """
    view = View(path)
    try:
        with view.open_structure() as file:
            placer = _Noting(Terms(mapping=MappingMode.READ_ONLY), view, file)
            unpickler = _joblib_unpickler() if format is Format.JOBLIB else _pickle_unpickler()
            unpickler(file, placer).load()
        return placer.found
    finally:
        view.release()


class _Noting(Placer):
    """A placer that takes note of what it leaves in the map."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.found: list[Found] = []

    def hold(
        self, offset: int, size_bytes: int, dtype: Any = None, *, writable: bool = True, owner: type[Any] | None = None
    ) -> Any:
        held = super().hold(offset, size_bytes, dtype, writable=writable, owner=owner)
        if held is not None:
            self.found.append(Found(offset, size_bytes, dtype is None or offset % dtype.alignment == 0))
        return held


def _real_names() -> dict[tuple[str, str], Any]:
    """What is looked up for real: what makes arrays and nothing else. Its arguments come from the file."""
    numpy = require("numpy", "arrays")

    def reconstruct(subtype: Any, shape: Any, typecode: Any) -> Any:
        return numpy.ndarray.__new__(numpy.ndarray, (0,), "b")

    real = {("numpy", "dtype"): numpy.dtype, ("numpy", "ndarray"): numpy.ndarray}
    for module in ("numpy._core", "numpy.core"):
        real[module + ".multiarray", "_reconstruct"] = reconstruct
        real[module + ".numeric", "_frombuffer"] = _frombuffer_of(numpy)
    return real


def _frombuffer_of(numpy: Any) -> Any:
    numeric = numpy._core.numeric if hasattr(numpy, "_core") else numpy.core.numeric
    return numeric._frombuffer


def _joblib_unpickler() -> Callable[[BinaryIO, Placer], Any]:
    from mlup_stream.ml.binarization.pickles.joblib_unpickler import JOBLIB_MODULES, JoblibUnpickler

    real = _real_names()
    if copyreg._inverted_registry:  # type: ignore[attr-defined]  # the codes that this process has registered
        # The unpickler in C answers for them out of a cache of its own, past `find_class`.
        raise pickle.UnpicklingError("extension codes are registered in this process")

    class StandIns(JoblibUnpickler):
        def find_class(self, module: str, name: str, /) -> Any:
            if (module, name) in real:
                return real[module, name]
            # Never the real `find_class`: it imports whatever module the file names.
            return self._wrapper if name == "NumpyArrayWrapper" and module.endswith(JOBLIB_MODULES) else Inert

    return lambda file, placer: StandIns(file, placer, name="<stand-ins>", keeps_memo=True)


def _pickle_unpickler() -> Callable[[BinaryIO, Placer], Any]:
    real = _real_names()
    ndarray = real["numpy", "ndarray"]

    class StandIns(InPlaceUnpickler):
        dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(InPlaceUnpickler.dispatch)

        def find_class(self, module: str, name: str) -> Any:
            return real.get((module, name), Inert)

        def persistent_load(self, pid: Any) -> Any:
            return Inert()

        def get_extension(self, code: int) -> None:
            self.append(Inert)

        def load_next_buffer(self) -> None:
            self.append(b"")

        dispatch[pickle.NEXT_BUFFER[0]] = load_next_buffer

        def load_build(self) -> None:
            state = self.stack[-1]
            if isinstance(state, LateTuple) and len(self.stack) > 1 and isinstance(self.stack[-2], ndarray):
                self.stack.pop()
                self._array_made(state)  # if not, for its byte order say, it would be copied: it is left empty
            else:
                super().load_build()

        dispatch[pickle.BUILD[0]] = load_build

        def _read(self, late: Late) -> bytes | bytearray:
            # Bytes that no array is made of: nobody here looks at them.
            return super()._read(late) if late.size_bytes <= _READ_BYTES else late.kind()

    return StandIns
