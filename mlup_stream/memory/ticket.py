"""Load tickets: processes that start together on one machine load in turn where they would not fit together.

Each load that runs has a ticket, a file that says how much it will take; a lock beside it, which the system drops with its
process, says that it is alive. A load is admitted into what is left once every other ticket has taken its share. One lock for all
makes admission one at a time; it is held for milliseconds, never during a load.

The tickets of one host, user and control group lie together: those are the processes that share a limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from mlup_stream.errors import LoadTicketTimeout, MemoryBudgetExceeded, ModelLoadError
from mlup_stream.memory.proc import number_after, read_file
from mlup_stream.units import format_bytes

__all__ = ["LoadTicket", "TicketOffice"]

_POLL_SECONDS = 0.05
_Admitted = TypeVar("_Admitted")


class _Holder(NamedTuple):
    """What a ticket says of the load that holds it."""

    pid: int
    thread: int
    name: str
    since: float
    needed_bytes: int | None
    anon_at_start_bytes: int

    def still_to_take_bytes(self) -> int | None:
        """How much of its need it has not taken yet; None if nobody knows its need."""
        if self.needed_bytes is None:
            return None
        resident_kilobytes = number_after(read_file(f"/proc/{self.pid}/status"), b"RssAnon:")
        taken_bytes = 0 if resident_kilobytes is None else resident_kilobytes * 1024 - self.anon_at_start_bytes
        return max(0, self.needed_bytes - max(0, taken_bytes))

    def __str__(self) -> str:
        need = "an unknown amount" if self.needed_bytes is None else format_bytes(self.needed_bytes)
        return f"process {self.pid}, which has been loading {self.name} for {time.time() - self.since:.0f} s and needs {need}"


class LoadTicket:
    """The right to load now. `release` it once the load has settled; the end of the process does it too."""

    def __init__(self, path: str, lock: Any) -> None:
        self._path = path
        self._lock = lock

    def release(self) -> None:
        """Lets the next one load. Idempotent."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            lock.release()
            with contextlib.suppress(OSError):
                os.unlink(lock.lock_file)


class TicketOffice:
    """Where the tickets lie and are given out.

    Args:
        folder: None is a folder of this user's in the folder for temporary files.
        group: What the processes share: the folder of their control group.
        timeout_seconds: How long to wait for a turn.
    """

    def __init__(self, folder: str | None = None, *, group: str = "", timeout_seconds: float = 600.0) -> None:
        self.folder = os.path.join(_own_folder() if folder is None else folder, _host_and(group))
        self.timeout_seconds = timeout_seconds

    def take(self, name: str, attempt: Callable[[int], tuple[_Admitted, int | None]]) -> tuple[_Admitted, LoadTicket]:
        """Waits until `attempt` succeeds beside the loads that are running.

        Args:
            name: What is to be loaded, for those who will wait for it.
            attempt: Called with the bytes that the running loads will still take; returns what it admitted and its need (None if
                not known: then it waits to be alone), or raises MemoryBudgetExceeded.

        Raises:
            MemoryBudgetExceeded: It does not fit although nobody else is loading.
            LoadTicketTimeout: Its turn did not come; the message says who is loading.
        """
        import filelock

        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        deadline = time.monotonic() + self.timeout_seconds
        holders: tuple[_Holder, ...] = ()
        while True:
            with contextlib.suppress(filelock.Timeout):
                counter = filelock.FileLock(os.path.join(self.folder, "counter.lock"), thread_local=False)
                with counter.acquire(timeout=max(0.0, deadline - time.monotonic())):
                    holders = self._holders()
                    with contextlib.suppress(_NotYet):
                        return self._attempt(name, attempt, holders)
            if time.monotonic() >= deadline:
                raise LoadTicketTimeout(
                    f"{name}: waited {self.timeout_seconds:.0f} s for its turn to load; {_who(holders)};"
                    " wait longer, or load without memory_ticket",
                    holders=tuple(map(str, holders)),
                    timeout_seconds=self.timeout_seconds,
                )
            time.sleep(_POLL_SECONDS)

    def _attempt(
        self, name: str, attempt: Callable[[int], tuple[_Admitted, int | None]], holders: tuple[_Holder, ...]
    ) -> tuple[_Admitted, LoadTicket]:
        shares = [holder.still_to_take_bytes() for holder in holders]
        if None in shares:
            raise _NotYet
        try:
            admitted, needed_bytes = attempt(sum(share for share in shares if share is not None))
        except MemoryBudgetExceeded as refused:
            if not holders:
                raise
            raise _NotYet from refused
        if needed_bytes is None and holders:
            raise _NotYet
        return admitted, self._issue(name, needed_bytes)

    def _issue(self, name: str, needed_bytes: int | None) -> LoadTicket:
        import filelock

        path = os.path.join(self.folder, f"{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}.ticket")
        lock = filelock.FileLock(f"{path}.lock", thread_local=False)
        lock.acquire(timeout=0)
        anon_kilobytes = number_after(read_file("/proc/self/status"), b"RssAnon:") or 0
        holder = _Holder(os.getpid(), threading.get_ident(), name, time.time(), needed_bytes, anon_kilobytes * 1024)
        with open(path, "w") as file:
            json.dump(holder, file)
        return LoadTicket(path, lock)

    def _holders(self) -> tuple[_Holder, ...]:
        """The loads that are running; what dead ones left is removed. A load within another, in one thread, is no rival."""
        import filelock

        found = []
        for entry in sorted(os.listdir(self.folder)):
            if not entry.endswith(".ticket"):
                continue
            path = os.path.join(self.folder, entry)
            holder = _read_holder(path)
            if holder is not None and (holder.pid, holder.thread) == (os.getpid(), threading.get_ident()):
                continue
            lock = filelock.FileLock(f"{path}.lock", thread_local=False)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                if holder is not None:
                    found.append(holder)
            else:
                LoadTicket(path, lock).release()
        return tuple(found)


class _NotYet(Exception):
    """It would fit if others were not loading."""


def _read_holder(path: str) -> _Holder | None:
    try:
        with open(path) as file:
            return _Holder(*json.load(file))
    except (OSError, ValueError, TypeError):
        return None


def _who(holders: tuple[_Holder, ...]) -> str:
    return " and ".join(map(str, holders)) if holders else "others were admitted before it"


def _host_and(group: str) -> str:
    import platform

    return re.sub(r"[^A-Za-z0-9.]+", "_", f"{platform.node()}-{group}")[-200:]


def _own_folder() -> str:
    """A folder that only this user can write to, in the folder for temporary files, which everybody can."""
    import tempfile

    user = os.getuid() if hasattr(os, "getuid") else ""
    remedy = "set TMPDIR to a folder that this user can write to, or load without memory_ticket"
    try:
        folder = os.path.join(tempfile.gettempdir(), f"mlup-stream-tickets-{user}")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        status = os.lstat(folder)
    except OSError as error:
        raise ModelLoadError(f"memory_ticket: expected a folder for the tickets, found none ({error}); {remedy}") from error
    if hasattr(os, "getuid") and (not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid()):
        raise ModelLoadError(f"{folder}: expected a folder of this user's own, found somebody else's; remove it, or {remedy}")
    return folder
