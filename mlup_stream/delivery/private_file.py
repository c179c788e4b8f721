"""A private copy on disk, for the frameworks that can read nothing but a path when the content came without one.

It exists for as long as the framework reads and no longer, also when the load fails and, on Linux, when the process is killed:
the file has no name there (O_TMPFILE), and is reached through /proc/self/fd. It is never put where files are memory (/dev/shm,
a tmpfs /tmp): the copy is made so as not to need the memory a second time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from mlup_stream.delivery.file_system import file_system_of
from mlup_stream.errors import ModelLoadError
from mlup_stream.units import MIB

__all__ = ["private_file", "private_folder"]

_CHUNK_BYTES = 1 * MIB
_MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})


@contextlib.contextmanager
def private_file(
    content: BinaryIO | bytes | bytearray | memoryview, *, suffix: str = "", named: bool = False
) -> Iterator[str]:
    """The path of a copy of `content` that only this user may read, gone at the end of the block.

    Args:
        content: A buffer, or a binary file from where it stands.
        suffix: What its name must end with, if the framework looks at that.
        named: Whether the framework insists on a name that a folder lists, as HDF5 does, which resolves every link.

    Raises:
        ModelLoadError: No folder for temporary files that can be written to lies on a disk, or the disk is full.

    Peak memory: one chunk of 1 MiB. The pages of the copy are page cache, which the kernel takes back.
    """
    folder = _folder_on_disk()
    with contextlib.ExitStack() as stack:
        file, path = (None if named else _without_name(folder)) or _with_name(folder, suffix, stack)
        with file:
            for piece in _pieces(content):
                _write(file.fileno(), piece, folder)
            if suffix and not path.endswith(suffix):
                path = _linked(path, folder, suffix, stack)
            yield path


def _pieces(content: BinaryIO | bytes | bytearray | memoryview) -> Iterator[bytes | bytearray | memoryview]:
    if isinstance(content, (bytes, bytearray, memoryview)):
        yield content
        return
    while piece := content.read(_CHUNK_BYTES):
        yield piece


def _write(fd: int, piece: bytes | bytearray | memoryview, folder: str) -> None:
    left = memoryview(piece).cast("B")
    while left:
        try:
            left = left[os.write(fd, left) :]
        except OSError as error:
            raise ModelLoadError(
                f"a temporary copy of the model is needed, and could not be written to {folder} ({error.strerror}); set TMPDIR to"
                " a folder on a disk with room for it, or give the model's path"
            ) from error


def _without_name(folder: str) -> tuple[BinaryIO, str] | None:
    """A file that no folder lists, and the name under which this process reaches it; None where that does not exist."""
    if not hasattr(os, "O_TMPFILE"):
        return None
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # not every file system can
        return None
    path = f"/proc/self/fd/{fd}"
    if not os.path.exists(path):
        os.close(fd)
        return None
    return os.fdopen(fd, "w+b"), path


def _with_name(folder: str, suffix: str, stack: contextlib.ExitStack) -> tuple[BinaryIO, str]:
    path = os.path.join(stack.enter_context(private_folder(folder)), "model" + suffix)
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600), "w+b"), path


def _linked(path: str, folder: str, suffix: str, stack: contextlib.ExitStack) -> str:
    link = os.path.join(stack.enter_context(private_folder(folder)), "model" + suffix)
    os.symlink(path, link)
    return link


@contextlib.contextmanager
def private_folder(folder: str | None = None) -> Iterator[str]:
    """A folder of this user's own, by default on a disk, gone with what is in it at the end of the block."""
    private = tempfile.mkdtemp(prefix="mlup-stream-", dir=folder or _folder_on_disk())  # 0700
    try:
        yield private
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _folder_on_disk() -> str:
    named = [os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")]
    candidates = [folder for folder in (*named, "/var/tmp") if folder]
    with contextlib.suppress(FileNotFoundError):  # it raises that where none can be written to
        candidates.append(tempfile.gettempdir())
    for folder in candidates:
        usable = os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
        if usable and file_system_of(folder) not in _MEMORY_FILE_SYSTEMS:
            return folder
    raise ModelLoadError(
        "a temporary copy of the model is needed, and no folder that can be written to lies on a disk"
        f" (tried {', '.join(dict.fromkeys(candidates))}); set TMPDIR to a folder on a disk, or give the model's path"
    )
