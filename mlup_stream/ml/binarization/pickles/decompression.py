"""What a compressed stream holds, through a window of fixed size: every compressor that joblib knows.

joblib's own readers do not say when a stream is cut off (zlib, gzip), and make one object of what is asked for at once (lz4).

Peak memory: two windows, 512 KiB, and what the format itself needs: 64 KiB (zlib, gzip), 4 MiB (bz2, lz4),
or the dictionary that an lzma stream asks for (level 3: 4 MiB, level 9: 64 MiB; more than 1 GiB is refused).
"""

from __future__ import annotations

import io
import sys
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple, cast

from mlup_stream.delivery.reader import OnWindow
from mlup_stream.errors import CorruptModelError, MLupError
from mlup_stream.extras import require
from mlup_stream.units import GIB, KIB

__all__ = ["Unpacked", "compressor_of", "open_unpacked"]

_PACKED_BYTES = 64 * KIB
_UNPACKED_BYTES = 256 * KIB
_LZMA_MEMORY_BYTES = 1 * GIB
_LONGEST_PREFIX_BYTES = 16


class Compressor(NamedTuple):
    """How one kind of stream is told and unpacked.

    Attributes:
        name: joblib's name for it.
        prefix: What its streams begin with, as joblib tells them.
        unpacker: Makes an object with `decompress(data, max_length)` and `eof`.
        may_follow: Whether another stream may follow the first, as parallel compressors write them.
    """

    name: str
    prefix: bytes
    unpacker: Callable[[], Any]
    may_follow: bool = False


def _bz2() -> Any:
    import bz2

    return bz2.BZ2Decompressor()


def _lzma() -> Any:
    import lzma

    return lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=_LZMA_MEMORY_BYTES)


def _lz4() -> Any:
    return require("lz4.frame", "joblib files compressed with lz4").LZ4FrameDecompressor()


COMPRESSORS = (
    Compressor("zlib", b"\x78", lambda: zlib.decompressobj(zlib.MAX_WBITS)),
    Compressor("gzip", b"\x1f\x8b", lambda: zlib.decompressobj(zlib.MAX_WBITS | 16), may_follow=True),
    Compressor("bz2", b"BZ", _bz2, may_follow=True),
    Compressor("lzma", b"\x5d\x00", _lzma),
    Compressor("xz", b"\xfd7zXZ", _lzma, may_follow=True),
    Compressor("lz4", b"\x04\x22\x4d\x18", _lz4, may_follow=True),
)


def compressor_of(head: bytes) -> Compressor | None:
    """The compressor that a stream beginning like this was made with, None if none was."""
    return next((each for each in COMPRESSORS if head.startswith(each.prefix)), None)


def open_unpacked(file: BinaryIO, name: str, on_window: OnWindow | None = None) -> Unpacked | None:
    """A reader over what `file` holds, from its beginning to its end; None if it is not compressed.

    Args:
        file: Seekable, at its beginning; it stays open, and stands at its beginning again if it is not compressed.
        name: What to call it in a message.
        on_window: Called with the number of bytes that have been unpacked, once per window; what it raises ends the reading.

    Raises:
        MissingDependencyError: It takes a library that is not installed.
    """
    head = file.read(_LONGEST_PREFIX_BYTES)
    file.seek(0)
    compressor = compressor_of(head)
    if compressor is not None:
        return Unpacked(_UnpackedFile(file, compressor, name, on_window))
    registered = _registered(head)
    return None if registered is None else Unpacked(_RegisteredFile(registered.decompressor_file(file), name, on_window))


def _registered(head: bytes) -> Any:
    """A compressor that somebody registered with joblib."""
    joblib = sys.modules.get("joblib.compressor")
    known = {each.name for each in COMPRESSORS}
    for name, compressor in getattr(joblib, "_COMPRESSORS", {}).items():
        if name not in known and compressor.prefix and head.startswith(compressor.prefix):
            return compressor
    return None


