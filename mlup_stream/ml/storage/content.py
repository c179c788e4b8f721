"""The storage of a model whose content the program has: bytes, any buffer, or a binary file object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.ml.storage.base import BaseStorage

__all__ = ["ContentStorage"]


@dataclass(repr=False)
class ContentStorage(BaseStorage):
    """Hands `content` over as it is.

    Attributes:
        content: Bytes, any buffer, or a binary file object.
    """

    content: Any

    def load_bytes_single_file(self, *args: Any, **kwargs: Any) -> Any:
        return self.content

    def load(self) -> list[LoadedFile]:
        return [LoadedFile(self.load_bytes_single_file())]
