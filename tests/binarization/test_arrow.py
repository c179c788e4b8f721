"""Arrow: every delivery gives the library's table, a view leaves it in the file, and a damaged file gives none."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from given import Given, deserialize, detected, estimated
from measured import SLACK_BYTES, measure_load

from mlup_stream.constants import LoadedFile
from mlup_stream.delivery.kinds import Delivery, MappingMode
from mlup_stream.errors import CorruptModelError, MemoryBudgetExceeded
from mlup_stream.formats.arrays.arrow import read_table
from mlup_stream.formats.kinds import Format
from mlup_stream.ml.binarization.arrow import ArrowBinarizer
from mlup_stream.ml.inspection import inspect
from mlup_stream.units import MIB

pytestmark = pytest.mark.formats

pyarrow = pytest.importorskip("pyarrow", reason="needs the arrow extra")
numpy = pytest.importorskip("numpy", reason="the columns")

import mlup_stream as mlup  # noqa: E402  # after what decides whether to be here

BINARIZER = "mlup_stream.ml.binarization.arrow.ArrowBinarizer"
DELIVERIES = ArrowBinarizer.deliveries
SUM = "float(sum(float(__import__('numpy').frombuffer(p.buffers()[1]).sum()) for c in model.columns for p in c.chunks))"
SIZE_BYTES = 64 * MIB


def table() -> Any:
    """A column of each kind of layout."""
    text = [f"row {i}" if i % 3 else None for i in range(40)]
    return pyarrow.table(
        {
            "numbers": numpy.arange(40, dtype="f4"),
            "flags": [i % 2 == 0 for i in range(40)],
            "text": text,
            "words": pyarrow.array(["u", "v"] * 20).dictionary_encode(),
            "lists": [[1.0, i] for i in range(40)],
            "structs": [{"p": 1, "q": "z"}] * 40,
            "nothing": pyarrow.nulls(40),
        }
    ).replace_schema_metadata({"made by": "a test"})


def write(path: Path, content: Any = None, *, kind: str = "file", rows: int = 25, **options: Any) -> Path:
    content = table() if content is None else content
    opener = {"file": pyarrow.ipc.new_file, "stream": pyarrow.ipc.new_stream}[kind]
    with opener(str(path), content.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(content, max_chunksize=rows)
    return path


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("delivery", DELIVERIES)
def test_every_delivery_gives_what_the_library_gives(
    tmp_path: Path, delivery: Delivery, kind: str, compression: str | None
) -> None:
    """The same table, from files and streams, compressed or not; recognised by its content."""
    path = write(tmp_path / "model.bin", kind=kind, compression=compression)
    assert detected(LoadedFile(path=path)) is Format.ARROW
    model = deserialize(ArrowBinarizer, Given(path=path, delivery=delivery))
    assert model.equals(table(), check_metadata=True)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
def test_every_kind_of_content_is_taken(tmp_path: Path, kind: type) -> None:
    """Content without a path gives the same table, and nobody can change it afterwards through what he gave."""
    content = bytearray(write(tmp_path / "m.arrow").read_bytes())
    model = deserialize(ArrowBinarizer, Given(content if kind is bytearray else kind(content)))
    content[:] = bytes(len(content))
    assert model.equals(table())


@pytest.mark.parametrize("mapping", list(MappingMode))
def test_nobody_can_write_to_a_table(tmp_path: Path, mapping: MappingMode) -> None:
    """Arrow's arrays are immutable, whatever the mapping, and so is what NumPy makes of one without a copy."""
    for delivery in DELIVERIES:
        given = Given(path=write(tmp_path / "m.arrow"), delivery=delivery, mapping=mapping)
        model = deserialize(ArrowBinarizer, given)
        assert not any(buffer.is_mutable for buffer in model["numbers"].chunk(0).buffers() if buffer is not None)
        with pytest.raises(ValueError, match="read-only"):
            model["numbers"].chunk(0).to_numpy()[0] = 1


