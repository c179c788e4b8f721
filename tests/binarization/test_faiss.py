"""faiss: every delivery finds what the library's own load finds; a view leaves the index in the file, where nobody changes it."""

from __future__ import annotations

import gc
import io
from pathlib import Path
from typing import Any

import pytest
from given import Given, deserialize, detected, estimated
from measured import SLACK_BYTES, measure_load

import mlup_stream as mlup
from mlup_stream.constants import LoadedFile
from mlup_stream.delivery.kinds import Delivery
from mlup_stream.errors import CorruptModelError, ModelBinarizationError
from mlup_stream.formats.kinds import Format
from mlup_stream.ml.binarization.faiss import FaissBinarizer
from mlup_stream.ml.inspection import inspect
from mlup_stream.units import MIB

pytestmark = pytest.mark.formats

faiss = pytest.importorskip("faiss", reason="needs the faiss extra")
numpy = pytest.importorskip("numpy", reason="the vectors")

BINARIZER = "mlup_stream.ml.binarization.faiss.FaissBinarizer"
VECTORS = numpy.random.default_rng(0).standard_normal((400, 16)).astype("f4")
BITS = numpy.random.default_rng(0).integers(0, 255, (400, 8), dtype="u1")
FACTORIES = ("Flat", "SQ8", "PQ4x4", "IVF4,Flat", "IVF4,PQ4x4", "IVF4,SQ8", "HNSW8,Flat", "IDMap,Flat", "PCA8,Flat", "bits")


def write(path: Path, factory: str = "Flat") -> Path:
    if factory == "bits":
        bits = faiss.IndexBinaryFlat(64)
        bits.add(BITS)
        faiss.write_index_binary(bits, str(path))
        return path
    index = faiss.index_factory(16, factory)
    index.train(VECTORS)
    if "IDMap" in factory:
        index.add_with_ids(VECTORS, numpy.arange(400) + 7)
    else:
        index.add(VECTORS)
    faiss.write_index(index, str(path))
    return path


def found(index: Any) -> list[Any]:
    rows = BITS if isinstance(index, faiss.IndexBinary) else VECTORS
    return [each.tolist() for each in index.search(rows[:9], 5)]


def theirs(path: Path) -> Any:
    return (faiss.read_index_binary if path.read_bytes()[:2] == b"IB" else faiss.read_index)(str(path))


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("delivery", FaissBinarizer.deliveries)
def test_every_delivery_finds_what_the_library_finds(tmp_path: Path, delivery: Delivery, factory: str) -> None:
    """The same class and the same neighbours and distances, also once the file has lost its name."""
    path = write(tmp_path / "model.bin", factory)
    assert detected(LoadedFile(path=path)) is Format.FAISS
    expected = theirs(path)
    index = deserialize(FaissBinarizer, Given(path=path, delivery=delivery))
    path.unlink()
    assert type(index) is type(expected)
    assert found(index) == found(expected)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
def test_every_kind_of_content_is_taken(tmp_path: Path, kind: Any) -> None:
    """Content without a path gives the same index, and what happens to it afterwards is nothing to the index."""
    path = write(tmp_path / "m.faiss", "IVF4,Flat")
    content = bytearray(path.read_bytes())
    index = deserialize(FaissBinarizer, Given(content if kind is bytearray else kind(content)))
    content[:] = bytes(len(content))
    assert found(index) == found(theirs(path))


@pytest.mark.parametrize("factory", ["IVF64,Flat", "HNSW8,Flat", "Flat", "IVF64,PQ16"])
def test_a_view_leaves_the_index_in_the_file(tmp_path: Path, factory: str) -> None:
    """private(view) <= 2% of the file and what faiss makes of it; the estimate is within 5% of the file, by every delivery."""
    vectors = numpy.random.default_rng(0).standard_normal((100_000 if "HNSW" not in factory else 30_000, 64)).astype("f4")
    index = faiss.index_factory(64, factory)
    index.train(vectors[:4000])
    index.add(vectors)
    path = tmp_path / "m.faiss"
    faiss.write_index(index, str(path))
    size_bytes = path.stat().st_size
    answer = "model.search(__import__('numpy').ones((1, 64), 'f4'), 3)[1].tolist()"
    for delivery in ("view", "path"):
        took = measure_load(BINARIZER, path, delivery, answer_of=answer, imports=("numpy", "faiss"))
        assert took.estimate is not None
        assert took.estimate["certainty"] == "exact"
        assert took.estimate["peak_anon_bytes"] == pytest.approx(took.peak_anon_bytes, abs=SLACK_BYTES)
        made_bytes = 64 * 16 * 256 * 4 if "PQ" in factory else 0  # the table of distances between lists and codes
        if delivery == "view":
            assert took.settled_anon_bytes <= 0.02 * size_bytes + made_bytes + SLACK_BYTES / 2


