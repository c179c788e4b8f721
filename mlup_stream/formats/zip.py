"""The members of a zip archive and where their bytes lie, from its directory and local headers alone; nothing is unpacked.

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14 to 4.3.16 (its end, with
the ZIP64 forms), 4.5.3 (the ZIP64 extra field). npz, torch, TorchScript and Keras files are zips; what tells them apart is the
names of their members, and what lets their arrays stay in the file is that their members are stored, not deflated.

Hardened: every offset and length is checked against the file before anything is read by it, the directory is bounded in
size and in members, members may not overlap each other or the directory, and a member that is itself an archive is a
member, not descended into. Peak memory: the directory (at most 16 MiB) and its members.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlup_stream.formats.source import Source
from mlup_stream.units import MIB

__all__ = ["DEFLATED", "STORED", "ZipEntry", "ZipMember", "read_directory", "walk"]

STORED = 0
DEFLATED = 8

_END = struct.Struct("<4s4H2LH")  # signature, disks, disk, entries here, entries, directory size, offset, comment length
_END64_LOCATOR = struct.Struct("<4sLQL")  # signature, disk, offset of the ZIP64 end, disks
_END64 = struct.Struct("<4sQ2H2L4Q")  # signature, size, versions, disks, entries here, entries, directory size, offset
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED, _UTF8 = 0x1, 0x800
_ZIP64_EXTRA = 1
_UNKNOWN16, _UNKNOWN32 = 0xFFFF, 0xFFFFFFFF

_MAX_COMMENT_BYTES = 0xFFFF
MAX_DIRECTORY_BYTES = 16 * MIB
"""A directory is about 100 bytes a member: room for 150 000 of them. A file that claims more is not a model."""

_MAX_DEFLATE_RATIO = 1032  # RFC 1951: a match of 258 bytes takes at least 2 bits


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """A member as the directory describes it.

    Attributes:
        name: With `/` between folders, as written.
        method: How it is compressed: `STORED`, `DEFLATED`, or another of APPNOTE 4.4.5.
        compressed_bytes: Its length in the file.
        size_bytes: Its length once unpacked, as claimed.
        crc32: The checksum of the unpacked bytes, as claimed.
        encrypted: Whether it needs a password.
        header_offset: Where its local header lies in the file.
    """

    name: str
    method: int
    compressed_bytes: int
    size_bytes: int
    crc32: int
    encrypted: bool
    header_offset: int


@dataclass(frozen=True, slots=True)
class ZipMember(ZipEntry):
    """A member, and where its bytes lie: `data_offset` from the start of the file."""

    data_offset: int

    @property
    def data_end(self) -> int:
        """Where its bytes end, exclusive."""
        return self.data_offset + self.compressed_bytes


def read_directory(given: Any, name: str | None = None) -> tuple[ZipEntry, ...]:
    """The members in the directory's order, without looking at them: two to four reads near the end of the file.

    Args:
        given: A view, a path, a buffer or a seekable binary file.
        name: What to call it in a message.

    Raises:
        CorruptModelError: It is not a zip, is truncated, or its directory contradicts itself.
    """
    with Source(given, name) as source:
        return _directory(source)[0]


def walk(given: Any, name: str | None = None) -> tuple[ZipMember, ...]:
    """The members in the directory's order, each with the place of its bytes: one more read of 30 bytes for each.

    Raises:
        CorruptModelError: As `read_directory`; or a local header is missing or members overlap.
    """
    with Source(given, name) as source:
        entries, directory_offset = _directory(source)
        members = tuple(_locate(source, entry) for entry in entries)
        _refuse_overlaps(source, members, directory_offset)
        return members


def _directory(source: Source) -> tuple[tuple[ZipEntry, ...], int]:
    """The entries, and where the directory begins."""
    end_offset, count, size_bytes, offset = _find_end(source)
    # As zipfile does: what stands before the archive (a launcher script, say) shifts every offset in it.
    start = end_offset - size_bytes
    shift = start - offset
    if start < 0 or shift < 0:
        raise source.corrupt(f"a zip directory of {size_bytes} bytes at {offset}", f"its end record at {end_offset}")
    if size_bytes > MAX_DIRECTORY_BYTES or count * _ENTRY.size > size_bytes:
        raise source.corrupt(
            f"a zip directory of at most {MAX_DIRECTORY_BYTES} bytes", f"{count} members in {size_bytes} bytes of directory"
        )
    data = source.read(start, size_bytes, "zip directory")
    entries = []
    position = 0
    for _ in range(count):
        entry, position = _parse_entry(source, data, position, shift)
        entries.append(entry)
    return tuple(entries), start


def _find_end(source: Source) -> tuple[int, int, int, int]:
    """Where the directory ends, how many members it has, its size in bytes, and where it says that it begins."""
    tail_size = min(source.size_bytes, _END.size + _MAX_COMMENT_BYTES)
    tail_offset = source.size_bytes - tail_size
    tail = source.read(tail_offset, tail_size, "end of the zip")
    at = len(tail)
    while (at := tail.rfind(b"PK\5\6", 0, at)) >= 0:
        if at + _END.size > len(tail):
            continue
        _, disk, _, _, count, size_bytes, offset, comment = _END.unpack_from(tail, at)
        if at + _END.size + comment <= len(tail) and disk in (0, _UNKNOWN16):
            end_offset = tail_offset + at
            wide = _find_end64(source, end_offset)
            return wide if wide is not None else (end_offset, count, size_bytes, offset)
    raise source.corrupt("the end record of a zip directory", f"none in the last {tail_size} bytes")


def _find_end64(source: Source, end_offset: int) -> tuple[int, int, int, int] | None:
    locator_offset = end_offset - _END64_LOCATOR.size
    if locator_offset < 0:
        return None
    signature, _, offset, _ = _END64_LOCATOR.unpack(source.read(locator_offset, _END64_LOCATOR.size, "ZIP64 locator"))
    if signature != b"PK\6\7":
        return None
    # Where the locator says, or, when something was put before the archive, right in front of the locator.
    for candidate in (offset, locator_offset - _END64.size):
        if 0 <= candidate <= locator_offset - _END64.size:
            record = _END64.unpack(source.read(candidate, _END64.size, "ZIP64 end record"))
            if record[0] == b"PK\6\6":
                return candidate, record[7], record[8], record[9]
    raise source.corrupt(f"the ZIP64 end record at {offset}", "something else there")


def _parse_entry(source: Source, data: bytes, position: int, shift: int) -> tuple[ZipEntry, int]:
    if position + _ENTRY.size > len(data):
        raise source.corrupt("another member in the zip directory", "its end")
    fields = _ENTRY.unpack_from(data, position)
    signature, _, _, flags, method, _, _, crc32, compressed, size, name_length, extra_length, comment_length = fields[:13]
    offset = fields[16]
    if signature != b"PK\1\2":
        raise source.corrupt("the signature of a zip directory entry", repr(signature))
    name_at = position + _ENTRY.size
    extra_at = name_at + name_length
    end = extra_at + extra_length + comment_length
    if end > len(data):
        raise source.corrupt(f"a zip directory entry of {end - position} bytes", f"{len(data) - position} bytes")
    try:
        member_name = data[name_at:extra_at].decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError as error:
        raise source.corrupt("a member's name in UTF-8", repr(data[name_at:extra_at][:80])) from error
    wide = iter(_zip64_values(data[extra_at : extra_at + extra_length]))
    size, compressed, offset = (
        next(wide, _UNKNOWN32) if value == _UNKNOWN32 else value for value in (size, compressed, offset)
    )
    entry = ZipEntry(member_name, method, compressed, size, crc32, bool(flags & _ENCRYPTED), offset + shift)
    _refuse_lies(source, entry)
    return entry, end


def _zip64_values(extra: bytes) -> Sequence[int]:
    """The 64-bit values of the ZIP64 extra field, in the order in which the entry needs them."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        position += 4
        if kind == _ZIP64_EXTRA:
            return struct.unpack_from(f"<{min(length, len(extra) - position, 24) // 8}Q", extra, position)
        position += length
    return ()


