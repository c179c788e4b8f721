"""A private copy of a model file, made before anything is read: for places where files are overwritten in place.

On a file system that shares blocks between files (XFS, Btrfs, and others that know FICLONE) the copy takes no space; on others
it is written out, to a disk, through a bounded window. It has no name where the system allows that, and is gone with the last
map of it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from mlup_stream.delivery.files import FileIdentity, explain_os_error
from mlup_stream.delivery.private_file import private_file
from mlup_stream.errors import ConfigError, ModelFileChanged

__all__ = ["snapshot_of"]

_FICLONE = 0x40049409
"""The ioctl of linux/fs.h: makes one file share the blocks of another of the same file system. ioctl_ficlonerange(2)."""


@contextlib.contextmanager
def snapshot_of(path: str) -> Iterator[str]:
    """A name of a private copy of the file at `path`, good until the end of the block; maps of it stay good after that.

    Raises:
        ConfigError: It is a folder.
        ModelFileChanged: It was written to while it was being copied.

    Peak memory: one window of 1 MiB.
    """
    if os.path.isdir(path):
        raise ConfigError(f"{path}: snapshot=True is for single files, and this model is a folder", field="snapshot", value=True)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb", buffering=0))
        except OSError as error:
            raise explain_os_error(error, path) from error
        before = FileIdentity.of(os.fstat(file.fileno()))
        copy = _shared_blocks(file.fileno(), path, stack) or stack.enter_context(private_file(file))
        if FileIdentity.of(os.fstat(file.fileno())) != before:
            raise ModelFileChanged(f"{path}: was written to while its snapshot was being made; load it again", path=path)
        yield copy


def _shared_blocks(source: int, path: str, stack: contextlib.ExitStack) -> str | None:
    """The name of a copy that shares the blocks of the open file; None where that cannot be done."""
    if not hasattr(os, "O_TMPFILE") or not stat.S_ISREG(os.fstat(source).st_mode):
        return None
    import fcntl

    try:
        # In the file's own folder, because only files of one file system can share blocks.
        copy = os.open(os.path.dirname(os.path.realpath(path)), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.ioctl(copy, _FICLONE, source)
    except OSError:
        os.close(copy)
        return None
    stack.callback(os.close, copy)
    return f"/proc/self/fd/{copy}"
