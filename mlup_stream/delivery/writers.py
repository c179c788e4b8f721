"""A mapped file that this process opens for writing: its name gets a file of its own first.

Who loads a model, changes it and saves it under its own name truncates the file that the model's arrays lie in: the next touch
of one is SIGBUS, and the content is gone. An audit hook, which comes with the first file that is noted here, sees every open for
writing before it happens. A mapped file is then replaced under its name, by an empty one if it is about to be truncated, by a
copy otherwise; owner, mode and extended attributes are the same. The maps keep the old one, the writer gets the new one.

Not seen: other processes, and libraries that open files without Python's knowledge. The writers of such libraries that a user of
a mapped model is likely to call are made to come here first (`announced`): `torch.save`, and `save_file` of safetensors before
0.8, which wrote in place. Other hard links of the file keep the old content. Windows does not let a mapped file be truncated.

Source: the table of audit events in the documentation of Python: `open(path, mode, flags)`, where `os.open` has no mode, and
`os.truncate(path, length)`, which may have a descriptor for a path.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import sys
from typing import Any

from mlup_stream.errors import ModelFileInUse
from mlup_stream.memory.proc import read_file

__all__ = ["announced", "note_mapped"]

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
_MUST_BE_NEW = os.O_CREAT | os.O_EXCL
_ANNOUNCED = "_announced_to_mlup_stream"
_MOST_NOTED = 4096
_LATEST = 1024
"""How many of the latest stay noted whatever the maps say: a library that was given a name may map the file any time now."""

_noted: dict[tuple[int, int], None] = {}


def note_mapped(device: int, inode: int) -> None:
    """Notes a file that is, or may soon be, mapped in this process. Costs no look at the maps before it is opened for writing."""
    if os.name == "nt":
        return
    _install()
    _noted[device, inode] = None
    if len(_noted) > _MOST_NOTED:
        maps = read_file("/proc/self/maps")
        for key in list(_noted)[:-_LATEST]:
            if not _has_inode(maps, key[1]):
                _noted.pop(key, None)


def announced(owner: Any, name: str, argument: int, *, truncates: bool = False) -> None:
    """Puts a function in place of `owner.name`, which writes the file that its positional argument names, unseen by Python.

    It is the same but for what happens to a mapped file before. Idempotent; does nothing where there is no such function.

    Args:
        owner: A module or class.
        name: Of the function.
        argument: Which of its positional arguments is the file's name.
        truncates: Whether that is the first thing it does. One that may refuse before gets a copy, not an empty file.
    """
    writer = getattr(owner, name, None)
    if writer is None or hasattr(writer, _ANNOUNCED):
        return

    @functools.wraps(writer)
    def write(*arguments: Any, **keywords: Any) -> Any:
        if len(arguments) > argument:
            _give_away(arguments[argument], empty=truncates)
        return writer(*arguments, **keywords)

    setattr(write, _ANNOUNCED, True)
    setattr(owner, name, write)


@functools.cache
def _install() -> None:
    sys.addaudithook(_before)


def _before(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        path, mode, flags = arguments
        # A path that is relative may be so to a folder of which the event of `os.open` says nothing.
        if flags & _WRITES and flags & _MUST_BE_NEW != _MUST_BE_NEW:
            _give_away(path, empty=bool(flags & os.O_TRUNC) and (mode is not None or os.path.isabs(path)))
    elif event == "os.truncate":
        _give_away(arguments[0], empty=False)


def _give_away(path: Any, *, empty: bool) -> None:
    """Replaces the file under its name, if it is one that is mapped here and may be written to.

    Raises:
        ModelFileInUse: That is not possible; nothing has happened to the file.
    """
    try:
        status = os.stat(path)
    except (OSError, TypeError, ValueError):
        return  # whoever opens it will hear of that
    if (status.st_dev, status.st_ino) not in _noted:
        return
    if isinstance(path, int):
        if _has_inode(read_file("/proc/self/maps"), status.st_ino):
            raise _in_use(os.readlink(f"/proc/self/fd/{path}"), "it is open already, and would be truncated")
        return
    path = os.path.realpath(os.fsdecode(path))
    if not _is_mapped(path, status.st_ino) or not os.access(path, os.W_OK):
        return
    new = os.path.join(os.path.dirname(path), f".{secrets.token_hex(8)}.part")
    try:
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        if not empty:
            shutil.copyfile(path, new)
        with contextlib.suppress(PermissionError):  # somebody else's file: what is saved belongs to who saves it
            os.chown(new, status.st_uid, status.st_gid)
        shutil.copystat(path, new)
        os.replace(new, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise _in_use(path, f"its name cannot be given another file: {error.strerror}") from error


def _is_mapped(path: str, inode: int) -> bool:
    maps = read_file("/proc/self/maps")
    # By either: overlay file systems may tell another inode there, and a renamed folder another path.
    return not maps or _has_inode(maps, inode) or b" %s\n" % os.fsencode(path) in maps


def _has_inode(maps: bytes, inode: int) -> bool:
    return b" %d " % inode in maps


def _in_use(path: str, why: str) -> ModelFileInUse:
    return ModelFileInUse(
        f"{path}: a model of this process lives in it, and {why}; save it under another name and rename that, unload the model"
        " first, or load it with snapshot=True",
        path=path,
    )
