"""The arrays in an `.npz` file, a zip of `.npy` files: which, of what shape, where they lie, and a bounded reader over each.

Source: `numpy.savez`; the zip as `formats.zip` has it; deflate is RFC 1951. A stored member is an `.npy` file that lies whole
in the zip, so its array can be read where it is, or mapped. A deflated one can only be unpacked from its beginning on.

    for member in read_members("weights.npz"):
        member.key, member.header.shape, member.stored

Hardened: on top of what the zip's walker and the header's check, a member that unpacks to more or fewer bytes than the directory
says, or to others than its checksum says, is an error. Peak memory: the directory; 64 KiB for a reader.
"""

from __future__ import annotations

import contextlib
import io
import os
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from mlup_stream.errors import CorruptModelError, ModelBinarizationError
from mlup_stream.formats.arrays.npy import NpyHeader, parse_header, read_header, told
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.listing import listed
from mlup_stream.formats.peek import Peek
from mlup_stream.formats.zip import DEFLATED, STORED, ZipMember, walk
from mlup_stream.units import KIB

__all__ = ["NpzMember", "detect", "inspect", "open_member", "read_members"]

_SUFFIX = ".npy"
_WINDOW_BYTES = 64 * KIB
_HEAD_BYTES = 256  # an npy header, mostly


@dataclass(frozen=True, slots=True)
class NpzMember:
    """A member of the zip.

    Attributes:
        place: Its name, and where it lies.
        header: Of the array; None if it is no `.npy`. `data_start` is counted from the start of the file for a stored member,
            otherwise from the start of what is unpacked.
    """

    place: ZipMember
    header: NpyHeader | None

    @property
    def key(self) -> str:
        """What NumPy calls the array."""
        return self.place.name.removesuffix(_SUFFIX)

    @property
    def stored(self) -> bool:
        """Whether its bytes are in the file as they are."""
        return self.place.method == STORED

    @property
    def has_objects(self) -> bool:
        return self.header is not None and self.header.has_objects

    @property
    def payload_bytes(self) -> int:
        """The bytes of the array, or of the whole member if it is no array."""
        return self.place.size_bytes if self.header is None else self.header.data_bytes


def read_members(given: Any, name: str | None = None) -> tuple[NpzMember, ...]:
    """The members in the directory's order, the header of each of them read.

    Args:
        given: A view, a path or a seekable binary file.
        name: What to call it in a message.

    Raises:
        CorruptModelError: The zip, or one of its headers, is not what it should be.
        ModelBinarizationError: A member is encrypted, or compressed by another method than deflate.
    """
    called = name or str(getattr(given, "path", given))
    with contextlib.ExitStack() as stack:
        file = given
        if not hasattr(given, "read"):
            is_path = isinstance(given, (str, os.PathLike))
            file = open(given, "rb") if is_path else given.open()  # noqa: SIM115  # the stack closes it
            stack.callback(file.close)
        return tuple(_member(file, place, called) for place in walk(file, called))


def _member(file: BinaryIO, place: ZipMember, name: str) -> NpzMember:
    inner_name = f"{name}: {place.name}"
    if place.encrypted or place.method not in (STORED, DEFLATED):
        found = "encrypted" if place.encrypted else f"compressed by method {place.method}"
        raise ModelBinarizationError(
            f"{inner_name}: expected it stored or deflated, as numpy writes it, found it {found}; save it again with numpy.savez",
            path=name,
            format=Format.NPZ.value,
        )
    if not place.name.endswith(_SUFFIX):
        return NpzMember(place, None)
    if place.method == STORED:
        header = read_header(file, inner_name, start=place.data_offset, size_bytes=place.size_bytes)
    else:
        with open_member(file, place, name, window_bytes=_HEAD_BYTES) as unpacked:
            header = parse_header(unpacked.read, place.size_bytes, inner_name)
    return NpzMember(place, header)


def open_member(file: BinaryIO, place: ZipMember, name: str, *, window_bytes: int = _WINDOW_BYTES) -> BinaryIO:
    """A reader over what a member holds, from its beginning to its end; it cannot go back.

    Args:
        file: The zip, seekable; it is read at whatever place is needed, and stays open.
        place: The member.
        name: What to call the zip in a message.
        window_bytes: How much is read ahead.

    Raises:
        CorruptModelError: From its reads: the content is damaged, or not as long as the directory says. Having read
            `place.size_bytes`, all of it was checked.
    """
    raw = _MemberFile(file, place, f"{name}: {place.name}")
    return cast(BinaryIO, io.BufferedReader(raw, window_bytes))


class _MemberFile(io.RawIOBase):
    def __init__(self, file: BinaryIO, place: ZipMember, name: str) -> None:
        super().__init__()
        self._file = file
        self._place = place
        self._name = name
        self._at = place.data_offset
        self._left_bytes = place.size_bytes
        self._checksum = 0
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if place.method == DEFLATED else None
        self._checked = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]  # collections.abc.Buffer needs 3.12
        target = memoryview(buffer).cast("B")[: self._left_bytes]
        count = self._fill(target) if len(target) else 0
        if len(target) and not count:
            raise self._corrupt(f"{self._left_bytes} more bytes", "its end")
        self._checksum = zlib.crc32(target[:count], self._checksum)
        self._left_bytes -= count
        if self._left_bytes == 0 and not self._checked:
            self._check()
        return count

    def _fill(self, target: memoryview) -> int:
        if self._inflater is None:
            self._file.seek(self._at)  # somebody else may have moved the cursor
            count = int(self._file.readinto(target))  # type: ignore[attr-defined]  # of a binary file, which BinaryIO leaves out
            self._at += count
            return count
        # In pieces: zlib makes one piece of bytes of what it is asked for.
        piece = self._inflate(min(len(target), _WINDOW_BYTES))
        target[: len(piece)] = piece
        return len(piece)

    def _inflate(self, at_most_bytes: int) -> bytes:
        assert self._inflater is not None
        piece = b""
        while not piece and not self._inflater.eof:
            packed = self._inflater.unconsumed_tail
            if not packed:
                self._file.seek(self._at)
                packed = self._file.read(min(_WINDOW_BYTES, self._place.data_end - self._at))
                self._at += len(packed)
            try:
                piece = self._inflater.decompress(packed, at_most_bytes)
            except zlib.error as error:
                raise self._corrupt("a deflated stream", str(error)) from error
            if not packed and not piece:
                break  # nothing more goes in, nothing more comes out: it is cut off
        return piece

    def _check(self) -> None:
        """At the end: the stream ends here too, and the checksum is right."""
        self._checked = True
        if self._inflater is not None and (self._inflate(1) or not self._inflater.eof):
            raise self._corrupt(f"{self._place.size_bytes} bytes, as the directory says", "a stream that does not end there")
        if self._checksum != self._place.crc32:
            raise self._corrupt(f"a checksum of {self._place.crc32:08x}", f"{self._checksum:08x}")

    def _corrupt(self, expected: str, found: str) -> CorruptModelError:
        return CorruptModelError(
            f"{self._name}: expected {expected}, found {found}; the file may be truncated or damaged: copy or export it again",
            path=self._name,
            format=Format.NPZ.value,
        )


def detect(peek: Peek) -> str | None:
    if peek.members and all(name.endswith(".npy") for name in peek.members):
        return f"a zip of {len(peek.members)} .npy members"
    return None


def inspect(given: Any, name: str) -> dict[str, Any]:
    members = read_members(given, name)
    arrays = [
        {"name": each.key, "stored": each.stored, **(told(each.header) if each.header is not None else {})} for each in members
    ]
    return listed("arrays", arrays)
