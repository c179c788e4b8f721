"""gensim: a model whose arrays lie in files beside its pickle is loaded with them, and a view leaves them there."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from given import Given, deserialize, estimated
from measured import SLACK_BYTES, measure_load

import mlup_stream as mlup
from mlup_stream.delivery.kinds import Delivery, MappingMode
from mlup_stream.errors import ModelBinarizationError, ModelNotFoundError
from mlup_stream.ml.binarization.pickle import PickleBinarizer

pytestmark = [pytest.mark.formats, pytest.mark.filterwarnings("ignore::DeprecationWarning:gensim")]

models = pytest.importorskip("gensim.models", reason="what wrote the files")
numpy = pytest.importorskip("numpy", reason="the vectors")

BINARIZER = "mlup_stream.ml.binarization.pickle.PickleBinarizer"


def write(path: Path, count: int = 200, size: int = 50, sep_limit: int = 1000) -> Path:
    vectors = models.KeyedVectors(size)
    numbers = numpy.random.default_rng(0).standard_normal((count, size)).astype("f4")
    vectors.add_vectors([f"w{i}" for i in range(count)], numbers)
    vectors.save(str(path), sep_limit=sep_limit)
    return path


def nearest(model: Any) -> Any:
    return model.most_similar("w1", topn=3)


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("delivery", PickleBinarizer.deliveries)
def test_every_delivery_answers_as_the_library(tmp_path: Path, delivery: Delivery, separate: bool) -> None:
    """The same neighbours, with arrays beside the pickle and within it, also once the files have lost their names."""
    path = write(tmp_path / "m.kv", sep_limit=1000 if separate else 1 << 30)
    assert (tmp_path / "m.kv.vectors.npy").exists() is separate
    expected = nearest(models.KeyedVectors.load(str(path)))
    given = Given(path=path, delivery=delivery)
    model = deserialize(PickleBinarizer, given)
    for each in tmp_path.iterdir():
        each.unlink()
    assert nearest(model) == expected
    assert given.placement is not None
    if separate:
        assert (given.placement.mapped_bytes >= model.vectors.nbytes) is (delivery is Delivery.VIEW)


def test_a_model_within_a_model(tmp_path: Path) -> None:
    """Word2Vec holds vectors that keep their arrays beside it too; it can be saved again with all of them."""
    sentences = [[f"w{(i * j) % 30}" for j in range(9)] for i in range(60)]
    trained = models.Word2Vec(sentences, vector_size=20, min_count=1, workers=1, seed=1)
    path = tmp_path / "m.model"
    trained.save(str(path), sep_limit=100)
    assert (tmp_path / "m.model.wv.vectors.npy").exists()
    model = mlup.load(path)
    assert nearest(model.wv) == nearest(trained.wv)
    assert numpy.array_equal(model.syn1neg, trained.syn1neg)
    model.save(str(tmp_path / "again.model"), sep_limit=100)
    assert nearest(models.Word2Vec.load(str(tmp_path / "again.model")).wv) == nearest(trained.wv)


@pytest.mark.parametrize("delivery", ["view", "path"])
def test_a_view_leaves_the_vectors_in_their_file(tmp_path: Path, delivery: str) -> None:
    """private(view) <= 2% of the vectors + words; private(path) = vectors + words. The estimate counts the file beside it."""
    path = write(tmp_path / "m.kv", 20_000, 600)
    array_bytes = 20_000 * 600 * 4
    took = measure_load(
        BINARIZER, path, delivery, answer_of="float(model.vectors[::9].sum())", imports=("numpy", "gensim.models")
    )
    words_bytes = 12 * path.stat().st_size
    kept_bytes = 0 if delivery == "view" else array_bytes
    assert kept_bytes * 0.98 <= took.settled_anon_bytes <= kept_bytes + 0.02 * array_bytes + words_bytes + SLACK_BYTES
    assert took.estimate is not None
    assert took.estimate["peak_anon_bytes"] + SLACK_BYTES >= took.peak_anon_bytes
    assert took.estimate["mapped_bytes"] >= (array_bytes if delivery == "view" else 0)


@pytest.mark.parametrize("mapping", list(MappingMode))
def test_whether_vectors_may_be_written_to(tmp_path: Path, mapping: MappingMode) -> None:
    """As the mapping says, and never into the file."""
    path = write(tmp_path / "m.kv")
    before = (tmp_path / "m.kv.vectors.npy").read_bytes()
    model = deserialize(PickleBinarizer, Given(path=path, delivery=Delivery.VIEW, mapping=mapping))
    assert model.vectors.flags.writeable is (mapping is not MappingMode.READ_ONLY)
    if model.vectors.flags.writeable:
        model.vectors[:] = 0
    assert (tmp_path / "m.kv.vectors.npy").read_bytes() == before


def test_a_file_that_is_missing_is_told(tmp_path: Path) -> None:
    """A pickle without its vectors is no model."""
    path = write(tmp_path / "m.kv")
    os.unlink(tmp_path / "m.kv.vectors.npy")
    with pytest.raises(ModelNotFoundError, match=r"m\.kv\.vectors\.npy"):
        mlup.load(path)


def test_content_without_a_path_is_refused(tmp_path: Path) -> None:
    """Nothing is looked for in the folder that happens to be current."""
    content = write(tmp_path / "m.kv").read_bytes()
    with pytest.raises(ModelBinarizationError, match="'vectors' lies in a file beside it: give the path"):
        mlup.load(content)


def test_a_name_leads_nowhere_else(tmp_path: Path) -> None:
    """An attribute's name becomes a part of a file's: one that leads out of the folder is refused."""
    vectors = models.KeyedVectors(4)
    vectors.__dict__["__numpys"] = ["/../../elsewhere"]
    (tmp_path / "m.kv").write_bytes(pickle.dumps(vectors))
    with pytest.raises(ModelBinarizationError, match=r"has the name '/\.\./\.\./elsewhere'"):
        mlup.load(tmp_path / "m.kv")


def test_a_load_by_path_is_estimated_with_what_lies_beside(tmp_path: Path) -> None:
    """estimate(path) of a model in two files - estimate(path) of its pickle alone = the file beside it."""
    path = write(tmp_path / "m.kv")
    whole = estimated(PickleBinarizer, Given(path=path), Delivery.PATH)
    beside = (tmp_path / "m.kv.vectors.npy").stat().st_size
    os.unlink(tmp_path / "m.kv.vectors.npy")
    alone = estimated(PickleBinarizer, Given(path=path), Delivery.PATH)
    assert whole is not None
    assert alone is not None
    assert whole.peak_anon_bytes - alone.peak_anon_bytes == beside