def test_a_mapped_index_is_not_changed(tmp_path: Path) -> None:
    """faiss would end the process: each method that changes an index says how to load one that can be changed."""
    path = write(tmp_path / "m.faiss")
    before = path.read_bytes()
    index = mlup.load(path)
    for change in (
        lambda: index.add(VECTORS),
        lambda: index.remove_ids(numpy.arange(3)),
        lambda: index.reset(),
        lambda: index.train(VECTORS),
    ):
        with pytest.raises(ModelBinarizationError, match=r"m\.faiss: \w+\(\) would change .* load it with delivery='path'"):
            change()
    assert path.read_bytes() == before
    index = mlup.load(path, delivery="path")
    index.add(VECTORS)
    assert index.ntotal == 800


def test_the_map_lives_as_long_as_a_part_of_the_index(tmp_path: Path) -> None:
    """A clone of a mapped index, and the storage of one, are searched after the index and the handle are gone."""
    path = write(tmp_path / "m.faiss", "HNSW8,Flat")
    expected = found(theirs(path))
    with mlup.open(path) as loaded:
        index = loaded.model
    clone = faiss.clone_index(index)
    del index
    gc.collect()
    path.unlink()
    assert found(clone) == expected


def test_faiss_keeps_its_own_limits(tmp_path: Path) -> None:
    """What a vector of a file may take is bounded while it is read, and as it was afterwards, after a failure too."""
    path = write(tmp_path / "m.faiss")
    before = faiss.get_deserialization_vector_byte_limit()
    mlup.load(path)
    content = bytearray(path.read_bytes())
    content[37:45] = (1 << 36).to_bytes(8, "little")  # how many numbers its vectors are, 256 GiB
    path.write_bytes(content)
    for delivery in FaissBinarizer.deliveries:
        with pytest.raises(CorruptModelError):
            mlup.load(path, delivery=delivery)
    assert faiss.get_deserialization_vector_byte_limit() == before


def test_inspect_says_what_is_in_it(tmp_path: Path) -> None:
    """The class, dimensions, vectors, metric and lists, without faiss's help."""
    said = inspect(write(tmp_path / "m.faiss", "IVF4,Flat"))
    assert said["class"] == "IwFl (inverted lists)"
    assert (said["dimensions"], said["vectors"], said["metric"], said["lists"]) == (16, 400, "L2", 4)
    assert inspect(write(tmp_path / "b.faiss", "bits"))["dimensions"] == 64


@pytest.mark.parametrize("content", [b"IxF2", b"I am no index, whatever I begin with" * 3, b"INSERT INTO t" * 9])
def test_what_begins_alike_is_no_index(tmp_path: Path, content: bytes) -> None:
    """An I and three letters are not enough."""
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(mlup.errors.ModelLoadError, match="text") as failed:
        mlup.load(tmp_path / "text")
    assert "faiss" not in str(failed.value).replace("faiss, ", "").replace(", faiss", "")


def test_an_estimate_that_is_not_known_is_a_guess(tmp_path: Path) -> None:
    """Of an index within a transformation the beginning does not say what faiss makes: no load is refused for it."""
    known = estimated(FaissBinarizer, Given(path=write(tmp_path / "m.faiss", "PCA8,Flat")), Delivery.VIEW)
    assert known is not None
    assert known.certainty.value == "unknown"
    assert known.peak_anon_bytes <= 4 * MIB
