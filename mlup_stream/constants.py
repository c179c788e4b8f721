"""The names that configurations are written in: storages, binarizers, deliveries, and the `LoadedFile` that travels between.

The values of `StorageType` and `BinarizationType` are import paths, as in `mlup`, so that a configuration file may hold
either the short name, the member's name or the path of somebody's own class.
"""

from __future__ import annotations

from mlup_stream.delivery.kinds import Delivery, MappingMode, Optimize
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.registry import BinarizationType, StorageType

__all__ = [
    "BinarizationType",
    "Delivery",
    "LoadedFile",
    "Mapping",
    "MappingMode",
    "Optimize",
    "StorageType",
]

Mapping = MappingMode
"""The old name of `MappingMode`."""
