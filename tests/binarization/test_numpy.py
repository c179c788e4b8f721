"""npy and npz files: every delivery gives NumPy's arrays, a view leaves them in the file, and nothing is left behind."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import os
import pickle
import sys
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from child import run_child
from given import Given, deserialize, estimated
from measured import SLACK_BYTES, measure_load

import mlup_stream as mlup
from mlup_stream.delivery.kinds import Delivery, MappingMode, Optimize
from mlup_stream.errors import ConfigError, CorruptModelError, LoadError, MissingClassError, ModelBinarizationError
from mlup_stream.formats.arrays.npy import read_header
from mlup_stream.ml.binarization.numpy import NpyBinarizer, NpzBinarizer
from mlup_stream.units import MIB

numpy = pytest.importorskip("numpy", reason="the arrays")

DELIVERIES = [Delivery.VIEW, Delivery.PATH, Delivery.STREAM, Delivery.BYTES]

ARRAYS = {
    "matrix": numpy.arange(12, dtype="f4").reshape(3, 4),
    "fortran": numpy.asfortranarray(numpy.arange(12.0).reshape(3, 4)),
    "swapped": numpy.arange(7, dtype=">i4"),
    "scalar": numpy.array(3.5),
    "nothing": numpy.zeros((0, 3), "i8"),
    "flags": numpy.array([True, False, True]),
    "text": numpy.array(["a", "longer", "é"]),
    "bytes": numpy.array([b"x", b"yz"]),
    "dates": numpy.arange(4).astype("M8[s]"),
    "fields": numpy.array([(1, 2.0, b"a"), (3, 4.0, b"b")], [("x", ">i4"), ("y", "f8"), ("z", "S3")]),
    "padded": numpy.zeros(3, numpy.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "odd": numpy.arange(5, dtype="u1"),
    "large": numpy.arange(200_000.0),  # not so small that it is copied where it is not aligned
}
OBJECTS = numpy.array([1, None, "x", numpy.arange(3)], dtype=object)


def load(loaded: Given, **options: Any) -> Any:
    """The model, after everything that the handle holds was given back."""
    binarizer = NpzBinarizer if str(loaded.path).endswith(".npz") else NpyBinarizer
    return deserialize(binarizer, loaded, **options)


def descriptors() -> int:
    """How many are open, those of what is garbage closed."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected) is numpy.ndarray
    assert found.dtype == expected.dtype
    assert found.dtype.byteorder == expected.dtype.byteorder
    assert found.shape == expected.shape
    assert found.flags.f_contiguous == expected.flags.f_contiguous
    assert found.flags.c_contiguous == expected.flags.c_contiguous
    assert numpy.array_equal(found, expected)  # not bytes: nobody keeps what lies between fields


@pytest.fixture
def npz_path(tmp_path: Path) -> Path:
    numpy.savez(tmp_path / "model.npz", **ARRAYS)
    return tmp_path / "model.npz"


@pytest.mark.parametrize("optimize", list(Optimize))
@pytest.mark.parametrize("mapping", list(MappingMode))
@pytest.mark.parametrize("delivery", DELIVERIES)
def test_every_delivery_of_npy_gives_what_numpy_gives(
    tmp_path: Path, delivery: Delivery, mapping: MappingMode, optimize: Optimize
) -> None:
    """Types, shapes, orders and values, whatever the delivery and the policy; writable unless it was asked not to be."""
    for name, array in ARRAYS.items():
        path = tmp_path / f"{name}.npy"
        numpy.save(path, array)
        found = load(Given(path=path, delivery=delivery, mapping=mapping, optimize=optimize))
        assert_same(found, numpy.load(path))
        assert found.flags.writeable is (mapping is not MappingMode.READ_ONLY)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("delivery", DELIVERIES)
