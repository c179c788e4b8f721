"""Packing: the same model, every array in place, in bounded memory."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from child import run_child
from pack_files import ARRAYS, FILES, LIBRARIES, assert_same, in_place, joblib, numpy, old_joblib, safetensors, write

import mlup_stream as mlup
from mlup_stream.errors import PackError
from mlup_stream.formats.kinds import Format
from mlup_stream.pack import Packed, pack
from mlup_stream.units import MIB


@pytest.mark.parametrize("name", FILES)
def test_the_packed_file_holds_the_same_and_all_of_it_in_place(tmp_path: Path, name: str) -> None:
    """The format's own library reads the same arrays of the packed file, and this package leaves them in it, all aligned."""
    source = write(tmp_path, name)
    before = source.read_bytes()
    expected = LIBRARIES[source.suffix](source)
    target = tmp_path / f"packed{source.suffix}"
    packed = pack(source, target, trust="full")
    assert_same(LIBRARIES[source.suffix](target), expected)
    options = {"allow_pickle": True} if source.suffix == ".npz" else {}
    model, loaded = in_place(target, packed.format, **options)
    assert_same(model, expected)
    assert loaded.placement is not None
    assert packed.payload_bytes > 0
    assert packed.mappable_after_bytes == packed.payload_bytes
    assert loaded.placement.mapped_bytes >= packed.payload_bytes - 1024  # what is tiny, loaders copy
    assert not any("not aligned" in reason for reason in loaded.placement.reasons)
    assert packed.mappable_before_bytes <= packed.mappable_after_bytes
    assert source.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == sorted((source, target))


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith(("protocol0", "protocol1"))])
def test_packing_twice_changes_nothing(tmp_path: Path, name: str) -> None:
    """What is packed already is copied byte for byte: padding does not pile up."""
    source = write(tmp_path, name)
    once, twice = tmp_path / f"once{source.suffix}", tmp_path / f"twice{source.suffix}"
    pack(source, once, trust="full")
    packed = pack(once, twice)
    assert twice.read_bytes() == once.read_bytes()
    assert packed.mappable_before_bytes == packed.mappable_after_bytes


def test_misaligned_payloads_are_counted_before(tmp_path: Path) -> None:
    """What could not stay in the source, aligned, is told apart from what could."""
    assert pack(write(tmp_path, "odd.safetensors"), tmp_path / "a").mappable_before_bytes < 200_000
    assert pack(write(tmp_path, "zlib.joblib"), tmp_path / "b").mappable_before_bytes == 0
    assert pack(write(tmp_path, "deflated.npz"), tmp_path / "c").mappable_before_bytes == 0
    plain = pack(write(tmp_path, "plain.joblib"), tmp_path / "d")
    assert plain.mappable_before_bytes == plain.payload_bytes


def test_joblib_from_before_its_padding_is_aligned_too(tmp_path: Path) -> None:
    """joblib before 1.2 has no room for padding: opcodes that do nothing take its place, and joblib maps the arrays unwarned."""
    source, target = tmp_path / "old.joblib", tmp_path / "packed.joblib"
    old_joblib(source)
    packed = pack(source, target)
    assert packed.mappable_after_bytes == packed.payload_bytes > packed.mappable_before_bytes
    assert_same(joblib.load(target), ARRAYS)
    mapped = joblib.load(target, mmap_mode="r")
    assert all(array.ctypes.data % 64 == 0 for array in mapped.values())


def test_joblib_maps_what_was_compressed(tmp_path: Path) -> None:
    """The flag by which joblib's own `mmap_mode` leaves out arrays of compressed files is set right."""
    pack(write(tmp_path, "zlib.joblib"), tmp_path / "packed.joblib")
    mapped = joblib.load(tmp_path / "packed.joblib", mmap_mode="r")
    assert {type(array) for array in mapped.values()} == {numpy.memmap}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dump", ["pickle", "joblib"])
