"""A pickle, or what joblib writes, copied opcode by opcode, with every large payload moved to an aligned offset.

What moves a payload is an opcode that does nothing: some bytes are pushed onto the stack and popped again right before it. Where
joblib has room for padding of its own, that is used. So what is written is the same program with the same payloads, in the format
that it had, for every unpickler; no object is built, nothing of the model is imported, and no code of the file's runs.

    pushed and popped   C <n> <n bytes> 0           SHORT_BINBYTES, POP
    payload             \\x8e <8 bytes> <payload>    BINBYTES8, or BYTEARRAY8, or BINBYTES with a length of 4 bytes
    joblib's            b [<n> <n bytes>] <payload>  BUILD of a NumpyArrayWrapper; from joblib 1.2 on with padding

Frames (protocol 4) are made anew; payloads lie outside of them, where unpicklers do not read ahead.

Peak memory: two frames of structure, one window of payload, and what an unpickler keeps of the structure (stand-ins for objects).
"""

from __future__ import annotations

import hashlib
import math
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar, NamedTuple

from mlup_stream.errors import CorruptModelError, MLupError
from mlup_stream.formats.pickles.dry_unpickler import ArrayState, DryUnpickler
from mlup_stream.formats.pickles.frames import PAYLOAD_BYTES
from mlup_stream.pack.packed import ALIGNMENT_BYTES
from mlup_stream.units import KIB, MIB

__all__ = ["Payload", "Transcript"]

_FRAME_BYTES = 64 * KIB
_WINDOW_BYTES = 1 * MIB
_LINE_BYTES = 1 * MIB

_BYTES_OPCODES = pickle.BINBYTES + pickle.BINBYTES8 + pickle.BYTEARRAY8
_WIDE_OPCODES = pickle.BINBYTES8 + pickle.BYTEARRAY8 + pickle.BINUNICODE8
_FIRST_FRAMED_PROTOCOL = 4
_SHORTEST_FRAME_BYTES = 4  # as the standard pickler has it
_FRAME_HEADER_BYTES = 9
_NEWTRUE, _NEWFALSE = pickle.NEWTRUE[0], pickle.NEWFALSE[0]

_PADS = [
    pickle.SHORT_BINBYTES + bytes([count]) + b"\xff" * count + pickle.POP
    for count in range(ALIGNMENT_BYTES + _FRAME_HEADER_BYTES)
]
"""More than an alignment's worth: a pad may be what makes a piece long enough for a frame, whose header then moves it again."""


class Payload(NamedTuple):
    """A large payload, and everything before it.

    Attributes:
        size_bytes: Its length.
        digest: Of its bytes, and of all opcodes and payloads before it, padding and frames left out.
    """

    size_bytes: int
    digest: bytes


