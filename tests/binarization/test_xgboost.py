"""XGBoost: what is damaged is an error, where XGBoost itself would end the process; every kind of model passes the checks."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from child import run_child
from given import Given, deserialize

import mlup_stream as mlup
from mlup_stream.delivery.kinds import Optimize
from mlup_stream.errors import CorruptModelError, ModelBinarizationError
from mlup_stream.formats.trees import xgboost_json
from mlup_stream.formats.trees import xgboost_ubjson as xgboost_values
from mlup_stream.ml.binarization.trees.xgboost_checks import _Trees, check
from mlup_stream.ml.binarization.xgboost import XGBoostBinarizer

numpy = pytest.importorskip("numpy", reason="makes the samples")
xgboost = pytest.importorskip("xgboost", reason="trains and loads the models")

SAMPLES = numpy.random.default_rng(0).standard_normal((200, 6))
SAMPLES[:, 1] = numpy.random.default_rng(1).integers(0, 20, 200)
CLASSES = (SAMPLES.sum(axis=1) * 2).astype(int) % 3
BY_CATEGORY = {"feature_types": ["q", "c", "q", "q", "q", "q"], "enable_categorical": True}

SETTINGS: dict[str, dict[str, Any]] = {
    "regression": {},
    "several classes": {"objective": "multi:softprob", "num_class": 3},
    "dart": {"booster": "dart", "rate_drop": 0.5},
    "linear": {"booster": "gblinear", "max_depth": None},
    "categories": {"max_cat_to_onehot": 2},
    "several outputs": {"multi_strategy": "multi_output_tree", "tree_method": "hist"},
    "parallel trees": {"num_parallel_tree": 3, "subsample": 0.5},
    "pruned": {"tree_method": "exact", "gamma": 1.5},
    "one leaf": {"min_child_weight": 10_000},
}


@pytest.fixture(scope="module")
def boosters() -> dict[str, Any]:
    made = {}
    for kind, settings in SETTINGS.items():
        values = numpy.stack([CLASSES, CLASSES * 2], axis=1) if kind == "several outputs" else CLASSES
        data = xgboost.DMatrix(SAMPLES, values, **(BY_CATEGORY if kind == "categories" else {}))
        settings = {"max_depth": 4, "nthread": 1, **settings}
        made[kind] = xgboost.train({key: value for key, value in settings.items() if value is not None}, data, 3)
    return made


def answer(booster: Any, kind: str) -> Any:
    return booster.predict(xgboost.DMatrix(SAMPLES, **(BY_CATEGORY if kind == "categories" else {})))


@pytest.mark.parametrize("encoding", ["ubj", "json"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_every_kind_of_model_predicts_the_same(boosters: dict[str, Any], kind: str, encoding: str, tmp_path: Path) -> None:
    """What XGBoost writes passes the checks in both encodings and predicts the same to the last bit."""
    path = tmp_path / f"model.{encoding}"
    boosters[kind].save_model(path)
    expected = answer(boosters[kind], kind)
    for given in (Given(path=path), Given(path.read_bytes()), Given(path=path, optimize=Optimize.SPEED)):
        assert numpy.array_equal(answer(deserialize(XGBoostBinarizer, given), kind), expected)


def tree_of(booster: Any, change: Any) -> bytes:
    """The model as JSON, after `change` was made to its first tree and to the whole."""
    model = json.loads(bytes(booster.save_raw("json")))
    inner = model["learner"]["gradient_booster"]["model"]
    change(inner["trees"][0], inner, model["learner"])
    return json.dumps(model).encode()


def set_(key: str, index: int, value: Any) -> Any:
    return lambda tree, model, learner: tree[key].__setitem__(index, value)


LIES = {
    "a child that is not there": set_("left_children", 0, 99999),
    "a child that is its parent": set_("left_children", 0, 0),
    "a child before the first": set_("right_children", 0, -7),
    "one child": set_("right_children", -1, 1),
    "a child that is half a number": set_("left_children", 0, 1.5),
    "a parent that is another": set_("parents", 1, 2),
    "a feature that is not there": set_("split_indices", 0, 6),
    "a feature before the first": set_("split_indices", 0, -1),
    "a kind of split that is not there": set_("split_type", 0, 3),
    "a split by categories that has none": set_("split_type", 0, 1),
    "a threshold too few": lambda tree, model, learner: tree["split_conditions"].pop(),
    "a weight too many": lambda tree, model, learner: tree["base_weights"].append(1.0),
    "no statistics": lambda tree, model, learner: tree.pop("sum_hessian"),
    "nodes without end": lambda tree, model, learner: tree["tree_param"].update(num_nodes="999999999"),
    "no nodes": lambda tree, model, learner: tree["tree_param"].update(num_nodes="0"),
    "another's number": lambda tree, model, learner: tree.update(id=7),
    "trees without end": lambda tree, model, learner: model["gbtree_model_param"].update(num_trees="99999999"),
    "a tree of no output": lambda tree, model, learner: model["tree_info"].__setitem__(0, 5),
    "an end of an iteration that is not there": lambda tree, model, learner: model["iteration_indptr"].__setitem__(1, 500),
    "outputs without end": lambda tree, model, learner: learner["learner_model_param"].update(num_class="2000000000"),
    "no features": lambda tree, model, learner: learner["learner_model_param"].update(num_feature="0"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_typed_errors(boosters: dict[str, Any], lie: str) -> None:
    """Of each, XGBoost itself would read or allocate what it must not."""
    data = tree_of(boosters["regression"], LIES[lie])
    with pytest.raises(CorruptModelError, match=r"model\.json"):
        check(io.BytesIO(data), "model.json", is_json=True)
    with pytest.raises(CorruptModelError):
        deserialize(XGBoostBinarizer, Given(data))


def test_lies_about_categories_are_typed_errors(boosters: dict[str, Any]) -> None:
    """A set that lies outside, of a node that is not there, or up to a category that takes a gigabyte."""
    lies = {"categories_segments": 9999, "categories_sizes": 9999, "categories_nodes": 9999, "categories": 1 << 30}
    for key, value in lies.items():
        with pytest.raises(CorruptModelError):
            check(io.BytesIO(tree_of(boosters["categories"], set_(key, 0, value))), "model.json", is_json=True)


def forest(trees: int) -> bytes:
    """A model in UBJSON of `trees` trees, of various numbers of nodes."""
    settings = {"max_depth": 4, "nthread": 1, "subsample": 0.3, "seed": 1}
    return bytes(xgboost.train(settings, xgboost.DMatrix(SAMPLES, CLASSES), trees).save_raw("ubj"))


def test_trees_that_are_alike_are_told_by_their_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 300 trees of several sizes at most four are read value by value: the first, and where its number takes more bytes."""
    alike = []
    taken = _Trees.add_alike

    def count(self: _Trees, trees: Any) -> None:
        alike.extend(trees.nodes)
        taken(self, trees)

    monkeypatch.setattr(_Trees, "add_alike", count)
    check(io.BytesIO(forest(300)), "model.ubj", is_json=False)
    assert len(alike) >= 296
    assert len(set(alike)) > 3


