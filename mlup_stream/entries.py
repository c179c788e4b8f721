"""What is remembered from one process to the next: small JSON entries in the user's cache folder, one file each.

An entry is written aside and renamed: a reader sees the old text or the new one, whatever number of processes write and wherever
one of them is killed. Nothing is locked. What does not parse, or lies where somebody else may write, is not there.

`MLUP_STREAM_LEARNED=0` in the environment switches all of it off.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from typing import Any

__all__ = ["ENVIRONMENT", "Entries", "is_remembering", "word"]

ENVIRONMENT = "MLUP_STREAM_LEARNED"
_MAX_ENTRY_BYTES = 64 * 1024
_STALE_SECONDS = 60.0
_ENDING, _ASIDE = ".json", ".aside"


def is_remembering() -> bool:
    """Whether the environment leaves it on."""
    return os.environ.get(ENVIRONMENT, "1") not in ("0", "false", "no", "off")


def word(text: str) -> str:
    """`text` as a part of an entry's name: letters and digits, the rest as `_`."""
    return "".join(each if each.isascii() and each.isalnum() else "_" for each in text)


class Entries:
    """The entries of one kind.

    Args:
        kind: What the folder is called, in `mlup-stream` in the user's cache folder.
        version: Of what the entries say; those of another version are not there.
        folder: Where they lie instead.
        max_entries: How many there are; those that were not written for longest go first.
    """

    def __init__(self, kind: str, version: int, *, folder: str | None = None, max_entries: int = 512) -> None:
        self.version = version
        self.max_entries = max_entries
        self._kind = kind
        self._folder = folder

    @property
    def folder(self) -> str:
        """Empty where this user has none, as one without a home: nothing is remembered then."""
        if self._folder is None:
            import platformdirs

            try:
                caches = platformdirs.user_cache_dir("mlup-stream", appauthor=False)
            except (RuntimeError, OSError):
                caches = ""
            self._folder = os.path.join(caches, self._kind) if os.path.isabs(caches) else ""
        return self._folder

    def read(self, name: str) -> dict[str, Any]:
        """What the entry says; empty if there is none."""
        return self.content(self._path(name)) if self.folder else {}

    def content(self, path: str) -> dict[str, Any]:
        """What the entry in this file says; empty for what is no entry, of another version, or open to other users."""
        try:
            with open(path, "rb") as file:
                if not _is_own(os.fstat(file.fileno())):
                    return {}
                content = json.loads(file.read(_MAX_ENTRY_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) and content.get("version") == self.version else {}

    def write(self, name: str, content: dict[str, Any]) -> bool:
        """Writes or replaces an entry.

        Returns:
            False if the folder cannot be written, which is no reason to fail a load.
        """
        if not self.folder:
            return False
        path = self._path(name)
        aside = f"{path}.{os.getpid()}.{time.monotonic_ns()}{_ASIDE}"
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            is_new = not os.path.exists(path)
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump({"version": self.version, **content}, file)
            os.replace(aside, path)
            if is_new:
                self._forget_oldest()
        except OSError:
            _remove(aside)
            return False
        return True

    def remove(self, name: str) -> None:
        _remove(self._path(name))

    def paths(self, beginning: str = "") -> list[str]:
        """The files of all entries whose names begin so, the one that was written last first."""
        found = sorted(self._found(_ENDING), key=lambda entry: -entry[1])
        return [path for path, _ in found if os.path.basename(path).startswith(beginning)]

    def forget(self, beginning: str) -> int:
        """Removes every entry whose name begins so; how many that was."""
        found = self.paths(beginning)
        for path in found:
            _remove(path)
        return len(found)

    def clear(self) -> int:
        """Removes everything; how many entries that was."""
        count = self.forget("")
        for path, _ in self._found(_ASIDE):
            _remove(path)
        with contextlib.suppress(OSError):
            os.rmdir(self.folder)
        return count

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name + _ENDING)

    def _found(self, ending: str) -> list[tuple[str, float]]:
        found = []
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # another process removed it
                    if entry.name.endswith(ending):
                        found.append((entry.path, entry.stat().st_mtime))
        return found

    def _forget_oldest(self) -> None:
        """Keeps the folder bounded, and removes what a killed process left aside."""
        for path in self.paths()[self.max_entries :]:
            _remove(path)
        for path, written in self._found(_ASIDE):
            if time.time() - written > _STALE_SECONDS:
                _remove(path)


def _is_own(status: os.stat_result) -> bool:
    """Whether nobody else can have written it, root apart."""
    if os.name == "nt":
        return True
    return status.st_uid in (os.geteuid(), 0) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
