"""The bounded reader: a file passes through a window of fixed size, and what has passed is let go.

Memory in this process is bounded by the window alone: `BufferedReader` reads a request that is larger than its window straight
into the caller's buffer. What also has to be let go is the page cache, because in a container the pages that a process reads are
charged to it: on Linux, pages that this reader brought in are given back behind the cursor, and pages that were cached before
(another worker may be using them) are left alone. The page cache is left as it was found.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from mlup_stream.memory.residency import cached_fraction
from mlup_stream.units import KIB, MIB

__all__ = ["WINDOW_BYTES", "OnWindow", "open_borrowed", "open_buffer", "open_stream"]

WINDOW_BYTES = 1 * MIB
"""Large enough that a system call per window costs nothing measurable, small enough not to matter in any budget."""

OnWindow = Callable[[int], None]

_DROP_STEP_BYTES = 8 * MIB
_BUFFER_WINDOW_BYTES = 64 * KIB


class _PassingFile(io.RawIOBase):
    """A raw file over an open descriptor, under a position of its own; it gives the page cache behind that back, if it was not
    cached when the reading began.

    Attributes:
        positioned_fd: The descriptor, for whoever reads it at given offsets; nobody may move its cursor. None where the system
            cannot read so.
    """

    _drops: bool | None = None
    _dropped_until = 0

    def __init__(self, fd: int, *, drop_behind: bool, on_window: OnWindow | None) -> None:
        super().__init__()
        # The cursor of this object is only used where the system cannot read at an offset.
        self._file = io.FileIO(fd, "rb")
        self._position = 0
        self._on_window = on_window
        self.positioned_fd = fd if hasattr(os, "preadv") else None
        if not drop_behind or not hasattr(os, "posix_fadvise"):
            self._drops = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            offset += os.fstat(self.fileno()).st_size
        elif whence == io.SEEK_CUR:
            offset += self._position
        if offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = offset
        return offset

    def _asks_what_is_cached(self) -> bool:
        # Before the first window, not when it is opened: who only wants headers reads them by descriptor.
        os.posix_fadvise(self.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        cached = cached_fraction(self.fileno())
        return cached is not None and cached < 0.5

    def readinto(self, buffer) -> int | None:  # type: ignore[no-untyped-def]  # collections.abc.Buffer needs 3.12
        if self._drops is None:
            self._drops = self._asks_what_is_cached()
        # A payload that is larger than the window comes straight into the caller's memory, and still window by window: what is
        # watched has to be asked before the next is taken, not after the whole. The reader above asks for the rest.
        target = memoryview(buffer)[:WINDOW_BYTES]
        if self.positioned_fd is not None:
            count = os.preadv(self.positioned_fd, [target], self._position)
        else:
            self._file.seek(self._position)
            count = self._file.readinto(target)
        self._position += count
        if self._drops and self._position - self._dropped_until >= _DROP_STEP_BYTES:
            self._drop(self._position)
        if self._on_window is not None:
            self._on_window(self._position)
        return count

    def close(self) -> None:
        if not self.closed:
            if self._drops:
                self._drop(0)  # a length of 0 means up to the end: also what was read ahead
            self._file.close()
        super().close()

    def _drop(self, until: int) -> None:
        start = self._dropped_until if until else 0
        os.posix_fadvise(self.fileno(), start, until - start if until else 0, os.POSIX_FADV_DONTNEED)
        self._dropped_until = until


def open_stream(
    file: str | os.PathLike[str] | int,
    *,
    drop_behind: bool = True,
    window_bytes: int = WINDOW_BYTES,
    on_window: OnWindow | None = None,
) -> BinaryIO:
    """A seekable binary file with a bounded window.

    Args:
        file: The path of a regular file, or an open descriptor of one, which is closed with the reader; its cursor is not used.
        drop_behind: Give back the page cache that this reader filled.
        window_bytes: The size of the window.
        on_window: Called with the number of bytes that have passed, once per window; what it raises ends the reading.

    Peak memory: `window_bytes`, whatever the size of the file.
    """
    fd = file if isinstance(file, int) else os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    raw = _PassingFile(fd, drop_behind=drop_behind, on_window=on_window)
    return cast(BinaryIO, io.BufferedReader(raw, window_bytes))


class _BufferFile(io.RawIOBase):
    """A raw file over a buffer, which it does not copy (`BytesIO` copies all but `bytes`)."""

    def __init__(self, buffer: memoryview) -> None:
        super().__init__()
        self._buffer = buffer
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]  # as above
        target = memoryview(buffer).cast("B")
        chunk = self._buffer[self._position : self._position + len(target)]
        target[: len(chunk)] = chunk
        self._position += len(chunk)
        return len(chunk)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._buffer)}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self._buffer = memoryview(b"")
        super().close()


def open_buffer(buffer: bytes | bytearray | memoryview) -> BinaryIO:
    """A seekable binary file over `buffer`, without a copy of it."""
    if isinstance(buffer, bytes):
        return io.BytesIO(buffer)
    return cast(BinaryIO, io.BufferedReader(_BufferFile(memoryview(buffer).cast("B")), _BUFFER_WINDOW_BYTES))


class _BorrowedFile(io.RawIOBase):
    """Somebody else's file object, from where it stands, under a position of its own: closing this one leaves theirs open."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file = file
        self._start: int = file.tell()
        self._position: int = self._start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]  # collections.abc.Buffer needs 3.12
        self._file.seek(self._position)
        target = memoryview(buffer).cast("B")
        if hasattr(self._file, "readinto"):
            count = self._file.readinto(target) or 0
        else:
            chunk = self._file.read(len(target))
            count = len(chunk)
            target[:count] = chunk
        self._position += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            self._position = self._file.seek(offset, io.SEEK_END)
        else:
            self._position = offset + (self._start if whence == io.SEEK_SET else self._position)
        if self._position < self._start:
            raise ValueError(f"negative seek position {self._position - self._start}")
        return self._position - self._start

    def tell(self) -> int:
        return self._position - self._start

    def close(self) -> None:
        self._file = None
        super().close()


def open_borrowed(file: Any) -> BinaryIO:
    """A seekable binary file over somebody's own, beginning where theirs stands; closing it leaves theirs open."""
    return cast(BinaryIO, io.BufferedReader(_BorrowedFile(file), _BUFFER_WINDOW_BYTES))
