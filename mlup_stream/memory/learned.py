"""What earlier loads took, by the file's identity, format and delivery: the next estimate of the same file is a measurement.

Two processes that write at once lose one of two measurements of the same load, which is no loss (`entries`).

A load that is refused is not measured again, so a refusal by what was learned takes the highest measurement away (`doubt`): after
five refusals at most it is tried once more, under guard.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from typing import Any, NamedTuple

from mlup_stream.entries import Entries, is_remembering, word
from mlup_stream.memory.estimate import Certainty, Estimate

__all__ = ["LearnedStore", "LoadKey", "Measured", "Remembered", "refined"]

_VERSION = 1
_KEPT_LOADS = 5
"""The estimate is the highest of the last five: one load that another process's need fell into goes out of date."""
_MAX_BYTES = 1 << 50
"""No load took more than a PiB; a larger number is damage."""
_SIZES = 4  # of `Measured`


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
    def _entry(self) -> str:
        return self._of_file + "-".join(word(each) for each in self[4:] if each)[:160]

    @property
    def _of_file(self) -> str:
        """What the names of all entries of this file begin with."""
        return f"{self.device:x}-{self.inode:x}-"


class Measured(NamedTuple):
    """What a load took on top of what the process had, in bytes; of an interval, its upper end; of `loads` loads, the highest."""

    peak_anon_bytes: int
    peak_file_bytes: int
    settled_anon_bytes: int
    settled_file_bytes: int
    loads: int = 1


class Remembered(NamedTuple):
    """One entry of the store: what is known of a load by its file's name, its format and delivery."""

    name: str
    format: str
    delivery: str
    measured: Measured


class LearnedStore:
    """The measurements of this user's loads.

    Args:
        folder: Where; None is `mlup-stream/measurements` in the user's cache folder.
        enabled: False switches it off; None leaves it to the environment.
        max_entries: How many loads are remembered; those that were not loaded for longest are forgotten first.
    """

    def __init__(self, folder: str | None = None, *, enabled: bool | None = None, max_entries: int = 512) -> None:
        self.enabled = is_remembering() if enabled is None else enabled
        self._entries = Entries("measurements", _VERSION, folder=folder, max_entries=max_entries)

    @property
    def folder(self) -> str:
        """Empty where this user has none, as one without a home: nothing is remembered then."""
        return self._entries.folder

    @property
    def _is_on(self) -> bool:
        return self.enabled and bool(self.folder)

    def recall(self, key: LoadKey) -> Measured | None:
        """The highest of what the last loads took; None if there were none, or the file has changed since."""
        return _highest(self._read(key)) if self._is_on else None

    def record(self, key: LoadKey, measured: Measured, name: str = "") -> bool:
        """Remembers a load of what is called `name`.

        Returns:
            False if that is switched off or the folder cannot be written, which is no reason to fail a load.
        """
        return self._is_on and self._write(key, [*self._read(key), measured], name)

    def doubt(self, key: LoadKey) -> None:
        """Forgets the highest of what the last loads took: a load was refused for it, and will never correct it."""
        loads = sorted(self._read(key)) if self._is_on else []
        if len(loads) > 1:
            self._write(key, loads[:-1])
        elif loads:
            self._entries.remove(key._entry)

    def _write(self, key: LoadKey, loads: list[Measured], name: str = "") -> bool:
        return self._entries.write(
            key._entry,
            {
                "name": name,
                "format": key.format,
                "delivery": key.delivery,
                "size_bytes": key.size_bytes,
                "mtime_ns": key.mtime_ns,
                "loads": [list(map(int, each[:_SIZES])) for each in loads[-_KEPT_LOADS:]],
            },
        )

    def remembered(self) -> list[Remembered]:
        """Every entry, the one that was written last first."""
        found = []
        for path in self._entries.paths():
            content = self._entries.content(path)
            measured = _highest(_loads(content))
            if measured is not None:
                name, format, delivery = (str(content.get(word) or "") for word in ("name", "format", "delivery"))
                found.append(Remembered(name, format, delivery, measured))
        return found

    def forget(self, path: str | os.PathLike[str]) -> int:
        """Forgets every load of the file at `path`, of its content before too; how many entries that was."""
        key = LoadKey.of(path, "", "")
        if key is None:
            return 0
        return self._entries.forget(key._of_file)

    def clear(self) -> int:
        """Forgets everything; how many loads that was."""
        return self._entries.clear()

    def _read(self, key: LoadKey) -> list[Measured]:
        content = self._entries.read(key._entry)
        if (content.get("size_bytes"), content.get("mtime_ns")) != (key.size_bytes, key.mtime_ns):
            return []
        return _loads(content)


def _loads(content: dict[str, Any]) -> list[Measured]:
    try:
        loads = [Measured(*each) for each in content["loads"] if len(each) == _SIZES]
    except (KeyError, TypeError):
        return []
    return [each for each in loads if all(type(size) is int and 0 <= size <= _MAX_BYTES for size in each)][-_KEPT_LOADS:]


def _highest(loads: list[Measured]) -> Measured | None:
    if not loads:
        return None
    highest = Measured(*map(max, zip(*loads, strict=True)))
    return highest._replace(loads=len(loads))


def refined(estimate: Estimate | None, measured: Measured | None) -> Estimate | None:
    """The better of what the headers say and what was measured: exact headers, then a measurement, then the rest.

    A measurement lowers an upper bound of the headers and never raises it.
    """
    if measured is None or (estimate is not None and estimate.certainty is Certainty.EXACT):
        return estimate
    sizes: dict[str, Any] = measured._asdict()
    loads = sizes.pop("loads")
    if estimate is not None and estimate.certainty is Certainty.CONSERVATIVE:
        # What other threads take in the interval is measured too, and what is refused for it is never measured again.
        sizes["peak_anon_bytes"] = min(measured.peak_anon_bytes, estimate.peak_anon_bytes)
    sizes["settled_anon_bytes"] = min(measured.settled_anon_bytes, sizes["peak_anon_bytes"])
    sizes["settled_file_bytes"] = min(measured.settled_file_bytes, measured.peak_file_bytes)
    why = f"learned from {loads} load{'s' * (loads > 1)} of this file"
    if estimate is None:
        return Estimate(**sizes, certainty=Certainty.LEARNED, why=why)
    return dataclasses.replace(estimate, **sizes, certainty=Certainty.LEARNED, why=why)
