"""GGUF: the walker is hardened, every delivery gives the library's arrays and metadata, and a view leaves them in the file."""

from __future__ import annotations

import io
import os
import struct
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from given import Given, deserialize, estimated
from measured import SLACK_BYTES, measure_load

from mlup_stream.delivery.kinds import Delivery, MappingMode, Optimize
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.errors import CorruptModelError, LoadError, ModelBinarizationError, ModelNotFoundError
from mlup_stream.formats.arrays.gguf import TYPES, read_header
from mlup_stream.ml.binarization.gguf import GgufBinarizer, GgufModel
from mlup_stream.units import MIB

numpy = pytest.importorskip("numpy", reason="the arrays")
gguf = pytest.importorskip("gguf", reason="writes the files")

BINARIZER = "mlup_stream.ml.binarization.gguf.GgufBinarizer"
DELIVERIES = [Delivery.VIEW, Delivery.PATH, Delivery.STREAM, Delivery.BYTES]

ARRAYS = {
    "matrix": numpy.arange(12, dtype="f4").reshape(3, 4),
    "half": numpy.arange(6, dtype="f2").reshape(2, 3),
    "double": numpy.arange(5, dtype="f8"),
    "small": numpy.arange(-3, 4, dtype="i1"),
    "short": numpy.arange(3, dtype="i2"),
    "int": numpy.arange(3, dtype="i4"),
    "long": numpy.arange(3, dtype="i8"),
}
QUANTISED = numpy.linspace(-1, 1, 2 * 64, dtype="f4").reshape(2, 64)
METADATA = {
    "general.architecture": "llama",
    "answer": 42,
    "negative": -7,
    "pi": 3.25,
    "yes": True,
    "name": "größer",
    "words": ["a", "", "größer"],
    "scores": [0.5, 1.5, -2.0],
    "ids": [1, 2, 3],
    "flags": [True, False],
}


def write(path: Path, **options: Any) -> Path:
    writer = gguf.GGUFWriter(path, METADATA["general.architecture"], **options)
    writer.add_uint32("answer", METADATA["answer"])
    writer.add_int32("negative", METADATA["negative"])
    writer.add_float32("pi", METADATA["pi"])
    writer.add_bool("yes", METADATA["yes"])
    writer.add_string("name", METADATA["name"])
    for key in ("words", "scores", "ids", "flags"):
        writer.add_array(key, METADATA[key])
    for name, array in ARRAYS.items():
        writer.add_tensor(name, array)
    for kind in ("Q4_0", "Q8_0", "BF16"):
        quantised = gguf.quants.quantize(QUANTISED, gguf.GGMLQuantizationType[kind])
        writer.add_tensor(kind, quantised, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "model.gguf")


def load(given: Any) -> GgufModel:
    """The model, and the file let go of, as the load cycle does it."""
    loaded = LoadedFile.of(given)
    return deserialize(GgufBinarizer, loaded)  # type: ignore[no-any-return]


def assert_same(model: GgufModel, path: Path) -> None:
    """The arrays, names, order and types are those of the library's reader."""
    reader = gguf.GGUFReader(path)
    assert list(model) == [tensor.name for tensor in reader.tensors]
    assert len(model) == len(reader.tensors)
    for tensor in reader.tensors:
        assert model[tensor.name].dtype == tensor.data.dtype, tensor.name
        assert model[tensor.name].shape == tensor.data.shape, tensor.name
        assert numpy.array_equal(model[tensor.name], tensor.data), tensor.name
        assert model.types[tensor.name] == tensor.tensor_type.name


@pytest.mark.parametrize("optimize", list(Optimize))
@pytest.mark.parametrize("mapping", list(MappingMode))
@pytest.mark.parametrize("delivery", DELIVERIES)
def test_every_delivery_gives_what_the_library_gives(
    path: Path, delivery: Delivery, mapping: MappingMode, optimize: Optimize
) -> None:
    """The same arrays, and still after the release."""
    loaded = Given(path=path, delivery=delivery, mapping=mapping, optimize=optimize)
    model = deserialize(GgufBinarizer, loaded)
    assert_same(model, path)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
def test_every_kind_of_content_is_taken(path: Path, kind: Any) -> None:
    """Content without a path gives the same model."""
    assert_same(load(Given(kind(path.read_bytes()))), path)


def test_the_metadata_are_python_values(path: Path) -> None:
    """Numbers, text and lists of text as they were written; numbers in arrays."""
    metadata = load(Given(path=path)).metadata
    assert {key: value.tolist() if hasattr(value, "tolist") else value for key, value in metadata.items()} == METADATA
    assert type(metadata["yes"]) is bool
    assert metadata["scores"].dtype == numpy.float32