def _refuse_lies(source: Source, entry: ZipEntry) -> None:
    room = source.size_bytes - entry.header_offset - _LOCAL.size
    if entry.compressed_bytes > room:
        raise source.corrupt(f"member {entry.name!r} of {entry.compressed_bytes} bytes", f"room for {max(room, 0)} bytes")
    if entry.method == STORED and entry.size_bytes != entry.compressed_bytes and not entry.encrypted:
        raise source.corrupt(
            f"stored member {entry.name!r} to be as long in the file as unpacked",
            f"{entry.compressed_bytes} and {entry.size_bytes} bytes",
        )
    if entry.method == DEFLATED and entry.size_bytes > entry.compressed_bytes * _MAX_DEFLATE_RATIO:
        raise source.corrupt(
            f"deflated member {entry.name!r} to grow at most {_MAX_DEFLATE_RATIO} times",
            f"{entry.compressed_bytes} bytes that claim to be {entry.size_bytes}",
        )


def _locate(source: Source, entry: ZipEntry) -> ZipMember:
    fields = _LOCAL.unpack(source.read(entry.header_offset, _LOCAL.size, f"local header of {entry.name!r}"))
    if fields[0] != b"PK\3\4":
        raise source.corrupt(f"the local header of {entry.name!r} at {entry.header_offset}", repr(fields[0]))
    # The lengths are taken from here: the extra field may differ from the directory's (torch and zipalign pad in it).
    data_offset = entry.header_offset + _LOCAL.size + fields[9] + fields[10]
    if data_offset + entry.compressed_bytes > source.size_bytes:
        raise source.corrupt(f"member {entry.name!r} up to {data_offset + entry.compressed_bytes}", f"{source.size_bytes} bytes")
    return ZipMember(
        entry.name,
        entry.method,
        entry.compressed_bytes,
        entry.size_bytes,
        entry.crc32,
        entry.encrypted,
        entry.header_offset,
        data_offset,
    )


def _refuse_overlaps(source: Source, members: Sequence[ZipMember], directory_offset: int) -> None:
    # Overlapping members are how a small archive claims to hold petabytes.
    end, before = 0, "the start of the file"
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.header_offset < end:
            raise source.corrupt(f"member {member.name!r} to begin after {before}", "an overlap")
        end, before = member.data_end, f"member {member.name!r}"
    if end > directory_offset:
        raise source.corrupt(f"{before} to end before the directory at {directory_offset}", f"an end at {end}")
