"""A regular file, opened once by its name: whatever the name leads to later, the descriptor leads to this file.

Everything that reads the file reads it through the descriptor, each reader under a position of its own, and `check` says whether
the bytes are still those that were there when it was opened.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from mlup_stream.delivery.files import FileIdentity, checked_stat, explain_os_error
from mlup_stream.delivery.reader import WINDOW_BYTES, OnWindow, open_stream
from mlup_stream.delivery.writers import note_mapped
from mlup_stream.errors import ModelFileChanged, NotAModelFileError

__all__ = ["PinnedFile"]


class PinnedFile:
    """An open file and what has to stay the same while its bytes are in use.

    Args:
        path: A regular file.
        fd: A descriptor of a file that nobody else can change, instead of opening `path`; it is closed with this object.

    Attributes:
        path: The name that it was opened by, for messages and for what lies beside it.
        identity: Device, inode, size and times when it was opened.
        private: Whether nobody else can change it.

    Raises:
        ModelNotFoundError, ModelPermissionError, NotAModelFileError: It cannot be opened, or is no regular file.
    """

    def __init__(self, path: str | os.PathLike[str], fd: int | None = None) -> None:
        self.path = os.fspath(path)
        self.private = fd is not None
        if fd is None:
            checked_stat(self.path)
            try:
                self._file = io.FileIO(self.path, "rb")
            except OSError as error:
                raise explain_os_error(error, self.path) from error
        else:
            self._file = io.FileIO(fd, "rb")
        self._status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(self._status.st_mode):
            self._file.close()
            raise NotAModelFileError(f"{self.path}: expected a regular file, found something else; give the model's file")
        self.identity = FileIdentity.of(self._status)

    @property
    def size_bytes(self) -> int:
        return self.identity.size_bytes

    @property
    def closed(self) -> bool:
        return self._file.closed

    @property
    def fd(self) -> int:
        """The descriptor.

        Raises:
            ValueError: The file was released.
        """
        if self._file.closed:
            raise ValueError(f"{self.path}: it was released; load it again")
        return self._file.fileno()

    def open(
        self, *, drop_behind: bool = True, window_bytes: int = WINDOW_BYTES, on_window: OnWindow | None = None
    ) -> BinaryIO:
        """A reader from the start, under a position of its own and good for as long as it is open. Peak memory: the window."""
        return open_stream(os.dup(self.fd), drop_behind=drop_behind, window_bytes=window_bytes, on_window=on_window)

    @property
    def pinned_name(self) -> str | None:
        """A name that leads to the open file, whatever its own name leads to; None where there is no `/proc`.

        Good until `close`, in this process.
        """
        self.note_mapped()
        name = f"/proc/self/fd/{self.fd}"  # not /dev/fd, which shares the cursor on the BSDs and macOS
        return name if os.path.exists(name) else None

    @contextlib.contextmanager
    def by_name(self, *, own: bool = False) -> Iterator[str]:
        """A name for a library that opens files itself. It leads to the open file, or was compared with it before and after.

        Args:
            own: Whether it has to be the file's own name, for what lies beside it.

        Raises:
            ModelFileChanged: The file's own name leads to another file by now.
        """
        pinned = None if own else self.pinned_name
        if pinned is not None:
            yield pinned
            return
        self.note_mapped()
        self.check_name()
        yield self.path
        self.check_name()

    def note_mapped(self) -> None:
        """To be called before it is mapped, here or by a library that gets its name: who writes to it then writes elsewhere."""
        if not self.private:
            note_mapped(self.identity.device, self.identity.inode)

    def leads_here(self, path: str | None = None) -> bool:
        """Whether `path`, by default the file's own, leads to this file in the state that it was opened in."""
        try:
            return FileIdentity.of(os.stat(path or self.path)).is_content_of(self.identity)
        except OSError:
            return False

    def check_name(self) -> None:
        """Makes sure that what a library opened by the file's own name is this file.

        Raises:
            ModelFileChanged: It is another one by now, or was changed.
        """
        self.check()
        if not self.private and not self.leads_here():
            raise ModelFileChanged(f"{self.path}: replaced or removed while it was being loaded; load it again", path=self.path)

    def check(self) -> None:
        """Makes sure that the open file has the content that it was opened with.

        A replacement by rename is harmless, since the descriptor keeps the old file; a write or a truncation in place is not.

        Raises:
            ModelFileChanged: Its size or modification time has changed, or its change time and nothing that explains that.
        """
        if self.private or self._file.closed:
            return
        now = os.fstat(self._file.fileno())
        found = FileIdentity.of(now)
        if found == self.identity or (found.is_content_of(self.identity) and self._is_renamed(now)):
            return
        raise ModelFileChanged(
            f"{self.path}: changed while it was being loaded: expected {self.identity.size_bytes} bytes"
            f" modified at {self.identity.mtime_ns} ns, found {found.size_bytes} bytes modified at {found.mtime_ns} ns"
            f" (status changed at {found.ctime_ns} ns); replace model files by renaming a new file over the old one",
            path=self.path,
        )

    def _is_renamed(self, now: os.stat_result) -> bool:
        """Whether a rename, a link, or other permissions or owners are why only the change time is another.

        What is left is a write after which somebody set the modification time back.
        """
        explains = ("st_nlink", "st_mode", "st_uid", "st_gid")
        return any(getattr(now, each) != getattr(self._status, each) for each in explains) or not self.leads_here()

    def close(self) -> None:
        """Closes the descriptor; maps of the file stay. Idempotent."""
        self._file.close()