def test_every_delivery_of_npz_gives_what_numpy_gives(tmp_path: Path, delivery: Delivery, compressed: bool) -> None:
    """The same arrays by the same names, and to be used in the same ways as NumPy's own."""
    path = tmp_path / "model.npz"
    (numpy.savez_compressed if compressed else numpy.savez)(path, **ARRAYS)
    model = load(Given(path=path, delivery=delivery))
    with numpy.load(path) as library:
        assert model.files == library.files == list(model) == list(model.keys())
        assert len(model) == len(library)
        for name in library.files:
            assert_same(model[name], library[name])
            assert_same(model[name + ".npy"], library[name])
            assert_same(getattr(model.f, name), library[name])
            assert name in model
            assert name + ".npy" in model
    assert model["large"] is model["large"] is dict(model.items())["large"] is model.get("large")
    assert "none" not in model
    assert model.get("none", 7) == 7
    with pytest.raises(KeyError, match="none is not a file in the archive"):
        model["none"]
    assert "matrix, fortran" in repr(model)
    with model as same:  # as one writes it for NumPy's
        assert same is model
    assert_same(pickle.loads(pickle.dumps(model))["large"], ARRAYS["large"])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
def test_every_kind_of_content_is_taken(npz_path: Path, tmp_path: Path, kind: type) -> None:
    """Content without a path gives the same model; a file object from where it stands, and nothing of it is closed."""
    numpy.save(tmp_path / "a.npy", ARRAYS["large"])
    assert_same(deserialize(NpyBinarizer, Given(kind((tmp_path / "a.npy").read_bytes()))), ARRAYS["large"])
    given = kind(npz_path.read_bytes())
    assert_same(deserialize(NpzBinarizer, Given(given))["large"], ARRAYS["large"])
    assert not getattr(given, "closed", False)


def test_an_estimate_leaves_a_file_object_where_it_stands(tmp_path: Path) -> None:
    """A storage may give a file object that stands in the middle of its file: the load begins there, estimate or not."""
    numpy.save(tmp_path / "a.npy", ARRAYS["large"])
    given = io.BytesIO(b"in front" + (tmp_path / "a.npy").read_bytes())
    given.seek(8)
    loaded = Given(given)
    estimate = estimated(NpyBinarizer, loaded, Delivery.BYTES)
    assert estimate is not None
    assert given.tell() == 8
    assert_same(deserialize(NpyBinarizer, loaded), ARRAYS["large"])


def test_the_old_package_may_call_it(npz_path: Path) -> None:
    """The old named tuple is understood, and the format recognised."""
    Old = namedtuple("LoadedFile", ("raw_data", "path"))
    assert_same(NpzBinarizer.deserialize(Old(b"", str(npz_path)))["large"], ARRAYS["large"])
    assert NpzBinarizer.is_this_type(Old(b"", str(npz_path))) == 1.0
    assert NpyBinarizer.is_this_type(Old(b"", str(npz_path))) == 0.0


def test_arrays_stay_in_the_file_and_the_file_stays_as_it_is(npz_path: Path) -> None:
    """A write to a copy-on-write array changes that array alone; read-only ones cannot be written to."""
    before = npz_path.read_bytes()
    model = load(Given(path=npz_path, delivery=Delivery.VIEW))
    model["large"][:] = 7
    assert model["large"].sum() == 1_400_000
    assert npz_path.read_bytes() == before
    assert_same(load(Given(path=npz_path, delivery=Delivery.VIEW))["large"], ARRAYS["large"])
    frozen = load(Given(path=npz_path, delivery=Delivery.VIEW, mapping=MappingMode.READ_ONLY))
    with pytest.raises(ValueError, match="read-only"):
        frozen["large"][0] = 1