class Unpacked(io.BufferedReader):
    """The reader that `open_unpacked` gives. It cannot go back: that would mean to unpack it all again."""

    def __init__(self, raw: _UnpackedFile | _RegisteredFile) -> None:
        super().__init__(cast(Any, raw), _UNPACKED_BYTES)

    def finish(self) -> None:
        """Reads what may be left, which is mostly the stream's checksum, and no more than a window of it.

        Raises:
            CorruptModelError: The stream is cut off, or its checksum is wrong.
        """
        self.read(_UNPACKED_BYTES)


    def rest_bytes(self) -> int:
        """How much of the file follows the stream, once it was read to its end."""
        return cast(_Unpacking, self.raw).rest_bytes()


class _Unpacking(io.RawIOBase):
    """What the two kinds of files have in common: how much was unpacked, and who wants to know."""

    def __init__(self, name: str, on_window: OnWindow | None) -> None:
        super().__init__()
        self._name = name
        self._on_window = on_window
        self._passed_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]  # collections.abc.Buffer needs 3.12
        target = memoryview(buffer).cast("B")
        # In pieces: decompressors make one piece of bytes of what they are asked for.
        piece = self.unpack(min(len(target), _UNPACKED_BYTES))
        target[: len(piece)] = piece
        self._passed_bytes += len(piece)
        if self._on_window is not None:
            self._on_window(self._passed_bytes)
        return len(piece)

    def unpack(self, at_most_bytes: int) -> bytes:
        """What comes next; nothing at the end."""
        raise NotImplementedError

    def rest_bytes(self) -> int:
        return 0

    def corrupt(self, why: str) -> CorruptModelError:
        return CorruptModelError(
            f"{self._name}: expected a whole compressed stream, found {why} after {self._passed_bytes} unpacked bytes;"
            " it may be truncated: copy or export it again",
            path=self._name,
        )


class _UnpackedFile(_Unpacking):
    def __init__(self, file: BinaryIO, compressor: Compressor, name: str, on_window: OnWindow | None) -> None:
        super().__init__(name, on_window)
        self._file = file
        self._compressor = compressor
        self._unpacker = compressor.unpacker()

    def unpack(self, at_most_bytes: int) -> bytes:
        while True:
            if self._unpacker.eof and not self._another_follows():
                return b""
            # zlib's objects hand back what they did not get to; the others keep it.
            packed = getattr(self._unpacker, "unconsumed_tail", b"")
            at_end = False
            if not packed and getattr(self._unpacker, "needs_input", True):
                packed = self._file.read(_PACKED_BYTES)
                at_end = not packed
            piece = self._decompress(packed, at_most_bytes)
            if piece:
                return piece
            if at_end and not self._unpacker.eof:
                raise self.corrupt("its end before the end marker")

    def rest_bytes(self) -> int:
        position = self._file.tell()
        end = self._file.seek(0, io.SEEK_END)
        self._file.seek(position)
        return end - position + len(self._unpacker.unused_data or b"")

    def _decompress(self, packed: bytes, at_most_bytes: int) -> bytes:
        try:
            piece: bytes = self._unpacker.decompress(packed, at_most_bytes)
        except MemoryError:
            raise
        except Exception as error:  # each library has its own: zlib.error, LZMAError, OSError, RuntimeError
            raise self.corrupt(f"damage ({type(error).__name__}: {error})") from error
        return piece

    def _another_follows(self) -> bool:
        rest = self._unpacker.unused_data or b""
        if not self._compressor.may_follow or not rest.startswith(self._compressor.prefix):
            return False
        self._unpacker = self._compressor.unpacker()
        self._file.seek(-len(rest), io.SEEK_CUR)
        return True


class _RegisteredFile(_Unpacking):
    def __init__(self, file: Any, name: str, on_window: OnWindow | None) -> None:
        super().__init__(name, on_window)
        self._unpacked = file

    def unpack(self, at_most_bytes: int) -> bytes:
        try:
            piece: bytes = self._unpacked.read(at_most_bytes)
        except (MLupError, MemoryError):
            raise
        except Exception as error:
            raise self.corrupt(f"damage ({type(error).__name__}: {error})") from error
        return piece

    def close(self) -> None:
        if not self.closed:
            self._unpacked.close()
        super().close()
