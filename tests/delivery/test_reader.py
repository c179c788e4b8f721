"""The bounded reader leaves the page cache as it found it: what it brought in goes, what others had there stays."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlup_stream.delivery.reader import open_stream
from mlup_stream.memory.residency import cached_fraction
from mlup_stream.units import MIB

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks mincore(2) what is cached")

PIECE_BYTES = 1 * MIB


@pytest.fixture(params=[3 * MIB + 5, 40 * MIB + 5], ids=["asked whole", "asked in pieces"])
def fd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """A file on disk of which nothing is cached."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(request.param))
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_fraction(fd) != 0.0:
        pytest.skip("this file system keeps what it holds in the page cache")
    yield fd
    os.close(fd)


def _read_whole(path: str) -> int:
    passed_bytes = 0
    with open_stream(path) as file:
        while piece := file.read(PIECE_BYTES):
            passed_bytes += len(piece)
    return passed_bytes


def test_what_the_reader_brought_in_goes(fd: int) -> None:
    """cached after = cached before = 0, although the whole file has passed."""
    assert _read_whole(f"/proc/self/fd/{fd}") == os.fstat(fd).st_size
    assert cached_fraction(fd) == 0.0


def test_what_was_cached_before_stays(fd: int) -> None:
    """cached after = cached before = 1: another worker may be using it."""
    size_bytes = os.fstat(fd).st_size
    for _ in range(10):  # the kernel was seen to leave out a page of 1024
        os.pread(fd, size_bytes, 0)
        if cached_fraction(fd) == 1.0:
            break
    assert cached_fraction(fd) == 1.0
    assert _read_whole(f"/proc/self/fd/{fd}") == size_bytes
    assert cached_fraction(fd) == 1.0


def test_the_share_of_a_file_that_is_cached_in_part(fd: int) -> None:
    """The first half cached is 0.5, to the precision of what is asked about."""
    size_bytes = os.fstat(fd).st_size
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # or the kernel reads ahead
    os.pread(fd, size_bytes // 2, 0)
    found = cached_fraction(fd)
    assert found is not None
    assert abs(found - 0.5) < 0.05
