"""A memory-mapped view of a file: mapped when first asked for, given back by `release`, never a copy.

A view by itself saves nothing: `pickle.loads(view.buffer)` costs twice the file, once in copied arrays and once in mapped
pages. It saves where payloads *stay* in it. What has to be consumed whole goes through `open()`, which reads by descriptor and
touches no page of the map.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import BinaryIO

from mlup_stream.delivery.pinned import PinnedFile
from mlup_stream.delivery.reader import OnWindow, open_buffer
from mlup_stream.errors import ModelFileChanged
from mlup_stream.units import KIB

__all__ = ["View", "drop_pages"]

_STRUCTURE_WINDOW_BYTES = 64 * KIB

_POPULATE_READ = 22
"""MADV_POPULATE_READ of asm-generic/mman-common.h, since Linux 5.14; the mmap module does not name it."""

# Named by the mmap module from Python 3.13 on. The value is asm-generic/mman-common.h's; a few architectures have their own.
_NO_RESERVE_MACHINES = ("x86_64", "i686", "aarch64", "armv7l", "riscv64", "s390x")
_NO_RESERVE: int = getattr(
    mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" and os.uname().machine in _NO_RESERVE_MACHINES else 0
)


class View:
    """A read-only view of a file or of a buffer, and on request a copy-on-write one.

    Args:
        file: The file to map: a path, which is opened and pinned now, or a file that is pinned already, which stays open. Nothing
            is mapped before `buffer` or `writable` is first read.
        data: A buffer to view instead of a file.
        on_window: Called by the readers that `open` gives; see `open_stream`.

    Attributes:
        file: The pinned file; None for a view of a buffer.
        path: Its name; None for a view of a buffer.
        size_bytes: The length of the view.
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | PinnedFile | None = None,
        data: bytes | bytearray | memoryview | None = None,
        *,
        on_window: OnWindow | None = None,
    ) -> None:
        self._maps: list[mmap.mmap] = []
        self._exported: list[weakref.ref[mmap.mmap]] = []
        self._buffers: dict[bool, memoryview] = {}
        self._on_window = on_window
        self._closes = not isinstance(file, PinnedFile)
        self._released = False
        self.file = file if file is None or isinstance(file, PinnedFile) else PinnedFile(file)
        self.path = None if self.file is None else self.file.path
        if self.file is None:
            self._buffers[False] = memoryview(data if data is not None else b"").cast("B").toreadonly()
        self.size_bytes = len(self._buffers[False]) if self.file is None else self.file.size_bytes

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.release()

    @property
    def buffer(self) -> memoryview:
        """The bytes, read-only. Pages count towards RSS as they are touched, and the kernel may take them back."""
        return self._mapped(writable=False)

    @property
    def writable(self) -> memoryview:
        """The bytes, copy-on-write: a page that is written to becomes private memory; the file never changes.

        Mapped without reserving, so that the commit limit is not charged (RLIMIT_DATA is: it counts private writable maps).
        A view of a buffer has a private copy of the whole buffer instead.
        """
        return self._mapped(writable=True)

    def _mapped(self, *, writable: bool) -> memoryview:
        buffer = self._buffers.get(writable)
        if buffer is None:
            file = self._pinned()
            if file is None:
                buffer = memoryview(bytearray(self._buffers[False]))
            elif self.size_bytes == 0:
                buffer = memoryview(b"")  # an empty file cannot be mapped
            else:
                file.check()
                file.note_mapped()
                mapped = _map_file(file.fd, self.size_bytes, writable=writable)
                self._maps.append(mapped)
                buffer = memoryview(mapped)
            self._buffers[writable] = buffer
        return buffer

    def open(self) -> BinaryIO:
        """A bounded reader over the same bytes, from the start; no page of the map is touched. The caller closes it."""
        file = self._pinned()
        return open_buffer(self._buffers[False]) if file is None else file.open(on_window=self._on_window)

    def open_structure(self) -> BinaryIO:
        """As `open`, for what is not left in the view: with a small window, because most of the file is stepped over, and without
        giving the page cache back, because the payloads that lie between will be wanted."""
        file = self._pinned()
        if file is None:
            return self.open()
        return file.open(drop_behind=False, window_bytes=_STRUCTURE_WINDOW_BYTES, on_window=self._on_window)

    def _pinned(self) -> PinnedFile | None:
        if self._released:
            raise ValueError(f"the view of {self.path or 'a buffer'} was released; load the model again")
        return self.file

    def drop(self, start: int, stop: int, *, writable: bool = False) -> None:
        """Takes the pages that lie wholly within `start` to `stop` (exclusive) out of this process's RSS.

        They stay in the page cache, and come back when touched. On the copy-on-write map this undoes what was written there:
        only for a range that nothing refers to any more.
        """
        if writable in self._buffers:
            drop_pages(self._buffers[writable], start, stop)

    def prefault(self, parts: Sequence[tuple[int, int]] | None = None) -> None:
        """Brings the file into the page cache and into the maps that are in use: the first prediction waits for nothing.

        Takes as long as reading the file where it is not cached. File pages only: on the copy-on-write map too, nothing becomes
        private before it is written to.

        The order is the kernel's own: a cold file of 512 MiB took 0.33 s so, and 0.37 s with four or eight threads that read it.
        Large pages are not asked for: they made no difference to a map of a file (Linux 6.18 on ext4, without
        CONFIG_READ_ONLY_THP_FOR_FS), and for arrays of its own NumPy asks itself.

        Args:
            parts: From and to (exclusive), in bytes; None for all of it.

        Raises:
            ModelFileChanged: The file was truncated; touching a page beyond its end would have killed the process.
        """
        if self.file is None or self.file.closed:
            return
        chosen = [(0, self.size_bytes)] if parts is None else parts
        for start, stop in chosen if hasattr(os, "posix_fadvise") else ():
            os.posix_fadvise(self.file.fd, start, stop - start, os.POSIX_FADV_WILLNEED)
        if not sys.platform.startswith("linux"):
            return
        for mapped, (start, stop) in itertools.product(self._maps, chosen):
            first = start // mmap.PAGESIZE * mmap.PAGESIZE
            try:
                mapped.madvise(_POPULATE_READ, first, stop - first)
            except OSError as error:
                if error.errno == errno.EFAULT:
                    raise ModelFileChanged(
                        f"{self.path}: ends before its {self.size_bytes} bytes do: it was truncated while it was being loaded;"
                        " replace model files by renaming a new file over the old one",
                        path=self.path,
                    ) from error
                return  # Linux before 5.14 does not know the advice

    def check(self) -> None:
        """Makes sure that a file is as it was when it was opened; see `PinnedFile.check`."""
        if self.file is not None:
            self.file.check()

    def release(self) -> tuple[str, ...]:
        """Closes the descriptor and the maps. Idempotent.

        Returns:
            What still holds the maps, empty if nothing does. A model whose weights lie in a map is such a holder: the map
            lives as long as its arrays do, and closes with the last of them.
        """
        if self.file is not None and self._closes:
            self.file.close()
        self._released = True
        maps, self._maps, buffers, self._buffers = self._maps, [], self._buffers, {}
        for buffer in buffers.values():
            with contextlib.suppress(BufferError):  # an export of this very memoryview; the map below says so
                buffer.release()
        for mapped in maps:
            try:
                mapped.close()
            except BufferError:
                # It closes with the last memoryview or array over it, which is what an in-place model lives on.
                self._exported.append(weakref.ref(mapped))
        return self.held()

    def held(self) -> tuple[str, ...]:
        """What still holds the maps after `release`, empty if nothing does."""
        alive = sum(1 for mapped in self._exported if mapped() is not None)
        return (f"exported buffers of the view of {self.path}",) if alive else ()


def drop_pages(buffer: memoryview, start: int, stop: int) -> None:
    """What `View.drop` does, for the map that a memoryview is of; does nothing for one of something else."""
    mapped = buffer.obj
    if not isinstance(mapped, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = stop if stop >= len(mapped) else stop // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        with contextlib.suppress(OSError):  # a filter of system calls
            mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def _map_file(fd: int, size_bytes: int, *, writable: bool) -> mmap.mmap:
    if os.name == "nt":
        return mmap.mmap(fd, size_bytes, access=mmap.ACCESS_COPY if writable else mmap.ACCESS_READ)
    if writable:
        return mmap.mmap(fd, size_bytes, flags=mmap.MAP_PRIVATE | _NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return mmap.mmap(fd, size_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
