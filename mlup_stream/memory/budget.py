"""How many bytes this process may still take: `available(budget)`, the one answer for estimate, gate, watch, report and CLI.

It is the tightest of what the user said, every limit of the control groups up to the root, the process's own limits, and what the
host has left. Page cache counts as free everywhere: the kernel gives it up before it refuses an allocation.
"""

from __future__ import annotations

import dataclasses
import numbers
import os
from collections.abc import Iterable, Iterator
from typing import Any

from mlup_stream.errors import ConfigError
from mlup_stream.memory.cgroup import Cgroup, cgroup_limits
from mlup_stream.memory.limit import Counts, Limit
from mlup_stream.memory.proc import number_after, read_file
from mlup_stream.memory.recent import Recent
from mlup_stream.memory.rlimit import rlimits
from mlup_stream.units import MIB, format_bytes, parse_bytes

__all__ = ["Available", "Budget", "available"]

_MOST_PERCENT = 100
_ALLOWED = ("auto", "a number of bytes", "a size such as '512MiB'", "a fraction such as 0.8 or '80%'", "None")


@dataclasses.dataclass(frozen=True)
class Budget:
    """What the user said of memory. `Budget.of(value)` reads it from a setting.

    Attributes:
        limit_bytes: What may be taken from the moment that a governor starts; None if the user gave no size.
        fraction: The part of each control group's limit and of the host's memory that may be in use; 1.0 is all of it.
        enforced: Whether loads are refused at all; False for `memory_budget=None`.
    """

    limit_bytes: int | None = None
    fraction: float = 1.0
    enforced: bool = True

    @classmethod
    def of(cls, value: Any) -> Budget:
        """`"auto"`, bytes, `"512MiB"`, a fraction of the machine's or container's memory (`0.8`, `"80%"`), or None for no budget.

        Numbers of NumPy count as Python's do. A whole number up to 100 is refused: as bytes it could load nothing, and whoever
        writes 1 or 80 means 1.0 or `"80%"`.

        Raises:
            ConfigError: It is none of these.
        """
        if isinstance(value, cls):
            return value
        if value is None:
            return cls(enforced=False)
        if isinstance(value, str):
            value = _number_in(value)
        if value == "auto":
            return cls()
        if isinstance(value, numbers.Integral) and not isinstance(value, bool):
            size_bytes = int(value)
            if 0 < size_bytes <= _MOST_PERCENT:
                part = 1.0 if size_bytes == 1 else size_bytes / 100
                raise _not_a_budget(value, f"; this is a number of bytes: for a part write {part}")
            if size_bytes > 0:
                return cls(limit_bytes=size_bytes)
        elif isinstance(value, numbers.Real) and not isinstance(value, bool) and 0.0 < float(value) <= 1.0:
            return cls(fraction=float(value))
        raise _not_a_budget(value)


def _number_in(text: str) -> str | int | float:
    text = text.strip()
    if text.lower() == "auto":
        return "auto"
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        if text.startswith(("0.", "1.0")) and text.replace(".", "", 1).isdigit():
            return float(text)  # a fraction: nobody means a part of a byte
        return parse_bytes(text)
    except ValueError as error:
        raise _not_a_budget(text) from error


def _not_a_budget(value: Any, hint: str = "") -> ConfigError:
    return ConfigError(
        f"memory_budget: {value!r} is not a budget; expected {', '.join(_ALLOWED)}{hint}",
        field="memory_budget",
        value=value,
        allowed=_ALLOWED,
    )


