"""Zips of arrays, `.npz` and torch's: every member stored, and its array at an aligned offset.

What moves a member is padding in the extra field of its local header, where torch and Android's `zipalign` have theirs too; every
reader of zips skips what it does not know there. The member itself stays as it is, byte for byte and with its checksum.
Source: PKWARE APPNOTE.TXT 6.3.10, 4.3.7 (local header), 4.5.1 (extra field).
"""

from __future__ import annotations

import contextlib
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mlup_stream.delivery.view import View
from mlup_stream.errors import CorruptModelError, PackError
from mlup_stream.formats import zip as zips
from mlup_stream.formats.arrays.npy import parse_header
from mlup_stream.formats.shards import is_index
from mlup_stream.pack.destination import Destination
from mlup_stream.pack.packed import ALIGNMENT_BYTES, Gain
from mlup_stream.pack.pieces import PIECE_BYTES, compare, differs

__all__ = ["pack_npz", "pack_torch"]

_PADDING_EXTRA = 0xD935  # as zipalign's: the alignment in two bytes, then zeros
_LEAST_EXTRA_BYTES = 6
_BYTES_PER_MEMBER = 512  # a local header, a directory entry, padding in both; names apart

_TORCH_STORAGE = "/data/"
_TORCH_ALIGNMENT_BYTES = 16  # of the widest items that a storage may have


class _Array(NamedTuple):
    """What a member holds: where its array begins in it, how long that is, and what its offset has to be a multiple of."""

    start: int
    size_bytes: int
    alignment: int


def pack_npz(view: View, destination: Destination) -> Gain:
    """Writes the arrays in `view` stored and aligned. Arrays of Python objects are copied as they are."""
    return _pack(view, destination, _npy_member)


def pack_torch(view: View, destination: Destination) -> Gain:
    """The same for what `torch.save` wrote, which is aligned already unless somebody has zipped it anew.

    Raises:
        PackError: It is not a zip, which torch before 1.6 did not write.
    """
    with view.open() as file:
        if is_index(file):
            raise PackError(f"{view.path}: only an index; pack the files that it names, one by one", path=view.path)
        file.seek(0)
        if file.read(2) != b"PK":
            what = "written by torch before 1.6, its storages within a pickle"
            raise PackError(f"{view.path}: {what}: load it with torch and torch.save it anew", path=view.path)
    return _pack(view, destination, _torch_member)


def _npy_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> _Array | None:
    if not info.filename.endswith(".npy"):
        return None
    with archive.open(info) as stream:
        header = parse_header(stream.read, info.file_size, f"{name}: {info.filename}")
    return None if header.has_objects else _Array(header.data_start, header.data_bytes, header.alignment)


def _torch_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> _Array | None:
    return _Array(0, info.file_size, _TORCH_ALIGNMENT_BYTES) if _TORCH_STORAGE in info.filename else None


def _pack(view: View, destination: Destination, look: Callable[[zipfile.ZipFile, zipfile.ZipInfo, str], _Array | None]) -> Gain:
    name = str(view.path)
    members = zips.walk(view)
    _refuse(name, members)
    if members and all(member.header_offset for member in members):
        raise PackError(f"{name}: expected an archive, found something before it, which would be lost; take it off", path=name)
    with view.open() as file, zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        with _damage_explained(name):
            arrays = [look(archive, info, name) for info in infos]
        destination.reserve(sum(info.file_size + 2 * len(info.filename.encode()) + _BYTES_PER_MEMBER for info in infos))
        with destination.explained(), zipfile.ZipFile(destination.file, "w") as written:
            written.comment = archive.comment
            for info, array in zip(infos, arrays, strict=True):
                _write(written, info, destination.file.tell(), array, _unpacked(archive, info, name))
        destination.sync()
        after = _verified(name, archive, infos, destination)
    found = [(array, old, new) for array, old, new in zip(arrays, members, after, strict=True) if array is not None]
    return Gain(
        sum(array.size_bytes for array, _, _ in found),
        sum(array.size_bytes for array, old, _ in found if old.method == zips.STORED and _is_aligned(array, old)),
        sum(array.size_bytes for array, _, new in found if _is_aligned(array, new)),
        f"{len(infos)} members were mapped from what was written and compared with the source bit for bit",
    )


def _refuse(name: str, members: tuple[zips.ZipMember, ...]) -> None:
    encrypted = [member.name for member in members if member.encrypted]
    names = [member.name for member in members]
    twice = [each for each in names if names.count(each) > 1] if len(set(names)) < len(names) else []
    for found, what in ((encrypted, "the encrypted member"), (twice, "twice the member")):
        if found:
            raise PackError(f"{name}: expected arrays that can be copied, found {what} {found[0]!r}; save them anew", path=name)


def _write(
    archive: zipfile.ZipFile, old: zipfile.ZipInfo, position: int, array: _Array | None, content: Iterator[bytes]
) -> None:
    """Adds a member at `position`, stored, its array aligned."""
    info = zipfile.ZipInfo(old.filename, old.date_time)
    info.external_attr, info.file_size, info.comment = old.external_attr, old.file_size, old.comment
    info.CRC = info.compress_size = 0  # not known yet: zipfile goes back for them
    wide = old.file_size * 1.05 > zipfile.ZIP64_LIMIT  # as zipfile decides it
    if array is not None:
        info.extra = _padding(position + len(info.FileHeader(wide)) + array.start)
    with archive.open(info, "w", force_zip64=wide) as member:
        for piece in content:
            member.write(piece)


def _padding(offset: int) -> bytes:
    """The extra field that moves what lies at `offset` on to where it is aligned."""
    size_bytes = -offset % ALIGNMENT_BYTES
    if 0 < size_bytes < _LEAST_EXTRA_BYTES:
        size_bytes += ALIGNMENT_BYTES
    if not size_bytes:
        return b""
    head = struct.pack("<3H", _PADDING_EXTRA, size_bytes - 4, ALIGNMENT_BYTES)
    return head.ljust(size_bytes, b"\0")


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Iterator[bytes]:
    """The content of a member, its checksum checked at the end."""
    with _damage_explained(name), archive.open(info) as stream:
        while piece := stream.read(PIECE_BYTES):
            yield piece


@contextlib.contextmanager
def _damage_explained(name: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
        raise CorruptModelError(
            f"{name}: expected a whole archive, found damaged content ({error}); copy or export it again", path=name
        ) from error


def _verified(
    name: str, archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo], destination: Destination
) -> tuple[zips.ZipMember, ...]:
    written = View(destination.part)
    try:
        members = zips.walk(written)
        if [(each.name, each.size_bytes, each.crc32) for each in members] != [(i.filename, i.file_size, i.CRC) for i in infos]:
            raise differs(name, "another directory")
        for info, member in zip(infos, members, strict=True):
            compare(written, member.data_offset, _unpacked(archive, info, name), name)
        return members
    finally:
        written.release()


def _is_aligned(array: _Array, member: zips.ZipMember) -> bool:
    return (member.data_offset + array.start) % array.alignment == 0
