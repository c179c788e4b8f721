"""joblib files: every delivery gives what joblib gives, in the file or out of a compressed stream, and bad ones are told."""

from __future__ import annotations

import gc
import io
import itertools
import os
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from child import run_child
from given import Given, deserialize, estimated

from mlup_stream.delivery.kinds import Delivery, MappingMode, Optimize
from mlup_stream.errors import (
    ConfigError,
    CorruptModelError,
    LoadError,
)
from mlup_stream.ml.binarization.joblib import JoblibBinarizer

numpy = pytest.importorskip("numpy", reason="the arrays")
joblib = pytest.importorskip("joblib", reason="writes the files")
pytest.importorskip("lz4", reason="joblib writes with it")

# joblib's lz4 writer is closed after its file, which it finds out when it is collected.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning"),
]

FLOAT = numpy.dtype("f8")
DELIVERIES = [Delivery.VIEW, Delivery.PATH, Delivery.STREAM, Delivery.BYTES]
COMPRESSORS = ["zlib", "gzip", "bz2", "lzma", "xz", "lz4"]


class Subclass(numpy.ndarray):
    """Not an array that joblib takes out of the pickle."""


class Copies:
    """As the trees of a forest: its state has its arrays, and it copies those that it is given."""

    built = 0

    def __init__(self, values: Any) -> None:
        self.state = {"values": values}

    def __getstate__(self) -> dict[str, Any]:
        return self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).built += 1
        self.state = {"values": state["values"].copy()}


def model_of_everything() -> dict[str, Any]:
    random_values = numpy.random.default_rng(0)
    shared = [1, 2.5, "text", b"x" * 100_000, bytearray(b"y" * 70_000)]
    vector = random_values.random(3000)
    return {
        "vector": vector,
        "again": vector,
        "fortran": numpy.asfortranarray(random_values.random((30, 40))),
        "strided": random_values.random((100, 100))[::2, ::3],
        "scalar": numpy.array(3.5),
        "empty": numpy.zeros((0, 3)),
        "flags": random_values.random(5000) > 0.5,
        "swapped": numpy.arange(3000, dtype=">f8"),
        "fields": numpy.zeros(500, [("a", "i4"), ("b", "f8", (2,))]),
        "swapped fields": numpy.arange(500).astype([("a", ">i4")]),
        "text": numpy.array(["é" * 7] * 50),
        "dates": numpy.arange(1000).astype("M8[s]"),
        "matrix": numpy.asmatrix([[1, 2], [3, 4]]),
        "subclass": random_values.random(500).view(Subclass),
        "masked": numpy.ma.masked_array([1.0, 2.0], [0, 1]),
        "records": numpy.rec.array([(1, 2.0)], dtype=[("x", "i4"), ("y", "f8")]),
        "objects": numpy.array([1, "x", None, random_values.random(1000)], dtype=object),
        "list": shared,
        "the same list": shared,
        "copies": Copies(random_values.random(1000)),
    }


