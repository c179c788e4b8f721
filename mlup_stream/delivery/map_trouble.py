"""Where a memory map is a bad idea: what `auto` asks before it prefers a view.

A map of a file on a network or FUSE file system turns each page fault into a request that nothing can time out, and a server
that goes away into SIGBUS. A process can also run out of maps, or, before Python 3.13, of the descriptor that each map keeps.
"""

from __future__ import annotations

import os
import sys

from mlup_stream.delivery.file_system import file_system_of
from mlup_stream.memory.proc import read_file
from mlup_stream.memory.recent import Recent

__all__ = ["map_trouble", "maps_in_use"]

# As the kernel, or psutil elsewhere, names them. A FUSE file system is `fuse.NAME` or `fuseblk`, whatever it is underneath.
_REMOTE = frozenset(
    {"9p", "afs", "afpfs", "autofs", "beegfs", "ceph", "cifs", "coda", "davfs", "glusterfs", "lustre", "ncpfs", "nfs"}
    | {"nfs4", "orangefs", "smb", "smb2", "smb3", "smbfs", "virtiofs", "webdav"}
)
_MAPS_OF_A_VIEW = 2
_SPARE = 16
"""What the framework that is about to be used may want of descriptors and maps."""
recent_plenty: Recent[bool] = Recent()
"""Whether half of both was left within the last second: they are not used up before it is over."""


def map_trouble(path: str | os.PathLike[str]) -> str | None:
    """Why the file at `path` should rather not be mapped, in a few words; None if nothing speaks against it."""
    kind = file_system_of(path)
    if kind in _REMOTE or kind.startswith("fuse"):
        return f"the file lies on {kind}, where a map can block or kill the process"
    if recent_plenty.get(os.getpid()):
        return None
    descriptors = (_count("/proc/self/fd"), _descriptor_limit()) if sys.version_info < (3, 13) else (None, None)
    maps = maps_in_use()
    if _too_few_left(*descriptors):
        return "few file descriptors are left, and each map keeps one"
    if _too_few_left(*maps):
        return "few maps are left of vm.max_map_count"
    if not _too_few_left(*descriptors, share=2) and not _too_few_left(*maps, share=2):
        recent_plenty.put(os.getpid(), True)
    return None


def maps_in_use() -> tuple[int | None, int | None]:
    """How many maps this process has, and how many it may have; None where nobody says."""
    return _count_lines("/proc/self/maps"), _number("/proc/sys/vm/max_map_count")


def _too_few_left(used: int | None, limit: int | None, share: int = 1) -> bool:
    return used is not None and limit is not None and used + _MAPS_OF_A_VIEW + _SPARE > limit // share


def _count(folder: str) -> int | None:
    try:
        return len(os.listdir(folder))
    except OSError:
        return None


def _count_lines(path: str) -> int | None:
    return read_file(path).count(b"\n") or None


def _number(path: str) -> int | None:
    try:
        with open(path, "rb") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _descriptor_limit() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft
