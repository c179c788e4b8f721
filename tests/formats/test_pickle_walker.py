"""The walk over a pickle's frames: it agrees with `pickletools`, costs nothing, and whatever lies is a typed error."""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlup_stream.errors import CorruptModelError
from mlup_stream.formats.pickles import frames as pickles
from mlup_stream.units import KIB

BIG = bytes(range(256)) * 512  # 128 KiB
SHARED = ("shared", 1)
OBJECTS: dict[str, Any] = {
    "nothing": None,
    "small": {"a": [1, 2.5, -7, 10**30], "b": SHARED, "c": SHARED, 3: {1, 2}, "d": frozenset([b"x", 1j])},
    "one payload": {"w": BIG, "n": 1},
    "payloads": [BIG, bytearray(BIG), "é" * 100_000, BIG, {"k": list(range(3000))}, BIG],
    "many frames": [{"i": i, "s": f"string {i}", "f": i / 7} for i in range(20_000)],
}


def genops(data: bytes) -> list[tuple[str, Any]]:
    return [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(data)]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", OBJECTS)
def test_a_scan_agrees_with_pickletools(name: str, protocol: int) -> None:
    """Steps, payloads, text and the fetched entries of the memo are those that `pickletools.genops` sees."""
    data = pickle.dumps(OBJECTS[name], protocol)
    opcodes = genops(data)
    found = pickles.scan(data)
    payloads = [len(a) for n, a in opcodes if n in ("BINBYTES", "BINBYTES8", "BYTEARRAY8") and len(a) >= 64 * KIB]
    assert found.whole
    assert found.protocol == (protocol if protocol >= 2 else 0)
    assert found.steps == len(opcodes)
    assert (found.payloads, found.payload_bytes) == (len(payloads), sum(payloads))
    assert found.largest_payload_bytes == max(payloads, default=0)
    assert found.fetched == {a for n, a in opcodes if n in ("GET", "BINGET", "LONG_BINGET")}
    assert found.structure_bytes + found.payload_bytes + found.text_bytes == len(data)


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("pickler", [pickle.Pickler, pickle._Pickler])
def test_a_walk_over_frames_finds_every_payload(name: str, protocol: int, pickler: Any) -> None:
    """From protocol 4 on, what a walk that skips the frames finds is what a scan of every opcode finds."""
    file = io.BytesIO()
    pickler(file, protocol).dump(OBJECTS[name])
    walked, scanned = pickles.walk(file), pickles.scan(file)
    assert walked.whole
    assert walked.steps <= scanned.steps
    for value in ("payload_bytes", "text_bytes", "structure_bytes", "payloads", "largest_payload_bytes", "protocol"):
        assert getattr(walked, value) == getattr(scanned, value)


def test_a_walk_reads_a_few_bytes_of_each_payload(tmp_path: Path) -> None:
    """Of a pickle that is all payload, a walk reads less than a kilobyte."""

    class Counting(io.BytesIO):
        read_bytes = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.read_bytes += len(data)
            return data

    file = Counting(pickle.dumps([BIG, BIG], 4))
    pickles.walk(file)
    assert file.read_bytes < KIB


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_truncated_pickle_is_an_error(protocol: int) -> None:
    """No proper prefix of a pickle passes a scan, and from protocol 4 on none passes a walk over the frames."""
    data = pickle.dumps([OBJECTS["small"], "x" * 300, {"k": list(range(300))}], protocol)
    for end in range(len(data)):
        with pytest.raises(CorruptModelError):
            pickles.scan(data[:end])
        with pytest.raises(CorruptModelError):
            pickles.walk(data[:end])
    big = pickle.dumps([BIG, 1, BIG], protocol)
    for end in (len(big) - 1, len(big) // 2, 70_000):
        with pytest.raises(CorruptModelError):
            pickles.walk(big[:end])


def test_what_follows_a_pickle_is_not_looked_at() -> None:
    """Like `pickle.load`, a walk ends at STOP."""
    for value in (1, BIG, OBJECTS["many frames"]):
        for protocol in (2, 4):
            data = pickle.dumps(value, protocol)
            for after in (b"\xff\x00garbage", b"\0" * 100):
                assert pickles.walk(data + after, max_steps=10**7).whole
                assert pickles.scan(data + after).whole


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b".",
        b"\x80\x04\x95" + struct.pack("<Q", 2**64 - 1) + b".",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b"x.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"x.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.",
        b"\x80\x03B" + struct.pack("<L", 2**32 - 1) + b"x.",
        b"\x80\x02\x8b" + struct.pack("<l", -5) + b"x.",
        b"\x80\x02T" + struct.pack("<l", -1) + b"x.",
        b"\x80\x02]r" + struct.pack("<L", 2**31) + b".",  # the C unpickler would allocate 32 GiB for its memo
        b"\x80\x02]j" + struct.pack("<L", 2**31) + b".",
        b"g99999999999999999999999999999\n.",
        b"gx\n.",
        b"I12345",
        b"cnumpy\nndarr",
        b"\x80\x04\xff.",
    ],
)
def test_lengths_and_indices_that_lie_are_errors(data: bytes) -> None:
    """A length, count or index of up to 2^64 is refused with an error that names the file, and nothing is allocated for it."""
    if data.startswith(b"g9"):
        assert pickles.scan(data, "model.pkl").whole  # an index alone allocates nothing; the unpickler finds it missing
        return
    for walk in (pickles.walk, pickles.scan):
        with pytest.raises(CorruptModelError, match=r"^model\.pkl: expected .*, found "):
            walk(data, "model.pkl")


def test_a_walk_gives_up_after_its_steps() -> None:
    """The steps are bounded; what was not looked at counts as structure, and the result says so."""
    data = pickle.dumps(OBJECTS["many frames"], 2)
    found = pickles.walk(data, max_steps=1000)
    assert not found.whole
    assert found.steps == 1000
    assert found.structure_bytes == len(data)


def test_text_is_told_apart_from_payload_and_structure() -> None:
    """Text of 64 KiB and more takes about its own size in memory, and counts so."""
    found = pickles.walk(pickle.dumps([BIG, "x" * 100_000], 4))
    assert found.whole
    assert (found.payload_bytes, found.text_bytes) == (len(BIG), 100_000)
    assert found.largest_payload_bytes == len(BIG)
    assert found.structure_bytes < 100


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_an_error_or_a_pickle(data: bytes) -> None:
    """Whatever the bytes, walk and scan end with a structure or with the typed error."""
    for candidate in (data, b"\x80\x04\x95" + data, data + b"."):
        for walk in (pickles.walk, pickles.scan):
            with contextlib.suppress(CorruptModelError):
                assert walk(candidate).whole


def test_damaged_pickles_are_an_error_or_a_pickle() -> None:
    """The same, for pickles with a few bytes changed."""
    chance = random.Random(11)
    for protocol in (0, 2, 4):
        data = pickle.dumps(OBJECTS["small"], protocol)
        for _ in range(1000):
            damaged = bytearray(data)
            for _ in range(chance.randrange(1, 4)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            with contextlib.suppress(CorruptModelError):
                assert pickles.scan(damaged).whole
