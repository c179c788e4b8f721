"""The ready lists: exact names that the models of well-known libraries need, generated from what their pickles name.

Source: `profiling/write_trust_lists.py`, which each list's first lines say the versions and dates of.
"""

from __future__ import annotations

import functools
from pathlib import Path

__all__ = ["FOLDER", "ready_globals"]

FOLDER = Path(__file__).parent / "lists"


@functools.cache
def ready_globals() -> frozenset[tuple[str, str]]:
    """Module and name of every class and function on them. 1 ms, once."""
    found = set()
    for path in sorted(FOLDER.glob("*.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                module, _, name = line.partition(" ")
                found.add((module, name))
    return frozenset(found)