def descriptors() -> int:
    """How many are open, those of what is garbage closed."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def assert_same(found: Any, expected: Any, flags: tuple[str, ...] = ("C_CONTIGUOUS", "F_CONTIGUOUS")) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, numpy.ndarray):
        assert (found.dtype, found.dtype.byteorder) == (expected.dtype, expected.dtype.byteorder)
        assert found.shape == expected.shape
        for flag in flags if expected.size else ():
            assert found.flags[flag] == expected.flags[flag], flag
        if expected.dtype.hasobject:
            for one, other in zip(found.ravel(), expected.ravel(), strict=True):
                assert_same(one, other, flags)
        else:
            assert found.tobytes() == expected.tobytes()
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for name in expected:
            assert_same(found[name], expected[name], flags)
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, flags)
    elif isinstance(expected, Copies):
        assert_same(found.state, expected.state, flags)
    else:
        assert found == expected


def load(loaded: Given, **options: Any) -> Any:
    """The model, after everything that the handle holds was given back."""
    return deserialize(JoblibBinarizer, loaded, **options)


@pytest.mark.parametrize("compressor", [None, *COMPRESSORS])
@pytest.mark.parametrize("protocol", range(6))
def test_every_delivery_gives_what_joblib_gives(tmp_path: Path, protocol: int, compressor: str | None) -> None:
    """Types, flags, dtypes, orders, values and identities, for every protocol, compressor, delivery and kind of content."""
    path = tmp_path / "model.joblib"
    joblib.dump(model_of_everything(), path, compress=(compressor, 3) if compressor else 0, protocol=protocol)
    expected = joblib.load(path)
    content = path.read_bytes()
    given = [Given(path=path, delivery=delivery) for delivery in DELIVERIES]
    given += [Given(kind(content)) for kind in (bytes, bytearray, memoryview, io.BytesIO)]
    given += [Given(path=path, delivery=Delivery.VIEW, optimize=Optimize.SPEED)]
    for each in given:
        found = load(each)
        assert_same(found, expected, ("C_CONTIGUOUS", "F_CONTIGUOUS", "OWNDATA", "WRITEABLE"))
        assert found["list"] is found["the same list"]
        assert (found["vector"] is found["again"]) == (expected["vector"] is expected["again"])


class Untold(io.BytesIO):
    """A file that cannot tell where it stands: joblib does not align arrays in it, as no joblib did before 1.2."""

    def tell(self) -> int:
        raise io.UnsupportedOperation("tell")


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_files_from_before_arrays_were_aligned(tmp_path: Path, delivery: Delivery) -> None:
    """Arrays without padding in front: mapped where that was asked for, otherwise copied, and the reason is given."""
    file = Untold()
    model = {"pad" * lead: numpy.arange(200_000.0) + lead for lead in range(8)}  # not so small that they are always copied
    joblib.dump(model, file)
    path = tmp_path / "model.joblib"
    path.write_bytes(file.getvalue())
    for optimize, mapping in itertools.product(Optimize, (MappingMode.AUTO, MappingMode.COPY_ON_WRITE)):
        loaded = Given(path=path, delivery=delivery, optimize=optimize, mapping=mapping)
        found = load(loaded)
        assert_same(found, model)
        assert loaded.placement is not None
        assert loaded.placement.mapped_bytes + loaded.placement.copied_bytes == 12_800_000
        if delivery is Delivery.VIEW:
            assert (loaded.placement.copied_bytes > 0) == (optimize is Optimize.SPEED or mapping is MappingMode.AUTO)
            assert loaded.placement.copied_bytes == 0 or all(array.flags.aligned for array in found.values())
            estimate = estimated(JoblibBinarizer, Given(path=path, optimize=optimize, mapping=mapping), Delivery.VIEW)
            assert estimate is not None
            assert abs(estimate.peak_anon_bytes - loaded.placement.copied_bytes) < 100_000
            assert any("not aligned" in reason for reason in loaded.placement.reasons)


def test_arrays_stay_in_the_file_and_the_file_stays_as_it_is(tmp_path: Path) -> None:
    """Mapped arrays outlive the handle; a write changes the array alone; read-only ones cannot be written to."""
    path = tmp_path / "model.joblib"
    joblib.dump({"w": numpy.arange(100_000.0), "small": numpy.arange(3)}, path)
    before = path.read_bytes()
    loaded = Given(path=path, delivery=Delivery.VIEW)
    model = load(loaded)
    assert loaded.placement is not None
    assert loaded.placement.mapped_bytes == 800_000
    model["w"][:] = 7
    assert model["w"].sum() == 700_000
    assert path.read_bytes() == before
    frozen = load(Given(path=path, delivery=Delivery.VIEW, mapping=MappingMode.READ_ONLY))
    with pytest.raises(ValueError, match="read-only"):
        frozen["w"][0] = 1


@pytest.fixture
def built() -> type[Copies]:
    Copies.built = 0
    return Copies


@pytest.mark.parametrize("compress", [0, 1])
@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_state_that_is_let_go_and_asked_for_again(
    tmp_path: Path, delivery: Delivery, compress: int, built: type[Copies]
) -> None:
    """An object's state that the model refers to as well was let go meanwhile: the load is done again, and the model is right."""
    first = Copies(numpy.arange(200_000.0))
    second = Copies(None)
    second.state = first.state
    between = [numpy.full(100_000, index) for index in range(20)]  # 16 MB, long enough for several looks
    for model in ([first, between, first.state], [first, between, second]):
        path = tmp_path / "model.joblib"
        joblib.dump(model, path, compress=compress)
        built.built = 0
        found = load(Given(path=path, delivery=delivery))
        assert_same(found, model)
        objects = sum(isinstance(each, Copies) for each in model)
        assert objects < built.built <= 2 * objects


