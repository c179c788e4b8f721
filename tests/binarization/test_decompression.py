"""Compressed streams: what every compressor makes is unpacked in bounded pieces, and what is cut off or damaged is told."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from mlup_stream.errors import CorruptModelError, MemoryBudgetExceeded
from mlup_stream.formats.pickles.unpacked_size import claimed_size_bytes
from mlup_stream.ml.binarization.pickles.decompression import open_unpacked

CONTENT = random.Random(1).randbytes(300_000) + bytes(700_000) + b"abc" * 100_000
SMALL = random.Random(2).randbytes(300) + bytes(300)


def _lz4(content: bytes) -> bytes:
    return bytes(pytest.importorskip("lz4.frame", reason="makes the stream").compress(content))


def _lz4_in_pieces(content: bytes) -> bytes:
    """As joblib writes it: a block for each write."""
    frame = pytest.importorskip("lz4.frame", reason="makes the stream")
    packed = io.BytesIO()
    with frame.LZ4FrameFile(packed, "wb") as file:
        for start in range(0, len(content), 70_001):
            file.write(content[start : start + 70_001])
    return packed.getvalue()


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda content: lzma.compress(content, lzma.FORMAT_ALONE),
    "lz4": _lz4,
    "lz4 in pieces": _lz4_in_pieces,
}
WITH_CHECKSUM = ("zlib", "gzip", "bz2", "xz")


def unpack(packed: bytes) -> bytes:
    reader = open_unpacked(io.BufferedReader(io.BytesIO(packed)), "model.x")  # type: ignore[arg-type]
    assert reader is not None
    with reader:
        content = reader.read(len(CONTENT) + 1)
        reader.finish()
        return content


@pytest.mark.parametrize("name", COMPRESSORS)
def test_every_compressor_is_unpacked(name: str) -> None:
    """Whole, in pieces of any size, and from a file that is handed over in pieces."""
    packed = COMPRESSORS[name](CONTENT)
    assert unpack(packed) == CONTENT
    reader = open_unpacked(io.BytesIO(packed), "model.x")
    assert reader is not None
    source, found = random.Random(3), bytearray()
    while piece := reader.read(source.choice([1, 7, 1000, 100_000])):
        found += piece
    assert bytes(found) == CONTENT


@pytest.mark.parametrize("name", ["gzip", "bz2", "xz", "lz4"])
def test_streams_that_follow_each_other_are_one(name: str) -> None:
    """Parallel compressors write several; what else follows is ignored, as the standard library does."""
    compress = COMPRESSORS[name]
    assert unpack(compress(CONTENT[:1000]) + compress(CONTENT[1000:])) == CONTENT
    assert unpack(compress(CONTENT) + b"\0\0 trailing") == CONTENT


def test_what_is_not_compressed_is_left_alone() -> None:
    """None, and the file stands at its beginning."""
    file = io.BytesIO(b"\x80\x04N.")
    assert open_unpacked(file, "model.x") is None
    assert file.tell() == 0


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_stream_that_is_cut_off_is_told(name: str) -> None:
    """Wherever it is cut, also within its checksum; the message names the file."""
    packed = COMPRESSORS[name](SMALL)
    for cut in range(12, len(packed)):
        with pytest.raises(CorruptModelError, match=r"^model\.x: expected a whole compressed stream"):
            unpack(packed[:cut])


@pytest.mark.parametrize("name", COMPRESSORS)
def test_damage_is_told(name: str) -> None:
    """A changed byte is a typed error, or, where the stream has no checksum, at most other content of bounded size."""
    packed = COMPRESSORS[name](SMALL)
    for offset in range(6, len(packed)):
        changed = packed[:offset] + bytes([packed[offset] ^ 0x55]) + packed[offset + 1 :]
        try:
            found = unpack(changed)
        except CorruptModelError:
            continue
        assert name not in WITH_CHECKSUM or found == SMALL


def test_memory_does_not_follow_what_a_stream_claims() -> None:
    """A dictionary of 2 GiB is refused before it is allocated."""
    packed = bytearray(COMPRESSORS["lzma"](SMALL))
    packed[1:5] = struct.pack("<I", 2**31)
    with pytest.raises(CorruptModelError, match="limit"):
        unpack(bytes(packed))


def test_each_window_is_reported_and_may_end_the_reading() -> None:
    """A stream of a few kilobytes that holds megabytes is stopped by who counts what was unpacked."""
    packed = zlib.compress(bytes(50_000_000))
    passed: list[int] = []

    def on_window(passed_bytes: int) -> None:
        passed.append(passed_bytes)
        if passed_bytes > 1_000_000:
            raise MemoryBudgetExceeded("enough")

    reader = open_unpacked(io.BytesIO(packed), "model.x", on_window)
    assert reader is not None
    with pytest.raises(MemoryBudgetExceeded, match="enough"):
        reader.read(50_000_000)
    assert passed == sorted(passed)
    assert passed[-1] < 2_000_000


def test_compressors_that_were_registered_with_joblib(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressor of the user's own is found in joblib's table."""
    compressor = pytest.importorskip("joblib.compressor", reason="keeps the table")

    class Reversed(io.BytesIO):
        def __init__(self, file: io.BytesIO, mode: str = "rb") -> None:
            super().__init__(file.read()[:3:-1])

    monkeypatch.setattr(compressor, "_COMPRESSORS", dict(compressor._COMPRESSORS))
    compressor.register_compressor("reversed", compressor.CompressorWrapper(obj=Reversed, prefix=b"DER!", extension=".der"))
    assert unpack(b"DER!" + CONTENT[::-1]) == CONTENT


@pytest.mark.parametrize("name", COMPRESSORS)
def test_sizes_that_streams_claim(name: str, tmp_path: Path) -> None:
    """gzip and xz say how much they hold; the others do not, or have no place for it."""
    path = tmp_path / "packed"
    path.write_bytes(COMPRESSORS[name](CONTENT))
    claimed = claimed_size_bytes(path)
    if name in ("gzip", "xz"):
        assert claimed == len(CONTENT)
    else:
        assert claimed in (None, len(CONTENT))


def test_sizes_that_damaged_streams_claim_are_none_or_a_number() -> None:
    """Whatever is changed or cut off, there is an answer, and nothing is allocated by it."""
    source = random.Random(5)
    for name in ("gzip", "xz", "lzma", "lz4"):
        packed = COMPRESSORS[name](SMALL)
        for cut in range(len(packed)):
            found = claimed_size_bytes(packed[:cut])
            assert found is None or found >= 0
        for _ in range(300):
            changed = bytearray(packed)
            for _ in range(3):
                changed[source.randrange(len(changed))] = source.randrange(256)
            found = claimed_size_bytes(bytes(changed))
            assert found is None or found >= 0
    assert claimed_size_bytes(b"") is None
    assert claimed_size_bytes(os.urandom(0)) is None
