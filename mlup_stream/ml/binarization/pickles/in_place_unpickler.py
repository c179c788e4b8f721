"""An unpickler that leaves the payload of arrays in the mapped file.

It is the standard library's unpickler in Python, opcode by opcode, except for large bytes: instead of reading them it pushes a
note of where they lie (`Late`) and goes on behind them. Three things may happen to such a note:

- It ends up in the state of an ndarray (protocols 3 and 4), or in the arguments of a function that keeps a buffer (protocol 5):
  the array is made upon the map. Nothing was read.
- Anything else wants it: a list, an attribute, a `__setstate__` of somebody's own. Then it is read, and what they get is the
  very `bytes` or `bytearray` that the standard unpickler would have made; once, however many references there are.
- Nobody wants it: it is dropped.

The second thing it does differently: what the memo has and no later opcode asks for (`formats.pickle.scan` tells) is not kept.
The standard memo keeps the state of every estimator alive until the end, and so costs a forest, whose trees copy their nodes, its
size twice.

Peak memory: the objects, and the largest payload that was read. Nothing for what stayed in the map.
"""

from __future__ import annotations

import math
import pickle
import sys
from collections.abc import Callable
from struct import unpack
from typing import Any, BinaryIO, ClassVar

from mlup_stream.formats.pickles.frames import PAYLOAD_BYTES
from mlup_stream.ml.binarization.pickles.checked_input import CheckedFile
from mlup_stream.ml.binarization.pickles.placing import Placer, fill
from mlup_stream.ml.binarization.pickles.unread_payloads import LATE, Late, LateTuple, settling_opcodes, standard

__all__ = ["InPlaceUnpickler"]

KEEPS_BUFFER = frozenset(
    {
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy.core.numeric", "_frombuffer"),
        ("pyarrow.lib", "py_buffer"),
    }
)
"""Functions whose result lives upon the buffer that they are given, by module and name."""

_WANTED_AS_BYTES = "wanted as bytes, not as an array"
_SWAPPED = ">" if sys.byteorder == "little" else "<"

# Private, and what joblib and cloudpickle build upon as well: the same from Python 3.8 to 3.14.
_Standard: Any = pickle._Unpickler


