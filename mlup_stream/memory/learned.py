"""What earlier loads took, by the file's identity, format and delivery: the next estimate of the same file is a measurement.

One small file per key, in the user's cache folder, written aside and renamed: a reader sees the old text or the new one, whatever
number of processes write and wherever one of them is killed. Nothing is locked. Two that write at once lose one of two
measurements of the same load, which is no loss. What does not parse is not there.

`MLUP_STREAM_LEARNED=0` in the environment switches the store off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import stat
import time
from typing import Any, NamedTuple

from mlup_stream.memory.estimate import Certainty, Estimate

__all__ = ["LearnedStore", "LoadKey", "Measured", "refined"]

ENVIRONMENT = "MLUP_STREAM_LEARNED"
_VERSION = 1
_KEPT_LOADS = 5
"""The estimate is the highest of the last five: one load that another thread fell into goes out of date."""
_MAX_BYTES = 1 << 50
"""No load took more than a PiB; a larger number is damage."""
_STALE_SECONDS = 60.0
_WORDS = re.compile(r"[^A-Za-z0-9]+")


class LoadKey(NamedTuple):
    """Which load: the file in its present state, how it is read, and what else changes what it takes (`variant`)."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    format: str
    delivery: str
    variant: str = ""

    @classmethod
    def of(cls, path: str | os.PathLike[str], format: str, delivery: str, variant: str = "") -> LoadKey | None:
        """The key of the regular file at `path`; None if it is none: the identity of a folder says nothing of its content."""
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, format, delivery, variant)

    @property
    def _file_name(self) -> str:
        words = (f"{self.device:x}", f"{self.inode:x}", *(_WORDS.sub("_", word) for word in self[4:] if word))
        return "-".join(words)[:200] + ".json"


class Measured(NamedTuple):
    """What a load took on top of what the process had, in bytes; of an interval, its upper end."""

    peak_anon_bytes: int
    peak_file_bytes: int
    settled_anon_bytes: int
    settled_file_bytes: int


class LearnedStore:
    """The measurements of this user's loads.

    Args:
        folder: Where; None is `mlup-stream/measurements` in the user's cache folder.
        enabled: False switches it off; None leaves it to the environment.
        max_entries: How many loads are remembered; those that were not loaded for longest are forgotten first.
    """

    def __init__(self, folder: str | None = None, *, enabled: bool | None = None, max_entries: int = 512) -> None:
        self.enabled = os.environ.get(ENVIRONMENT, "1") not in ("0", "false", "no", "off") if enabled is None else enabled
        self.max_entries = max_entries
        self._folder = folder

    @property
    def folder(self) -> str:
        if self._folder is None:
            import platformdirs

            self._folder = os.path.join(platformdirs.user_cache_dir("mlup-stream", appauthor=False), "measurements")
        return self._folder

    def recall(self, key: LoadKey) -> Measured | None:
        """The highest of what the last loads took; None if there were none, or the file has changed since."""
        loads = self._read(key) if self.enabled else []
        return Measured(*map(max, zip(*loads, strict=True))) if loads else None

    def record(self, key: LoadKey, measured: Measured) -> bool:
        """Remembers a load. False if that is switched off or the folder cannot be written, which is no reason to fail a load."""
        if not self.enabled:
            return False
        loads = [list(map(int, each)) for each in (*self._read(key), measured)][-_KEPT_LOADS:]
        content = {"version": _VERSION, "size_bytes": key.size_bytes, "mtime_ns": key.mtime_ns, "loads": loads}
        path = os.path.join(self.folder, key._file_name)
        aside = f"{path}.{os.getpid()}.{time.monotonic_ns()}.aside"
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            is_new = not os.path.exists(path)
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump(content, file)
            os.replace(aside, path)
            if is_new:
                self._forget_oldest()
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(aside)
            return False
        return True

    def clear(self) -> int:
        """Forgets everything; how many loads that was."""
        entries = self._entries(".json")
        for path, _ in (*entries, *self._entries(".aside")):
            with contextlib.suppress(OSError):
                os.unlink(path)
        with contextlib.suppress(OSError):
            os.rmdir(self.folder)
        return len(entries)

    def _read(self, key: LoadKey) -> list[Measured]:
        try:
            with open(os.path.join(self.folder, key._file_name), "rb") as file:
                content = json.loads(file.read(64 * 1024))
            if (content["version"], content["size_bytes"], content["mtime_ns"]) != (_VERSION, key.size_bytes, key.mtime_ns):
                return []
            loads = [Measured(*each) for each in content["loads"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return []
        return [each for each in loads if all(type(size) is int and 0 <= size <= _MAX_BYTES for size in each)][-_KEPT_LOADS:]

    def _entries(self, ending: str) -> list[tuple[str, float]]:
        found = []
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # another process removed it
                    if entry.name.endswith(ending):
                        found.append((entry.path, entry.stat().st_mtime))
        return found

    def _forget_oldest(self) -> None:
        """Keeps the store bounded, and removes what a killed process left aside."""
        entries = sorted(self._entries(".json"), key=lambda entry: entry[1])
        stale = [path for path, written in self._entries(".aside") if time.time() - written > _STALE_SECONDS]
        for path in [path for path, _ in entries[: max(0, len(entries) - self.max_entries)]] + stale:
            with contextlib.suppress(OSError):
                os.unlink(path)


def refined(estimate: Estimate | None, measured: Measured | None) -> Estimate | None:
    """The better of what the headers say and what was measured: exact headers, then a measurement, then the rest.

    A measurement lowers an upper bound of the headers and never raises it.
    """
    if measured is None or (estimate is not None and estimate.certainty is Certainty.EXACT):
        return estimate
    sizes: dict[str, Any] = measured._asdict()
    if estimate is not None and estimate.certainty is Certainty.CONSERVATIVE:
        # What other threads take in the interval is measured too, and what is refused for it is never measured again.
        sizes["peak_anon_bytes"] = min(measured.peak_anon_bytes, estimate.peak_anon_bytes)
    sizes["settled_anon_bytes"] = min(measured.settled_anon_bytes, sizes["peak_anon_bytes"])
    sizes["settled_file_bytes"] = min(measured.settled_file_bytes, measured.peak_file_bytes)
    why = "what earlier loads of this file took"
    if estimate is None:
        return Estimate(**sizes, certainty=Certainty.LEARNED, why=why)
    return dataclasses.replace(estimate, **sizes, certainty=Certainty.LEARNED, why=why)