def test_weights_stay_in_the_file(tmp_path: Path) -> None:
    """private(view) = the table's objects; private(path, stream, bytes) = the file; and what was estimated is what it took."""
    columns = {f"w{i}": numpy.arange(SIZE_BYTES // 32, dtype="f8") + i for i in range(4)}
    path = write(tmp_path / "m.arrow", pyarrow.table(columns), rows=1 << 20)
    expected = sum(float(each.sum()) for each in columns.values())
    for delivery in DELIVERIES:
        took = measure_load(BINARIZER, path, delivery.value, answer_of=SUM, imports=("numpy", "pyarrow"))
        own_bytes = 0 if delivery is Delivery.VIEW else path.stat().st_size
        assert took.answer == pytest.approx(expected)
        assert abs(took.peak_anon_bytes - own_bytes) <= SLACK_BYTES, delivery
        assert took.settled_anon_bytes <= own_bytes + SLACK_BYTES, delivery
        assert took.estimate is not None
        assert abs(took.estimate["peak_anon_bytes"] - took.peak_anon_bytes) <= SLACK_BYTES, delivery
        if delivery is Delivery.VIEW:
            assert took.peak_bytes <= SLACK_BYTES  # numbers are not read for the validation


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_what_is_compressed_is_estimated_by_what_it_unpacks_to(tmp_path: Path, codec: str) -> None:
    """private(view) = unpacked buffers, which the headers tell; the placement says why."""
    numbers = numpy.repeat(numpy.arange(SIZE_BYTES // 64, dtype="f8"), 8)
    path = write(tmp_path / "m.feather", pyarrow.table({"w": numbers}), rows=1 << 22, compression=codec)
    found = read_table(path)
    assert found.codec == codec
    assert found.unpacked_bytes == numbers.nbytes > 2 * found.compressed_bytes
    took = measure_load(BINARIZER, path, "view", answer_of=SUM, imports=("numpy", "pyarrow"))
    assert took.estimate is not None
    assert took.estimate["certainty"] == "exact"
    assert took.settled_anon_bytes == pytest.approx(numbers.nbytes, abs=SLACK_BYTES)
    assert took.estimate["peak_anon_bytes"] == pytest.approx(took.peak_anon_bytes, abs=SLACK_BYTES)
    given = Given(path=path, delivery=Delivery.VIEW)
    deserialize(ArrowBinarizer, given)
    assert given.placement is not None
    assert (given.placement.copied_bytes, given.placement.reasons) == (numbers.nbytes, (f"compressed with {codec}",))


def test_a_length_that_no_codec_reaches_is_damage(tmp_path: Path) -> None:
    """A buffer says how much it unpacks to: 8 EiB of 1 KiB is damage; what could be and does not fit is refused by the budget."""
    numbers = numpy.zeros(1 * MIB)
    path = write(tmp_path / "m.arrow", pyarrow.table({"w": numbers}), compression="zstd")
    good = path.read_bytes()
    said = struct.pack("<q", numbers[:25].nbytes)
    at = good.index(said)
    path.write_bytes(good[:at] + struct.pack("<q", 1 << 62) + good[at + 8 :])
    with pytest.raises(CorruptModelError, match="compressed with zstd"):
        mlup.load(path)
    write(path, pyarrow.table({"w": numbers}), rows=1 << 20, compression="zstd")
    with pytest.raises(MemoryBudgetExceeded):
        mlup.load(path, memory_budget=4 * MIB)


def test_a_table_whose_columns_lie_is_damage(tmp_path: Path) -> None:
    """Offsets that lead out of a column pass pyarrow's light validation, and kill the process when they are used."""
    text = pyarrow.table({"text": ["first", "second", "third"]})
    path = write(tmp_path / "m.arrow", text)
    good = path.read_bytes()
    offsets = struct.pack("<4i", 0, 5, 11, 16)
    path.write_bytes(good.replace(offsets, struct.pack("<4i", 0, 1 << 30, 11, 16)))
    pyarrow.ipc.open_file(path).read_all().validate()
    with pytest.raises(CorruptModelError, match=r"m\.arrow: expected a whole arrow file, found damaged content"):
        mlup.load(path)


def test_inspect_says_what_is_in_it(tmp_path: Path) -> None:
    """Columns with their types, rows, batches and compression, without pyarrow's help."""
    said = inspect(write(tmp_path / "m.arrow", compression="lz4"))
    assert (said["container"], said["rows"], said["compression"], said["metadata"]) == ("file", 40, "lz4", ["made by"])
    assert [each["name"] for each in said["columns"]] == table().column_names
    types = {each["name"]: (each["type"], each["dictionary"]) for each in said["columns"]}
    assert types["numbers"] == ("float32", False)
    assert types["words"] == ("utf8", True)
    assert types["structs"] == ("struct<int64, utf8>", False)


def test_a_big_endian_file_is_estimated_as_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow swaps its bytes: private(big-endian) - private(little-endian) = stored buffers."""
    path = write(tmp_path / "m.arrow", pyarrow.table({"w": numpy.arange(100.0)}))
    little = estimated(ArrowBinarizer, Given(path=path), Delivery.VIEW)
    header = read_table(path)
    monkeypatch.setattr("mlup_stream.ml.binarization.arrow.read_table", lambda *_: replace(header, big_endian=True))
    big = estimated(ArrowBinarizer, Given(path=path), Delivery.VIEW)
    assert little is not None
    assert big is not None
    assert big.peak_anon_bytes - little.peak_anon_bytes == header.stored_bytes > 0
