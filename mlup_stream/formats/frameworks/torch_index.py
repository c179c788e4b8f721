"""What tells the index of a torch model in several files."""

from __future__ import annotations

from mlup_stream.formats.peek import Peek
from mlup_stream.formats.shards import index_in

__all__ = ["detect"]


def detect(peek: Peek) -> str | None:
    return index_in(peek, ".bin")
