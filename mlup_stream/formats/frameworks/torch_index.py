"""What tells the index of a torch model in several files: the same JSON as that of a sharded safetensors model."""

from __future__ import annotations

from mlup_stream.formats.arrays.safetensors import detect_index
from mlup_stream.formats.peek import Peek

__all__ = ["detect"]


def detect(peek: Peek) -> str | None:
    return detect_index(peek, ".bin")