def test_the_placement_says_what_was_mapped_and_what_was_copied(tmp_path: Path) -> None:
    """Stored arrays are mapped, unaligned ones where that was asked for; others are made later, for speed at once; and told."""
    path = tmp_path / "model.npz"
    stored, deflated = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
    for lead in range(8):  # one of these offsets leaves the array aligned to its items, the others do not
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x" * (lead + 1), b"")
            for name, method in (("a.npy", stored), ("b.npy", deflated)):
                file = io.BytesIO()
                numpy.save(file, ARRAYS["large"])
                archive.writestr(name, file.getvalue(), method)
        with zipfile.ZipFile(path) as archive:
            offset = archive.getinfo("a.npy").header_offset + 30 + len("a.npy") + 128
            deflated_bytes = archive.getinfo("b.npy").compress_size
        for optimize, mapping in itertools.product(Optimize, (MappingMode.AUTO, MappingMode.READ_ONLY)):
            loaded = Given(path=path, delivery=Delivery.VIEW, optimize=optimize, mapping=mapping)
            model = load(loaded)
            assert_same(model["a"], ARRAYS["large"])
            assert loaded.placement is not None
            assert model["a"].flags.aligned or mapping is MappingMode.READ_ONLY
            if optimize is Optimize.SPEED:
                mapped_bytes = 1_600_000 if offset % 8 == 0 else 0
                assert loaded.placement.copied_bytes == 3_200_000 - mapped_bytes
            else:
                mapped_bytes = deflated_bytes + (1_600_128 if offset % 8 and mapping is MappingMode.AUTO else 1_600_000)
                assert loaded.placement.copied_bytes == 0
            assert loaded.placement.mapped_bytes == mapped_bytes
            assert any("deflated" in reason for reason in loaded.placement.reasons)
            estimate = estimated(NpzBinarizer, Given(path=path, optimize=optimize, mapping=mapping), Delivery.VIEW)
            assert estimate is not None
            assert estimate.mapped_bytes == loaded.placement.mapped_bytes


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("name", ["o.npy", "stored.npz", "deflated.npz"])
def test_python_objects_are_refused_unless_allowed(tmp_path: Path, name: str, delivery: Delivery) -> None:
    """An array of objects runs code: an error that says how to allow it; with that, what NumPy gives."""
    numpy.save(tmp_path / "o.npy", OBJECTS)
    numpy.savez(tmp_path / "stored.npz", a=OBJECTS, b=ARRAYS["large"])
    numpy.savez_compressed(tmp_path / "deflated.npz", a=OBJECTS, b=ARRAYS["large"])
    with pytest.raises(ModelBinarizationError, match=rf"{name}.*objects.*allow_pickle") as failed:
        load(Given(path=tmp_path / name, delivery=delivery))
    assert not isinstance(failed.value, CorruptModelError)
    model = load(Given(path=tmp_path / name, delivery=delivery), allow_pickle=True)
    found = model if name == "o.npy" else model["a"]
    assert found.dtype == object
    assert [type(each) for each in found] == [int, type(None), str, numpy.ndarray]
    assert_same(found[3], numpy.arange(3))
    assert name == "o.npy" or model["b"].sum() == ARRAYS["large"].sum()


