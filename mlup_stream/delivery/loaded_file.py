"""`LoadedFile`: what a storage found. Nothing has been read yet, and nothing is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from mlup_stream.delivery.files import explain_os_error
from mlup_stream.delivery.kinds import Delivery

__all__ = ["LoadedFile"]


class LoadedFile:
    """A model file, or its bytes.

    `LoadedFile(raw_data, path)` is all that a storage has to give; the positional order is the documented one, and it unpacks
    and indexes like the named tuple it used to be.

    Args:
        raw_data: The content: `bytes`, any buffer, `str` for text formats, a binary file object, or, from `MemoryStorage`,
            the model itself. Empty when the content lies at `path`.
        path: The file or folder on the local disk.
        delivery: How the storage wants the bytes to travel; None leaves it to the plan.
    """

    def __init__(
        self, raw_data: Any = b"", path: str | os.PathLike[str] | None = None, *, delivery: Delivery | None = None
    ) -> None:
        self._raw_data = raw_data
        self.path = None if path is None else os.fspath(path)
        self.delivery = delivery

    @classmethod
    def of(cls, data: Any) -> LoadedFile:
        """`data` as a `LoadedFile`: itself, the old named tuple, or anything that has `raw_data` and `path`."""
        if isinstance(data, cls):
            return data
        return cls(getattr(data, "raw_data", b""), getattr(data, "path", None))

    def __iter__(self) -> Iterator[Any]:
        return iter((self.raw_data, self.path))

    def __getitem__(self, index: int) -> Any:
        return (self.raw_data, self.path)[index]

    def __repr__(self) -> str:
        content = f"<{type(self._raw_data).__name__}>" if self.has_content else "b''"
        return f"LoadedFile(raw_data={content}, path={self.path!r}, delivery={self.delivery and self.delivery.value!r})"

    @property
    def has_content(self) -> bool:
        """Whether the content came with the handle, rather than lying at `path`."""
        return not (isinstance(self._raw_data, (bytes, bytearray, str, memoryview)) and len(self._raw_data) == 0)

    @property
    def raw_data(self) -> Any:
        """The content. With delivery `bytes` (`need_load_file=True`) it is read from `path` when first asked for, and kept.

        Peak memory: the size of the file.
        """
        if not self.has_content and self.delivery is Delivery.BYTES and self.path is not None:
            try:
                with open(self.path, "rb", buffering=0) as file:
                    self._raw_data = file.readall()
            except OSError as error:
                raise explain_os_error(error, self.path) from error
        return self._raw_data

    @raw_data.setter
    def raw_data(self, value: Any) -> None:
        self._raw_data = value

    @property
    def name(self) -> str:
        """What to call it in a message: the path, or what kind of content it is."""
        return self.path if self.path is not None else f"<{type(self._raw_data).__name__} without a path>"
