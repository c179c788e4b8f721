"""The walk of a zip's directory: it finds what `zipfile` finds, and whatever lies is a typed error in bounded time."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlup_stream.delivery.view import View
from mlup_stream.errors import CorruptModelError
from mlup_stream.formats import zip as zips

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def make(members: dict[str, bytes], method: int = zipfile.ZIP_STORED, *, comment: bytes = b"", wide: bool = False) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=wide) as member:
                member.write(data)
        archive.comment = comment
    return file.getvalue()


MEMBERS = {"a/data.pkl": b"x" * 100, "a/data/0": bytes(range(256)) * 40, "naïve.npy": b"", "a/": b""}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wide", [False, True])
def test_members_are_those_that_zipfile_finds(method: int, wide: bool) -> None:
    """Names, sizes, checksums and methods agree with `zipfile`, for every method and for ZIP64 headers."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in MEMBERS.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with archive.open(info, "w", force_zip64=wide) as member:
                member.write(data)
    with zipfile.ZipFile(file) as archive:
        expected = [(i.filename, i.compress_type, i.compress_size, i.file_size, i.CRC) for i in archive.infolist()]
    found = zips.walk(file.getvalue())
    assert [(m.name, m.method, m.compressed_bytes, m.size_bytes, m.crc32) for m in found] == expected


def test_stored_members_lie_where_the_walk_says() -> None:
    """The bytes at `data_offset` are the member's, also behind a prefix, with a comment, and with ZIP64 headers."""
    for prefix in (b"", b"#!/bin/sh\n" * 7):
        for wide in (False, True):
            data = prefix + make(MEMBERS, comment=b"PK\5\6 in a comment", wide=wide)
            for member in zips.walk(data):
                assert data[member.data_offset : member.data_end] == MEMBERS[member.name]


def test_every_kind_of_source_gives_the_same_members(tmp_path: Path) -> None:
    """A path, a view, a raw and a buffered file, a `BytesIO` and a buffer are walked alike, and given files stay open."""
    data = make(MEMBERS)
    path = tmp_path / "model.zip"
    path.write_bytes(data)
    expected = zips.walk(data)
    view = View(path)
    with path.open("rb") as buffered, path.open("rb", buffering=0) as raw:
        for source in (path, str(path), view, buffered, raw, io.BytesIO(data), bytearray(data), memoryview(data)):
            assert zips.walk(source) == expected
            assert zips.read_directory(source) == tuple(
                zips.ZipEntry(m.name, m.method, m.compressed_bytes, m.size_bytes, m.crc32, m.encrypted, m.header_offset)
                for m in expected
            )
        assert not buffered.closed
        assert not raw.closed
    view.release()


def test_a_zip64_end_record_is_read() -> None:
    """More than 65535 members need the ZIP64 end record; all of them are found."""
    members = {f"m/{i}": b"" for i in range(66_000)}
    found = zips.read_directory(make(members))
    assert [m.name for m in found] == list(members)


def test_a_zip_truncated_anywhere_is_an_error() -> None:
    """No proper prefix of an archive passes for one."""
    data = make(MEMBERS)
    for end in range(len(data)):
        with pytest.raises(CorruptModelError):
            zips.walk(data[:end])


def entry_at(data: bytes) -> int:
    return data.index(b"PK\1\2")


@pytest.mark.parametrize(
    ("lie", "field", "value"),
    [
        ("member longer than the file", 20, struct.pack("<LL", 2**31, 2**31)),
        ("header past the end", 42, struct.pack("<L", 2**31)),
        ("stored member of two lengths", 24, struct.pack("<L", 2**30)),
        ("no signature", 0, b"PK\0\0"),
        ("name longer than the directory", 28, struct.pack("<H", 0xFFFF)),
        ("header in the middle of another member", 42, struct.pack("<L", 17)),
        ("deflated member that grows a million times", 10, struct.pack("<H4xLLL", 8, 0, 4, 4_000_000)),
    ],
)
def test_a_directory_that_lies_is_an_error(lie: str, field: int, value: bytes) -> None:
    """Each field of an entry that contradicts the file is found, by name of the file that was walked."""
    data = bytearray(make(MEMBERS))
    at = entry_at(bytes(data)) + field
    data[at : at + len(value)] = value
    with pytest.raises(CorruptModelError, match=r"^model\.zip: expected .*, found "):
        zips.walk(data, "model.zip")


def test_counts_beyond_the_directory_are_an_error() -> None:
    """A count or size of 2^63 is refused before anything is allocated for it."""
    data = make(MEMBERS)
    end = data.rindex(b"PK\5\6")
    for count, size, offset in ((2**63, 46, 0), (1, 2**63, 0), (1, 46, 2**63), (2**40, 2**40, 2**40)):
        record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
        with pytest.raises(CorruptModelError):
            zips.walk(data[:end] + record + locator + data[end:])


def test_overlapping_members_are_an_error() -> None:
    """Two entries that share their bytes are how a small archive claims to be a huge one."""
    data = bytearray(make({"a": b"x" * 50, "b": b"x" * 50}))
    first = entry_at(bytes(data))
    second = data.index(b"PK\1\2", first + 4)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    with pytest.raises(CorruptModelError, match="overlap"):
        zips.walk(data)


def test_an_archive_within_an_archive_is_a_member() -> None:
    """A stored member that is a zip itself is not descended into."""
    inner = make(MEMBERS)
    found = zips.walk(make({"inner.zip": inner, "z": b"1"}))
    assert [m.name for m in found] == ["inner.zip", "z"]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_garbage_is_an_error_or_a_zip(data: bytes) -> None:
    """Whatever the bytes, the walk ends with members or with the typed error."""
    for candidate in (data, data + b"PK\5\6" + data[:18], b"PK\3\4" + data):
        with contextlib.suppress(CorruptModelError):
            assert isinstance(zips.walk(candidate), tuple)


def test_damaged_archives_are_an_error_or_a_zip() -> None:
    """The same, for archives with a few bytes changed: members that are found lie within the file."""
    chance = random.Random(7)
    data = make(MEMBERS, wide=True)
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(chance.randrange(1, 5)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            found = zips.walk(damaged)
        except CorruptModelError:
            continue
        assert all(0 <= m.data_offset <= m.data_end <= len(damaged) for m in found)
