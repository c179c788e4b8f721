"""The pinned handle: one model file, folder, buffer or file object, from which everything of a load is read.

Made once from what a storage found, by `artifact_of`: what the content *is* is found out there and nowhere else. A file is opened
once, by name once; detection, headers, the walk and the build read it through the descriptor that is held here, so that what was
planned is what is built. Headers and walks are made once and kept. `release` lets all of it go, and use after it says so.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from mlup_stream.delivery.files import FileIdentity, folder_identity
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.delivery.pinned import PinnedFile
from mlup_stream.delivery.placement import Placement
from mlup_stream.delivery.private_file import private_folder
from mlup_stream.delivery.reader import WINDOW_BYTES, OnWindow, open_borrowed, open_buffer
from mlup_stream.delivery.snapshot import snapshot_of
from mlup_stream.delivery.view import View
from mlup_stream.errors import ConfigError, ModelFileChanged, NotAModelFileError

__all__ = ["Artifact", "artifact_of"]

_Header = TypeVar("_Header")


def artifact_of(data: Any, *, is_model: bool = False) -> Artifact:
    """The handle of what a storage found.

    Args:
        data: A `LoadedFile`, or anything that has `raw_data` and `path`.
        is_model: Whether `raw_data` is the model object itself.

    Raises:
        ModelNotFoundError, ModelPermissionError, NotAModelFileError: The file cannot be opened, or is none; the content is
            neither bytes, a buffer, text nor a file object.
    """
    loaded = LoadedFile.of(data)
    if is_model:
        return _ModelObject(loaded)
    if loaded.has_content:
        return _of_content(loaded)
    if loaded.path is None:
        return _Buffer(loaded, b"")
    return _Folder(loaded.path) if os.path.isdir(loaded.path) else _File(PinnedFile(loaded.path))


def _of_content(loaded: LoadedFile) -> Artifact:
    content = loaded.raw_data
    if isinstance(content, io.TextIOBase):
        content = content.read()
    if isinstance(content, str):
        return _Buffer(loaded, content.encode())
    if hasattr(content, "read"):
        seekable = getattr(content, "seekable", None)
        return _FileObject(loaded) if callable(seekable) and seekable() else _Stream(loaded)
    if isinstance(content, (bytes, bytearray)):
        return _Buffer(loaded, content)
    try:
        return _Buffer(loaded, memoryview(content).cast("B"))
    except TypeError as error:
        raise NotAModelFileError(
            f"{loaded.name}: expected bytes, a buffer, text or a binary file object, found {type(content).__name__};"
            " a storage returns LoadedFile(raw_data, path)"
        ) from error


class Artifact:
    """One model, whatever it came as.

    Attributes:
        name: What to call it in a message: the path, or what kind of content it is.
        path: The name that it was found under; None for content without one.
        file: The open file; None for what is none.
        identity: Which file it is, in which state, of a snapshot its original's; None for what is no file.
        has_content: Whether the content came with the handle, rather than lying at `path`.
        is_folder: Whether the model is a folder.
        is_model: Whether it is the model object itself.
        is_file_object: Whether it is somebody's file object, to be read piece by piece.
        is_rewindable: Whether looking at it leaves it as it was.
    """

    has_content = True
    is_folder = False
    is_model = False
    is_file_object = False
    is_rewindable = True

    def __init__(self, name: str, path: str | None) -> None:
        self.name = name
        self.path = path
        self.file: PinnedFile | None = None
        self.identity: FileIdentity | None = None
        self._headers: dict[Callable[..., Any], Any] = {}
        self._beside: dict[str, Artifact] = {}
        self._view: View | None = None
        self._released_view: View | None = None
        self._released = False

    @property
    def size_bytes(self) -> int:
        """The size of the file, of the folder's files together, or of the content; 0 where that is not known."""
        return 0

    def header(self, read: Callable[[BinaryIO, str], _Header]) -> _Header:
        """What `read` makes of a file over the content and of its name, found once and kept for the plan and the build.

        Nothing is read ahead, and somebody else's file object stands afterwards where it stood.

        Raises:
            OSError: That is not possible: looking at it would use it up.
        """
        self._alive()
        if read not in self._headers:
            with self.open() as file:
                self._headers[read] = read(file, self.name)
        found: _Header = self._headers[read]
        return found

    def open(
        self, *, drop_behind: bool = False, window_bytes: int = WINDOW_BYTES, on_window: OnWindow | None = None
    ) -> BinaryIO:
        """A seekable binary file over the content, from its start. Peak memory: one window, no copy of a buffer."""
        return open_buffer(self.content())

    def content(self) -> bytes | bytearray | memoryview:
        """All bytes as one buffer, held until `release`. Peak memory: nothing for a buffer, the size of the file otherwise."""
        self._alive()
        raise NotAModelFileError(f"{self.name}: expected a file, found none; give the model's file", path=self.path)

    def view(self, on_window: OnWindow | None = None) -> View:
        """A view of the content, made once and kept until `release`: mapped from the file, or over the buffer."""
        self._alive()
        if self._view is None:
            self._view = self._new_view(on_window)
        return self._view

    def _new_view(self, on_window: OnWindow | None) -> View:
        return View(data=self.content())

    def by_name(self, *, own: bool = False) -> contextlib.AbstractContextManager[str]:
        """A name for a library that opens files itself; see `PinnedFile.by_name`."""
        raise NotAModelFileError(f"{self.name}: expected a file on the disk, found content without one; give its path")

    def given(self, *, read: bool = False) -> LoadedFile:
        """The documented face of it, for binarizers that take no more; with `read` the bytes of a file, too.

        Peak memory: with `read` the size of the file.
        """
        return LoadedFile(self.content(), self.path)

    def beside(self, file_name: str) -> Artifact:
        """The file of that name in the folder of this one, or in this folder, pinned as this one is; a snapshot if this is one.

        It is opened once, and released and checked with this one.
        """
        self._alive()
        if file_name not in self._beside:
            folder = (self.path if self.is_folder else os.path.dirname(self.path or "")) or ""
            path = os.path.join(folder, file_name)
            self._beside[file_name] = self._as_this(_File(PinnedFile(path)))
        return self._beside[file_name]

    def _as_this(self, other: Artifact) -> Artifact:
        return other

    def snapshot(self) -> Artifact:
        """A private copy, which nobody else can change, in place of this one, which is released."""
        return self

    @property
    def is_snapshot(self) -> bool:
        return False

    def check(self) -> None:
        """Makes sure that the files have the content that they were opened with.

        Raises:
            ModelFileChanged: One was written to or truncated since.
        """
        for each in self._beside.values():
            each.check()

    def check_names(self) -> None:
        """The same, and that what a library opened by the files' own names are these files."""
        if self.file is not None:
            self.file.check_name()
        for each in self._beside.values():
            each.check_names()

    def prefault(self, placement: Placement | None) -> None:
        """Brings a mapped payload into memory before it is asked for; does nothing where none was left in the file."""
        if self._view is not None and placement is not None and placement.mapped_bytes:
            self._view.prefault(placement.parts)

    def release(self) -> tuple[str, ...]:
        """Lets go of the content, the view and every descriptor. Idempotent; use after it says that it was released.

        Returns:
            What still holds the bytes, empty if nothing does. See `View.release`.
        """
        self._released = True
        self._headers.clear()
        for each in self._beside.values():
            each.release()
        view, self._view = self._view, None
        if view is not None:
            self._released_view = view
            view.release()
        self._close()
        return self.held()

    def held(self) -> tuple[str, ...]:
        """What still holds the bytes after `release`: the arrays of a model that lives in the mapped file, for one."""
        own = self._released_view.held() if self._released_view is not None else ()
        return own + tuple(holder for each in self._beside.values() for holder in each.held())

    def _close(self) -> None:
        pass

    def _alive(self) -> None:
        if self._released:
            raise ValueError(f"{self.name}: it was released; load it again")