def test_a_state_that_is_asked_for_soon_is_still_there(tmp_path: Path, built: type[Copies]) -> None:
    """What is referred to elsewhere already is not let go, and nothing is loaded twice."""
    first = Copies(numpy.arange(200_000.0))
    model = [first.state, first, [numpy.full(100_000, index) for index in range(20)], first.state]
    joblib.dump(model, tmp_path / "model.joblib")
    found = load(Given(path=tmp_path / "model.joblib", delivery=Delivery.STREAM))
    assert_same(found, model)
    assert found[0] is found[3]
    assert built.built == 1


def test_objects_are_unpickled_in_c(tmp_path: Path) -> None:
    """20 000 dicts beside an array take no call of a Python function each; joblib makes several for each opcode."""
    model = {"a": numpy.arange(1000), "objects": [{"id": index, "x": index / 7} for index in range(20_000)]}
    for protocol, compress in ((4, 0), (5, 0), (4, 3)):
        joblib.dump(model, tmp_path / "model.joblib", protocol=protocol, compress=compress)
        calls = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(count)
        try:
            found = load(Given(path=tmp_path / "model.joblib"))
        finally:
            sys.setprofile(None)
        assert len(found["objects"]) == 20_000
        assert calls < 5000


def test_joblib_is_not_needed_to_read_its_files(tmp_path: Path) -> None:
    """Nor imported: what names no class of its own loads with NumPy alone. Importing the binarizer imports neither."""
    joblib.dump({"a": numpy.arange(1000.0)}, tmp_path / "model.joblib", compress=3)
    imported = run_child(
        """
        import sys
        import mlup_stream
        from mlup_stream.ml.binarization.joblib import JoblibBinarizer
        before = [name in sys.modules for name in ("numpy", "joblib")]
        model = mlup_stream.load(path)
        answer([*before, "joblib" in sys.modules, float(model["a"].sum())])
        """,
        path=str(tmp_path / "model.joblib"),
    )
    assert imported == [False, False, False, 499_500.0]


def test_byte_order_is_joblibs_choice_or_the_users(tmp_path: Path) -> None:
    """Native by default, as `joblib.load` has it; left as it is, and then in place, when that is asked for."""
    swapped = numpy.arange(1000, dtype=">f8")
    joblib.dump(swapped, tmp_path / "model.joblib")
    loaded = Given(path=tmp_path / "model.joblib", delivery=Delivery.VIEW)
    assert_same(load(loaded), swapped.astype("=f8"))
    assert loaded.placement is not None
    assert loaded.placement.mapped_bytes == 0
    assert "other byte order" in loaded.placement.reasons[0]
    loaded = Given(path=tmp_path / "model.joblib", delivery=Delivery.VIEW)
    assert_same(load(loaded, ensure_native_byte_order=False), swapped)
    assert loaded.placement is not None
    assert loaded.placement.mapped_bytes == 8000


def test_options_are_checked(tmp_path: Path) -> None:
    """An option that does not exist, and a value that is none."""
    joblib.dump(1, tmp_path / "model.joblib")
    with pytest.raises(ConfigError, match="ensure_native_byte_order"):
        load(Given(path=tmp_path / "model.joblib"), mmap_mode="r")
    with pytest.raises(ConfigError, match="True, False, 'auto'"):
        load(Given(path=tmp_path / "model.joblib"), ensure_native_byte_order="big")


