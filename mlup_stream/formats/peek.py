"""A bounded look at a file or buffer of unknown format: its two ends, and a little here and there when those ask for it.

Detection must cost nothing worth measuring: it reads `END_BYTES` at each end and, where the first bytes promise a certain
format, a few structures more (a zip's directory, the frames of a pickle). What it reads passes through here and is counted.
"""

from __future__ import annotations

import io
import os
from functools import cached_property
from types import TracebackType
from typing import Any

from mlup_stream.errors import CorruptModelError
from mlup_stream.formats.source import Source
from mlup_stream.formats.zip import read_directory

__all__ = ["END_BYTES", "Peek"]

END_BYTES = 512


class Peek:
    """What detectors see of a file, a folder or a buffer.

    Args:
        given: A path, a buffer, or a seekable binary file, whose cursor may move.
        name: What to call it; its ending breaks ties. By default the path.

    Attributes:
        name: What to call it.
        size_bytes: Its length; 0 for a folder.
        head: The first `END_BYTES` at most.
        tail: The last `END_BYTES` at most.
        entries: The names in a folder, sorted; None for anything else.
        remarks: What detectors noticed that no format explains, for the message when none claims the file.
        notes: What one detector found out and another may use.
        damage: What is wrong with a file that begins like a known format and cannot be one as it is.
        looked_bytes: How much was read, a zip's directory apart.

    Raises:
        OSError: The path cannot be opened.
    """

    def __init__(self, given: Any = b"", name: str | None = None) -> None:
        self.entries: tuple[str, ...] | None = None
        self.remarks: list[str] = []
        self.notes: dict[str, Any] = {}
        self.damage: str | None = None
        self.looked_bytes = 0
        self._opened: io.FileIO | None = None
        is_path = isinstance(given, (str, os.PathLike))
        self.name = name or (os.fspath(given) if is_path else f"<{type(given).__name__} without a path>")
        if is_path and os.path.isdir(given):
            self.entries = tuple(sorted(os.listdir(given)))
            given = b""
        elif is_path:
            given = self._opened = io.FileIO(given, "rb")
        self._given = given
        self._source = Source(given, self.name)
        self.size_bytes = self._source.size_bytes
        self.head = self.tail = b""
        self.head = self.at(0, END_BYTES)
        self.tail = self.at(self.size_bytes - END_BYTES, END_BYTES) if self.size_bytes > END_BYTES else self.head

    def __enter__(self) -> Peek:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes what was opened here; a file that was handed over stays open. Idempotent."""
        self._source.close()
        if self._opened is not None:
            self._opened.close()

    def at(self, offset: int, size_bytes: int) -> bytes:
        """The bytes from `offset` on: `size_bytes` of them, or fewer where the file ends before."""
        size_bytes = min(size_bytes, self._source.size_bytes - offset)
        if offset < 0 or size_bytes <= 0:
            return b""
        if offset + size_bytes <= len(self.head):
            return self.head[offset : offset + size_bytes]
        self.looked_bytes += size_bytes
        try:
            return self._source.read(offset, size_bytes, "the file")
        except CorruptModelError:  # it has become shorter meanwhile
            return b""

    def is_named(self, *suffixes: str) -> bool:
        """Whether the name ends like one of `suffixes`, in any case. For ties only: names lie."""
        return self.name.lower().endswith(suffixes)

    @cached_property
    def members(self) -> tuple[str, ...]:
        """The names in a zip's directory, empty if it has none that can be read; `damage` then says why."""
        if not self.head.startswith((b"PK\3\4", b"PK\5\6")):
            return ()
        try:
            return tuple(entry.name for entry in read_directory(self._given, self.name))
        except CorruptModelError as error:
            self.damage = str(error)
            return ()
