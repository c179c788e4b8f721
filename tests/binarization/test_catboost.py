"""CatBoost: every delivery answers as the library's own load, in the memory of the file, and a damaged file is told before."""

from __future__ import annotations

import gc
import io
import struct
import weakref
from pathlib import Path
from typing import Any

import pytest
from given import Given, deserialize, detected
from measured import SLACK_BYTES, measure_load

import mlup_stream as mlup
from mlup_stream.constants import LoadedFile
from mlup_stream.delivery.kinds import Delivery
from mlup_stream.errors import ConfigError, CorruptModelError
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.trees.catboost import read_model
from mlup_stream.ml.binarization import catboost as binarizer_module
from mlup_stream.ml.binarization.catboost import CatBoostBinarizer
from mlup_stream.ml.inspection import inspect

pytestmark = pytest.mark.formats

catboost = pytest.importorskip("catboost", reason="needs the catboost extra")
numpy = pytest.importorskip("numpy", reason="the rows")

BINARIZER = "mlup_stream.ml.binarization.catboost.CatBoostBinarizer"
SETTINGS = {"iterations": 5, "depth": 4, "verbose": 0, "thread_count": 1, "allow_writing_files": False}

ROWS = numpy.random.default_rng(0).random((200, 4))
WORDS = numpy.array([[f"c{each[0] * 12:.0f}", f"d{each[1] * 2:.0f}", *each[2:]] for each in ROWS], object)
CLASSES = (ROWS[:, 0] * 3).astype(int)
KINDS: dict[str, tuple[str, dict[str, Any], Any, Any]] = {
    "regression": ("CatBoostRegressor", {}, ROWS, ROWS[:, 1]),
    "link function": ("CatBoostRegressor", {"loss_function": "Poisson"}, ROWS, ROWS[:, 1]),
    "classes": ("CatBoostClassifier", {}, ROWS, CLASSES),
    "lossguide": ("CatBoostRegressor", {"grow_policy": "Lossguide"}, ROWS, ROWS[:, 1]),
    "depthwise classes": ("CatBoostClassifier", {"grow_policy": "Depthwise"}, ROWS, CLASSES),
    "categories": ("CatBoostClassifier", {"cat_features": [0, 1]}, WORDS, CLASSES),
    "nothing learned": ("CatBoostRegressor", {"grow_policy": "Lossguide", "min_data_in_leaf": 1000}, ROWS, ROWS[:, 1]),
}


def write(path: Path, kind: str = "regression") -> Path:
    name, parameters, rows, labels = KINDS[kind]
    getattr(catboost, name)(**SETTINGS, **parameters).fit(rows, labels).save_model(str(path))
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("delivery", CatBoostBinarizer.deliveries)
def test_every_delivery_answers_as_the_library(tmp_path: Path, delivery: Delivery, kind: str) -> None:
    """The same class and the same numbers as `load_model(path)` gives, also by the link function and as labels."""
    path = write(tmp_path / "model.bin", kind)
    assert detected(LoadedFile(path=path)) is Format.CATBOOST
    rows = KINDS[kind][2]
    for name in ("CatBoost", KINDS[kind][0]):
        model = deserialize(CatBoostBinarizer, Given(path=path, delivery=delivery), model_class=name)
        expected = getattr(catboost, name)().load_model(str(path))
        assert type(model) is type(expected)
        assert numpy.array_equal(model.predict(rows), expected.predict(rows))
        assert model.get_params() == expected.get_params()


@pytest.mark.parametrize("given", [bytes, bytearray, memoryview, io.BytesIO])
def test_every_kind_of_content_is_taken(tmp_path: Path, given: Any) -> None:
    """Content without a path gives the same model, and what happens to it afterwards is nothing to the model."""
    content = bytearray(write(tmp_path / "m.cbm").read_bytes())
    model = deserialize(CatBoostBinarizer, Given(content if given is bytearray else given(content)))
    content[:] = bytes(len(content))
    assert numpy.array_equal(model.predict(ROWS), catboost.CatBoost().load_model(str(tmp_path / "m.cbm")).predict(ROWS))


def test_the_model_is_held_once(tmp_path: Path) -> None:
    """private(view) = file; CatBoost's own load from a path holds it twice. The estimate is within 5%."""
    import writers

    path = tmp_path / "m.cbm"
    writers.catboost(str(path), 32 << 20)
    took = measure_load(
        BINARIZER, path, "view", answer_of="float(model.predict([[1.0] * 16])[0])", imports=("numpy", "catboost")
    )
    size_bytes = path.stat().st_size
    assert size_bytes <= took.peak_anon_bytes <= size_bytes + SLACK_BYTES
    assert took.estimate is not None
    assert took.estimate["certainty"] == "exact"
    assert took.estimate["peak_anon_bytes"] == pytest.approx(took.peak_anon_bytes, rel=0.05)