@pytest.mark.parametrize("compressor", [None, *COMPRESSORS])
@pytest.mark.parametrize("delivery", DELIVERIES)
def test_truncation_anywhere_is_a_typed_error(tmp_path: Path, delivery: Delivery, compressor: str | None) -> None:
    """Wherever it is cut, also within a checksum at the end, and no descriptor stays open."""
    path = tmp_path / "model.joblib"
    model = {"a": numpy.arange(20.0), "o": numpy.array([1, None], dtype=object), "c": Copies(numpy.arange(3)), "l": [1, "x"]}
    joblib.dump(model, path, compress=(compressor, 3) if compressor else 0)
    whole = path.read_bytes()
    assert_same(load(Given(path=path, delivery=delivery)), model)
    before = descriptors()
    for cut in range(1, len(whole), 1 if compressor is None else 3):
        path.write_bytes(whole[:cut])
        with pytest.raises(CorruptModelError, match=r"model\.joblib"):
            load(Given(path=path, delivery=delivery))
    for cut in range(len(whole) - 8, len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(CorruptModelError):
            load(Given(path=path, delivery=delivery))
    assert descriptors() <= before


def test_garbage_is_a_typed_error(tmp_path: Path) -> None:
    """Random bytes, behind the first bytes of each compressor and of a pickle too."""
    source = random.Random(0)
    path = tmp_path / "model.joblib"
    compressed = (b"\x78\x9c", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b"\x5d\0\0", b"\x04\x22\x4d\x18", b"ZF0x10")
    for start in (b"", b"\x80\x04", *compressed):
        for _ in range(20):
            path.write_bytes(start + source.randbytes(500))
            with pytest.raises(LoadError, match=r"model\.joblib"):
                load(Given(path=path))


def lying(shape: Any = (3,), order: Any = "C", dtype: Any = FLOAT, data: bytes = bytes(24)) -> bytes:
    """A file with one array, whose description says what it is told to."""
    wrapper = joblib.numpy_pickle.NumpyArrayWrapper(numpy.ndarray, shape, order, dtype)
    return pickle.dumps(wrapper, 4)[:-1] + b"\0" + data + b"."


WRAPPER = joblib.numpy_pickle.NumpyArrayWrapper(numpy.ndarray, (3,), "C", FLOAT)

LIES = {
    "more items than there are bytes": lying((4,)),
    "2^40 items": lying((2**40,)),
    "2^63 items": lying((2**63,)),
    "a product of 2^64": lying((2**32, 2**32)),
    "negative": lying((-3,)),
    "twice negative": lying((-1, -3)),
    "a shape of text": lying(("x",)),
    "no shape": lying(None),
    "another order": lying(order="K"),
    "no dtype": lying(dtype="nonsense"),
    "padding past the end": lying(data=b"")[:-2] + b"\xff.",
    "a persistent id": b"\x80\x04K\x01Q.",
    "a memo index of 2^32": b"\x80\x04Nr\xff\xff\xff\xff.",
    "a frame of 2^63": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f" + bytes(64),
    "bytes of 2^62": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x3f" + bytes(64),
    "text of 2^62": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x3f" + bytes(64),
    "an array within a frame": pickle.dumps([WRAPPER, "x" * 50], 4),
}


@pytest.mark.parametrize("delivery", [Delivery.VIEW, Delivery.STREAM])
@pytest.mark.parametrize("lie", LIES)
def test_lies_are_typed_errors(tmp_path: Path, lie: str, delivery: Delivery) -> None:
    """Whatever the file says of itself, nothing is allocated by it, and the error names the file."""
    path = tmp_path / "model.joblib"
    path.write_bytes(LIES[lie])
    with pytest.raises(LoadError, match=r"model\.joblib") as failed:
        load(Given(path=path, delivery=delivery))
    assert "\n" not in str(failed.value)
