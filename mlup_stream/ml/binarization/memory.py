"""A model that needs no building: `MemoryStorage` gives the object itself."""

from __future__ import annotations

from typing import Any

from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.ml.binarization.base import BaseBinarizer

__all__ = ["MemoryBinarizer"]


class MemoryBinarizer(BaseBinarizer):
    """Returns `raw_data`, whatever it is."""

    deliveries = (Delivery.BYTES,)

    @classmethod
    def deserialize(cls, data: LoadedFile) -> Any:
        return data.raw_data
