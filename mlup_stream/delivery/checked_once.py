"""A file that passed a check is not checked again while it stays the file that it was, in this process or another.

What passed is remembered in the user's cache folder by the file's pinned identity: device, inode, size, when it was last written
and last changed. Nobody but root sets the last of them, so a file that was written to, or replaced, is checked again. What was
changed so recently that another write could have the same time is not remembered yet. A writer that goes on through a shared map
of the file while it is loaded is not noticed, as in every mapped load (`docs/security.md`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.files import FileIdentity
from mlup_stream.entries import Entries, is_remembering, word

__all__ = ["checked_once"]

_VERSION = 1
# Between two writes that the kernel gives the same time: it counts them by its clock's ticks, 10 ms at the longest; some file
# systems by whole seconds, FAT by two.
_TICK_NS, _COARSE_NS = 100_000_000, 3_000_000_000
_SECOND_NS = 1_000_000_000


def checked_once(artifact: Artifact, check: str, run: Callable[[], object]) -> None:
    """Runs a check of the content of `artifact`, unless that has passed it before.

    Args:
        artifact: Of content without a file nothing is remembered.
        check: What the check is called, with its version and whatever else decides what passes it.
        run: The check, which raises what it finds.

    Raises:
        ModelFileChanged: The file is not what it was when it was opened.
    """
    identity = artifact.identity
    # On Windows the time of the last change is that of the file's making.
    if identity is None or artifact.has_content or not is_remembering() or os.name == "nt":
        run()
        return
    entries = Entries("checked", _VERSION, max_entries=4096)
    name = f"{identity.device:x}-{identity.inode:x}-{word(check)}"
    expected = {"version": _VERSION, "check": check, "identity": list(identity)}
    if entries.read(name) == expected:
        artifact.check()
        return
    begun_ns = time.time_ns()
    run()
    artifact.check()
    if _is_settled(identity, begun_ns):
        entries.write(name, expected)


def _is_settled(identity: FileIdentity, now_ns: int) -> bool:
    """Whether a write from now on gives the file another time than it has."""
    is_coarse = identity.ctime_ns % _SECOND_NS == 0
    return identity.ctime_ns + (_COARSE_NS if is_coarse else _TICK_NS) < now_ns