class Transcript:
    """One pass over a pickle.

    Args:
        file: The pickle, from where it stands; read from one end to the other.
        name: What to call it in a message.
        write: Called with the pieces of the copy; None only looks.
        reserve: Called before a payload with its size.

    Attributes:
        payloads: The large ones, in order; two passes over the same program with the same payloads give the same list.
        end: The digest of everything.
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        write: Callable[[bytes], None] | None = None,
        reserve: Callable[[int], None] | None = None,
    ) -> None:
        self.payloads: list[Payload] = []
        self.end = b""
        self._file = file
        self._name = name
        self._write = write
        self._reserve = reserve
        self._written_bytes = 0
        self._digest = hashlib.blake2b(digest_size=32)
        self._framed = False
        # What was read and not yet written: the end of it can still be changed.
        self._pending = bytearray()
        self._cut = 0
        self._false_at = -1

    def run(self) -> None:
        """Copies everything.

        Raises:
            CorruptModelError: It ends too soon, or is no pickle.
        """
        try:
            _Copier(self).load()
        except (MLupError, MemoryError, OSError):
            raise
        except Exception as error:  # opcodes that do not fit together raise anything
            raise self._corrupt("opcodes that fit together", f"{type(error).__name__}: {error}") from error
        while data := self._file.read(_WINDOW_BYTES):  # what follows the pickle
            self._digest.update(data)
            self._put(data)
        self.end = self._digest.digest()

    # Opcodes and small arguments

    def read(self, size_bytes: int) -> bytes:
        if size_bytes >= PAYLOAD_BYTES:
            self._large_argument(size_bytes)
            return b""
        data = self._exactly(size_bytes)
        self._pending += data
        return data

    def readline(self) -> bytes:
        line = self._file.readline(_LINE_BYTES)
        if not line.endswith(b"\n"):
            raise self._corrupt("a line that ends", f"{len(line)} bytes without an end")
        self._pending += line
        return line

    def between_opcodes(self) -> None:
        """Lets go of the older half of what is pending when there is much: a whole number of opcodes, as a frame must be."""
        if not self._cut:
            self._cut = len(self._pending) if len(self._pending) >= _FRAME_BYTES else 0
        elif len(self._pending) >= self._cut + _FRAME_BYTES:
            self._emit(self._pending[: self._cut])
            del self._pending[: self._cut]
            self._false_at -= self._cut
            self._cut = 0

    def forget_frame(self) -> None:
        """Drops the FRAME that was just read: frames are made anew."""
        del self._pending[-_FRAME_HEADER_BYTES:]

    def begin(self, protocol: int) -> None:
        """Behind PROTO, which stands outside of frames."""
        self._framed = False
        self._flush()
        self._framed = protocol >= _FIRST_FRAMED_PROTOCOL

    def note_false(self) -> None:
        self._false_at = len(self._pending) - 1

    def stop(self) -> None:
        self._flush()

    # Payloads

    def _large_argument(self, size_bytes: int) -> None:
        """The argument of the opcode at the end of what is pending: bytes, text or a number."""
        pending = self._pending
        is_wide = len(pending) >= 9 and pending[-9] in _WIDE_OPCODES and pending[-8:] == size_bytes.to_bytes(8, "little")
        header = bytes(pending[-9 if is_wide else -5 :])
        del pending[-len(header) :]
        if header[0] in _BYTES_OPCODES:
            self._flush_aligned(len(pending), len(header))
        else:
            self._flush()
        self._digest.update(header)
        self._put(header)
        self._payload(size_bytes)

    def array(self, state: ArrayState) -> None:
        """The bytes of an array, behind the BUILD at the end of what is pending."""
        item_bytes = state["dtype"].item_bytes
        if item_bytes is None:
            self._nested()
            return
        size_bytes = math.prod(state["shape"]) * item_bytes
        if size_bytes < 0:
            raise self._corrupt("an array's shape", repr(state["shape"])[:80])
        if state.get("allow_mmap") is False and self._false_at >= 0 and self._pending[self._false_at] == _NEWFALSE:
            self._pending[self._false_at] = _NEWTRUE  # false is what it says in files that were compressed
        if state.get("numpy_array_alignment_bytes") is None:
            self._flush_aligned(len(self._pending) - 1, 0)
        else:
            self._exactly(self._exactly(1)[0])
            self._flush()
            padding_bytes = -(self._written_bytes + 1) % ALIGNMENT_BYTES
            self._put(bytes([padding_bytes]) + b"\xff" * padding_bytes)
        self._payload(size_bytes)

    def _nested(self) -> None:
        """The pickle that an array of objects is."""
        self._flush()
        framed, self._framed = self._framed, False
        _Copier(self).load()
        self._framed = framed

    def _payload(self, size_bytes: int) -> None:
        if self._reserve is not None:
            self._reserve(size_bytes)
        left_bytes = size_bytes
        while left_bytes:
            data = self._exactly(min(left_bytes, _WINDOW_BYTES))
            self._digest.update(data)
            self._put(data)
            left_bytes -= len(data)
        self.payloads.append(Payload(size_bytes, self._digest.digest()))

    # What is written

    def _flush(self) -> None:
        self._emit(self._pending)
        self._pending.clear()
        self._cut, self._false_at = 0, -1

    def _flush_aligned(self, at: int, header_bytes: int) -> None:
        """Writes what is pending, with such a pad at `at` of it that what comes `header_bytes` after it is aligned."""
        old = next((len(pad) for pad in _PADS if self._pending.endswith(pad, 0, at)), 0)
        del self._pending[at - old : at]
        length = len(self._pending)
        pads = (pad for pad in (b"", *_PADS) if self._end_after(length + len(pad), header_bytes) % ALIGNMENT_BYTES == 0)
        self._emit(self._pending, next(pads), at - old)
        self._pending.clear()
        self._cut, self._false_at = 0, -1

    def _end_after(self, length: int, header_bytes: int) -> int:
        return self._written_bytes + (_FRAME_HEADER_BYTES if self._gets_frame(length) else 0) + length + header_bytes

    def _gets_frame(self, length: int) -> bool:
        return self._framed and length >= _SHORTEST_FRAME_BYTES

    def _emit(self, opcodes: bytes | bytearray, pad: bytes = b"", pad_at: int = 0) -> None:
        """Writes opcodes, in a frame where there are frames, with a pad that does not count among them."""
        self._digest.update(opcodes)
        length = len(opcodes) + len(pad)
        if self._gets_frame(length):
            self._put(pickle.FRAME + length.to_bytes(8, "little"))
        self._put(bytes(opcodes[:pad_at]) + pad + bytes(opcodes[pad_at:]))

    def _put(self, data: bytes) -> None:
        self._written_bytes += len(data)
        if self._write is not None:
            self._write(data)

    def _exactly(self, size_bytes: int) -> bytes:
        data = self._file.read(size_bytes)
        if len(data) != size_bytes:
            raise self._corrupt(f"{size_bytes} bytes", f"{len(data)} before its end")
        return data

    def _corrupt(self, expected: str, found: str) -> CorruptModelError:
        return CorruptModelError(
            f"{self._name}: expected {expected}, found {found}; the file may be truncated or damaged: copy or export it again",
            path=self._name,
        )


class _Copier(DryUnpickler):
    """Follows the opcodes, and tells the transcript what they are."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(DryUnpickler.dispatch)

    def __init__(self, transcript: Transcript) -> None:
        super().__init__(transcript)
        self._transcript = transcript

    def load(self) -> None:
        # The standard loop, with a call between the opcodes.
        transcript, dispatch = self._transcript, self.dispatch
        self.read, self.readline = transcript.read, transcript.readline
        self.metastack: list[list[Any]] = []
        self.stack: list[Any] = []
        self.append = self.stack.append
        self.proto = 0
        try:
            while True:
                transcript.between_opcodes()
                dispatch[transcript.read(1)[0]](self)
        except pickle._Stop:  # type: ignore[attr-defined]  # private, like the unpickler
            transcript.stop()

    def array_follows(self, state: ArrayState) -> None:
        self._transcript.array(state)

    def load_proto(self) -> None:
        _standard_proto(self)
        self._transcript.begin(self.proto)

    dispatch[pickle.PROTO[0]] = load_proto

    def load_frame(self) -> None:
        super().load_frame()
        self._transcript.forget_frame()

    dispatch[pickle.FRAME[0]] = load_frame

    def load_false(self) -> None:
        self._transcript.note_false()
        self.append(False)

    dispatch[pickle.NEWFALSE[0]] = load_false


_standard_proto = DryUnpickler.dispatch[pickle.PROTO[0]]
