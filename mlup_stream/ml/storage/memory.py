"""A model that is in memory already. The default storage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.errors import ModelNotFoundError
from mlup_stream.ml.storage.base import BaseStorage

__all__ = ["MemoryStorage"]

_HANDED_OVER = object()


@dataclass(repr=False)
class MemoryStorage(BaseStorage):
    """Hands `model` over once, and keeps no reference to it afterwards: what is unloaded is gone.

    Attributes:
        model: The model object.
    """

    model: Any

    gives_models = True

    def load_bytes_single_file(self, *args: Any, **kwargs: Any) -> Any:
        if self.model is _HANDED_OVER:
            raise ModelNotFoundError("MemoryStorage has handed its model over already; give it the model again")
        model, self.model = self.model, _HANDED_OVER
        return model

    def load(self) -> list[LoadedFile]:
        return [LoadedFile(self.load_bytes_single_file())]
