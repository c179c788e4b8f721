"""A private copy of a model file, made before anything is read: for places where files are overwritten in place.

On a file system that shares blocks between files (XFS, Btrfs, and others that know FICLONE) the copy takes no space; on others
it is written out, to a disk, through a bounded window. It has no name where the system allows that, and is gone with the last
map of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from mlup_stream.delivery.pinned import PinnedFile
from mlup_stream.delivery.private_file import private_file

__all__ = ["snapshot_of"]

_FICLONE = 0x40049409
"""The ioctl of linux/fs.h: makes one file share the blocks of another of the same file system. ioctl_ficlonerange(2)."""


@contextlib.contextmanager
def snapshot_of(file: PinnedFile) -> Iterator[PinnedFile]:
    """A private copy of `file` under the same name, open until the end of the block; maps of it stay good after that.

    Raises:
        ModelFileChanged: It was written to while it was being copied.

    Peak memory: one window of 1 MiB.
    """
    with contextlib.ExitStack() as stack:
        fd = _shared_blocks(file)
        if fd is None:
            content = stack.enter_context(file.open())
            fd = os.open(stack.enter_context(private_file(content)), os.O_RDONLY | getattr(os, "O_BINARY", 0))
        copy = PinnedFile(file.path, fd)
        stack.callback(copy.close)
        file.check()
        yield copy


def _shared_blocks(file: PinnedFile) -> int | None:
    """A descriptor of a copy that shares the blocks of the file; None where that cannot be done."""
    if not hasattr(os, "O_TMPFILE"):
        return None
    import fcntl

    try:
        # In the file's own folder, because only files of one file system can share blocks.
        copy = os.open(os.path.dirname(os.path.realpath(file.path)), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.ioctl(copy, _FICLONE, file.fd)
    except OSError:
        os.close(copy)
        return None
    return copy
