"""What the system suffered for want of memory during an interval: stalls, limits that were hit, processes that were killed.

Sources: the kernel's Documentation/accounting/psi.rst, `memory.events` in cgroup-v2.rst, `memory.failcnt` and
`memory.oom_control` in cgroup-v1/memory.rst.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

from mlup_stream.memory.cgroup import Cgroup, memory_cgroups
from mlup_stream.memory.proc import number_after, read_file

__all__ = ["Pressure", "PressureMeter"]

_STALLED = re.compile(rb"^(some|full) .*total=(\d+)", re.MULTILINE)

# Where memory and swap have one limit together, as under Docker, it is the second that counts.
_FAILURES = ("memory.failcnt", "memory.memsw.failcnt")
_FILES = ("memory.events", "memory.oom_control", "memory.pressure", *_FAILURES)


@dataclasses.dataclass(frozen=True)
class Pressure:
    """Changes over an interval; None is what cannot be known here.

    Attributes:
        stalled_seconds: For how long some task waited for memory.
        all_stalled_seconds: For how long every task that was not idle did.
        limit_hits: How often the control group was at its limit and had to reclaim, page cache included.
        oom_kills: How many processes of the control group the kernel killed.
        under_oom: Whether the control group is out of memory at the end of the interval.
        source: Whose figures these are: a control group's folder, or the host.
    """

    stalled_seconds: float | None = None
    all_stalled_seconds: float | None = None
    limit_hits: int | None = None
    oom_kills: int | None = None
    under_oom: bool | None = None
    source: str = ""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class PressureMeter:
    """`start`, then `stop`, which returns the difference. Each reads a few small files.

    Args:
        root: The folder under which `/proc` and the control groups' mounts lie.
        groups: What `memory_cgroups` found before.
    """

    def __init__(self, root: str = "/", groups: tuple[Cgroup, ...] | None = None) -> None:
        self._root = root
        # Version 1 and version 2 may both be there, and only one of them has the memory controller: the one with the files.
        folders = [group.folders[0] for group in (memory_cgroups(root) if groups is None else groups)]
        self._files = {folder: _files_in(folder) for folder in folders}
        self._before: dict[str, int] = {}
        self._source = "the host"

    def start(self) -> PressureMeter:
        self._before = self._read()
        return self

    def stop(self) -> Pressure:
        now = self._read()
        changes = {name: max(0, value - self._before.get(name, value)) for name, value in now.items()}

        def seconds(name: str) -> float | None:
            return changes[name] / 1e6 if name in changes else None

        return Pressure(
            stalled_seconds=seconds("some"),
            all_stalled_seconds=seconds("full"),
            limit_hits=changes.get("limit_hits"),
            oom_kills=changes.get("oom_kills"),
            under_oom=bool(now["under_oom"]) if "under_oom" in now else None,
            source=self._source,
        )

    def _read(self) -> dict[str, int]:
        found: dict[str, int] = {}
        stalls = b""
        for folder, names in self._files.items():
            files = {name: read_file(os.path.join(folder, name)) for name in names}
            events, control = files.get("memory.events", b""), files.get("memory.oom_control", b"")
            failures = [files.get(name, b"").strip() for name in _FAILURES]
            if events:
                found["limit_hits"] = sum(number_after(events, name) or 0 for name in (b"high ", b"max "))
                found["oom_kills"] = number_after(events, b"oom_kill ") or 0
            if failures[0]:
                found["limit_hits"] = sum(int(count) for count in failures if count.isdigit())
            for name, line in (("oom_kills", b"oom_kill "), ("under_oom", b"under_oom ")):
                value = number_after(control, line)
                if value is not None:
                    found[name] = value
            if events or failures[0]:
                self._source = folder
            stalls = stalls or files.get("memory.pressure", b"")
        stalls = stalls or read_file(os.path.join(self._root, "proc/pressure/memory"))
        found.update({kind.decode(): int(total) for kind, total in _STALLED.findall(stalls)})
        return found


def _files_in(folder: str) -> tuple[str, ...]:
    """Which of the files a group has: its version and the kernel decide that."""
    return tuple(name for name in _FILES if os.path.exists(os.path.join(folder, name)))