def numbers_of(data: bytes, key: str, tree: int) -> int:
    """Where the numbers of a list of the `tree`th tree begin."""
    at = -1
    for _ in range(tree + 1):
        at = data.index(b"L" + struct.pack(">q", len(key)) + key.encode() + b"[$", at + 1)
    return at + 9 + len(key) + 4 + 9


LATE_LIES = {
    "a child that is not there": ("left_children", 0, ">i", 9999),
    "a child of the next tree": ("left_children", 0, ">i", 31),
    "a child before the first": ("right_children", 0, ">i", -7),
    "a child that is its sibling": ("left_children", 0, ">i", 2),
    "a parent that is another": ("parents", 4, ">i", 2),
    "one child": ("right_children", 0, ">i", -1),
    "a feature that is not there": ("split_indices", 0, ">i", 6),
    "a feature before the first": ("split_indices", 0, ">i", -1),
    "a split by categories that has none": ("split_type", 0, ">B", 1),
    "a kind of split that is not there": ("split_type", 0, ">B", 3),
    "a list that is longer": ("sum_hessian", -8, ">q", 1 << 40),
    "a list of another type": ("sum_hessian", -11, ">c", b"D"),
    "another key": ("loss_changes", -14, ">c", b"x"),
}


@pytest.mark.parametrize("lie", LATE_LIES)
def test_lies_in_a_tree_that_is_like_the_others_are_typed_errors(lie: str) -> None:
    """What is wrong in the 40th of 60 trees is found as what is wrong in the first."""
    key, offset, form, value = LATE_LIES[lie]
    data = bytearray(forest(60))
    check(io.BytesIO(data), "model.ubj", is_json=False)
    struct.pack_into(form, data, numbers_of(bytes(data), key, 40) + offset, value)
    with pytest.raises(CorruptModelError):
        check(io.BytesIO(data), "model.ubj", is_json=False)


