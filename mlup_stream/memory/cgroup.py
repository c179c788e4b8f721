"""The memory limits of the control groups that this process is in, from its own up to the root of what can be seen.

Sources: cgroups(7), the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst, proc_pid_mountinfo(5).

A limit binds everything below it, so each ancestor counts. In a container the mount shows the tree from somewhere: the whole of
it (host namespace), from the container's own group on (private namespace, or version 1 under Docker), or from above this
namespace's root, where the names in between cannot be known. What cannot be found is left out, never guessed; version 1 tells
the tightest limit of the ancestors that are out of sight (`hierarchical_memory_limit`).
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from mlup_stream.memory.limit import Limit
from mlup_stream.memory.proc import number_after, read_file

__all__ = ["Cgroup", "cgroup_limits", "memory_cgroups"]

UNLIMITED_BYTES = 1 << 62
"""Version 1 has no word for "unlimited": it shows LONG_MAX rounded down to a page, 9223372036854771712 with pages of 4 KiB."""

_OCTAL = re.compile(rb"\\([0-7]{3})")


class _Version(NamedTuple):
    limits: tuple[tuple[str, str], ...]  # the file with the limit, the file with its use
    # In memory.stat, what is given up under pressure: page cache, of which shared memory is no part, and the names of files.
    reclaimable: tuple[bytes, ...]


_VERSIONS = {
    1: _Version(
        (
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            ("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"),
        ),
        # total_: with the groups below it, which are charged to it too.
        (b"total_active_file ", b"total_inactive_file "),
    ),
    2: _Version(
        (("memory.max", "memory.current"), ("memory.high", "memory.current")),
        (b"active_file ", b"inactive_file ", b"slab_reclaimable "),
    ),
}


class Cgroup(NamedTuple):
    """A memory control group: `folders` are its own and those of its ancestors, as far up as they can be seen."""

    version: int
    folders: tuple[str, ...]


class _Mount(NamedTuple):
    version: int
    root: str  # which group of the hierarchy lies at the mount point
    point: str


def memory_cgroups(root: str = "/") -> tuple[Cgroup, ...]:
    """The memory control groups of this process: none, one, or one of each version.

    Args:
        root: The folder under which `/proc` and the mounts lie.
    """
    return _groups_of(root, read_file(os.path.join(root, "proc/self/cgroup")))


@functools.lru_cache(maxsize=8)
def _groups_of(root: str, own: bytes) -> tuple[Cgroup, ...]:
    """Asked again when the process was moved: the mounts of a running process hardly ever change."""
    paths = _own_paths(own)
    found = []
    for version, path in paths.items():
        mounts = [each for each in _mounts(read_file(os.path.join(root, "proc/self/mountinfo"))) if each.version == version]
        folders = _folders(mounts, path, root)
        if folders:
            found.append(Cgroup(version, folders))
    return tuple(found)


def cgroup_limits(root: str = "/", groups: tuple[Cgroup, ...] | None = None) -> Iterator[Limit]:
    """Every limit on this process's control groups and their ancestors, page cache counted as free.

    Args:
        root: The folder under which `/proc` and the mounts lie.
        groups: What `memory_cgroups` found before, to look only at the numbers.
    """
    for group in memory_cgroups(root) if groups is None else groups:
        version = _VERSIONS[group.version]
        tightest_bytes = UNLIMITED_BYTES
        # Making this file takes the kernel longer than all the others together: each is read once.
        statistics_of = functools.cache(lambda folder: read_file(os.path.join(folder, "memory.stat")))
        for folder in group.folders:
            reclaimable_bytes: int | None = None
            for limit_name, use_name in version.limits:
                limit_bytes = _limit(os.path.join(folder, limit_name))
                if limit_bytes is None:
                    continue
                if group.version == 1 and folder != group.folders[0] and _accounts_alone(folder):
                    break
                use_bytes = _number(os.path.join(folder, use_name))
                if use_bytes is None:
                    continue
                if reclaimable_bytes is None:
                    statistics = statistics_of(folder)
                    reclaimable_bytes = sum(number_after(statistics, name) or 0 for name in version.reclaimable)
                tightest_bytes = min(tightest_bytes, limit_bytes)
                used_bytes = max(0, use_bytes - reclaimable_bytes)
                yield Limit(limit_name, os.path.join(folder, limit_name), limit_bytes, used_bytes, shared=True)
        if group.version == 1:
            yield from _out_of_sight(group.folders[0], statistics_of(group.folders[0]), tightest_bytes)


def _out_of_sight(folder: str, statistics: bytes, tightest_bytes: int) -> Iterator[Limit]:
    """The limit of an ancestor above the mount, if it is tighter than all that can be seen; it is used at least by this group."""
    limit_bytes = number_after(statistics, b"hierarchical_memory_limit ")
    use_bytes = _number(os.path.join(folder, "memory.usage_in_bytes"))
    if limit_bytes is not None and use_bytes is not None and limit_bytes < tightest_bytes:
        reclaimable_bytes = sum(number_after(statistics, name) or 0 for name in _VERSIONS[1].reclaimable)
        where = f"an ancestor of {folder} that cannot be seen from here, hierarchical_memory_limit in its memory.stat"
        yield Limit("memory.limit_in_bytes", where, limit_bytes, max(0, use_bytes - reclaimable_bytes), shared=True)


def _accounts_alone(folder: str) -> bool:
    """Whether the groups below this one are not charged to it, as in version 1 before Linux 5.11."""
    return read_file(os.path.join(folder, "memory.use_hierarchy")).strip() == b"0"


def _limit(path: str) -> int | None:
    number = _number(path)  # None for "max" too
    return None if number is None or number >= UNLIMITED_BYTES else number


def _number(path: str) -> int | None:
    text = read_file(path).strip()
    return int(text) if text.isdigit() else None


def _own_paths(text: bytes) -> dict[int, str]:
    """The path of this process's memory group in each version's hierarchy. A group that was removed is marked as deleted."""
    paths = {}
    for line in text.splitlines():
        number, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        version = 2 if number == b"0" and not controllers else 1 if b"memory" in controllers.split(b",") else 0
        if version:
            paths[version] = os.fsdecode(path.removesuffix(b" (deleted)"))
    return paths


def _mounts(text: bytes) -> Iterator[_Mount]:
    for line in text.splitlines():
        before, separator, after = line.partition(b" - ")
        fields, tail = before.split(b" "), after.split(b" ")
        if not separator or len(fields) < 5 or len(tail) < 3:
            continue
        version = 2 if tail[0] == b"cgroup2" else 1 if tail[0] == b"cgroup" and b"memory" in tail[2].split(b",") else 0
        if version:
            yield _Mount(version, _unescaped(fields[3]), _unescaped(fields[4]))


def _unescaped(field: bytes) -> str:
    """Blanks and the like are written as a backslash and three octal digits there."""
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field))


def _folders(mounts: list[_Mount], path: str, root: str) -> tuple[str, ...]:
    """The folders of the group `path` and of its ancestors up to the mount point; that alone if the path leads elsewhere.

    A mount whose root lies out of this namespace is somebody else's view, and taken only if there is no other.
    """
    found: tuple[str, ...] = ()
    for mount in sorted(mounts, key=lambda each: ".." in each.root.split("/")):
        point = os.path.join(root, mount.point.lstrip("/")).rstrip("/")
        relative = _below(path, mount.root)
        steps = relative.split("/") if relative else []
        folders = ["/".join([point, *steps[:depth]]) for depth in range(len(steps), -1, -1)]
        there = tuple(folder for folder in folders if os.path.isdir(folder))
        if len(there) > len(found):
            found = there
    return found


def _below(path: str, mount_root: str) -> str:
    """`path` from `mount_root` on. Empty if it is the root itself, or not below it, or out of this namespace (`/../...`)."""
    if ".." in path.split("/") or ".." in mount_root.split("/"):
        return ""
    prefix = mount_root.rstrip("/") + "/"
    return path[len(prefix) :].strip("/") if path.startswith(prefix) else ""