@dataclasses.dataclass(frozen=True)
class Available:
    """What may still be taken, and by which limit.

    Attributes:
        limits: Every limit that was found, the tightest first.
    """

    limits: tuple[Limit, ...]

    @classmethod
    def of(cls, limits: Iterable[Limit]) -> Available:
        return cls(tuple(sorted(limits, key=lambda limit: limit.available_bytes)))

    def less(self, promised_bytes: int) -> Available:
        """What is left once other processes have taken the `promised_bytes` that they are about to take."""
        if promised_bytes <= 0:
            return self
        return Available.of(
            dataclasses.replace(limit, used_bytes=limit.used_bytes + promised_bytes) if limit.shared else limit
            for limit in self.limits
        )

    def promised(self, promised_bytes: int, others: str, *, shared: bool = True) -> Available:
        """What is left once this process's other loads, `others`, have taken the `promised_bytes` that they will still take.

        Without `shared` of those limits alone that no other process is charged to.
        """
        if promised_bytes <= 0:
            return self
        words = f"{format_bytes(promised_bytes)} of it is what {others} will still take, which this process is loading"
        return Available.of(
            dataclasses.replace(limit, used_bytes=limit.used_bytes + promised_bytes, where=f"{limit.where}; {words}")
            if shared or not limit.shared
            else limit
            for limit in self.limits
        )

    def noting(self, words: str) -> Available:
        """The same, with what a refusal is to say of it."""
        return Available(tuple(dataclasses.replace(limit, where=f"{limit.where}; {words}") for limit in self.limits))

    def more(self, freed_bytes: int) -> Available:
        """What is left once this process has let go of `freed_bytes` that it is about to let go of."""
        return Available.of(
            dataclasses.replace(limit, used_bytes=max(0, limit.used_bytes - freed_bytes)) for limit in self.limits
        )

    @property
    def tightest(self) -> Limit | None:
        """The limit that leaves least; None if none was found."""
        return self.limits[0] if self.limits else None

    @property
    def bytes(self) -> int | None:
        """What the tightest limit leaves; None if there is no limit that could be found."""
        return self.limits[0].available_bytes if self.limits else None

    def to_dict(self) -> dict[str, Any]:
        return {"available_bytes": self.bytes, "limits": [limit.to_dict() for limit in self.limits]}


def available(
    budget: Budget | None = None,
    *,
    spent_bytes: int = 0,
    root: str = "/",
    groups: tuple[Cgroup, ...] | None = None,
    small: bool = False,
) -> Available:
    """How many bytes this process may still take. Takes 0.2 ms and more, by the depth of the control group.

    Args:
        budget: What the user said; None is the same as "auto".
        spent_bytes: How much of the user's bytes has been taken since they were given.
        root: The folder under which `/proc` and the control groups' mounts lie.
        groups: What `memory_cgroups` found before.
        small: Whether it is asked for a load so small that figures of the last second will do, where they leave much.
    """
    budget = budget if budget is not None else Budget()
    limits = [*_system_limits(budget.fraction, root, groups, small)]
    if budget.limit_bytes is not None:
        limits.append(Limit("memory_budget", "the memory_budget setting", budget.limit_bytes, max(0, spent_bytes)))
    return Available.of(limits)


_MUCH_BYTES = 256 * MIB
_recent: Recent[tuple[Limit, ...]] = Recent()


def _system_limits(fraction: float, root: str, groups: tuple[Cgroup, ...] | None, small: bool) -> tuple[Limit, ...]:
    asked_of = (os.getpid(), fraction, root, groups)
    recent = _recent.get(asked_of) if small else None
    if recent is not None and min((limit.available_bytes for limit in recent), default=_MUCH_BYTES) >= _MUCH_BYTES:
        return recent
    found = [_part_of(limit, fraction) for limit in (*cgroup_limits(root, groups), *_host_limits(root))]
    return _recent.put(asked_of, (*found, *rlimits()))


def _part_of(limit: Limit, fraction: float) -> Limit:
    if fraction == 1.0:
        return limit
    where = f"{fraction:.0%} of {limit.where}, as memory_budget says"
    return dataclasses.replace(limit, limit_bytes=int(limit.limit_bytes * fraction), where=where)


def _host_limits(root: str) -> Iterator[Limit]:
    """What the host has left, and, where it does not overcommit, what it may still promise. Swap is not counted as memory."""
    meminfo = read_file(os.path.join(root, "proc/meminfo"))
    total, free = number_after(meminfo, b"MemTotal:"), number_after(meminfo, b"MemAvailable:")
    if total is not None and free is not None:
        yield Limit("host memory", "MemAvailable in /proc/meminfo", total * 1024, (total - free) * 1024, shared=True)
    else:
        import psutil

        try:
            memory = psutil.virtual_memory()
        except (psutil.Error, OSError, RuntimeError):
            return  # a /proc with nothing but processes in it (`subset=pid`)
        yield Limit("host memory", "psutil.virtual_memory()", memory.total, memory.total - memory.available, shared=True)
    if read_file(os.path.join(root, "proc/sys/vm/overcommit_memory")).strip() == b"2":
        limit, promised = number_after(meminfo, b"CommitLimit:"), number_after(meminfo, b"Committed_AS:")
        if limit is not None and promised is not None:
            where = "vm.overcommit_memory=2, CommitLimit in /proc/meminfo"
            yield Limit("commit limit", where, limit * 1024, promised * 1024, Counts.DATA, shared=True)