def test_a_library_that_takes_a_view_gets_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the CatBoost after 1.2.10: the model holds the mapped file, which is closed with it and not before."""
    path = write(tmp_path / "m.cbm")
    given: list[Any] = []

    class Newer(catboost.CatBoost):  # type: ignore[misc]
        def load_model(self, *arguments: Any, blob: Any = None, **more: Any) -> Any:
            if blob is None:
                return super().load_model(*arguments, **more)
            given.append(type(blob))
            return super().load_model(blob=bytes(blob))

    monkeypatch.setattr(catboost, "CatBoost", Newer)
    binarizer_module._takes_views.cache_clear()
    try:
        loaded = Given(path=path, delivery=Delivery.VIEW)
        model = CatBoostBinarizer.build(loaded.artifact, loaded.terms()).model
        assert given[-1] is memoryview
        map_of = weakref.ref(model._mlup_stream_blob.obj)
        assert loaded.release()
        assert map_of() is not None
        assert numpy.isfinite(model.predict(ROWS)).all()
        del model
        gc.collect()
        assert map_of() is None
    finally:
        binarizer_module._takes_views.cache_clear()


def test_this_library_takes_bytes_alone_and_the_report_says_so(tmp_path: Path) -> None:
    """Where CatBoost refuses a memoryview, what the view leaves in the file is nothing, and why."""
    if binarizer_module._takes_views():
        pytest.skip("this CatBoost takes a memoryview")
    given = Given(path=write(tmp_path / "m.cbm"), delivery=Delivery.VIEW)
    deserialize(CatBoostBinarizer, given)
    assert given.placement is not None
    assert given.placement.mapped_bytes == 0
    assert "takes nothing but bytes" in given.placement.reasons[0]


def test_an_unknown_class_is_told_with_those_that_are_known(tmp_path: Path) -> None:
    """`model_class` is a name of CatBoost's four classes."""
    with pytest.raises(ConfigError, match="'CatBoostForest' is not valid; expected one of CatBoost, CatBoostClassifier"):
        mlup.load(write(tmp_path / "m.cbm"), binarization_kwargs={"model_class": "CatBoostForest"})


@pytest.mark.parametrize(
    ("kind", "field", "index", "code", "value"),
    [
        ("regression", "splits", 3, "<i", 10_000),
        ("regression", "splits", 3, "<i", -1),
        ("regression", "sizes", 1, "<i", 28),
        ("regression", "starts", 2, "<i", 1 << 20),
        ("regression", "packed", 1, "<H", 50_000),
        ("lossguide", "steps", 0, "<H", 60_000),
        ("lossguide", "leaf_ids", -1, "<I", 1 << 30),
    ],
)
def test_what_leads_out_of_the_trees_is_damage(
    tmp_path: Path, kind: str, field: str, index: int, code: str, value: int
) -> None:
    """A number that CatBoost would follow out of its arrays is told, whatever the delivery."""
    path = write(tmp_path / "m.cbm", kind)
    vector = getattr(read_model(path), field)
    content = bytearray(path.read_bytes())
    at = vector.start + (index % vector.size) * 4
    struct.pack_into(code, content, at, value)
    path.write_bytes(content)
    for delivery in CatBoostBinarizer.deliveries:
        with pytest.raises(CorruptModelError, match=r"m\.cbm: expected .* damaged"):
            mlup.load(path, delivery=delivery)


def test_a_table_of_categories_without_room_is_damage(tmp_path: Path) -> None:
    """CatBoost looks for a category until it finds nothing: in a full table, for good. Items beyond the table's are told too."""
    path = write(tmp_path / "m.cbm", "categories")
    good = path.read_bytes()
    hashes, items = read_model(path).tables[0]
    for number in range(hashes.size):
        at = hashes.start + 12 * number
        if good[at : at + 8] == b"\xff" * 8:
            continue
        path.write_bytes(good[: at + 8] + struct.pack("<I", items) + good[at + 12 :])
        with pytest.raises(CorruptModelError, match="categories that there are"):
            mlup.load(path)
        break
    full = bytearray(good)
    for number in range(hashes.size):
        struct.pack_into("<QI", full, hashes.start + 12 * number, number, 0)
    path.write_bytes(full)
    with pytest.raises(CorruptModelError, match="with room"):
        mlup.load(path)


def test_inspect_says_what_is_in_it(tmp_path: Path) -> None:
    """Trees, leaves, features and the objective, without CatBoost's help."""
    said = inspect(write(tmp_path / "m.cbm", "categories"))
    assert said["objective"] == "MultiClass"
    assert (said["outputs"], said["trees"], said["symmetric"]) == (3, 5, True)
    assert said["features"] == {"float": 2, "categorical": 2, "text": 0, "embedding": 0}
    assert inspect(write(tmp_path / "l.cbm", "lossguide"))["symmetric"] is False
