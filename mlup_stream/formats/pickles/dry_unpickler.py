"""An unpickler that builds nothing: the standard library's stack and memo, over stand-ins for everything that a pickle names.

A pickle in which the bytes of arrays lie between the opcodes, as joblib writes it, can only be followed by who knows what is on
the stack: how long an array is says the state of the object that was built right before it. This follows it without importing,
calling or building anything that the file chooses.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from typing import Any, ClassVar

__all__ = ["ArrayState", "CannotFollow", "DryUnpickler", "Inert", "StandInDType"]


class CannotFollow(Exception):
    """The stand-ins do not know how it goes on. The file may be whole."""


class Inert:
    """Stands for any class, function or object, and does nothing, whatever is asked of it."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return Inert()

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, *items: Any) -> None:
        pass

    extend = add = append


class _Wrapper(Inert):
    """Stands for a `NumpyArrayWrapper`."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class StandInDType(Inert):
    """Stands for a dtype.

    Attributes:
        item_bytes: The size of its items; None for Python objects. Asking for that of one which is not known raises CannotFollow.
    """

    def __init__(self, name: str, *arguments: Any) -> None:
        # As numpy pickles it: f8, U10, V64, O8, and the same for structured types.
        found = re.fullmatch(r"([a-zA-Z])(\d{1,18})", name) if isinstance(name, str) else None
        self.known = found is not None
        kind, digits = found.groups() if found is not None else ("V", "0")
        self._item_bytes = None if kind == "O" else int(digits) * (4 if kind == "U" else 1)

    @property
    def item_bytes(self) -> int | None:
        if not self.known:
            raise CannotFollow
        return self._item_bytes


def _reconstructor(cls: Any, *arguments: Any) -> Any:
    return cls.__new__(cls)


_STAND_INS: dict[tuple[str, str], Any] = {
    ("joblib.numpy_pickle", "NumpyArrayWrapper"): _Wrapper,
    ("sklearn.externals.joblib.numpy_pickle", "NumpyArrayWrapper"): _Wrapper,  # where scikit-learn had it before 0.23
    ("numpy", "dtype"): StandInDType,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("copy_reg", "_reconstructor"): _reconstructor,
}

ArrayState = dict[str, Any]
"""The state of a `NumpyArrayWrapper`, whose `dtype` has `item_bytes`."""

_Standard: Any = pickle._Unpickler


class DryUnpickler(_Standard):  # type: ignore[misc]  # private, and the same from Python 3.8 to 3.14
    """The standard unpickler, of which nothing is left but its stack and its memo.

    Args:
        file: With `read(size_bytes)` and `readline()`. It may give nothing for large payloads, and sees every opcode's bytes:
            frames are read through, not ahead.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_Standard.dispatch)

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.encoding = "latin-1"  # of text that Python 2 wrote: any bytes are valid

    def array_follows(self, state: ArrayState) -> None:
        """Called where the bytes of an array follow in the file."""

    def find_class(self, module: str, name: str) -> Any:
        return _STAND_INS.get((module, name), Inert)

    def get_extension(self, code: int) -> None:
        self.append(Inert)  # the standard one has a cache of real classes

    def persistent_load(self, pid: Any) -> Any:
        return Inert()

    def load_frame(self) -> None:
        self.read(8)

    dispatch[pickle.FRAME[0]] = load_frame

    def load_bytearray8(self) -> None:
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def load_next_buffer(self) -> None:
        self.append(b"")

    dispatch[pickle.NEXT_BUFFER[0]] = load_next_buffer

    def load_readonly_buffer(self) -> None:
        pass

    dispatch[pickle.READONLY_BUFFER[0]] = load_readonly_buffer

    def load_build(self) -> None:
        _Standard.load_build(self)
        if isinstance(self.stack[-1], _Wrapper):
            state = self.stack[-1].state
            if not isinstance(state, dict) or not isinstance(state.get("dtype"), StandInDType):
                raise CannotFollow
            self.array_follows(state)
            self.stack[-1] = Inert()

    dispatch[pickle.BUILD[0]] = load_build
