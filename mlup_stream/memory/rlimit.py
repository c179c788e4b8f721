"""The limits that a process has of its own: RLIMIT_AS and RLIMIT_DATA, see getrlimit(2). On Linux, which enforces both."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

from mlup_stream.errors import ConfigError
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.memory.limit import Counts, Limit
from mlup_stream.memory.proc import status
from mlup_stream.units import MIB

__all__ = ["guard_of", "hard_limit", "rlimits"]

_SPARE_BYTES = 8 * MIB
"""What is taken beside the load's own allocations: memory that the allocator has had before and nobody has touched yet, what the
kernel charges for the process and its CPUs, and the room for an exception."""
_PAGE_TABLE_SHARE = 512  # 8 bytes for each page of 4 KiB

# What each limits, and under which name the kernel shows its use. RLIMIT_RSS has had no effect since Linux 2.4.30.
_KINDS = (("RLIMIT_AS", "ulimit -v", "VmSize", Counts.ADDRESSES), ("RLIMIT_DATA", "ulimit -d", "VmData", Counts.DATA))


def rlimits() -> Iterator[Limit]:
    """Those of the two that are set, as soft limits: it is these that an allocation runs into."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    used: dict[str, int] | None = None
    for name, command, use_name, counts in _KINDS:
        try:
            soft_bytes = resource.getrlimit(getattr(resource, name))[0]
        except OSError:  # a filter of system calls
            continue
        if name == "RLIMIT_DATA" and _hard_limits.in_force:
            soft_bytes = _hard_limits.before_bytes  # ours is no limit of the system's
        if soft_bytes == resource.RLIM_INFINITY:
            continue
        used = status() if used is None else used
        yield Limit(name, f"setrlimit, {command}", soft_bytes, used.get(use_name, 0), counts)


def _soft_data_bytes() -> int | None:
    """RLIMIT_DATA; None where it does not count maps, or a filter of system calls keeps it from this process."""
    if not sys.platform.startswith("linux"):
        return None
    import resource

    try:
        return resource.getrlimit(resource.RLIMIT_DATA)[0]
    except OSError:
        return None


class _HardLimits:
    """The limits that are in force now, of all threads, and what the soft limit was before the first of them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.in_force: list[int] = []
        self.before_bytes = 0

    def apply(self) -> None:
        import resource

        hard_bytes = resource.getrlimit(resource.RLIMIT_DATA)[1]
        bounds = [bound for bound in (self.before_bytes, *self.in_force) if bound != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min(bounds) if bounds else resource.RLIM_INFINITY, hard_bytes))

    def leave_to_parent(self) -> None:
        """In a child that was forked meanwhile: the load is its parent's, and so is the limit."""
        if self.in_force:
            self.in_force.clear()
            self.apply()
        self.lock = threading.Lock()


_hard_limits = _HardLimits()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_hard_limits.leave_to_parent)


def guard_of(
    estimate: Estimate | None, size_bytes: int | None, room_bytes: int | None, *, calls_what_it_names: bool = False
) -> int | None:
    """How much a load may take of private writable memory when nothing sure is known of what it takes; None for no guard.

    Between two looks at the memory a dict of millions doubles, or an array is copied: a step that nobody foresees, for which
    the kernel would kill the process. Under this limit the step is an allocation that fails.

    Args:
        estimate: What is known.
        size_bytes: The size of the file.
        room_bytes: What is left; None if nothing limits it.
        calls_what_it_names: Whether it can take what no header tells: a pickle of 60 bytes may ask for a gigabyte of zeros.
    """
    sure = estimate is not None and estimate.certainty is not Certainty.UNKNOWN
    if room_bytes is None or (sure and not calls_what_it_names) or _soft_data_bytes() is None:
        return None
    # A copy-on-write map of the file is counted, though it takes no memory before it is written to.
    mapped_bytes = (size_bytes or 0) if estimate is None else estimate.copy_on_write_bytes
    # What was admitted for sure, to the last byte of the room, it may have in any case.
    admitted_bytes = estimate.peak_anon_bytes * 21 // 20 + _SPARE_BYTES if estimate is not None and sure else 0
    return max(admitted_bytes, room_bytes - room_bytes // _PAGE_TABLE_SHARE - _SPARE_BYTES) + mapped_bytes


@contextlib.contextmanager
def hard_limit(more_bytes: int) -> Iterator[Limit]:
    """Lets this process take `more_bytes` more of private writable memory, and no more, until the block ends.

    An allocation beyond it fails in the C library, which becomes a `MemoryError` in Python and whatever a library makes of it.
    The limit holds for the whole process: other threads share it. Overlapping ones combine to the tightest; the limit that was in
    force before is restored when the last ends, and is never exceeded meanwhile.

    Raises:
        ConfigError: Not on Linux, the only system that counts maps against RLIMIT_DATA.
    """
    if not sys.platform.startswith("linux"):
        raise ConfigError(
            f"memory_limit: 'hard' needs RLIMIT_DATA as Linux has it, found {sys.platform}; use 'soft'",
            field="memory_limit",
            value="hard",
            allowed=("soft",),
        )
    limits = _hard_limits
    with limits.lock:
        soft_bytes = _soft_data_bytes()
        if soft_bytes is None:
            raise ConfigError(
                "memory_limit: 'hard' needs RLIMIT_DATA, which a filter of system calls keeps from this process; use 'soft'",
                field="memory_limit",
                value="hard",
                allowed=("soft",),
            )
        used_bytes = status().get("VmData", 0)
        limit_bytes = used_bytes + max(0, more_bytes)
        if not limits.in_force:
            limits.before_bytes = soft_bytes
        limits.in_force.append(limit_bytes)
        limits.apply()
    try:
        yield Limit("RLIMIT_DATA", "memory_limit='hard'", limit_bytes, used_bytes, Counts.DATA)
    finally:
        with limits.lock:
            limits.in_force.remove(limit_bytes)
            limits.apply()
