"""A file that is there whole or not at all: written under another name beside its place, synced, and renamed.

Nothing is left behind by an exception, Ctrl-C included. A process that is killed leaves a file whose name begins with a dot and
ends with `.part`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import BinaryIO

from mlup_stream.errors import MLupError, PackError
from mlup_stream.units import MIB, format_bytes

__all__ = ["Destination"]

_BUFFER_BYTES = 1 * MIB
_SPARE_BYTES = 16 * MIB
"""What a file system may need for itself."""


class Destination:
    """One file to be written.

    Args:
        path: Where it is to be. A symlink is followed: what it leads to is replaced.
        force: Replace what is there.
        mode: The permissions that it is to have, as of the file that it is made from.
        may_run_code: Whether a packer may run code that the source chooses.

    Attributes:
        may_run_code: The same.
        path: Where it will be, symlinks followed.
        part: Where it is until then.
        file: What to write to.
        mode: The permissions.
        beside: Files beside it that belong to it.
        made: Those of them that were not there before: removed if it does not come to be.
        superseded: Files that belonged to what it replaces: removed when it has.

    Raises:
        PackError: Its folder is missing or may not be written to, or something is there already.
    """

    def __init__(self, path: str, *, force: bool, mode: int = 0o644, may_run_code: bool = False) -> None:
        self.may_run_code = may_run_code
        self.mode = stat.S_IMODE(mode)
        self.beside: list[str] = []
        self.made: list[str] = []
        self.superseded: list[str] = []
        self._force = force
        self._given = path
        with self.explained():
            self.path = os.path.realpath(path)
        self._refuse_what_is_there()
        folder, name = os.path.split(self.path)
        self._folder = folder
        self.part = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.part")
        with self.explained():
            fd = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), self.mode)
        self.file: BinaryIO = open(fd, "w+b", buffering=_BUFFER_BYTES)  # noqa: SIM115  # closed by `close`
        self._committed = False

    def __enter__(self) -> Destination:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Removes what was not committed. Idempotent."""
        with contextlib.suppress(OSError):  # of a full disk, when what is left in the buffer goes out
            self.file.close()
        if not self._committed:
            self._committed = True
            _remove(self.part, *self.made)

    def refuse_same(self, paths: Iterable[str]) -> None:
        """Makes sure that it does not replace one of the files that it is made from.

        Raises:
            PackError: It would.
        """
        for path in paths:
            if os.path.exists(self.path) and os.path.samefile(path, self.path):
                raise PackError(
                    f"{self._given}: is the source, or part of it; choose another name, and rename it when you have loaded it",
                    path=self._given,
                )

    def reserve(self, size_bytes: int) -> None:
        """Makes sure that so much can still be written.

        Raises:
            PackError: There is less free space.
        """
        free_bytes = shutil.disk_usage(self._folder).free
        if size_bytes + _SPARE_BYTES > free_bytes:
            raise PackError(
                f"{self._given}: expected {format_bytes(size_bytes + _SPARE_BYTES)} of free disk space, found"
                f" {format_bytes(free_bytes)}; make room, or choose a folder on another disk",
                path=self._given,
            )

    def write(self, data: bytes) -> None:
        """Writes to the end of what there is.

        Raises:
            PackError: The disk is full, or fails.
        """
        with self.explained():
            self.file.write(data)

    def sync(self) -> None:
        """Sees to it that what was written is on the disk, so that it can be read by its name."""
        with self.explained():
            self.file.flush()
            os.fsync(self.file.fileno())

    def commit(self) -> None:
        """Gives the file its name.

        Raises:
            PackError: Something has taken the name meanwhile.
        """
        self.sync()
        with self.explained():
            (os.replace if self._force else _name_once)(self.part, self.path)
        self._committed = True
        _sync_folder(self._folder)
        _remove(*self.superseded)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turns what the system says into an error that names the destination."""
        try:
            yield
        except MLupError:
            raise
        except FileExistsError as error:
            raise self._there() from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            said = getattr(error, "strerror", None) or error
            raise PackError(f"{self._given}: cannot be written: {said}", path=self._given) from error

    def _refuse_what_is_there(self) -> None:
        with self.explained():
            try:
                mode = os.stat(self.path).st_mode
            except FileNotFoundError:
                return
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "something that is no file"
            raise PackError(f"{self._given}: expected the name of a file to write, found {what}", path=self._given)
        if not self._force:
            raise self._there()

    def _there(self) -> PackError:
        return PackError(f"{self._given}: is there already; choose another name, or replace it with --force", path=self._given)


def _name_once(part: str, path: str) -> None:
    """Renames `part`, unless there is something at `path`.

    Raises:
        FileExistsError: There is.
    """
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without links: somebody may take the name between these two lines.
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from error
        os.rename(part, path)
    else:
        os.unlink(part)


def _remove(*paths: str) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _sync_folder(folder: str) -> None:
    """Sees to it that the name is on the disk too, where a folder can be synced."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