def test_everything_between_the_arrays_stays(tmp_path: Path, dump: str, protocol: int) -> None:
    """Identity, recursion, arrays of objects, long text and bytes, many small objects, and what follows the pickle."""
    shared = numpy.arange(10_000.0)
    model: dict[str, Any] = {"one": shared, "again": [shared, shared[::2].copy()], "text": "x" * 100_000, "bytes": b"y" * 70_001}
    model |= {"objects": numpy.array([None, "a", {1: 2}], object), "many": list(range(60_000)), "bytearray": bytearray(66_000)}
    model["self"] = model
    source, target = tmp_path / "m.bin", tmp_path / "packed.bin"
    if dump == "pickle":
        source.write_bytes(pickle.dumps(model, protocol) + b"and more" * 10_000)
    else:
        joblib.dump(model, source, protocol=protocol)
    pack(source, target, format=Format(dump), trust="full")
    load = pickle.load if dump == "pickle" else joblib.load
    with source.open("rb") as file, target.open("rb") as packed_file:
        expected, found = load(file), load(packed_file)
    assert found["self"] is found
    # joblib has never kept it: a shared array becomes two.
    assert (found["one"] is found["again"][0]) == (expected["one"] is expected["again"][0]) == (dump == "pickle")
    assert found["objects"].tolist() == [None, "a", {1: 2}]
    assert all(found[key] == model[key] for key in ("text", "bytes", "many", "bytearray"))
    assert found["again"][1].tobytes() == shared[::2].tobytes()
    if dump == "pickle":
        assert target.read_bytes().endswith(b"and more" * 10_000)


@pytest.mark.parametrize("name", ["m.pkl", "m.joblib"])
def test_nothing_of_the_model_is_imported_and_no_code_runs(tmp_path: Path, name: str) -> None:
    """A model of a class that is not there is packed, and what unpickling would call is not called."""
    path = tmp_path / name
    marker = tmp_path / "it ran"
    (tmp_path / "absent.py").write_text("class Model:\n    def __reduce__(self):\n        return Model, (), self.__dict__\n")
    code = """
        import os, pickle, sys
        import joblib, numpy
        sys.path.insert(0, folder)
        import absent
        class Runs:
            def __reduce__(self):
                return os.mkdir, (marker,)
        model = absent.Model()
        model.weights, model.runs = numpy.arange(100_000.0), Runs()
        if path.endswith(".pkl"):
            with open(path, "wb") as file:
                pickle.dump(model, file, 5)
        else:
            joblib.dump(model, path, compress=1)
        answer(True)
    """
    run_child(code, folder=str(tmp_path), path=str(path), marker=str(marker))
    packed = pack(path, tmp_path / f"packed{path.suffix}")
    assert packed.mappable_after_bytes == 800_000
    assert not marker.exists()


def test_a_forest_predicts_the_same(tmp_path: Path) -> None:
    """A scikit-learn forest, whose trees have states of their own, answers as before from both kinds of packed files."""
    ensemble = pytest.importorskip("sklearn.ensemble", reason="trains the forest")
    random = numpy.random.default_rng(0)
    rows = random.random((2000, 5))
    forest = ensemble.RandomForestRegressor(20, random_state=0).fit(rows, rows.sum(axis=1) + random.random(2000))
    joblib.dump(forest, tmp_path / "forest.joblib", compress=1)
    (tmp_path / "forest.pkl").write_bytes(pickle.dumps(forest, 4))
    for name in ("forest.joblib", "forest.pkl"):
        packed = pack(tmp_path / name, tmp_path / f"packed {name}")
        assert packed.mappable_after_bytes == packed.payload_bytes > 1_000_000
        model = mlup.load(tmp_path / f"packed {name}", delivery="view")
        assert numpy.array_equal(model.predict(rows), forest.predict(rows))


def test_an_old_pickle_becomes_a_new_one(tmp_path: Path) -> None:
    """Protocols 0 to 2 write arrays as text; the model is loaded and written with protocol 5, and the report says that it was."""
    packed = pack(write(tmp_path, "protocol2.pkl"), tmp_path / "packed.pkl", trust="full")
    assert (tmp_path / "packed.pkl").read_bytes()[:2] == b"\x80\x05"
    assert "its code has run" in packed.notes[0]


