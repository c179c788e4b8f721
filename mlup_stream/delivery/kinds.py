"""How bytes may travel: the words that a configuration, a plan and a report use for it."""

from __future__ import annotations

from enum import Enum

__all__ = ["Delivery", "MappingMode", "Optimize"]


class Delivery(str, Enum):
    """How a `LoadedFile` hands its bytes to a binarizer."""

    AUTO = "auto"
    """The plan chooses, and the report says what and why."""
    PATH = "path"
    """The binarizer, or its library, opens the file itself."""
    VIEW = "view"
    """A memory-mapped view; large payloads may stay in it for as long as the model lives."""
    STREAM = "stream"
    """A reader with a bounded window over the file."""
    BYTES = "bytes"
    """A full copy in memory: the documented `need_load_file=True`, the documented 2x."""


class MappingMode(str, Enum):
    """What a program may do to a mapped payload."""

    AUTO = "auto"
    """Whatever makes the model work: copy-on-write, with arrays that are not aligned to their items in memory of their own."""
    READ_ONLY = "read-only"
    COPY_ON_WRITE = "copy-on-write"
    """Writable; a page that is written to becomes private memory, the file never changes."""


class Optimize(str, Enum):
    """What to prefer where a format lets one choose."""

    MEMORY = "memory"
    SPEED = "speed"
