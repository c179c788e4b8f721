"""The limits that a process has of its own: RLIMIT_AS and RLIMIT_DATA, see getrlimit(2). On Linux, which enforces both."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

from mlup_stream.errors import ConfigError
from mlup_stream.memory.limit import Counts, Limit
from mlup_stream.memory.proc import status

__all__ = ["hard_limit", "rlimits"]

# What each limits, and under which name the kernel shows its use. RLIMIT_RSS has had no effect since Linux 2.4.30.
_KINDS = (("RLIMIT_AS", "ulimit -v", "VmSize", Counts.ADDRESSES), ("RLIMIT_DATA", "ulimit -d", "VmData", Counts.DATA))


def rlimits() -> Iterator[Limit]:
    """Those of the two that are set, as soft limits: it is these that an allocation runs into."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    used: dict[str, int] | None = None
    for name, command, use_name, counts in _KINDS:
        soft_bytes = resource.getrlimit(getattr(resource, name))[0]
        if soft_bytes == resource.RLIM_INFINITY:
            continue
        used = status() if used is None else used
        yield Limit(name, f"setrlimit, {command}", soft_bytes, used.get(use_name, 0), counts)


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


_hard_limits = _HardLimits()


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
    import resource

    limits = _hard_limits
    with limits.lock:
        used_bytes = status().get("VmData", 0)
        limit_bytes = used_bytes + max(0, more_bytes)
        if not limits.in_force:
            limits.before_bytes = resource.getrlimit(resource.RLIMIT_DATA)[0]
        limits.in_force.append(limit_bytes)
        limits.apply()
    try:
        yield Limit("RLIMIT_DATA", "memory_limit='hard'", limit_bytes, used_bytes, Counts.DATA)
    finally:
        with limits.lock:
            limits.in_force.remove(limit_bytes)
            limits.apply()
