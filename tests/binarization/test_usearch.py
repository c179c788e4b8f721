"""usearch: every delivery finds what the library's own load finds, a view leaves it in the file, and a damaged graph is told."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import pytest
from given import Given, deserialize, detected
from measured import SLACK_BYTES, measure_load

import mlup_stream as mlup
from mlup_stream.constants import LoadedFile
from mlup_stream.delivery.kinds import Delivery
from mlup_stream.errors import CorruptModelError, ModelBinarizationError
from mlup_stream.formats.arrays.usearch import read_index
from mlup_stream.formats.kinds import Format
from mlup_stream.ml.binarization.usearch import UsearchBinarizer
from mlup_stream.ml.inspection import inspect

pytestmark = pytest.mark.formats

usearch_index = pytest.importorskip("usearch.index", reason="needs the usearch extra")
numpy = pytest.importorskip("numpy", reason="the vectors")

BINARIZER = "mlup_stream.ml.binarization.usearch.UsearchBinarizer"
VECTORS = numpy.random.default_rng(0).standard_normal((300, 16)).astype("f4")
KINDS: dict[str, dict[str, Any]] = {
    "cosine": {"metric": "cos", "dtype": "f32"},
    "inner product of halves": {"metric": "ip", "dtype": "f16"},
    "integers": {"metric": "l2sq", "dtype": "i8"},
    "doubles": {"metric": "l2sq", "dtype": "f64"},
    "bits": {"metric": "hamming", "dtype": "b1"},
    "removed": {"metric": "cos", "dtype": "f32"},
    "several for a key": {"metric": "cos", "dtype": "f32", "multi": True},
    "nothing": {"metric": "cos", "dtype": "f32"},
}


def rows(kind: str) -> Any:
    return numpy.packbits(VECTORS > 0, axis=1) if kind == "bits" else VECTORS / 4


def write(path: Path, kind: str = "cosine", **more: Any) -> Path:
    index = usearch_index.Index(ndim=16, connectivity=4, **KINDS[kind], **more)
    if kind != "nothing":
        index.add(numpy.arange(300) % 100 if kind == "several for a key" else numpy.arange(300) + 7, rows(kind))
    if kind == "removed":
        index.remove(numpy.arange(20) + 7)
    index.save(str(path))
    return path


def found(index: Any, kind: str = "cosine") -> list[Any]:
    matches = index.search(rows(kind)[:9], 5)
    return [matches.keys.tolist(), matches.distances.tolist()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("delivery", UsearchBinarizer.deliveries)
def test_every_delivery_finds_what_the_library_finds(tmp_path: Path, delivery: Delivery, kind: str) -> None:
    """The same keys and distances, with the file's own dimensions, metric and scalars, also once the file has lost its name."""
    path = write(tmp_path / "model.bin", kind)
    assert detected(LoadedFile(path=path)) is Format.USEARCH
    expected = usearch_index.Index.restore(str(path))
    index = deserialize(UsearchBinarizer, Given(path=path, delivery=delivery))
    path.unlink()
    assert (index.ndim, index.metric_kind, index.dtype, len(index)) == (16, expected.metric_kind, expected.dtype, len(expected))
    if kind != "nothing":
        assert found(index, kind) == found(expected, kind)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
def test_every_kind_of_content_is_taken(tmp_path: Path, kind: Any) -> None:
    """Content without a path gives the same index, and what happens to it afterwards is nothing to the index."""
    path = write(tmp_path / "m.usearch")
    content = bytearray(path.read_bytes())
    index = deserialize(UsearchBinarizer, Given(content if kind is bytearray else kind(content)))
    content[:] = bytes(len(content))
    assert found(index) == found(usearch_index.Index.restore(str(path)))