def test_shards_become_one_file(tmp_path: Path) -> None:
    """The tensors that the index lists, and no others, with the metadata of all files."""
    safetensors.save_file({"a": ARRAYS["matrix"], "left out": ARRAYS["small"]}, tmp_path / "1.safetensors", {"one": "1"})
    safetensors.save_file({"b": ARRAYS["short"]}, tmp_path / "2.safetensors", {"two": "2"})
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    packed = pack(index, tmp_path / "m.safetensors")
    assert_same(safetensors.load_file(tmp_path / "m.safetensors"), {"a": ARRAYS["matrix"], "b": ARRAYS["short"]})
    with pytest.importorskip("safetensors").safe_open(tmp_path / "m.safetensors", "numpy") as file:
        assert file.metadata() == {"one": "1", "two": "2"}
    assert packed.source_bytes == sum((tmp_path / name).stat().st_size for name in ("1.safetensors", "2.safetensors", index.name))
    with pytest.raises(PackError, match="is the source, or part of it"):
        pack(index, tmp_path / "2.safetensors", force=True)


def test_zip64_members_are_aligned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers of members beyond 4 GiB are longer; the limit is moved so that these arrays are beyond it."""
    source, target = write(tmp_path, "stored.npz"), tmp_path / "packed.npz"
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 5000)
    packed = pack(source, target)
    assert packed.mappable_after_bytes == packed.payload_bytes
    assert_same(dict(numpy.load(target, allow_pickle=True)), LIBRARIES[".npz"](source))


# Memory

_PACK_BYTES = 256 * MIB
_WINDOWS_BYTES = 4 * MIB
"""A piece that is read, one that is compared, the buffer of the file that is written, and a decompressor's."""
_SLACK_BYTES = 6 * MIB
"""Lazily imported modules, the allocator's arenas, and the pages at the edges of what is dropped from the map."""




def _dump(path: Path, arrays: Any) -> None:
    with path.open("wb") as file:
        pickle.dump(arrays, file, 5)


_WRITERS: dict[str, Callable[[Path, Any], Any]] = {
    "m.pkl": _dump,
    "m.joblib": lambda path, arrays: joblib.dump(arrays, path, compress=1),
    "m.npz": lambda path, arrays: numpy.savez_compressed(path, **arrays),
    "m.safetensors": lambda path, arrays: safetensors.save_file(arrays, path),
}


@pytest.mark.big
@pytest.mark.parametrize("name", _WRITERS)
def test_memory_is_bounded(tmp_path: Path, name: str) -> None:
    """peak RSS <= baseline + windows + slack, for 256 MiB of arrays, compressed where that can be: no term is the payload."""
    code = """
        import os
        import numpy
        import mlup_stream.pack
        from mlup_stream.memory.meter import PeakMeter
        from mlup_stream.pack import pack
        small = numpy.arange(20_000.0)
        if path.endswith("joblib"):
            import joblib
            joblib.dump(small, path + ".small", compress=1)
        elif path.endswith("npz"):
            numpy.savez_compressed(path + ".small.npz", small=small)
            os.rename(path + ".small.npz", path + ".small")
        elif path.endswith("pkl"):
            import pickle
            with open(path + ".small", "wb") as file:
                pickle.dump(small, file, 5)
        else:
            from safetensors.numpy import save_file
            save_file({"small": small}, path + ".small")
        pack(path + ".small", path + ".packed.small")           # imports what it needs
        with PeakMeter() as meter:
            packed = pack(path, path + ".packed")
        answer({"took": meter.peak.rss_bytes - meter.baseline.rss_bytes, **packed.to_dict()})
    """
    path = tmp_path / name
    _WRITERS[name](path, {f"w{index}": numpy.arange(_PACK_BYTES // 64, dtype="f8") + index for index in range(8)})
    found = run_child(code, path=str(path))
    assert found["payload_bytes"] == found["mappable_after_bytes"] == _PACK_BYTES
    assert found["took"] <= _WINDOWS_BYTES + _SLACK_BYTES
    for each in tmp_path.iterdir():
        each.unlink()


def test_packed_is_plain_data(tmp_path: Path) -> None:
    """The report goes through JSON."""
    packed: Packed = pack(write(tmp_path, "array.npy"), tmp_path / "packed.npy")
    assert json.loads(json.dumps(packed.to_dict()))["files"] == [str(tmp_path / "packed.npy")]
    assert packed.destination_bytes == (tmp_path / "packed.npy").stat().st_size
