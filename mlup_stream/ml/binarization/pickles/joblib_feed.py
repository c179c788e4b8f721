"""What the unpickler in C reads a joblib file from, and how it is made to stop where an array follows.

A joblib file is a pickle with foreign bytes in it: where the unpickler has just built a `NumpyArrayWrapper`, an array follows.
joblib therefore goes through it opcode by opcode in Python, at 2 us each. The unpickler in C does it 20 times as fast, and can be
made to stop at the right place by what it is documented to do:

- It calls the wrapper's `__setstate__` when it has built one. That is ours, and *pushes* an opcode to be read next.
- That opcode is BINPERSID: it hands the wrapper to `persistent_load`, ours as well, and puts what that returns in its place. That
  reads the array, for which the file is at the right place: an unpickler that is given a file without `peek` reads no byte before
  it needs it, and joblib ends a frame where an array begins.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

from mlup_stream.units import KIB

__all__ = ["Feed"]

_UNCHECKED_BYTES = 64 * KIB  # what picklers put into a frame
_FRAME_LENGTH_BYTES = 8

# How far the unpickler is in reading a frame: nothing of it, its opcode, its length, all of it.
_NONE, _OPCODE, _LENGTH, _WHOLE = range(4)


class Feed:
    """A binary file as an unpickler sees it, with opcodes put in front of what comes next.

    Args:
        file: Read from where it stands.

    Attributes:
        size_bytes: Where the file ends; None if it cannot seek.
        passed_bytes: How much of large payloads and of frames has passed.
        awaited: The wrapper that an array is to follow; None if none is.
        between_frames: Called where an opcode comes next that lies in no frame.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pushed = b""
        self._frame = _NONE
        self.size_bytes: int | None = None
        self.passed_bytes = 0
        self.awaited: Any = None
        self.between_frames: Callable[[], None] | None = None
        if file.seekable():
            position = file.tell()
            self.size_bytes = file.seek(0, io.SEEK_END)
            file.seek(position)

    def push(self, opcodes: bytes) -> None:
        """Lets the unpickler read this before it goes on in the file; after what was pushed earlier and has not been read."""
        self._pushed += opcodes

    def stop_for(self, wrapper: Any) -> None:
        """Makes the unpickler ask for what is to take the place of `wrapper`, which it has just built."""
        self._refuse_awaited()
        self.awaited = wrapper
        self.push(pickle.BINPERSID)

    def arrived(self, wrapper: Any) -> None:
        """To be called when the unpickler asks for what is to take the place of `wrapper`."""
        if wrapper is not self.awaited:
            self._refuse_awaited()
        self.awaited = None

    def finish(self) -> None:
        """To be called at the end of the pickle."""
        self._refuse_awaited()

    def _refuse_awaited(self) -> None:
        # What was pushed is read after what the unpickler has of a frame: if that is anything, it is not joblib's file.
        if self.awaited is not None:
            raise pickle.UnpicklingError("an array that lies within a frame, where joblib writes none")

    def left(self) -> int | None:
        """How many bytes there are up to the end of the file; None if that is not known."""
        return None if self.size_bytes is None else self.size_bytes - self._file.tell()

    def read(self, size: int) -> bytes:
        if self._frame == _WHOLE and size == 1 and not self._pushed and self.between_frames is not None:
            self.between_frames()
        if self._pushed:
            return self._next_pushed(size)
        if size > _UNCHECKED_BYTES:
            self._check_room(size)
        data = self._file.read(size)
        if size == 1:
            self._frame = _OPCODE if data == pickle.FRAME else _NONE
        elif self._frame == _OPCODE and size == _FRAME_LENGTH_BYTES:
            self._frame = _LENGTH
        elif self._frame == _LENGTH:
            self._frame = _WHOLE
            self.passed_bytes += size
        else:
            self._frame = _NONE
        return data

    def _next_pushed(self, size: int) -> bytes:
        data, self._pushed = self._pushed[:size], self._pushed[size:]
        if len(data) != size:
            raise pickle.UnpicklingError(f"expected an opcode, found {size} bytes wanted")
        return data

    def readinto(self, target: Any) -> int:
        self._frame = _NONE
        size_bytes = memoryview(target).nbytes
        self._check_room(size_bytes)
        self.passed_bytes += size_bytes
        count: int = self._file.readinto(target)  # type: ignore[attr-defined]  # of a binary file, which BinaryIO leaves out
        return count

    def readline(self) -> bytes:
        self._frame = _NONE
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise EOFError("expected a line, found the end of the file before its newline")
        return line

    def _check_room(self, size_bytes: int) -> None:
        left_bytes = self.left()
        if left_bytes is not None and size_bytes > left_bytes:
            raise EOFError(f"expected {size_bytes} bytes, found {left_bytes}")
