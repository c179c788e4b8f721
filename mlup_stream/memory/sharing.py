"""Which files a process maps, and how much of its memory they are: what RSS counts once for each process, and PSS once in all.

From `/proc/PID/smaps`, see proc_pid_smaps(5). Empty where there is no such file, or it may not be read.
"""

from __future__ import annotations

import dataclasses
import os
import re

from mlup_stream.memory.proc import read_file

__all__ = ["FileMaps", "file_maps"]

_MAP = re.compile(rb"[0-9a-f]+-[0-9a-f]+ \S+ [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)")
_FIELDS = {b"Rss": "rss_bytes", b"Pss": "pss_bytes", b"Anonymous": "anon_bytes"}
_DELETED = " (deleted)"


@dataclasses.dataclass
class FileMaps:
    """The maps of one file in one process, together.

    Attributes:
        path: The name that it was mapped by.
        device: The file system's number.
        inode: The file's number in it.
        rss_bytes: What of it is in memory.
        pss_bytes: The same with each page divided by the number of its users.
        anon_bytes: Pages that were written to, which are the process's own.
        deleted: Whether the name is gone, or leads to another file by now.
    """

    path: str
    device: int
    inode: int
    rss_bytes: int = 0
    pss_bytes: int = 0
    anon_bytes: int = 0
    deleted: bool = False

    def is_of(self, path: str, device: int, inode: int) -> bool:
        """Whether it is that file. By its name too: some file systems give `stat` another device than the kernel's table has."""
        return self.inode == inode and (self.device == device or self.path == path)


def file_maps(process: int | str = "self") -> tuple[FileMaps, ...]:
    """Every file that the process maps. Walks its page tables: 1 ms and more."""
    found: dict[tuple[int, int], FileMaps] = {}
    now: FileMaps | None = None
    for line in read_file(f"/proc/{process}/smaps").splitlines():
        name, colon, value = line.partition(b":")
        if colon and name in _FIELDS:
            if now is not None:
                field = _FIELDS[name]
                setattr(now, field, getattr(now, field) + int(value.split()[0]) * 1024)
            continue
        header = _MAP.match(line)
        if header is None:
            continue
        device = os.makedev(int(header[1], 16), int(header[2], 16))
        inode, path = int(header[3]), os.fsdecode(header[4])
        now = None
        if inode and path.startswith("/"):
            deleted = path.endswith(_DELETED)
            now = found.setdefault((device, inode), FileMaps(path.removesuffix(_DELETED), device, inode, deleted=deleted))
    return tuple(found.values())
