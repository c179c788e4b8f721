"""`LoadedFile`: what a storage hands to a binarizer. A handle; nothing has been read yet."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

from mlup_stream.delivery.files import checked_stat, explain_os_error, folder_size_bytes
from mlup_stream.delivery.kinds import Delivery, Mapping, Optimize
from mlup_stream.delivery.placement import Placement
from mlup_stream.delivery.reader import OnWindow, open_borrowed, open_buffer, open_stream
from mlup_stream.delivery.snapshot import snapshot_of
from mlup_stream.delivery.view import View
from mlup_stream.errors import NotAModelFileError

__all__ = ["LoadedFile"]

_Headers = TypeVar("_Headers")


class LoadedFile:
    """A model file, or its bytes, and how a binarizer is to take them.

    `LoadedFile(raw_data, path)` is all that a storage has to give; the positional order is the documented one, and it unpacks
    and indexes like the named tuple it used to be. The rest is filled in by the plan.

    Args:
        raw_data: The content: `bytes`, any buffer, `str` for text formats, a binary file object, or, from `MemoryStorage`,
            the model itself. Empty when the content lies at `path`.
        path: The file or folder on the local disk.
        delivery: How the binarizer takes the bytes; None leaves it to the binarizer.
        mapping: Whether mapped payloads are writable.
        optimize: What to prefer where a format lets one choose.
        options: The binarizer's options, for those whose estimate depends on them.

    Attributes:
        is_model: Whether `raw_data` is the model object itself.
        placement: Where the payload went, once a binarizer has said so.
        on_window: Called by the readers that `open` and `view` give; see `open_stream`.
    """

    def __init__(
        self,
        raw_data: Any = b"",
        path: str | os.PathLike[str] | None = None,
        *,
        delivery: Delivery | None = None,
        mapping: Mapping = Mapping.AUTO,
        optimize: Optimize = Optimize.MEMORY,
        options: dict[str, Any] | None = None,
    ) -> None:
        self._raw_data = raw_data
        self.path = None if path is None else os.fspath(path)
        self.delivery = delivery
        self.mapping = mapping
        self.optimize = optimize
        self.options = options if options is not None else {}
        self.is_model = False
        self.placement: Placement | None = None
        self.on_window: OnWindow | None = None
        self._snapshot = contextlib.ExitStack()
        self._shown_path = self.path
        self._view: View | None = None
        self._released_view: View | None = None
        self._headers: dict[Callable[[BinaryIO, str], Any], Any] = {}

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
        """The content. With delivery `bytes` it is read from `path` when first asked for, and held until `release`.

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
        return self._shown_path if self._shown_path is not None else f"<{type(self._raw_data).__name__} without a path>"

    @property
    def is_folder(self) -> bool:
        return not self.has_content and self.path is not None and os.path.isdir(self.path)

    @property
    def size_bytes(self) -> int:
        """The size of the content, or of the file, or of all files in the folder; 0 for a model object or an unseekable file."""
        if self.has_content:
            return _content_size_bytes(self._raw_data)
        if self.path is None:
            return 0
        return folder_size_bytes(self.path) if os.path.isdir(self.path) else checked_stat(self.path).st_size

    def content(self) -> bytes | bytearray | memoryview:
        """All bytes as one buffer: the content itself where there is one, otherwise `path` read whole.

        Peak memory: nothing for a buffer, the size of the file otherwise.
        """
        data = self._raw_data
        if not self.has_content and self.path is not None:
            if self.delivery is Delivery.BYTES:
                data = self.raw_data
            else:
                with self.open() as file:
                    data = file.read()
        if isinstance(data, str):
            return data.encode()
        if hasattr(data, "read"):
            data = data.read()
            return data.encode() if isinstance(data, str) else data
        try:
            return data if isinstance(data, (bytes, bytearray)) else memoryview(data).cast("B")
        except TypeError as error:
            raise NotAModelFileError(
                f"{self.name}: expected bytes, a buffer, text or a binary file object, found {type(data).__name__};"
                " a storage returns LoadedFile(raw_data, path)"
            ) from error

    def open(self) -> BinaryIO:
        """A seekable binary file over the content, from its start: a bounded window over a file, no copy of a buffer.

        A file object that came as the content is handed over as it is if it can seek, and is read whole if it cannot.
        Otherwise peak memory is one window (1 MiB).
        """
        if not self.has_content and self.path is not None and self.delivery is not Delivery.BYTES:
            checked_stat(self.path)
            try:
                return open_stream(self.path, drop_behind=self._drops_behind, on_window=self.on_window)
            except OSError as error:
                raise explain_os_error(error, self.path) from error
        if hasattr(self._raw_data, "read") and _is_seekable_binary(self._raw_data):
            return open_borrowed(self._raw_data)
        return open_buffer(self.content())

    def look(self, read: Callable[[BinaryIO, str], _Headers]) -> _Headers:
        """What `read` makes of a file over the content and of its name, found once: every delivery's estimate asks for it.

        Nothing is read ahead, whatever the delivery, and somebody else's file object stands afterwards where it stood.

        Raises:
            OSError: That is not possible: looking at it would use it up.
        """
        if read not in self._headers:
            with self._opened_to_look() as file:
                self._headers[read] = read(file, self.name)
        found: _Headers = self._headers[read]
        return found

    @contextlib.contextmanager
    def _opened_to_look(self) -> Iterator[BinaryIO]:
        if not self.has_content and self.path is not None:
            with open(self.path, "rb") as file:
                yield file
            return
        theirs = self._raw_data if hasattr(self._raw_data, "read") else None
        if theirs is not None and not _is_seekable_binary(theirs):
            raise OSError(f"{self.name} cannot go back to its beginning")
        position = theirs.tell() if theirs is not None else 0
        try:
            with self.open() as file:
                yield file
        finally:
            if theirs is not None:
                theirs.seek(position)

    @property
    def _drops_behind(self) -> bool:
        return self.delivery is Delivery.STREAM and self.optimize is Optimize.MEMORY

    def view(self) -> View:
        """A view of the content, made once and kept until `release`: mapped from `path`, or over the buffer."""
        if self._view is None:
            if not self.has_content and self.path is not None and self.delivery is not Delivery.BYTES:
                checked_stat(self.path)
                self._view = View(self.path, on_window=self.on_window)
            else:
                self._view = View(data=self.content())
        return self._view

    def take_snapshot(self) -> None:
        """Goes on with a private copy of the file, which nobody else can change, until `release`; see `snapshot_of`."""
        if self.path is not None and not self.has_content:
            self.path = self._snapshot.enter_context(snapshot_of(self.path))

    def check(self) -> None:
        """Makes sure that a mapped file is still the one that was mapped.

        Raises:
            ModelFileChanged: It was written to or truncated since.
        """
        if self._view is not None:
            self._view.check()

    def touch_ahead(self) -> None:
        """Brings a mapped payload into memory before it is asked for; does nothing where none was left in the file."""
        if self._view is not None and self.placement is not None and self.placement.mapped_bytes:
            self._view.touch_ahead(self.placement.parts)

    def release(self) -> tuple[str, ...]:
        """Lets go of the content, the view and its descriptor. Idempotent.

        Returns:
            What still holds the bytes, empty if nothing does. See `View.release`.
        """
        self._raw_data = b""
        self._headers.clear()
        self._snapshot.close()
        view, self._view = self._view, None
        if view is None:
            return self.held()
        self._released_view = view
        return view.release()

    def held(self) -> tuple[str, ...]:
        """What still holds the bytes after `release`: the arrays of a model that lives in the mapped file, for one."""
        return self._released_view.held() if self._released_view is not None else ()


def _content_size_bytes(data: Any) -> int:
    if isinstance(data, str):
        return len(data.encode())
    if hasattr(data, "read"):
        if not _is_seekable_binary(data):
            return 0
        position = data.tell()
        size: int = data.seek(0, io.SEEK_END)
        data.seek(position)
        return size - int(position)
    try:
        return memoryview(data).nbytes
    except TypeError:
        return 0  # a model object


def _is_seekable_binary(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return callable(seekable) and bool(seekable()) and not isinstance(file, io.TextIOBase)
