"""What packing a file did."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

__all__ = ["ALIGNMENT_BYTES", "Gain", "Packed", "is_aligned"]

ALIGNMENT_BYTES = 64
"""What payloads begin at a multiple of: a cache line, and the widest vector register, whatever their items are."""

_WIDEST_ITEM_BYTES = 16  # of a complex number of two float64; wider items are made of narrower ones


def is_aligned(offset: int, item_bytes: int) -> bool:
    """Whether items of that size may be used from where they lie at `offset` of a file: maps begin at a page."""
    return offset % min(item_bytes & -item_bytes or 1, _WIDEST_ITEM_BYTES) == 0


class Gain(NamedTuple):
    """What became of the payload.

    Attributes:
        payload_bytes: The bytes of arrays, as they are in memory.
        before_bytes: How many of them lay in the source as they do in memory, aligned to their items.
        after_bytes: The same in what was written.
        verified: How what was written was compared with the source.
        notes: What else to know.
        also_read: The other files that the source consists of.
    """

    payload_bytes: int
    before_bytes: int
    after_bytes: int
    verified: str
    notes: tuple[str, ...] = ()
    also_read: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Packed:
    """A file that was packed.

    Attributes:
        source: The path of what was read.
        destination: The path of what was written.
        format: The format of both.
        files: All that was written: the destination, and beside it what it refers to.
        source_bytes: The size of what was read, in all its files.
        destination_bytes: The size of what was written.
        payload_bytes: The bytes of arrays.
        mappable_before_bytes: How many of them could stay in the source, aligned to their items.
        mappable_after_bytes: How many can stay in what was written.
        verified: How what was written was compared with the source, before it got its name.
        seconds: How long it took.
        notes: What else to know.
    """

    source: str
    destination: str
    format: str
    files: tuple[str, ...]
    source_bytes: int
    destination_bytes: int
    payload_bytes: int
    mappable_before_bytes: int
    mappable_after_bytes: int
    verified: str
    seconds: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
