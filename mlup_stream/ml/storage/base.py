"""What a storage is: it finds the model and hands over `LoadedFile`s.

@dataclass
class MyStorage(BaseStorage):
    password: str

    def load_bytes_single_file(self, name):
        return fetch(name, self.password)

    def load(self):
        return [LoadedFile(self.load_bytes_single_file("model.onnx"))]

Config(storage_type="my_module.MyStorage", storage_kwargs={"password": "..."})
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from mlup_stream.delivery.loaded_file import LoadedFile

__all__ = ["BaseStorage"]


class BaseStorage(metaclass=abc.ABCMeta):
    """Where models lie. `storage_kwargs` of the configuration are the arguments of the constructor."""

    gives_models: ClassVar[bool] = False
    """Whether `raw_data` is the model object itself, so that there is nothing to binarize."""

    @abc.abstractmethod
    def load_bytes_single_file(self, *args: Any, **kwargs: Any) -> Any:
        """One file, its content or its model; `load` calls it for each."""

    @abc.abstractmethod
    def load(self) -> list[LoadedFile]:
        """Every match, sorted. A storage that can leave the bytes where they are gives paths and reads nothing."""