class _File(Artifact):
    """A file, open since it was found."""

    has_content = False

    file: PinnedFile

    def __init__(
        self, file: PinnedFile, identity: FileIdentity | None = None, closing: contextlib.ExitStack | None = None
    ) -> None:
        super().__init__(file.path, file.path)
        self.file = file
        self._content: bytearray | None = None
        self._closing = closing or contextlib.ExitStack()
        self.identity = identity or file.identity

    @property
    def size_bytes(self) -> int:
        return self.file.size_bytes

    @property
    def is_snapshot(self) -> bool:
        return self.file.private

    def open(
        self, *, drop_behind: bool = False, window_bytes: int = WINDOW_BYTES, on_window: OnWindow | None = None
    ) -> BinaryIO:
        return self.file.open(drop_behind=drop_behind, window_bytes=window_bytes, on_window=on_window)

    def content(self) -> bytearray:
        self._alive()
        if self._content is None:
            # As large as the file at once: `read` would put it together from pieces, twice as large for a moment.
            content = bytearray(self.size_bytes)
            with self.open() as file:
                count = file.readinto(content)  # type: ignore[attr-defined]  # typeshed: BinaryIO leaves it out
            self.file.check()
            del content[count:]
            self._content = content
        return self._content

    def _new_view(self, on_window: OnWindow | None) -> View:
        return View(self.file, on_window=on_window)

    def by_name(self, *, own: bool = False) -> contextlib.AbstractContextManager[str]:
        if own and self.is_snapshot:
            raise ConfigError(
                f"{self.name}: snapshot=True is not possible for it, because its library looks for other files beside it; replace"
                " model files by renaming, and leave snapshot out",
                field="snapshot",
                value=True,
            )
        return self.file.by_name(own=own)

    def given(self, *, read: bool = False) -> LoadedFile:
        self._alive()
        content = b""
        if read:
            with io.FileIO(os.dup(self.file.fd), "rb") as file:
                file.seek(0)
                content = file.readall()
            self.file.check()
        name = self.file.pinned_name if self.is_snapshot else None
        return LoadedFile(content, name or self.path)

    def _as_this(self, other: Artifact) -> Artifact:
        return other.snapshot() if self.is_snapshot else other

    def snapshot(self) -> Artifact:
        with contextlib.ExitStack() as stack:
            copy = _File(stack.enter_context(snapshot_of(self.file)), self.identity, stack.pop_all())
        self.release()
        return copy

    def check(self) -> None:
        self.file.check()
        super().check()

    def _close(self) -> None:
        self._content = None
        self.file.close()
        self._closing.close()


