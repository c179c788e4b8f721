"""What an onnxruntime can do, by its version; asked without importing it."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Abilities", "installed_abilities"]

_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn")


class Abilities(NamedTuple):
    """What of our ways an onnxruntime knows.

    Attributes:
        reads_inside_files: External data of a model that is given as bytes may lie in any folder that is named to it (1.21).
        borrows_buffers: External data may be a buffer that it uses without a copy (1.31).
        maps_ort: A model in its own format may be mapped (1.26).
    """

    reads_inside_files: bool
    borrows_buffers: bool
    maps_ort: bool

    @classmethod
    def of(cls, version: str) -> Abilities:
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        return cls(numbers >= (1, 21), numbers >= (1, 31), numbers >= (1, 26))


def installed_abilities() -> Abilities:
    """What the onnxruntime that is installed can do; if it is installed under an unknown name, what the newest can."""
    from importlib import metadata  # 3 MiB that only the one who asks should pay

    for name in _DISTRIBUTIONS:
        try:
            return Abilities.of(metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
    return Abilities(True, True, True)
