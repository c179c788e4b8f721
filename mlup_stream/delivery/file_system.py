"""Which kind of file system a path lies on: maps, reflinks and temporary files are not equally good on all of them."""

from __future__ import annotations

import os

from mlup_stream.memory.recent import Recent

__all__ = ["file_system_of"]


recent_kinds: Recent[str] = Recent()


def file_system_of(path: str | os.PathLike[str]) -> str:
    """The type of the file system with the longest mount point above `path`, links followed; empty where it cannot be known."""
    try:
        device = os.stat(path).st_dev
    except (OSError, ValueError):
        return _by_mount(path)
    return recent_kinds.ask(device, lambda: _by_mount(path))


def _by_mount(path: str | os.PathLike[str]) -> str:
    import psutil  # 7 MiB that `import mlup_stream` does not pay

    real = os.path.realpath(path)
    best, kind = "", ""
    try:
        mounts = psutil.disk_partitions(all=True)
    except (OSError, RuntimeError):
        return ""
    for mount in mounts:
        point = mount.mountpoint
        inside = real == point or real.startswith(point.rstrip(os.sep) + os.sep)
        if inside and len(point) >= len(best):  # of two on one point the later one covers the earlier
            best, kind = point, mount.fstype.lower()
    return kind