class _Folder(Artifact):
    """A folder that is a model; its files are opened by the model's library."""

    has_content = False
    is_folder = True

    def __init__(self, path: str, name: str | None = None, closing: contextlib.ExitStack | None = None) -> None:
        super().__init__(name or path, path)
        self._identity = folder_identity(path)
        self._closing = closing

    @property
    def size_bytes(self) -> int:
        return sum(each.size_bytes for each in self._identity.values())

    @property
    def is_snapshot(self) -> bool:
        return self._closing is not None

    def header(self, read: Callable[[Any, str], _Header]) -> _Header:
        """As of a file; `read` gets the folder's path in place of a file."""
        self._alive()
        if read not in self._headers:
            self._headers[read] = read(self.path, self.name)
        found: _Header = self._headers[read]
        return found

    def content(self) -> bytes:
        self._alive()
        raise NotAModelFileError(f"{self.name}: expected a model file, found a folder; give a file in it", path=self.path)

    def by_name(self, *, own: bool = False) -> contextlib.AbstractContextManager[str]:
        assert self.path is not None
        return contextlib.nullcontext(self.path)

    def given(self, *, read: bool = False) -> LoadedFile:
        self._alive()
        return LoadedFile(path=self.path)

    def snapshot(self) -> Artifact:
        assert self.path is not None
        with contextlib.ExitStack() as stack:
            copy = os.path.join(stack.enter_context(private_folder()), os.path.basename(os.path.abspath(self.path)))
            shutil.copytree(self.path, copy)
            self.check()
            return _Folder(copy, self.name, stack.pop_all())

    def check(self) -> None:
        assert self.path is not None
        found = folder_identity(self.path)
        for name in sorted(found.keys() | self._identity.keys()):
            now, then = found.get(name), self._identity.get(name)
            if now is None or then is None or not now.is_content_of(then):
                raise ModelFileChanged(
                    f"{self.name}: changed while it was being loaded: {name} is not as it was; replace a model's folder by"
                    " renaming a new one into its place",
                    path=self.path,
                )

    def _close(self) -> None:
        if self._closing is not None:
            self._closing.close()


