"""Runs a child of a test under a real limit on its memory: a control group where one may be made, RLIMIT_DATA on any Linux.

    outcome = run_limited("answer(...)", limit_bytes=64 * MIB)              # in a memory control group of its own
    outcome = run_limited("answer(...)", limit_bytes=64 * MIB, by="data")   # under RLIMIT_DATA

A control group is made below this process's own and removed afterwards. A child that the kernel kills raises `ChildFailed` with a
`returncode` of -9: a test that expects no process to die has only to let it through.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from child import run_child

from mlup_stream.memory.cgroup import memory_cgroups

__all__ = ["cgroup_limit", "data_limit", "needs_cgroups", "run_limited"]

_LIMIT_FILES = {1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), 2: ("memory.max", "memory.swap.max")}


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _make_group(limit_bytes: int | None) -> str:
    """The folder of a new control group, limited to `limit_bytes`, without swap."""
    errors: list[str] = []
    for group in memory_cgroups():
        # Version 2 allows processes in leaves only: beside this process's own group, if not below it.
        for parent in group.folders[: 1 if group.version == 1 else 2]:
            folder = os.path.join(parent, f"mlup-stream-test-{uuid.uuid4().hex[:12]}")
            try:
                os.mkdir(folder)
            except OSError as error:
                errors.append(str(error))
                continue
            limit_file, swap_file = (os.path.join(folder, name) for name in _LIMIT_FILES[group.version])
            try:
                if not os.path.exists(limit_file):
                    raise OSError(f"{limit_file}: the memory controller is not switched on")
                if limit_bytes is not None:
                    _write(limit_file, str(limit_bytes))
                    with contextlib.suppress(OSError):  # a kernel without swap accounting
                        _write(swap_file, str(limit_bytes) if group.version == 1 else "0")
                return folder
            except OSError as error:
                errors.append(str(error))
                os.rmdir(folder)
    raise OSError("; ".join(errors) or "no memory control group was found")


@contextlib.contextmanager
def cgroup_limit(limit_bytes: int | None) -> Iterator[tuple[str, Callable[[], None]]]:
    """A new memory control group: its folder, and a function that puts the calling process into it, for `before_exec`."""
    folder = _make_group(limit_bytes)
    processes = os.path.join(folder, "cgroup.procs")
    try:
        yield folder, lambda: _write(processes, str(os.getpid()))
    finally:
        for _ in range(200):  # a process that has just ended is still in it for a moment
            try:
                os.rmdir(folder)
                break
            except OSError:
                time.sleep(0.01)
        else:
            os.rmdir(folder)


def data_limit(limit_bytes: int) -> Callable[[], None]:
    """A function that limits the calling process's private writable address space, for `before_exec`."""
    return lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def _why_no_groups() -> str:
    try:
        with cgroup_limit(None):
            return ""
    except OSError as error:
        return f"a memory control group cannot be made here: {error}"


needs_cgroups = pytest.mark.skipif(bool(_why_no_groups()), reason=_why_no_groups() or "control groups can be made")
"""Marks a test that runs children in control groups."""


def run_limited(code: str, *, limit_bytes: int | None, by: str = "cgroup", **arguments: Any) -> Any:
    """What `code` answered in a fresh interpreter that is limited to `limit_bytes`; see `child.run_child`.

    Args:
        code: Python source.
        limit_bytes: The limit, the interpreter included; None for a control group without one.
        by: `"cgroup"` or `"data"`.
        arguments: For `run_child`.
    """
    if by == "data":
        assert limit_bytes is not None
        return run_child(code, before_exec=data_limit(limit_bytes), **arguments)
    with cgroup_limit(limit_bytes) as (_, join):
        return run_child(code, before_exec=join, **arguments)