def test_trees_that_are_longer_than_the_window_are_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees whose lists go on behind the window and the buffer; cut off anywhere they are errors."""
    monkeypatch.setattr(xgboost_values, "WINDOW_BYTES", 1024)
    generator = numpy.random.default_rng(0)
    data = xgboost.DMatrix(generator.standard_normal((2000, 4)), generator.standard_normal(2000))
    booster = xgboost.train({"max_depth": 12, "min_child_weight": 0, "nthread": 1}, data, 3)
    model = bytes(booster.save_raw("ubj"))
    assert len(model) > 3 * 10 * 1024
    check(io.BytesIO(model), "model.ubj", is_json=False)
    for cut in range(1, len(model), len(model) // 60):
        with pytest.raises(CorruptModelError):
            check(io.BytesIO(model[:cut]), "model.ubj", is_json=False)


@pytest.mark.parametrize("part_bytes", [1, 20, 1 << 18])
def test_whole_numbers_are_read_as_by_int(part_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of 1 to 18 digits with and without a sign; anything else is left to who reads them one by one."""
    monkeypatch.setattr(xgboost_json, "_LONG_PART_BYTES", part_bytes)
    numbers = [sign * int("1234567890123456789"[:digits]) for digits in range(1, 19) for sign in (1, -1)] + [0, -1, 2147483647]
    assert list(xgboost_json._whole_numbers(",".join(map(str, numbers)).encode()) or ()) == numbers
    for other in (b"1.5", b"1,,2", b"1,", b",1", b"-", b"1,-", b"1-2", b"--1", b"1e3", b" 1", b"1234567890123456789", b""):
        assert xgboost_json._whole_numbers(other) is None


def test_lengths_are_held_against_the_file() -> None:
    """A key, a text, a list and a count of 2**62 are errors before anything is allocated, and so is deep nesting."""
    huge = b"L" + struct.pack(">q", 1 << 62)
    key = b"L" + struct.pack(">q", 1) + b"a"
    for damaged in (huge, key + b"S" + huge, key + b"[$d#" + huge, key + b"[#" + huge, key + b"[" * 100_000):
        with pytest.raises(CorruptModelError):
            check(io.BytesIO(b"{" + damaged + b"}"), "model.ubj", is_json=False)
    for damaged in (b'{"a":' * 100_000, b'{"a":' + b"[" * 100_000, b'{"a":1,"a":2}', b'{"a":1} {', b'{"a":[1,2'):
        with pytest.raises(CorruptModelError):
            check(io.BytesIO(damaged), "model.json", is_json=True)


def test_mutations_do_not_end_the_process(boosters: dict[str, Any], tmp_path: Path) -> None:
    """Of 600 mutated models each loads and predicts, or is a typed error; the child that does this is not killed."""
    for index, booster in enumerate(boosters.values()):
        for encoding in ("ubj", "json"):
            booster.save_model(tmp_path / f"{index}.{encoding}")
    outcome = run_child(
        """
        import pathlib, random, resource, warnings
        warnings.simplefilter("ignore")
        import numpy, xgboost
        from mlup_stream.delivery.loaded_file import LoadedFile
        from mlup_stream.errors import MLupError
        from mlup_stream.ml.binarization.xgboost import XGBoostBinarizer
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        source, refused = random.Random(0), 0
        models = [path.read_bytes() for path in sorted(pathlib.Path(folder).iterdir())]
        for index in range(600):
            data = bytearray(models[index % len(models)])
            for _ in range(source.choice((1, 1, 3))):
                data[source.randrange(len(data))] = source.choice((source.randrange(256), 0, 127, 255, 0x31, 0x2c))
            try:
                model = XGBoostBinarizer.deserialize(LoadedFile(bytes(data)))
                model.predict(xgboost.DMatrix(numpy.ones((2, 6))), validate_features=False)
            except (MLupError, xgboost.core.XGBoostError, ValueError):
                refused += 1
        answer(refused)
        """,
        folder=str(tmp_path),
        environment={"OMP_NUM_THREADS": "1"},
    )
    assert 0 < outcome < 600


