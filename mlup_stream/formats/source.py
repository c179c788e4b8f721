"""Positioned reads over whatever a walker is given: a view, a path, a buffer or a binary file.

A walker reads a few structures scattered over a file of gigabytes. It reads by descriptor, never through a map: a page of a
map that lies past the end of a truncated file kills the process, a short read is an exception.
"""

from __future__ import annotations

import contextlib
import io
import os
from types import TracebackType
from typing import Any

from mlup_stream.errors import CorruptModelError

__all__ = ["Source"]


class Source:
    """A file or buffer, read at given offsets.

    Args:
        given: A `View` (or anything else with `open()`), a path, a buffer, or a seekable binary file, whose cursor may move.
        name: What to call it in a message; by default its path.

    Attributes:
        size_bytes: The length of the whole.
        name: What messages call it.
    """

    def __init__(self, given: Any, name: str | None = None) -> None:
        self._buffer: memoryview | None = None
        self._file: Any = None
        self._closes = False
        if isinstance(given, (bytes, bytearray, memoryview)):
            self._buffer = memoryview(given).cast("B")
        elif isinstance(given, (str, os.PathLike)):
            self._file, self._closes = open(given, "rb", buffering=0), True  # noqa: SIM115  # closed by `close`
        elif hasattr(given, "read"):
            self._file = given
        else:
            self._file, self._closes = given.open(), True
        self.name = name or _name_of(given)
        # Only of a plain file: the descriptor of a GzipFile, say, leads to other bytes than its `read`.
        raw = getattr(self._file, "raw", self._file)
        plain = raw.fileno() if isinstance(raw, io.FileIO) and hasattr(os, "pread") else None
        self._fd: int | None = getattr(raw, "positioned_fd", plain)
        self.size_bytes = self._measure()

    def _measure(self) -> int:
        if self._buffer is not None:
            return len(self._buffer)
        return os.fstat(self._fd).st_size if self._fd is not None else int(self._file.seek(0, io.SEEK_END))

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes what was opened here; a file that was handed over stays open. Idempotent."""
        if self._closes:
            with contextlib.suppress(OSError):
                self._file.close()
        self._buffer = None

    def read(self, offset: int, size_bytes: int, what: str) -> bytes:
        """Exactly `size_bytes` from `offset`; `what` names the structure for the message.

        Nothing is allocated before it is known that so much is there.

        Raises:
            CorruptModelError: The file ends before that.
        """
        if offset < 0 or size_bytes < 0 or offset + size_bytes > self.size_bytes:
            raise self.corrupt(f"{what}: {size_bytes} bytes at {offset}", f"a file of {self.size_bytes} bytes")
        data = self._read(offset, size_bytes)
        if len(data) != size_bytes:
            raise self.corrupt(f"{what}: {size_bytes} bytes at {offset}", f"{len(data)} bytes there")
        return data

    def _read(self, offset: int, size_bytes: int) -> bytes:
        if self._buffer is not None:
            return bytes(self._buffer[offset : offset + size_bytes])
        parts = []
        while size_bytes > 0:
            if self._fd is not None:
                part = os.pread(self._fd, size_bytes, offset)
            else:
                self._file.seek(offset)
                part = self._file.read(size_bytes)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            size_bytes -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def corrupt(self, expected: str, found: str) -> CorruptModelError:
        """The error that says what was expected and what was found; the caller raises it."""
        return CorruptModelError(
            f"{self.name}: expected {expected}, found {found}; the file may be truncated or damaged: copy or export it again",
            path=self.name,
        )


def _name_of(given: Any) -> str:
    if isinstance(given, (str, os.PathLike)):
        return os.fspath(given)
    name = getattr(given, "path", None) or getattr(given, "name", None)
    return name if isinstance(name, str) else f"<{type(given).__name__} without a path>"