def test_objects_that_cannot_be_loaded(tmp_path: Path) -> None:
    """A class that is not there is named; a pickle that is no array, or cut off, is damage, and its lengths are not believed."""
    header = b"\x93NUMPY\1\0v\0" + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    path = tmp_path / "o.npy"
    path.write_bytes(header + b"cno_such_module\nThing\n.")
    with pytest.raises(MissingClassError, match=r"o\.npy.*no_such_module\.Thing"):
        load(Given(path=path), allow_pickle=True)
    lengths = (b"\x80\x04\x95" + b"\xff" * 8, b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f", b"\x80\x04Nr\xff\xff\xff\xff.")
    for lie in (b"N.", b"", b"(", *lengths):
        path.write_bytes(header + lie)
        for delivery in DELIVERIES:
            with pytest.raises(CorruptModelError, match=r"o\.npy"):
                load(Given(path=path, delivery=delivery), allow_pickle=True)


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("compressed", [False, True])
def test_truncation_anywhere_is_a_typed_error(tmp_path: Path, delivery: Delivery, compressed: bool) -> None:
    """Whatever is cut off, the load says so, and no descriptor stays open."""
    npz, npy = tmp_path / "model.npz", tmp_path / "model.npy"
    (numpy.savez_compressed if compressed else numpy.savez)(npz, a=ARRAYS["matrix"], b=ARRAYS["swapped"])
    numpy.save(npy, ARRAYS["fields"])
    for path in (npz, npy):
        whole = path.read_bytes()
        before = descriptors()
        for cut in range(len(whole)):
            path.write_bytes(whole[:cut])
            with pytest.raises(LoadError, match=path.name):
                load(Given(path=path, delivery=delivery))
        assert descriptors() <= before


def test_two_fields_of_one_name(tmp_path: Path) -> None:
    """What only NumPy can judge of a dtype is a typed error too."""
    header = b"{'descr': [('a', '<f8'), ('a', '<f8')], 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    path = tmp_path / "m.npy"
    path.write_bytes(b"\x93NUMPY\1\0v\0" + header + bytes(16))
    for delivery in (Delivery.VIEW, Delivery.STREAM):
        with pytest.raises(CorruptModelError, match=r"m\.npy: expected a dtype"):
            load(Given(path=path, delivery=delivery))


def test_options_are_checked(npz_path: Path) -> None:
    """An option that does not exist, and an encoding that would damage numbers."""
    with pytest.raises(ConfigError, match="allow_pickle, encoding, fix_imports"):
        load(Given(path=npz_path), mmap_mode="r")
    with pytest.raises(ConfigError, match="latin1"):
        load(Given(path=npz_path), encoding="utf-8")


def test_a_member_that_is_no_array(tmp_path: Path) -> None:
    """NumPy gives the bytes of it, and so do we; something else called .npy is damage."""
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("note.txt", "hello")
    for delivery in DELIVERIES:
        model = load(Given(path=tmp_path / "m.npz", delivery=delivery))
        assert model["note.txt"] == b"hello"
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("a.npy", "hello")
    with pytest.raises(CorruptModelError, match=r"a\.npy"):
        load(Given(path=tmp_path / "m.npz"))


def test_damage_in_an_array_that_is_copied_is_found(tmp_path: Path) -> None:
    """One flipped bit in a stored array: every delivery that reads it says so by the archive's checksum."""
    path = tmp_path / "m.npz"
    numpy.savez(path, a=ARRAYS["large"])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for delivery in (Delivery.PATH, Delivery.STREAM, Delivery.BYTES):
        with pytest.raises(LoadError, match=r"m\.npz"):
            load(Given(path=path, delivery=delivery))


def test_numpy_is_imported_by_prepare_and_not_before() -> None:
    """Importing the binarizers costs no numpy; detection does not either."""
    imported = run_child(
        """
        import sys
        from mlup_stream.ml.binarization.numpy import NpyBinarizer, NpzBinarizer
        before = "numpy" in sys.modules
        NpyBinarizer.prepare()
        answer([before, "numpy" in sys.modules])
        """
    )
    assert imported == [False, True]


def test_the_whole_cycle(npz_path: Path) -> None:
    """Through `mlup_stream.load` and through `UP`, whose report says how the arrays came."""
    assert_same(mlup.load(npz_path)["large"], ARRAYS["large"])
    up = mlup.UP(conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": str(npz_path)}))
    with up.ml.load():
        assert up.ml.report is not None
        assert (up.ml.report.format, up.ml.report.delivery) == ("npz", "view")
        assert_same(up.ml.model_obj["matrix"], ARRAYS["matrix"])


@pytest.fixture(scope="module")
def big_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """256 MB: one array; eight of them, aligned in the archive; and 64 MB of them deflated."""
    folder = tmp_path_factory.mktemp("big")
    paths = {name: folder / name for name in ("m.npy", "m.npz", "deflated.npz")}
    numpy.save(paths["m.npy"], numpy.arange(256 * MIB // 8, dtype="f8"))
    each = numpy.arange(256 * MIB // 8 // 8, dtype="f8")
    with zipfile.ZipFile(paths["m.npz"], "w") as archive:
        for index in range(8):
            # 30 bytes of a local header and 20 of ZIP64 sizes: with a name of 6 the arrays are aligned to 8.
            with archive.open(f"w{index}.npy", "w", force_zip64=True) as member:
                numpy.lib.format.write_array(member, each + index)
    numpy.savez_compressed(paths["deflated.npz"], **{f"w{index}": each[: 8 * MIB // 8] + index for index in range(8)})
    yield paths
    for path in paths.values():
        path.unlink()


on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the equations are about the kernel's figures")
SUMS = {"npy": "float(model.sum())", "npz": "float(sum(float(model[name].sum()) for name in sorted(model)))"}
PAYLOAD_BYTES = {"m.npy": 256 * MIB, "m.npz": 256 * MIB, "deflated.npz": 64 * MIB}


def binarizer_of(name: str) -> tuple[str, str]:
    kind = name.rpartition(".")[2]
    return f"mlup_stream.ml.binarization.numpy.{kind.capitalize()}Binarizer", SUMS[kind]


@pytest.mark.big
@on_linux
@pytest.mark.parametrize("name", ["m.npy", "m.npz"])
def test_a_view_leaves_the_arrays_in_the_file(big_files: dict[str, Path], name: str) -> None:
    """peak(view) = objects + slack, and nothing of the payload: at most 0.02 of the file, as was estimated."""
    binarizer, answer_of = binarizer_of(name)
    took = measure_load(binarizer, big_files[name], "view", answer_of=answer_of)
    assert took.peak_anon_bytes <= SLACK_BYTES <= 0.02 * PAYLOAD_BYTES[name]
    assert took.peak_bytes <= 0.02 * PAYLOAD_BYTES[name]
    assert took.estimate is not None
    assert took.estimate["certainty"] == "exact"
    assert took.estimate["peak_anon_bytes"] <= SLACK_BYTES
    assert took.estimate["mapped_bytes"] == PAYLOAD_BYTES[name]


@pytest.mark.big
@on_linux
@pytest.mark.parametrize(
    ("name", "delivery"),
    [
        *((name, delivery) for name in ("m.npy", "m.npz") for delivery in ("path", "stream", "bytes")),
        *(("deflated.npz", delivery) for delivery in ("path", "stream", "view", "bytes")),
    ],
)
def test_what_is_copied_is_taken_once(big_files: dict[str, Path], name: str, delivery: str) -> None:
    """peak = payload + window + slack, and the raw bytes on top for `bytes`; within 5% of the estimate, which says exact."""
    binarizer, answer_of = binarizer_of(name)
    optimize = "speed" if delivery == "view" else "memory"  # otherwise made when it is asked for
    took = measure_load(binarizer, big_files[name], delivery, answer_of=answer_of, optimize=optimize)
    raw_bytes = big_files[name].stat().st_size if delivery == "bytes" else 0
    expected_bytes = PAYLOAD_BYTES[name] + raw_bytes
    assert expected_bytes - SLACK_BYTES <= took.peak_bytes <= expected_bytes + SLACK_BYTES
    assert took.estimate is not None
    assert took.estimate["certainty"] == "exact"
    assert abs(took.peak_bytes - took.estimate["peak_anon_bytes"]) <= 0.05 * expected_bytes
    assert abs(took.settled_anon_bytes - took.estimate["settled_anon_bytes"]) <= 0.05 * expected_bytes


SPELLINGS = "float64 float <d d >d =f8 int uint64 int_ l <l q H bool ? b B complex complex64 F <D half e datetime64[ns] long"


@pytest.mark.parametrize("descr", SPELLINGS.split())
def test_dtypes_as_programs_of_others_spell_them(tmp_path: Path, descr: str) -> None:
    """Whatever `numpy.dtype` reads in a header: the same array, mapped and copied, and the walker needs no NumPy for it."""
    dtype = numpy.dtype(descr)
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': (1000,), }}".encode().ljust(117) + b"\n"
    path = tmp_path / "m.npy"
    path.write_bytes(b"\x93NUMPY\1\0v\0" + header + numpy.arange(1000).astype(dtype).tobytes())
    found = read_header(path)
    assert (found.item_bytes, found.alignment, found.has_objects) == (dtype.itemsize, dtype.alignment, False)
    for delivery in (Delivery.VIEW, Delivery.STREAM):
        assert_same(load(Given(path=path, delivery=delivery)), numpy.load(path))


@on_linux
@pytest.mark.parametrize("save", ["savez", "savez_compressed"])
def test_an_array_of_ten_costs_one(tmp_path: Path, save: str) -> None:
    """By the view an array is made when it is asked for: deflated, or stored where it is not aligned."""
    path = tmp_path / "m.npz"
    random = numpy.random.default_rng(0)
    getattr(numpy, save)(path, **{f"w{index}": random.integers(0, 9, 1_000_000).astype("f8") for index in range(10)})
    code = """
        import numpy
        import mlup_stream as mlup
        from mlup_stream.memory.meter import snapshot
        loaded = mlup.open(path, delivery="view")
        before = snapshot().anon_bytes
        rss = snapshot().rss_bytes
        total = float(loaded.model["w3"].sum())
        answer([loaded.report.memory.settled.anon_bytes - loaded.report.memory.baseline.anon_bytes,
                snapshot().anon_bytes - before, snapshot().rss_bytes - rss, total, bool(loaded.model["w3"].flags.aligned)])
    """
    settled_bytes, one_bytes, rss_bytes, total, aligned = run_child(code, path=str(path))
    assert settled_bytes < 4 * MIB
    assert one_bytes < 12 * MIB
    assert rss_bytes < 14 * MIB
    assert total == numpy.load(path)["w3"].sum()
    assert aligned


def test_what_is_made_later_is_made_once_and_stays(tmp_path: Path) -> None:
    """The same object each time, with what was written to it; also when the file is gone, copied or pickled, by any name."""
    path = tmp_path / "m.npz"
    numpy.savez_compressed(path, **ARRAYS)
    model = mlup.load(path, delivery="view")
    path.unlink()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: model["large"], range(32)))
    assert all(each is found[0] for each in found)
    model["large"][0] = 7
    assert model.f.large[0] == 7
    assert model["large.npy"] is model["large"]
    assert "large" in dir(model.f)
    assert model.files == list(ARRAYS)
    again = pickle.loads(pickle.dumps(model))
    assert again["large"][0] == 7
    assert_same(again["matrix"], ARRAYS["matrix"])
    assert_same(copy.deepcopy(model)["matrix"], ARRAYS["matrix"])
    assert dict(model).keys() == ARRAYS.keys()


def test_damage_of_what_is_made_later(tmp_path: Path) -> None:
    """A checksum that is wrong is told, typed, when the array is asked for, each time; by the other deliveries at the load."""
    path = tmp_path / "m.npz"
    numpy.savez_compressed(path, large=ARRAYS["large"], other=ARRAYS["large"])
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("large.npy").header_offset + 5000
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)
    model = mlup.load(path, delivery="view")
    for _ in range(2):
        with pytest.raises(CorruptModelError, match=r"m\.npz: large\.npy"):
            model["large"]
    assert_same(model["other"], ARRAYS["large"])
    with pytest.raises(CorruptModelError, match=r"m\.npz: large\.npy"):
        mlup.load(path, delivery="path")