def test_a_view_leaves_the_index_in_the_file(tmp_path: Path) -> None:
    """private(view) <= table of keys + slack, for vectors of 768 numbers at most 2% of the file and what is allocated once."""
    import writers

    path = tmp_path / "m.usearch"
    writers.usearch(str(path), 64 << 20)
    took = measure_load(
        BINARIZER,
        path,
        "view",
        answer_of="model.search(__import__('numpy').ones(768, 'f4'), 3).keys.tolist()",
        imports=("numpy", "usearch.index"),
    )
    nodes = read_index(str(path)).nodes
    assert took.settled_anon_bytes <= 64 * nodes + SLACK_BYTES
    assert took.estimate is not None
    assert took.peak_anon_bytes <= took.estimate["peak_anon_bytes"] <= 64 * nodes + SLACK_BYTES


def test_a_mapped_index_is_not_changed(tmp_path: Path) -> None:
    """usearch refuses to add and to remove; renaming a key, which would kill the process, is refused here."""
    path = write(tmp_path / "m.usearch")
    before = path.read_bytes()
    index = mlup.load(path)
    with pytest.raises(RuntimeError, match="immutable"):
        index.add(1000, VECTORS[0])
    with pytest.raises(ModelBinarizationError, match=r"m\.usearch: rename\(\) would change"):
        index.rename(7, 8000)
    assert path.read_bytes() == before
    index = mlup.load(path, delivery="path")
    index.add(1000, VECTORS[0])
    assert len(index) == 301


def _node(path: Path, number: int) -> int:
    """Where a node begins."""
    index = read_index(str(path))
    content = path.read_bytes()
    levels = struct.unpack_from(f"<{index.nodes}h", content, index.levels_at)
    above = 4 + 4 * index.neighbours
    return index.nodes_at + sum(8 + 2 + 4 + 4 * index.neighbours_below + above * level for level in levels[:number])


@pytest.mark.parametrize(
    ("place", "code", "value", "said"),
    [
        (lambda path: _node(path, 5) + 14, "<I", 300, "neighbours that there are"),
        (lambda path: _node(path, 5) + 10, "<I", 9, "at most 8 neighbours"),
        (lambda path: _node(path, 5) + 8, "<h", 3, "nodes on their levels"),
        (lambda path: read_index(str(path)).levels_at + 2 * 5, "<h", 99, "levels up to"),
        (lambda path: read_index(str(path)).levels_at - 8, "<Q", 300, "an entry"),
        (lambda path: read_index(str(path)).levels_at - 40, "<Q", 1 << 40, "as many as rows"),
        (lambda path: read_index(str(path)).levels_at - 71, "<Q", 17, "vectors of 17"),
    ],
)
def test_what_leads_out_of_the_graph_is_damage(tmp_path: Path, place: Any, code: str, value: int, said: str) -> None:
    """A number that usearch would follow out of the index is told, whatever the delivery."""
    path = write(tmp_path / "m.usearch")
    content = bytearray(path.read_bytes())
    struct.pack_into(code, content, place(path), value)
    path.write_bytes(content)
    for delivery in UsearchBinarizer.deliveries:
        with pytest.raises(CorruptModelError, match=rf"m\.usearch: expected .*{said}"):
            mlup.load(path, delivery=delivery, binarization_type="usearch")


def test_scalars_that_are_not_known_are_no_damage(tmp_path: Path) -> None:
    """An index of a newer usearch is told as that."""
    path = write(tmp_path / "m.usearch")
    content = bytearray(path.read_bytes())
    content[read_index(str(path)).levels_at - 40 - 64 + 14] = 77
    path.write_bytes(content)
    with pytest.raises(ModelBinarizationError, match="metric and scalars that are known here, found cosine of 77") as failed:
        mlup.load(path)
    assert not isinstance(failed.value, CorruptModelError)


def test_inspect_says_what_is_in_it(tmp_path: Path) -> None:
    """Metric, scalars, dimensions and vectors, without usearch's help."""
    said = inspect(write(tmp_path / "m.usearch", "removed"))
    assert (said["metric"], said["scalar"], said["dimensions"], said["vectors"]) == ("cosine", "f32", 16, 280)