def test_quantised_tensors_become_floats(path: Path) -> None:
    """`dequantize` is the library's, also of types that are plain already."""
    model = load(Given(path=path))
    for kind in ("Q4_0", "Q8_0", "BF16"):
        expected = gguf.quants.dequantize(model[kind], gguf.GGMLQuantizationType[kind])
        assert numpy.array_equal(model.dequantize(kind), expected)
        assert numpy.allclose(model.dequantize(kind), QUANTISED, atol=0.2)
    assert numpy.array_equal(model.dequantize("matrix"), ARRAYS["matrix"])
    assert "llama" in repr(model)


@pytest.mark.parametrize("endian", [gguf.GGUFEndian.LITTLE, gguf.GGUFEndian.BIG])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i2", "i4", "i8"])
def test_plain_tensors_become_floats(tmp_path: Path, dtype: str, endian: Any) -> None:
    """Whole numbers and doubles too, which the library refuses, in either byte order; the model's own array stays as it is."""
    values = numpy.arange(-3, 3).astype(dtype)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "test", endianess=endian)
    writer.add_tensor("w", values.copy())
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    model = load(Given(path=tmp_path / "m.gguf"))
    found = model.dequantize("w")
    assert found.dtype == numpy.float32
    assert found.tolist() == values.tolist()
    found[:] = 0
    assert model["w"].tolist() == values.tolist()


def test_what_cannot_become_floats_is_a_typed_error() -> None:
    """A type that the library cannot unpack, and one that it does not know, are named."""
    model = GgufModel({}, {"old": "Q8_K", "new": "Q77"}, dict.fromkeys(("old", "new"), numpy.zeros((1, 292), "u1")))
    for name, kind in model.types.items():
        with pytest.raises(ModelBinarizationError, match=f"{name!r} is of type {kind}"):
            model.dequantize(name)
    with pytest.raises(KeyError):
        model.dequantize("nothing")


def test_the_table_of_types_is_the_librarys() -> None:
    """Every type that the installed library knows has the same name and block here."""
    for kind in gguf.GGMLQuantizationType:
        assert tuple(TYPES[kind.value]) == (kind.name, *gguf.GGML_QUANT_SIZES[kind])


def test_big_endian_files(tmp_path: Path) -> None:
    """The file's byte order is found in its version, for numbers and tensors."""
    big = write(tmp_path / "big.gguf", endianess=gguf.GGUFEndian.BIG)
    model = load(Given(path=big))
    assert model.metadata["answer"] == 42
    assert model.metadata["scores"].tolist() == METADATA["scores"]
    assert read_header(big).big_endian
    for name in ("matrix", "half", "double", "long"):
        assert numpy.array_equal(model[name], ARRAYS[name])


def test_the_old_package_may_call_it(path: Path) -> None:
    """The old named tuple is understood."""
    Old = namedtuple("LoadedFile", ("raw_data", "path"))
    assert_same(load(Old(b"", str(path))), path)
    assert GgufBinarizer.is_this_type(Old(b"", str(path))) == 1.0


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_arrays_are_read_only_unless_asked_for(path: Path, delivery: Delivery) -> None:
    """Whatever the delivery, arrays cannot be written to by default, `copy-on-write` ones can, and the file stays."""
    before = path.read_bytes()
    model = load(Given(path=path, delivery=delivery))
    assert not any(array.flags.writeable for array in model.values())
    with pytest.raises(ValueError, match="read-only"):
        model["matrix"][0] = 1
    writable = load(Given(path=path, delivery=delivery, mapping=MappingMode.COPY_ON_WRITE))
    writable["matrix"][0] = 77
    assert writable["matrix"][0, 0] == 77
    assert path.read_bytes() == before


def test_arrays_do_not_lie_in_content_that_others_may_change(path: Path) -> None:
    """Arrays lie over immutable `bytes`, and never over a bytearray or memoryview, which their owner may write to."""
    content = bytearray(path.read_bytes())
    model = load(Given(memoryview(content)))
    content[:] = bytes(len(content))
    assert_same(model, path)


def split(folder: Path, count: int = 3) -> list[Path]:
    """A model in several files, as llama.cpp's gguf-split names them."""
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama", split_max_tensors=3)
    for index in range(8):
        writer.add_tensor(f"w{index}", numpy.arange(4, dtype="f4") + index)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    paths = sorted(folder.glob("*.gguf"))
    assert [path.name for path in paths] == [f"model-{number + 1:05}-of-{count:05}.gguf" for number in range(count)]
    return paths


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_model_in_several_files_is_one(tmp_path: Path, delivery: Delivery) -> None:
    """Whichever of them is given, in order, and still after the release; the estimate is for all of them."""
    for path in split(tmp_path):
        model = load(Given(path=path, delivery=delivery))
        assert list(model) == [f"w{index}" for index in range(8)]
        assert [array.tolist() for array in model.values()] == [[i, i + 1, i + 2, i + 3] for i in range(8)]
        estimate = estimated(GgufBinarizer, Given(path=path), Delivery.PATH)
        assert estimate is not None
        assert estimate.peak_anon_bytes >= 8 * 16
        assert model.metadata["general.architecture"] == "llama"


