"""safetensors: the walker is hardened, every delivery gives the library's arrays, and a view leaves them in the file."""

from __future__ import annotations

import io
import itertools
import json
import os
import struct
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from child import run_child
from given import Given, deserialize, estimated
from measured import SLACK_BYTES, measure_load

from mlup_stream.delivery.kinds import Delivery, MappingMode, Optimize
from mlup_stream.errors import ConfigError, CorruptModelError, LoadError, ModelBinarizationError, ModelNotFoundError
from mlup_stream.formats.arrays.safetensors import read_header
from mlup_stream.formats.shards import read_index
from mlup_stream.ml.binarization.safetensors import SafetensorsBinarizer
from mlup_stream.units import MIB

numpy = pytest.importorskip("numpy", reason="the arrays")
library = pytest.importorskip("safetensors.numpy", reason="writes the files")

BINARIZER = "mlup_stream.ml.binarization.safetensors.SafetensorsBinarizer"
DELIVERIES = [Delivery.VIEW, Delivery.PATH, Delivery.STREAM, Delivery.BYTES]

ARRAYS = {
    "matrix": numpy.arange(12, dtype="f4").reshape(3, 4),
    "scalar": numpy.array(3.5),
    "nothing": numpy.zeros((0, 3), "i8"),
    "flags": numpy.array([True, False, True]),
    "half": numpy.arange(5, dtype="f2"),
    "bytes": numpy.arange(7, dtype="u1"),
    "complex": numpy.arange(3, dtype="c8"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    library.save_file(ARRAYS, tmp_path / "model.safetensors", metadata={"made by": "a test"})
    return tmp_path / "model.safetensors"


def load(loaded: Given, **options: Any) -> dict[str, Any]:
    """The model, after everything that the handle holds was given back."""
    return deserialize(SafetensorsBinarizer, loaded, **options)


def assert_same(model: dict[str, Any], expected: dict[str, Any] = ARRAYS) -> None:
    assert set(model) == set(expected)
    for name, array in expected.items():
        found = numpy.asarray(model[name])
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        assert numpy.array_equal(found, array)


@pytest.mark.parametrize("optimize", list(Optimize))
@pytest.mark.parametrize("mapping", list(MappingMode))
@pytest.mark.parametrize("delivery", DELIVERIES)
def test_every_delivery_gives_what_the_library_gives(
    path: Path, delivery: Delivery, mapping: MappingMode, optimize: Optimize
) -> None:
    """The same names, types, shapes and values, whatever the delivery and the policy."""
    model = load(Given(path=path, delivery=delivery, mapping=mapping, optimize=optimize))
    assert_same(model, library.load_file(path))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
def test_every_kind_of_content_is_taken(path: Path, kind: type) -> None:
    """Content without a path gives the same model."""
    assert_same(load(Given(kind(path.read_bytes()))))


def test_the_old_package_may_call_it(path: Path) -> None:
    """The old named tuple is understood."""
    Old = namedtuple("LoadedFile", ("raw_data", "path"))
    assert_same(SafetensorsBinarizer.deserialize(Old(b"", str(path))))
    assert SafetensorsBinarizer.is_this_type(Old(b"", str(path))) == 1.0


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_whether_arrays_can_be_written_to_depends_on_the_mapping_alone(path: Path, delivery: Delivery) -> None:
    """As the library's they can, by every delivery, and the file does not change; with `read-only` none can."""
    before = path.read_bytes()
    for mapping in (MappingMode.AUTO, MappingMode.COPY_ON_WRITE):
        writable = load(Given(path=path, delivery=delivery, mapping=mapping))
        assert all(array.flags.writeable for array in writable.values())
        writable["matrix"][0] = 77
        assert writable["matrix"][0, 0] == 77
        assert path.read_bytes() == before
    model = load(Given(path=path, delivery=delivery, mapping=MappingMode.READ_ONLY))
    assert not any(array.flags.writeable for array in model.values())
    with pytest.raises(ValueError, match="read-only"):
        model["matrix"][0] = 1


def test_arrays_do_not_lie_in_content_that_others_may_change(path: Path) -> None:
    """Arrays lie over immutable `bytes`, and never over a bytearray or memoryview, which their owner may write to."""
    content = bytearray(path.read_bytes())
    model = load(Given(memoryview(content)))
    content[-200:] = bytes(200)
    assert_same(model)


def test_the_placement_says_what_was_mapped_and_what_was_copied(tmp_path: Path) -> None:
    """Aligned payloads stay in the file; others do too where mapping was asked for, and are copied otherwise and for speed."""
    header = json.dumps({"odd": {"dtype": "F64", "shape": [3], "data_offsets": [0, 24]}}).encode()
    header += b" " * (-len(header) % 8 + 1)
    (tmp_path / "odd.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + numpy.arange(3.0).tobytes())
    for optimize, mapping, mapped in (
        (Optimize.MEMORY, MappingMode.AUTO, 0),
        (Optimize.MEMORY, MappingMode.COPY_ON_WRITE, 24),
        (Optimize.SPEED, MappingMode.COPY_ON_WRITE, 0),
    ):
        loaded = Given(path=tmp_path / "odd.safetensors", delivery=Delivery.VIEW, optimize=optimize, mapping=mapping)
        assert_same(load(loaded), {"odd": numpy.arange(3.0)})
        assert loaded.placement is not None
        assert (loaded.placement.mapped_bytes, loaded.placement.copied_bytes) == (mapped, 24 - mapped)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    names = sorted(ARRAYS)
    for file_name, part in (("a.safetensors", names[:3]), ("b.safetensors", names[3:])):
        library.save_file({name: ARRAYS[name] for name in part}, tmp_path / file_name)
    weight_map = {name: "a.safetensors" if name in names[:3] else "b.safetensors" for name in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path / "model.safetensors.index.json"


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_sharded_model_is_one_dict(index: Path, delivery: Delivery) -> None:
    """The index leads to its files, and their arrays live on when it is released."""
    assert_same(load(Given(path=index, delivery=delivery)))


def test_a_sharded_model_that_is_not_whole_says_what_is_missing(index: Path) -> None:
    """A file or a tensor that the index names and that is not there; an index without its path."""
    with pytest.raises(ModelBinarizationError, match="give the path"):
        load(Given(index.read_bytes()))
    (index.parent / "b.safetensors").write_bytes((index.parent / "a.safetensors").read_bytes())
    with pytest.raises(CorruptModelError, match="the index and its files"):
        load(Given(path=index))
    (index.parent / "b.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"b\.safetensors"):
        load(Given(path=index))


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "", "a\0b", 7, None, "a\\b"])
def test_an_index_leads_nowhere_else(name: Any) -> None:
    """An index may name files beside it, and nothing else."""
    with pytest.raises(CorruptModelError, match="beside the index"):
        read_index(json.dumps({"weight_map": {"w": name}}).encode(), "index")


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


LIES = {
    "length of 2^63": file_of({}, length=1 << 63),
    "length past the end": file_of({}, length=99_000_000),
    "shorter than the length": b"\x01\x02",
    "not JSON": file_of(b"{nonsense"),
    "not UTF-8": file_of(b'{"\xff": 1}'),
    "a list": file_of([]),
    "nested": file_of(b"[" * 200_000),
    "a key twice": file_of(b'{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0], "dtype": "U8"}}'),
    "metadata that is no text": file_of({"__metadata__": {"a": 1}}),
    "no fields": file_of({"a": {}}, bytes(8)),
    "a tensor that is a number": file_of({"a": 1}, bytes(8)),
    "unknown type": file_of({"a": tensor("F128")}, bytes(8)),
    "negative dimension": file_of({"a": tensor(shape=[-2])}, bytes(8)),
    "dimension of 2^63": file_of({"a": tensor(shape=[1 << 63, 1 << 63])}, bytes(8)),
    "a million dimensions": file_of({"a": tensor(shape=[3] * 1_000_000)}, bytes(8)),
    "dimensions that are not numbers": file_of({"a": tensor(shape=[True, 2.0])}, bytes(8)),
    "offsets past the end": file_of({"a": tensor(shape=[4], offsets=[0, 16])}, bytes(8)),
    "offsets backwards": file_of({"a": tensor(offsets=[8, 0])}, bytes(8)),
    "three offsets": file_of({"a": tensor(offsets=[0, 4, 8])}, bytes(8)),
    "shorter than its shape": file_of({"a": tensor(offsets=[0, 4])}, bytes(8)),
    "an overlap": file_of({"a": tensor(), "b": tensor(offsets=[4, 12])}, bytes(12)),
    "a hole": file_of({"a": tensor(), "b": tensor(offsets=[12, 20])}, bytes(20)),
    "bytes that belong to nothing": file_of({"a": tensor()}, bytes(9)),
    "half a byte": file_of({"a": tensor("F4", [1], [0, 0])}),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_typed_errors(lie: str) -> None:
    """Every lie that a header can tell is a CorruptModelError that names the file, also from the binarizer."""
    with pytest.raises(CorruptModelError, match=r"model\.x"):
        read_header(LIES[lie], "model.x")
    for kind in (bytes, io.BytesIO):
        with pytest.raises(LoadError):
            load(Given(kind(LIES[lie])))


def test_truncation_anywhere_is_a_typed_error(path: Path) -> None:
    """Whatever is cut off, the load says so, and nothing stays open."""
    whole = path.read_bytes()
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(CorruptModelError):
            load(Given(path=path))
    if before:
        assert os.listdir("/proc/self/fd") == before


def test_an_option_that_does_not_exist_is_an_error(path: Path) -> None:
    """The framework is one of two."""
    with pytest.raises(ConfigError, match="numpy, torch"):
        load(Given(path=path), framework="jax")


def test_types_that_numpy_has_not(tmp_path: Path) -> None:
    """bfloat16 is ml_dtypes' where that is installed, and otherwise an error that says what to do."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({"a": tensor("BF16", [4])}, bytes(8)))
    try:
        import ml_dtypes
    except ImportError:
        with pytest.raises(ModelBinarizationError, match='"framework": "torch"'):
            load(Given(path=path))
    else:
        assert load(Given(path=path))["a"].dtype == ml_dtypes.bfloat16
    path.write_bytes(file_of({"a": tensor("F4", [16])}, bytes(8)))
    with pytest.raises(ModelBinarizationError, match=r"'a' is of type F4, which numpy has not"):
        load(Given(path=path))


@pytest.mark.torch
def test_torch_tensors(path: Path, tmp_path: Path) -> None:
    """As torch tensors: the library's values and types, also of those that numpy has not, alive after the release."""
    pytest.importorskip("torch", reason="makes the tensors")
    bad = run_child(
        """
        import torch
        from safetensors.torch import load_file, save_file
        from mlup_stream.delivery.kinds import Delivery
        from mlup_stream.delivery.loaded_file import LoadedFile
        from mlup_stream.ml.binarization.safetensors import SafetensorsBinarizer
        types = [getattr(torch, name, None) for name in (
            "bfloat16", "float16", "float32", "float64", "complex64", "bool", "uint8", "int8", "uint16", "int16", "int32",
            "int64", "float8_e4m3fn", "float8_e5m2",
        )]
        save_file({str(each): torch.arange(8).to(each) for each in types if each}, folder + "/types.safetensors")
        bad = []
        for path in (folder + "/types.safetensors", path):
            expected = load_file(path)
            for delivery in ("view", "path", "stream", "bytes"):
                loaded = LoadedFile(path=path, delivery=Delivery(delivery))
                model = SafetensorsBinarizer.deserialize(loaded, framework="torch")
                bad += [
                    (path, delivery, name) for name, tensor in expected.items()
                    if model[name].dtype != tensor.dtype or model[name].shape != tensor.shape
                    or not torch.equal(model[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
                ]
        model["matrix"] += 1  # writable, whatever it lies in
        answer(bad)
        """,
        path=str(path),
        folder=str(tmp_path),
    )
    assert bad == []


@pytest.mark.torch
def test_torch_tensors_are_never_read_only(path: Path) -> None:
    """torch has no read-only tensors: asking for them is an error, not a crash at the first write."""
    pytest.importorskip("torch", reason="makes the tensors")
    with pytest.raises(ConfigError, match="mapping='read-only'"):
        load(Given(path=path, delivery=Delivery.VIEW, mapping=MappingMode.READ_ONLY), framework="torch")


@pytest.fixture(scope="module")
def big_file(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("big") / "model.safetensors"
    each = 256 * MIB // 8 // 8
    library.save_file({f"w{index}": numpy.arange(each, dtype="f8") + index for index in range(8)}, path)
    yield path
    path.unlink()


on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the equations are about the kernel's figures")
SUM = "float(sum(float(model[name].sum()) for name in sorted(model)))"


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
    assert abs(took.peak_anon_bytes - took.estimate["peak_anon_bytes"]) <= 0.05 * size_bytes


@pytest.mark.big
@on_linux
@pytest.mark.torch
def test_torch_tensors_stay_in_the_file_too(big_file: Path) -> None:
    """peak(view, torch) = objects + slack."""
    pytest.importorskip("torch", reason="makes the tensors")
    took = measure_load(BINARIZER, big_file, "view", answer_of=SUM, framework="torch", warm_up="import torch; torch.ones(3) + 1")
    assert took.peak_anon_bytes <= SLACK_BYTES


def test_the_estimate_knows_that_torch_writes(tmp_path: Path) -> None:
    """Writable memory is a copy-on-write map, which RLIMIT_DATA counts; torch takes no other. `bytes` is one copy either way."""
    path = tmp_path / "model.safetensors"
    library.save_file({"w": numpy.zeros(1 << 20, "u1")}, path)
    for framework, mapping in itertools.product(("numpy", "torch"), (MappingMode.AUTO, MappingMode.READ_ONLY)):
        loaded = Given(path=path, mapping=mapping, options={"framework": framework})
        view = estimated(SafetensorsBinarizer, loaded, Delivery.VIEW)
        content = estimated(SafetensorsBinarizer, loaded, Delivery.BYTES)
        assert view is not None
        assert content is not None
        assert view.copy_on_write_bytes == (1 << 20) * (mapping is MappingMode.AUTO)
        assert content.peak_anon_bytes // (1 << 20) == 1


@pytest.mark.big
@on_linux
@pytest.mark.torch
def test_the_options_of_a_load_reach_its_estimate(big_file: Path) -> None:
    """measured(bytes, torch) = 1 x file, as was estimated within 5%, for the load that the configuration describes."""
    pytest.importorskip("torch", reason="makes the tensors")
    estimated_bytes, low_bytes, high_bytes = run_child(
        """
        import torch
        import mlup_stream as mlup
        torch.ones(3) + 1
        up = mlup.UP(conf=mlup.Config(
            storage_type="disk", storage_kwargs={"path_to_files": path, "delivery": "bytes"},
            binarization_kwargs={"framework": "torch"},
        ))
        with mlup.MemoryGovernor(None, learned=False) as governor:
            estimate = {row.delivery: row.estimate for row in up.ml.plan(governor)}["bytes"]
        up.ml.load()
        memory = up.ml.report.memory
        base = memory.baseline.anon_bytes
        answer([estimate.peak_anon_bytes, memory.peak.anon_low_bytes - base, memory.peak.anon_high_bytes - base])
        """,
        path=str(big_file),
    )
    slack_bytes = 0.05 * big_file.stat().st_size
    assert low_bytes - slack_bytes <= estimated_bytes <= high_bytes + slack_bytes
    assert estimated_bytes >= 256 * MIB
