"""What a pickle or joblib file names and does with it, from its first opcode to its last, by stand-ins for what it would build.

Nothing is imported, called or built that the file chooses. Unlike `named_globals`, which looks at the beginning, this follows the
whole file, strings that come out of the memo and the pickles within arrays of objects included. Some ways of abusing what is
harmless in itself show here alone, where the stack is known, and are refused whatever is listed:

- a class, or anything else that was named, that is given a state: that would change it for the whole process;
- an array type that is called: `numpy.ndarray` makes Python objects of any bytes when it is given a buffer and the dtype of
  objects. What numpy writes only hands the type on, to `_reconstruct`;
- a dtype with fields of objects, or whose fields lie outside of it: items of bytes would be taken for Python objects;
- a call of what another call returned: no library writes that, and some functions return what they are given;
- a scalar of the dtype of objects, which is whatever it is given;
- extension codes, which the unpickler in C answers from a cache, and ids of persistent objects.

About 2 us for a step, of which an opcode has one or two. Peak memory: as `formats.pickles.joblib`.
"""

from __future__ import annotations

import pickle
import re
import types
from collections.abc import Callable
from typing import Any, ClassVar

from mlup_stream.errors import CorruptModelError
from mlup_stream.formats.pickles.dry_unpickler import ArrayState, CannotFollow, Inert, StandInDType
from mlup_stream.formats.pickles.joblib import SteppedFile, Survey
from mlup_stream.formats.source import Source

__all__ = ["Abused", "Named", "follow_globals", "globals_of"]

_MOST_STEPS = 1 << 62  # as many as the file has bytes: each step reads one or more
_DTYPE = re.compile(r"[<>|=]?[a-zA-Z]\d*(\[\w+\])?")
_ARRAY_TYPES = frozenset({"ndarray", "recarray", "matrix", "MaskedArray", "memmap", "chararray", "mvoid"})
_DTYPE_STATE = 8  # entries: version, byte order, subdtype, names, fields, size, alignment, flags; then metadata

Named = Callable[[str, str, int], None]
"""Called with module, name and the byte at which it is named; what it raises ends the walk."""


class Abused(Exception):
    """The file does with what it names what no library's own pickle does: `args` say what, and at which byte."""


class _ArrayType(Inert):
    """Stands for `numpy.ndarray` and its like, which are handed on and never called."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
        raise _Called


class _Called(Exception):
    pass


class _DType(StandInDType):
    """Stands for a dtype, and looks at what makes one."""

    def __init__(self, name: Any, *arguments: Any) -> None:
        super().__init__(name, *arguments)
        if isinstance(name, type):  # numpy.record, whose size the state says
            self.has_objects = False
            return
        if not isinstance(name, str) or not _DTYPE.fullmatch(name):
            raise _Called
        self.has_objects = name.lstrip("<>|=")[:1] == "O"

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < _DTYPE_STATE - 1:
            raise _Called
        _, _, subdtype, names, fields, size_bytes, *_ = state
        own_bytes = self.size_or_none()
        if own_bytes is None and isinstance(size_bytes, int) and size_bytes > 0:
            self.known, self._item_bytes = True, size_bytes
            own_bytes = size_bytes
        if size_bytes not in (-1, own_bytes):
            raise _Called
        if subdtype is not None and (not isinstance(subdtype, tuple) or not _is_plain(subdtype[0])):
            raise _Called
        if names is None and fields is None:
            return
        if not isinstance(fields, dict) or own_bytes is None:
            raise _Called
        for field in fields.values():
            kind, offset = field[:2]
            field_bytes = kind.size_or_none() if _is_plain(kind) else None
            if field_bytes is None or not isinstance(offset, int) or not 0 <= offset <= own_bytes - field_bytes:
                raise _Called

    def size_or_none(self) -> int | None:
        return self.item_bytes if self.known else None


class _Scalar(Inert):
    """Stands for numpy's function of a pickled scalar."""

    def __init__(self, kind: Any = None, *arguments: Any) -> None:
        if not _is_plain(kind):
            raise _Called


def _is_plain(kind: Any) -> bool:
    return isinstance(kind, _DType) and not kind.has_objects


class _Follower(Survey):
    """Tells each name, and refuses what is abuse."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(Survey.dispatch)

    def __init__(self, file: SteppedFile, named: Named) -> None:
        super().__init__(file)
        self._named = named

    def find_class(self, module: str, name: str) -> Any:
        self._named(module, name, self._file.at)
        if module.partition(".")[0] == "numpy":
            if name in _ARRAY_TYPES:
                return _ArrayType
            if name == "dtype":
                return _DType
            if name == "scalar":
                return _Scalar
        return super().find_class(module, name)

    def get_extension(self, code: int) -> None:
        raise Abused(f"an extension code ({code})", self._file.at)

    def persistent_load(self, pid: Any) -> Any:
        raise Abused("the id of a persistent object", self._file.at)

    def array_follows(self, state: ArrayState) -> None:
        if state["dtype"].item_bytes is not None:
            super().array_follows(state)
            return
        self.arrays += 1
        _Follower(self._file, self._named).load()

    def load_build(self) -> None:
        if isinstance(self.stack[-2], type):
            raise Abused("a state for a class or function instead of an object", self._file.at)
        Survey.load_build(self)

    dispatch[pickle.BUILD[0]] = load_build

    def load_reduce(self) -> None:
        self._only_what_is_named(self.stack[-2])
        _standard_reduce(self)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_newobj(self) -> None:
        self._only_what_is_named(self.stack[-2])
        _standard_newobj(self)

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_newobj_ex(self) -> None:
        self._only_what_is_named(self.stack[-3])
        _standard_newobj_ex(self)

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def load_obj(self) -> None:
        self._only_what_is_named(self.stack[0] if self.stack else None)  # the first above the mark
        _standard_obj(self)

    dispatch[pickle.OBJ[0]] = load_obj

    def _only_what_is_named(self, called: Any) -> None:
        if not isinstance(called, (type, types.FunctionType)):
            raise Abused("a call of what another call returned", self._file.at)

    def load(self) -> Any:
        try:
            return super().load()
        except _Called as error:
            raise Abused("an array type that is called, or a dtype that numpy does not write", self._file.at) from error


_standard_reduce, _standard_newobj, _standard_newobj_ex, _standard_obj = (
    Survey.dispatch[each[0]] for each in (pickle.REDUCE, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.OBJ)
)


def follow_globals(given: Any, named: Named, name: str | None = None) -> None:
    """Walks the file and tells what it names, in order, each time it does.

    Args:
        given: A view, a path, a buffer or a seekable binary file that is not compressed, of one pickle.
        named: What to tell.
        name: What to call it in a message.

    Raises:
        Abused: It does what is refused whatever is listed.
        CorruptModelError: The file is truncated.
        CannotFollow: The stand-ins do not know how it goes on.
    """
    with Source(given, name) as source:
        try:
            _Follower(SteppedFile(given, source, _MOST_STEPS), named).load()
        except (CorruptModelError, CannotFollow, Abused):
            raise
        except Exception as error:
            if type(error).__module__.partition(".")[0] == __name__.partition(".")[0]:
                raise  # what `named` raised
            raise CannotFollow(str(error)) from error


def globals_of(given: Any, name: str | None = None) -> dict[tuple[str, str], int]:
    """Module and name of each that the file names, and the byte at which it is first. Arguments and errors as above."""
    found: dict[tuple[str, str], int] = {}

    def note(module: str, called: str, at: int) -> None:
        found.setdefault((module, called), at)

    follow_globals(given, note, name)
    return found