class _Buffer(Artifact):
    """Content that is in memory already."""

    def __init__(self, loaded: LoadedFile, content: bytes | bytearray | memoryview) -> None:
        super().__init__(loaded.name, loaded.path)
        self._content = content
        self._given: Any = loaded.raw_data

    @property
    def size_bytes(self) -> int:
        return len(self._content)

    def content(self) -> bytes | bytearray | memoryview:
        self._alive()
        return self._content

    def given(self, *, read: bool = False) -> LoadedFile:
        self._alive()
        return LoadedFile(self._given, self.path)

    def _close(self) -> None:
        self._content = self._given = b""


class _FileObject(Artifact):
    """Somebody's binary file that can seek: read from where it stands, under a position of our own."""

    is_file_object = True

    def __init__(self, loaded: LoadedFile) -> None:
        super().__init__(loaded.name, loaded.path)
        self._given: Any = loaded.raw_data
        self._start = int(self._given.tell())
        self._content: Any = None

    @property
    def size_bytes(self) -> int:
        self._alive()
        size: int = self._given.seek(0, io.SEEK_END)
        self._given.seek(self._start)
        return size - self._start

    def header(self, read: Callable[[BinaryIO, str], _Header]) -> _Header:
        self._alive()
        try:
            return super().header(read)
        finally:
            self._given.seek(self._start)

    def open(
        self, *, drop_behind: bool = False, window_bytes: int = WINDOW_BYTES, on_window: OnWindow | None = None
    ) -> BinaryIO:
        self._alive()
        self._given.seek(self._start)
        return open_borrowed(self._given)

    def content(self) -> bytes | bytearray | memoryview:
        self._alive()
        if self._content is None:
            self._given.seek(self._start)
            self._content = self._given.read()
        return self._content  # type: ignore[no-any-return]  # what a binary file reads

    def given(self, *, read: bool = False) -> LoadedFile:
        self._alive()
        return LoadedFile(self._given, self.path)

    def _close(self) -> None:
        self._given = self._content = None


class _Stream(Artifact):
    """Somebody's file that cannot seek: read whole when its content is first asked for."""

    def __init__(self, loaded: LoadedFile) -> None:
        super().__init__(loaded.name, loaded.path)
        self._given: Any = loaded.raw_data
        self._content: bytes | None = None

    @property
    def is_rewindable(self) -> bool:  # type: ignore[override]  # the others always are
        return self._content is not None

    @property
    def size_bytes(self) -> int:
        return len(self._content) if self._content is not None else 0

    def header(self, read: Callable[[BinaryIO, str], _Header]) -> _Header:
        self._alive()
        if self._content is None:
            raise OSError(f"{self.name} cannot go back to its beginning")
        return super().header(read)

    def content(self) -> bytes:
        self._alive()
        if self._content is None:
            found = self._given.read()
            self._content = found.encode() if isinstance(found, str) else bytes(found)
        return self._content

    def given(self, *, read: bool = False) -> LoadedFile:
        return LoadedFile(self._given if self._content is None else self._content, self.path)

    def _close(self) -> None:
        self._given = self._content = None


class _ModelObject(Artifact):
    """The model itself."""

    is_model = True

    def __init__(self, loaded: LoadedFile) -> None:
        super().__init__(loaded.name, loaded.path)
        self._given: Any = loaded.raw_data

    def given(self, *, read: bool = False) -> LoadedFile:
        self._alive()
        return LoadedFile(self._given, self.path)

    def _close(self) -> None:
        self._given = None
