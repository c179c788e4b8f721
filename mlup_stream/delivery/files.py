"""What may be opened as a model file, asked of the file system before anything is opened.

Opening a FIFO blocks until somebody writes to it, and reading a device never ends: the kind is settled by `stat` first.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from mlup_stream.errors import LoadError, ModelNotFoundError, ModelPermissionError, NotAModelFileError

__all__ = ["FileIdentity", "checked_stat", "explain_os_error", "folder_identity"]

_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
)


class FileIdentity(NamedTuple):
    """Which file this is, and in which state: what has to stay the same while its bytes are in use."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def is_content_of(self, other: FileIdentity) -> bool:
        """Whether this is the same file with the same content, as far as its status tells: a rename changes `ctime` alone."""
        return self[:4] == other[:4]


def checked_stat(path: str | os.PathLike[str]) -> os.stat_result:
    """The status of a readable file or folder, symlinks followed.

    Raises:
        ModelNotFoundError: Nothing is there, or a symlink leads nowhere.
        ModelPermissionError: It is there and may not be read.
        NotAModelFileError: It is a FIFO, a device or a socket.
    """
    path = os.fspath(path)
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise explain_os_error(error, path) from error
    for is_kind, kind in _KINDS:
        if is_kind(status.st_mode):
            raise NotAModelFileError(f"{path}: expected a model file, found {kind}; give the path of a regular file", path=path)
    if not os.access(path, os.R_OK):
        raise ModelPermissionError(f"{path}: no permission to read it; grant this user read access", path=path)
    return status


def explain_os_error(error: Exception, path: str | os.PathLike[str]) -> LoadError:
    """The typed error that says in one line why `path` could not be opened; raise it `from error`."""
    path = os.fspath(path)
    if isinstance(error, PermissionError):
        return ModelPermissionError(f"{path}: no permission to read it; grant this user read access", path=path)
    if isinstance(error, FileNotFoundError):
        if _is_address(path):
            return ModelNotFoundError(
                f"{path}: expected a path on the local disk, found an address; download the file and give its path", path=path
            )
        if os.path.islink(path):
            return ModelNotFoundError(
                f"{path}: the symlink leads to {os.readlink(path)!r}, which does not exist; repair the link", path=path
            )
        return ModelNotFoundError(f"{path}: no such file; {_what_is_there(path)}", path=path)
    if isinstance(error, OSError):
        return NotAModelFileError(f"{path}: could not be opened: {error.strerror or error}", path=path)
    return NotAModelFileError(f"{path!r}: not a path: {error}", path=path)


def _is_address(path: str | bytes) -> bool:
    scheme, mark, _ = path.partition("://") if isinstance(path, str) else ("", "", "")
    return bool(mark) and scheme.isalnum() and not os.path.isdir(f"{scheme}:")


def _what_is_there(path: str) -> str:
    parent = Path(path).parent
    try:
        names = sorted(entry.name for entry in os.scandir(parent))
    except OSError:
        return f"its folder {str(parent)!r} cannot be listed either; check the path"
    if not names:
        return f"the folder {str(parent)!r} is empty; check the path"
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"the folder {str(parent)!r} has {shown}; check the name"


def folder_identity(path: str | os.PathLike[str]) -> dict[str, FileIdentity]:
    """The regular files below a folder (a SavedModel is a folder) by their names in it."""
    found = {}
    for root, _, names in os.walk(path):
        for name in names:
            each = os.path.join(root, name)
            if os.path.isfile(each):
                found[os.path.relpath(each, path)] = FileIdentity.of(os.stat(each))
    return found