def test_a_model_in_several_files_that_is_not_whole(tmp_path: Path) -> None:
    """A file that is missing is named; one of another model is noticed; without a path nobody knows where the others are."""
    paths = split(tmp_path)
    with pytest.raises(ModelBinarizationError, match="give the path"):
        load(Given(paths[0].read_bytes()))
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(CorruptModelError, match="expected 8 tensors in its 3 files"):
        load(Given(path=paths[0]))
    paths[1].unlink()
    for delivery in DELIVERIES:
        with pytest.raises(ModelNotFoundError, match="model-00002-of-00003"):
            load(Given(path=paths[0], delivery=delivery))


def text(value: bytes | str) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key: bytes | str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def info(name: str = "w", dimensions: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)


def file_of(
    entries: tuple[bytes, ...] = (),
    infos: tuple[bytes, ...] = (),
    *,
    data: bytes = bytes(64),
    version: int = 3,
    tensor_count: int | None = None,
    entry_count: int | None = None,
) -> bytes:
    counts = (len(infos) if tensor_count is None else tensor_count, len(entries) if entry_count is None else entry_count)
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(infos)
    return head + bytes(-len(head) % 32) + data


def array_of(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


MANY = 1 << 63
LIES = {
    "not GGUF": b"GGML" + bytes(100),
    "shorter than its start": b"GGUF\3\0",
    "2^63 tensors": file_of(tensor_count=MANY),
    "2^63 entries": file_of(entry_count=MANY),
    "a key of 2^63 bytes": file_of((struct.pack("<Q", MANY),)),
    "a key that is no text": file_of((entry(b"\xff\xfe", 4, bytes(4)),)),
    "a key of a megabyte": file_of((entry("k" * MIB, 4, bytes(4)),)),
    "a key twice": file_of((entry("a", 4, bytes(4)), entry("a", 4, bytes(4)))),
    "a value of a type that there is not": file_of((entry("a", 13, bytes(8)),)),
    "text of 2^63 bytes": file_of((entry("a", 8, struct.pack("<Q", MANY)),)),
    "text that is no text": file_of((entry("a", 8, text(b"\xff")),)),
    "an array of 2^63 numbers": file_of((entry("a", 9, array_of(4, MANY)),)),
    "an array of 2^63 texts": file_of((entry("a", 9, array_of(8, MANY)),)),
    "an array of 2^63 truth values": file_of((entry("a", 9, array_of(7, MANY)),)),
    "an array of a type that there is not": file_of((entry("a", 9, array_of(13, 1, bytes(8))),)),
    "a nested array": file_of((entry("a", 9, b"".join(array_of(9, 1) for _ in range(1000))),)),
    "an alignment of 0": file_of((entry("general.alignment", 4, struct.pack("<I", 0)),)),
    "an alignment of 33": file_of((entry("general.alignment", 4, struct.pack("<I", 33)),)),
    "an alignment of 2^63": file_of((entry("general.alignment", 10, struct.pack("<Q", MANY)),)),
    "an alignment that is text": file_of((entry("general.alignment", 8, text("32")),)),
    "a name of 2^63 bytes": file_of(infos=(struct.pack("<Q", MANY) + bytes(24),)),
    "2^31 dimensions": file_of(infos=(text("w") + struct.pack("<I", 1 << 31) + bytes(24),)),
    "dimensions of 2^63": file_of(infos=(info(dimensions=(MANY, MANY)),)),
    "an offset past the end": file_of(infos=(info(offset=128),)),
    "an offset of 2^64": file_of(infos=(info(offset=(1 << 64) - 1),)),
    "more than there is": file_of(infos=(info(dimensions=(17,)),)),
    "half a block": file_of(infos=(info(dimensions=(16,), kind=2),)),
    "a block of nothing": file_of(infos=(info(dimensions=(), kind=2),)),
    "an overlap": file_of(infos=(info("a"), info("b", offset=8))),
    "a name twice": file_of(infos=(info("a"), info("a", offset=32))),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_typed_errors(lie: str) -> None:
    """Every lie that a header can tell is a CorruptModelError that names the file, through the walker and the binarizer."""
    with pytest.raises(CorruptModelError, match=r"model\.x"):
        read_header(LIES[lie], "model.x")
    for kind in (bytes, io.BytesIO):
        with pytest.raises(LoadError):
            load(Given(kind(LIES[lie])))


def test_what_is_not_known_is_no_damage() -> None:
    """A version or a tensor type of another time says so, with what is known."""
    for version in (1, 4):
        with pytest.raises(ModelBinarizationError, match=f"version 2 or 3, found {version}"):
            read_header(file_of(version=version), "model.x")
    with pytest.raises(ModelBinarizationError, match=r"type 99.*Q4_K"):
        read_header(file_of(infos=(info(kind=99),)), "model.x")


def test_what_the_format_allows_is_read() -> None:
    """Nested arrays, empty ones, tensors without items or dimensions, and an alignment of its own."""
    nested = entry("nested", 9, array_of(9, 2, array_of(4, 1, struct.pack("<I", 7)) + array_of(8, 1, text("x"))))
    empty = entry("empty", 9, array_of(8, 0))
    aligned = entry("general.alignment", 4, struct.pack("<I", 8))
    content = file_of((nested, empty, aligned), (info("none", (0, 3)), info("scalar", ()), info("w", (2,), offset=8)))
    model = load(Given(content))
    assert [list(each) for each in model.metadata["nested"]] == [[7], ["x"]]
    assert model.metadata["empty"] == []
    assert (model["none"].shape, model["scalar"].shape, model["w"].shape) == ((3, 0), (), (2,))


def test_truncation_anywhere_is_a_typed_error(path: Path) -> None:
    """Whatever is cut off, the load says so, and nothing stays open."""
    whole = path.read_bytes()
    header = read_header(path)
    end = max(tensor.stop for tensor in header.tensors)
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    for cut in [*range(header.header_bytes), *range(header.header_bytes, end, 7), end - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(CorruptModelError):
            load(Given(path=path))
        assert estimated(GgufBinarizer, Given(path=path), Delivery.VIEW) is None
    if before:
        assert os.listdir("/proc/self/fd") == before


def test_the_placement_says_what_was_mapped_and_what_was_copied() -> None:
    """Aligned payloads stay in the file; others do too where memory is preferred, and are copied where speed is."""
    packed = entry("general.alignment", 4, struct.pack("<I", 1))
    content = file_of((packed,), (info("odd", (3,), offset=2), info("bytes", (3,), kind=24, offset=14)))
    start = read_header(content).tensors[0].start
    for optimize, mapped, copied in ((Optimize.MEMORY, 15, 0), (Optimize.SPEED, 3, 12)):
        loaded = Given(content, delivery=Delivery.VIEW, optimize=optimize)
        model = deserialize(GgufBinarizer, loaded)
        assert start % 4
        assert model["odd"].shape == (3,)
        assert loaded.placement is not None
        assert (loaded.placement.mapped_bytes, loaded.placement.copied_bytes) == (mapped, copied)


@pytest.fixture(scope="module")
def big_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("big") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    each = 256 * MIB // 4 // 8
    for index in range(8):
        writer.add_tensor(f"w{index}", numpy.arange(each, dtype="f4") + index)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    yield path
    path.unlink()


on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the equations are about figures in /proc")
SUM = "float(sum(float(model[name].sum(dtype='f8')) for name in sorted(model)))"


@pytest.mark.big
@on_linux
@pytest.mark.parametrize("mapping", ["auto", "copy-on-write"])
def test_a_view_leaves_the_weights_in_the_file(big_file: Path, mapping: str) -> None:
    """peak(view) = objects + slack, and nothing of the payload: at most 0.02 of the file, as was estimated."""
    took = measure_load(BINARIZER, big_file, "view", answer_of=SUM, mapping=mapping)
    assert took.answer == measure_load(BINARIZER, big_file, "path", answer_of=SUM).answer
    assert took.peak_anon_bytes <= SLACK_BYTES
    assert took.peak_bytes <= 0.02 * big_file.stat().st_size
    assert took.estimate is not None
    assert took.estimate["peak_anon_bytes"] <= SLACK_BYTES


@pytest.mark.big
@on_linux
@pytest.mark.parametrize("delivery", ["path", "stream", "bytes"])
def test_the_other_deliveries_take_the_file_once(big_file: Path, delivery: str) -> None:
    """peak = payload + slack, also RSS, also of `bytes`, over which the arrays lie; within 5% of the estimate."""
    took = measure_load(BINARIZER, big_file, delivery, answer_of=SUM)
    size_bytes = big_file.stat().st_size
    assert size_bytes - SLACK_BYTES <= took.peak_bytes <= size_bytes + SLACK_BYTES
    assert took.estimate is not None
    assert abs(took.peak_bytes - took.estimate["peak_anon_bytes"]) <= 0.05 * size_bytes