def _outputs_of_before_3_2(path: Path) -> None:
    """A model whose trees have two outputs, as XGBoost 2.1 to 3.1 wrote it: without lists of leaves."""
    numbers = numpy.random.default_rng(7)
    data = xgboost.DMatrix(numbers.random((80, 4)), numbers.random((80, 2)))
    parameters = {"multi_strategy": "multi_output_tree", "tree_method": "hist", "max_depth": 2}
    xgboost.train(parameters, data, 3).save_model(path)
    model = json.loads(path.read_text())
    model["version"] = [3, 0, 5]
    for tree in model["learner"]["gradient_booster"]["model"]["trees"]:
        for key in ("leaf_weights", "loss_changes", "sum_hessian"):
            tree.pop(key, None)
        tree["right_children"] = [
            -1 if left == -1 else right for left, right in zip(tree["left_children"], tree["right_children"], strict=True)
        ]
    path.write_text(json.dumps(model))


def test_trees_of_several_outputs_in_the_old_layout_are_told_as_such(tmp_path: Path) -> None:
    """XGBoost 3.2 follows a null pointer in them; the error says which version reads them, and does not call them damaged."""
    path = tmp_path / "m.json"
    _outputs_of_before_3_2(path)
    with pytest.raises(ModelBinarizationError, match=r'layout of XGBoost before 3\.2.*"xgboost<3\.2"') as refused:
        mlup.load(path)
    assert not isinstance(refused.value, CorruptModelError)
    check(io.BytesIO(path.read_bytes()), "m.json", is_json=True, library=(3, 1))  # which reads it


def test_trees_of_one_and_of_several_outputs_are_no_model(tmp_path: Path) -> None:
    """A bit that was flipped in one tree's `size_leaf_vector` ended the process when it predicted."""
    path = tmp_path / "m.json"
    data = xgboost.DMatrix(numpy.random.default_rng(7).random((80, 4)), numpy.arange(80) % 2)
    xgboost.train({"tree_method": "hist", "max_depth": 2}, data, 3).save_model(path)
    model = json.loads(path.read_text())
    model["learner"]["gradient_booster"]["model"]["trees"][1]["tree_param"]["size_leaf_vector"] = "2"
    path.write_text(json.dumps(model))
    with pytest.raises(CorruptModelError, match="base_weights"):
        mlup.load(path)


def test_what_xgboost_refuses_of_a_whole_model_is_no_damage(tmp_path: Path) -> None:
    """Its own reason, without its source files and stack trace."""
    path = tmp_path / "m.json"
    data = xgboost.DMatrix(numpy.random.default_rng(7).random((80, 4)), numpy.arange(80) % 2)
    xgboost.train({"tree_method": "hist", "max_depth": 2}, data, 3).save_model(path)
    model = json.loads(path.read_text())
    model["learner"]["objective"]["name"] = "reg:nonsense"
    path.write_text(json.dumps(model))
    with pytest.raises(ModelBinarizationError, match="reg:nonsense") as refused:
        mlup.load(path)
    assert not isinstance(refused.value, CorruptModelError)
    assert "Stack trace" not in str(refused.value)
    assert ".cc:" not in str(refused.value)


def test_a_leaf_without_its_vector_is_damage(tmp_path: Path) -> None:
    """Where leaves are vectors in a list of their own, each says which is its own: -1 and one too many end the process."""
    path = tmp_path / "m.json"
    numbers = numpy.random.default_rng(7)
    data = xgboost.DMatrix(numbers.random((80, 4)), numbers.random((80, 2)))
    xgboost.train({"multi_strategy": "multi_output_tree", "tree_method": "hist", "max_depth": 2}, data, 3).save_model(path)
    model = json.loads(path.read_text())
    tree = model["learner"]["gradient_booster"]["model"]["trees"][1]
    leaves = [index for index, left in enumerate(tree["left_children"]) if left == -1]
    for wrong in (-1, len(leaves), 2**31 - 1):
        tree["right_children"][leaves[-1]] = wrong
        path.write_text(json.dumps(model))
        with pytest.raises(CorruptModelError, match="leaves without children"):
            mlup.load(path)
    tree["right_children"][leaves[-1]] = len(leaves) - 1
    path.write_text(json.dumps(model))
    assert mlup.load(path).predict(data).shape == (80, 2)