class InPlaceUnpickler(_Standard):  # type: ignore[misc]  # see above
    """`pickle.Unpickler` over a seekable file, with large payloads of arrays left where they are.

    Args:
        file: A binary file; nothing is left in place of one that cannot seek.
        placer: Places arrays on the map; None, or one that maps nothing, reads payloads as the standard unpickler does.
        fetched: The memo's indices that the pickle asks for, from `formats.pickles.frames.scan`; nothing else is kept. None keeps
            everything.
        late_bytes: From which size on a payload is left unread.
        options: `fix_imports`, `encoding`, `errors`, `buffers`, as `pickle.Unpickler` has them.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = settling_opcodes()

    def __init__(
        self,
        file: BinaryIO,
        placer: Placer | None = None,
        *,
        fetched: frozenset[int] | None = None,
        late_bytes: int = PAYLOAD_BYTES,
        **options: Any,
    ) -> None:
        checked = CheckedFile(file)
        super().__init__(checked, **options)
        self._file: Any = file
        self._size_bytes = checked.size_bytes
        self._placer = placer
        self._leaves_unread = placer is not None and placer.maps and checked.size_bytes is not None
        self._fetched = fetched
        self._late_bytes = max(late_bytes, 1)
        self.has_late = False
        """Whether a payload was left unread, for which it takes a placer. Until then every opcode is the standard one."""

    def forget(self) -> None:
        """Lets go of what was built: an unpickler may outlive its load, in a traceback for one."""
        self.memo: dict[int, Any] = {}
        self.stack: list[Any] = []
        self.metastack: list[list[Any]] = []
        self.append = self.stack.append

    # Payloads

    def load_binbytes(self) -> None:
        self._load_bytes(unpack("<I", self.read(4))[0])

    dispatch[pickle.BINBYTES[0]] = load_binbytes

    def load_binbytes8(self) -> None:
        self._load_bytes(unpack("<Q", self.read(8))[0])

    dispatch[pickle.BINBYTES8[0]] = load_binbytes8

    def _load_bytes(self, size_bytes: int) -> None:
        if self._is_left_unread(bytes, size_bytes):
            return
        data = self.read(size_bytes)
        if len(data) != size_bytes:
            raise pickle.UnpicklingError(f"pickle data was truncated: expected {size_bytes} bytes, found {len(data)}")
        self.append(data)

    def load_bytearray8(self) -> None:
        size_bytes = unpack("<Q", self.read(8))[0]
        if self._is_left_unread(bytearray, size_bytes):
            return
        if size_bytes > (sys.maxsize if self._size_bytes is None else self._size_bytes):
            raise pickle.UnpicklingError(f"pickle data was truncated: expected a bytearray of {size_bytes} bytes")
        data = bytearray(size_bytes)
        # The standard unframer reads bytes and copies them; outside of a frame they go where they stay at once.
        if self._ahead_bytes() or self._size_bytes is None:
            if self.readinto(data) != size_bytes and size_bytes:
                raise pickle.UnpicklingError(f"pickle data was truncated: expected {size_bytes} bytes")
        else:
            fill(memoryview(data), self._file)
        self.append(data)

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def _ahead_bytes(self) -> int:
        """How much of the current frame is still to come; the frame has been read, the rest of the file has not."""
        frame = self._unframer.current_frame
        return len(frame.getbuffer()) - frame.tell() if frame is not None else 0

    def _is_left_unread(self, kind: type[Any], size_bytes: int) -> bool:
        """Steps over a payload and pushes a note of it, if it is large enough and lies whole in the file."""
        ahead_bytes = self._ahead_bytes()
        if not self._leaves_unread or size_bytes < self._late_bytes or (ahead_bytes and size_bytes > ahead_bytes):
            return False
        offset = self._file.tell() - ahead_bytes
        if offset + size_bytes > self._size_bytes:
            return False
        (self._unframer.current_frame if ahead_bytes else self._file).seek(size_bytes, 1)
        self.has_late = True
        self.append(Late(kind, offset, size_bytes))
        return True

    # From late to real

    def settle(self, count: int) -> None:
        """Makes real what lies on the stack's last `count` places."""
        stack = self.stack
        for index in range(max(len(stack) - count, 0), len(stack)):
            if isinstance(stack[index], LATE):
                stack[index] = self._real(stack[index])

    def settle_to_mark(self) -> None:
        """Makes real what lies above the mark, and what lies right below it, which the same opcode changes."""
        self.settle(len(self.stack))
        below = self.metastack[-1] if self.metastack else []
        if below and isinstance(below[-1], LATE):
            below[-1] = self._real(below[-1])

    def _real(self, late: Late | LateTuple) -> Any:
        """The object that the standard unpickler would have here, made once."""
        if late.real is None:
            if isinstance(late, LateTuple):
                late.real = tuple(self._real(each) if isinstance(each, LATE) else each for each in late.items)
            else:
                late.real = self._read(late)
        return late.real

    def _read(self, late: Late) -> bytes | bytearray:
        assert self._placer is not None  # or nothing would be late
        self._placer.copied(late.size_bytes, _WANTED_AS_BYTES)
        before = self._file.tell()
        self._file.seek(late.offset)
        data: bytes | bytearray
        if late.kind is bytearray:
            data = bytearray(late.size_bytes)
            fill(memoryview(data), self._file)
        else:
            data = self._file.read(late.size_bytes)
        self._file.seek(before)
        if len(data) != late.size_bytes:
            raise EOFError(f"expected {late.size_bytes} bytes at {late.offset}, found {len(data)}")
        return data

    # Where arrays are made upon the map

    def load_reduce(self) -> None:
        if self.has_late:
            arguments = self.stack[-1]
            if isinstance(arguments, LateTuple) and len(self.stack) > 1 and _name_of(self.stack[-2]) in KEEPS_BUFFER:
                self.stack.pop()
                self.stack[-1] = self.stack[-1](*self._buffers_of(arguments.items))
                self._seal()
                return
            self.settle(2)
        keeps_buffer = len(self.stack) > 1 and _name_of(self.stack[-2]) in KEEPS_BUFFER
        _standard_reduce(self)
        if keeps_buffer:
            self._seal()

    dispatch[pickle.REDUCE[0]] = load_reduce

    def _buffers_of(self, arguments: list[Any]) -> list[Any]:
        """The arguments, with buffers on the map in the place of late payloads where that can be."""
        assert self._placer is not None  # or nothing would be late
        numpy = sys.modules.get("numpy")
        dtype = next((each for each in arguments if numpy is not None and isinstance(each, numpy.dtype)), None)
        found = []
        for each in arguments:
            held = None
            if isinstance(each, Late) and each.real is None and numpy is not None:
                # Bytes are never writable, whatever the policy.
                writable = each.kind is bytearray
                held = self._placer.hold(each.offset, each.size_bytes, dtype, writable=writable, owner=self._owner())
            found.append(held if held is not None else self._real(each) if isinstance(each, LATE) else each)
        return found

    def load_build(self) -> None:
        if self.has_late:
            state = self.stack[-1]
            if isinstance(state, LateTuple) and len(self.stack) > 1:
                self.stack.pop()
                if self._array_made(state):
                    return
                self.append(state)
            self.settle(2)
            del state  # which holds the arrays that are to be dropped below
            assert self._placer is not None  # or nothing would be late
            # Somebody's own __setstate__ may touch the arrays that it is given, and copy them, as the trees of a forest do.
            self._placer.check()
            _standard_build(self)
            self._placer.drop_unused()
        else:
            _standard_build(self)
        self._seal()

    dispatch[pickle.BUILD[0]] = load_build

    def _seal(self) -> None:
        """Makes an array of numbers on top of the stack read-only where the others are, which stay in the map.

        Not one of objects: scikit-learn's ensembles ask for theirs as a buffer that may be written to, and predict no more.
        """
        numpy = sys.modules.get("numpy")
        if self._placer is None or self._placer.writable or numpy is None:
            return
        top = self.stack[-1]
        if isinstance(top, numpy.ndarray) and not top.dtype.hasobject:
            top.flags.writeable = False

    def _array_made(self, state: LateTuple) -> bool:
        """Whether the array on top of the stack could be replaced by one upon the map, in this state.

        Nothing is done for what is no array, for a subclass with a state of its own, and where only `__setstate__` can judge.
        """
        numpy = sys.modules.get("numpy")
        empty = self.stack[-1]
        if numpy is None or not isinstance(empty, numpy.ndarray) or len(state.items) != 5:
            return False
        if type(empty).__setstate__ is not numpy.ndarray.__setstate__:
            return False
        # What numpy's array_setstate takes: a version, the shape, the dtype, whether in Fortran order, and the bytes.
        version, shape, dtype, fortran, late = state.items
        if not (isinstance(late, Late) and late.kind is bytes and late.real is None and version == 1):
            return False
        # It turns the bytes of the other byte order into this machine's while it copies them.
        if not isinstance(dtype, numpy.dtype) or dtype.hasobject or dtype.byteorder == _SWAPPED:
            return False
        if type(shape) is not tuple or not all(type(each) is int and each >= 0 for each in shape):
            return False
        del empty
        memoized = self._memoized()
        if math.prod(shape) * dtype.itemsize != late.size_bytes or memoized is None:
            return False
        self._make_array(late.offset, dtype, shape, "F" if fortran else "C", memoized)
        return True

    def _memoized(self) -> list[int] | None:
        """Under which indices the memo has the object on top of the stack; None if something else refers to it as well."""
        held = _references(self.stack) - _ONE_REFERENCE
        if held <= 0:
            return []
        indices = [index for index, each in self.memo.items() if each is self.stack[-1]]
        return indices if held <= len(indices) else None

    def _make_array(self, offset: int, dtype: Any, shape: tuple[int, ...], order: str, memoized: list[int]) -> None:
        assert self._placer is not None  # or nothing would be late
        empty = self.stack[-1]
        array = self._placer.array(offset, dtype, shape, order, type(empty), owner=self._owner())
        if hasattr(empty, "__dict__"):
            array.__dict__.update(empty.__dict__)
        self.stack[-1] = array
        for index in memoized:
            self.memo[index] = array

    def _owner(self) -> type[Any] | None:
        """The class of the object whose state is being read: it lies below its state, which lies below the mark.

        What is read may lie in a list or a dict of that state: then it lies below a mark further out.
        """
        for around in reversed(self.metastack):
            owner = type(around[-2]) if len(around) > 1 else None
            if owner is not None and owner not in LATE and owner.__module__ != "builtins":
                return owner
        return None

    # The memo

    def _keep(self, index: int, value: Any) -> None:
        # The entry itself stays: MEMOIZE counts them.
        self.memo[index] = value if self._fetched is None or index in self._fetched else None

    def load_put(self) -> None:
        index = int(self.readline()[:-1])
        if index < 0:
            raise ValueError("negative PUT argument")
        self._keep(index, self.stack[-1])

    dispatch[pickle.PUT[0]] = load_put

    def load_binput(self) -> None:
        self._keep(self.read(1)[0], self.stack[-1])

    dispatch[pickle.BINPUT[0]] = load_binput

    def load_long_binput(self) -> None:
        self._keep(unpack("<I", self.read(4))[0], self.stack[-1])

    dispatch[pickle.LONG_BINPUT[0]] = load_long_binput

    def load_memoize(self) -> None:
        self._keep(len(self.memo), self.stack[-1])

    dispatch[pickle.MEMOIZE[0]] = load_memoize


_standard_reduce = standard(pickle.REDUCE)
_standard_build = standard(pickle.BUILD)


def _name_of(function: Any) -> tuple[Any, Any]:
    return getattr(function, "__module__", None), getattr(function, "__qualname__", None)


def _references(stack: list[Any]) -> int:
    return sys.getrefcount(stack[-1])


_ONE_REFERENCE = _references([object()])
