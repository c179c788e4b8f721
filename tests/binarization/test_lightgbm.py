"""LightGBM: what is damaged is an error, where LightGBM itself would end the process, and content is not copied once more."""

from __future__ import annotations

import io
import random
import re
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from child import run_child
from given import Given, deserialize
from measured import SLACK_BYTES, measure_load

import mlup_stream as mlup
from mlup_stream.delivery.kinds import Delivery
from mlup_stream.errors import ConfigError, CorruptModelError
from mlup_stream.formats.trees.lightgbm import Checks, read_header, walk
from mlup_stream.ml.binarization.lightgbm import LightGBMBinarizer
from mlup_stream.ml.binarization.trees import lightgbm_checks
from mlup_stream.ml.binarization.trees.lightgbm_checks import ArrayChecks, _are_forest
from mlup_stream.units import MIB

lightgbm = pytest.importorskip("lightgbm", reason="trains and loads the models")
numpy = pytest.importorskip("numpy", reason="makes the samples")

SAMPLES = numpy.random.default_rng(0).random((500, 4))
SAMPLES[:, 1] = numpy.random.default_rng(1).integers(0, 20, 500)
CLASSES = (SAMPLES[:, 0] * 3 + SAMPLES[:, 1] % 5).astype(int) % 3


def trained(columns: list[int] | str = "auto", **parameters: Any) -> str:
    data = lightgbm.Dataset(SAMPLES, CLASSES.astype(float), categorical_feature=columns)
    booster = lightgbm.train({"verbose": -1, "min_data_in_leaf": 5, "num_leaves": 8, "num_threads": 1, **parameters}, data, 4)
    return str(booster.model_to_string())


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {
        "regression": trained(),
        "several classes": trained(objective="multiclass", num_class=3),
        "categories": trained([1], min_data_per_group=2, cat_smooth=1),
        "linear": trained(linear_tree=True),
        "dart": trained(boosting="dart"),
        "one leaf": trained(min_data_in_leaf=400),
    }


KINDS = ["regression", "several classes", "categories", "linear", "dart", "one leaf"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_predicts_the_same(texts: dict[str, str], kind: str, tmp_path: Path) -> None:
    """By path and by content of every kind, a model predicts what LightGBM's own does."""
    path = tmp_path / "model.txt"
    path.write_text(texts[kind])
    expected = lightgbm.Booster(model_str=texts[kind]).predict(SAMPLES)
    content = path.read_bytes()
    Old = namedtuple("LoadedFile", ("raw_data", "path"))
    for given in (
        Given(path=path),
        Given(path=path, delivery=Delivery.BYTES),
        Given(content),
        Given(bytearray(content)),
        Given(memoryview(content)),
        Given(io.BytesIO(content)),
        Given(texts[kind]),
        Given(io.StringIO(texts[kind])),
        Old(b"", str(path)),
        Old(texts[kind], None),
    ):
        assert numpy.array_equal(deserialize(LightGBMBinarizer, given).predict(SAMPLES), expected)
    assert LightGBMBinarizer.is_this_type(Old(b"", str(path))) == 1.0


def test_pandas_categories_survive() -> None:
    """What LightGBM keeps of pandas in the last line is found in content too."""
    text = trained()
    text = re.sub(r"\npandas_categorical:.*\n", '\npandas_categorical:[["a", "b"]]\n', text)
    assert '[["a", "b"]]' in text
    assert deserialize(LightGBMBinarizer, Given(text.encode())).pandas_categorical == [["a", "b"]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_walk_knows_what_the_text_says(texts: dict[str, str], kind: str) -> None:
    """Trees, classes and features, from the header alone and from the whole."""
    booster = lightgbm.Booster(model_str=texts[kind])
    whole = walk(io.BytesIO(texts[kind].encode()), kind)
    assert (whole.trees, whole.features) == (booster.num_trees(), booster.num_feature())
    assert whole.classes == booster.num_model_per_iteration()
    assert read_header(io.BytesIO(texts[kind].encode()), kind) == whole


def test_truncation_anywhere_is_a_typed_error(texts: dict[str, str]) -> None:
    """Cut off anywhere before the end of the parameters, a model is damaged, but for its statistics."""
    for kind in KINDS:
        data = texts[kind].encode()
        end = data.index(b"end of parameters")
        for cut in {*range(1, data.index(b"end of trees"), 11), *range(data.index(b"parameters:") + 11, end, 11)}:
            with pytest.raises(CorruptModelError):
                deserialize(LightGBMBinarizer, Given(data[:cut]))


def changed(text: str, key: str, change: Any) -> bytes:
    """The text with the first list of `key` changed, and `tree_sizes` made to fit."""
    text = re.sub(rf"(?m)^{key}=(.*)$", lambda found: f"{key}={change(found[1])}", text, count=1)
    trees = re.split(r"(?m)^(?=Tree=|end of trees)", text)[1:-1]
    return re.sub(r"tree_sizes=.*", "tree_sizes=" + " ".join(str(len(each)) for each in trees), text, count=1).encode()


def first(value: str) -> Any:
    return lambda values: " ".join([value, *values.split(" ")[1:]])


LIES = {
    "a feature that is not there": ("split_feature", first("99999999")),
    "a feature before the first": ("split_feature", first("-5")),
    "a child that is not there": ("left_child", first("9999999")),
    "a leaf that is not there": ("left_child", first("-9999999")),
    "a child that is its parent": ("left_child", first("0")),
    "a child that is no number": ("right_child", first("x")),
    "a value too few": ("leaf_value", lambda values: values.split(" ", 1)[1]),
    "a value too many": ("threshold", lambda values: values + " 1"),
    "no values": ("leaf_value", lambda values: ""),
    "letters": ("leaf_value", first("abc")),
    "two signs": ("leaf_value", first("--3")),
    "no digit before the point": ("internal_value", first(".5")),
    "a strange shrinkage": ("shrinkage", lambda value: ".1"),
    "leaves without end": ("num_leaves", lambda value: "9999999999"),
    "sets of categories that are not there": ("num_cat", lambda value: "7"),
    "a decision by category": ("decision_type", first("1")),
    "a decision that is no whole number": ("decision_type", first("2e-1")),
    "no tree in an iteration": ("num_tree_per_iteration", lambda value: "0"),
    "classes without end": ("num_class", lambda value: "100000000"),
    "features without end": ("max_feature_idx", lambda value: "99999999999"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_typed_errors(lie: str) -> None:
    """Each of these ends the process, or predicts nonsense, when LightGBM itself is given it."""
    key, change = LIES[lie]
    data = changed(trained(), key, change)
    for checks in (Checks(), ArrayChecks()):
        with pytest.raises(CorruptModelError, match=r"model\.txt"):
            walk(io.BytesIO(data), "model.txt", checks)
    with pytest.raises(CorruptModelError):
        deserialize(LightGBMBinarizer, Given(data))


def test_sizes_that_lie_are_typed_errors() -> None:
    """`tree_sizes` is where LightGBM begins to read each tree."""
    text = trained()
    for sizes in ("99999999999", "1 2 3 4", "x", "-1 -1 -1 -1"):
        with pytest.raises(CorruptModelError):
            walk(io.BytesIO(re.sub(r"tree_sizes=.*", f"tree_sizes={sizes}", text).encode()), "model.txt")


def test_an_endless_line_is_not_read_whole() -> None:
    """A line is read up to a bound."""

    class Endless(io.RawIOBase):
        read_bytes = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            buffer[:] = b"1" * len(buffer)
            self.read_bytes += len(buffer)
            return len(buffer)

    raw = Endless()
    with pytest.raises(CorruptModelError, match="lines of at most"):
        walk(io.BufferedReader(raw, 1 << 20), "model.txt")  # type: ignore[arg-type]
    assert raw.read_bytes <= 65 * MIB


def test_the_fast_check_of_children_is_the_slow_one() -> None:
    """Both agree on trees and on what is not quite one."""
    source = random.Random(0)
    for _ in range(300):
        leaves = source.randrange(2, 9)
        below = [*range(1, leaves - 1), *range(-leaves, 0)]
        source.shuffle(below)
        if source.random() < 0.5:
            below[source.randrange(len(below))] = source.randrange(-leaves - 1, leaves + 1)
        left, right = (" ".join(map(str, half)).encode() for half in (below[: leaves - 1], below[leaves - 1 :]))
        expected = Checks().are_children(left, right, leaves)
        assert ArrayChecks().are_children(left, right, leaves) == expected
        assert _are_forest(numpy.array(below), numpy.array([leaves - 1])) == expected
        # A good tree before it and after it does not hide what is wrong.
        good = [1, -3, -1, -2]
        assert _are_forest(numpy.array([*good, *below, *good]), numpy.array([2, leaves - 1, 2])) == expected


def test_ordinary_trees_are_checked_together(texts: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What LightGBM writes for the commonest models passes in blocks: otherwise each small tree takes ten times as long."""
    import mlup_stream.formats.trees.lightgbm as walker

    for kind in ("regression", "several classes", "dart"):
        with monkeypatch.context() as patch:
            patch.setattr(walker, "_tree", lambda *_: pytest.fail("a tree was walked line by line"))
            walk(io.BytesIO(texts[kind].encode()), kind, ArrayChecks())


def outcome_of(data: bytes, checks: Checks | None) -> Any:
    try:
        return walk(io.BytesIO(data), "model.txt", checks)
    except CorruptModelError:
        return None


def test_the_fast_walk_accepts_what_the_slow_one_accepts(texts: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On 3000 damaged models of every kind, and with blocks of one tree and of many: the same result, or none."""
    source = random.Random(1)
    alphabet = b"0123456789-+.eE =\n\r\x00x"
    for _ in range(3000):
        data = bytearray(texts[source.choice(KINDS)].encode())
        begin = data.index(b"tree_sizes")
        for _ in range(source.randrange(1, 4)):
            place = source.randrange(begin, len(data))
            kind = source.randrange(3)
            if kind == 0:
                data[place] = source.choice(alphabet)
            elif kind == 1:
                del data[place : place + source.randrange(1, 4)]
            else:
                data[place:place] = bytes(source.choice(alphabet) for _ in range(source.randrange(1, 4)))
        with monkeypatch.context() as patch:
            patch.setattr(lightgbm_checks, "_BLOCK_BYTES", source.choice([1, 900, 1500, 256 * 1024]))
            assert outcome_of(bytes(data), ArrayChecks()) == outcome_of(bytes(data), None)


def test_mutations_do_not_end_the_process(texts: dict[str, str]) -> None:
    """Of 400 mutated models each loads and predicts, or is a typed error; the child that does this is not killed."""
    outcome = run_child(
        """
        import random, numpy, lightgbm
        from mlup_stream.delivery.loaded_file import LoadedFile
        from mlup_stream.errors import MLupError
        from mlup_stream.ml.binarization.lightgbm import LightGBMBinarizer
        class Silent:
            info = warning = staticmethod(lambda message: None)
        lightgbm.register_logger(Silent())
        source, refused = random.Random(0), 0
        for index in range(400):
            data = bytearray(texts[index % len(texts)].encode())
            for _ in range(source.choice((1, 1, 3))):
                data[source.randrange(len(data))] = source.choice(b"0123456789-.e \\n=") if index % 2 else source.randrange(256)
            try:
                LightGBMBinarizer.deserialize(LoadedFile(bytes(data))).predict(numpy.ones((2, 4)))
            except (MLupError, lightgbm.basic.LightGBMError, ValueError):
                refused += 1
        answer(refused)
        """,
        texts=list(texts.values()),
        environment={"OMP_NUM_THREADS": "1"},
    )
    assert 0 < outcome < 400


def test_it_has_no_options(texts: dict[str, str]) -> None:
    """An option that does not exist is an error."""
    with pytest.raises(ConfigError):
        deserialize(LightGBMBinarizer, Given(texts["regression"]), num_threads=1)


@pytest.fixture(scope="module")
def big_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """64 MB of text: the trees of one model, over and over."""
    path = tmp_path_factory.mktemp("big") / "model.txt"
    samples = numpy.random.default_rng(0).random((20_000, 20))
    data = lightgbm.Dataset(samples, samples[:, 0] + numpy.random.default_rng(1).random(20_000))
    parameters = {"verbose": -1, "num_leaves": 500, "min_data_in_leaf": 1, "num_threads": 1}
    text = lightgbm.train(parameters, data, 3).model_to_string()
    head, *trees, tail = re.split(r"(?m)^(?=Tree=|end of trees)", text)
    count = 64 * MIB // max(map(len, trees))
    trees = [re.sub(r"^Tree=\d+", f"Tree={index}", trees[index % len(trees)]) for index in range(count)]
    with path.open("w") as file:
        file.write(re.sub(r"tree_sizes=.*", "tree_sizes=" + " ".join(str(len(each)) for each in trees), head))
        file.writelines(trees)
        file.write(tail)
    yield path
    path.unlink()


@pytest.mark.big
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the equations are about the kernel's figures")
@pytest.mark.parametrize("delivery", ["path", "bytes"])
def test_the_peak_is_the_text_and_the_model(big_file: Path, delivery: str) -> None:
    """peak = text + model + slack, of `bytes` too: the copy is the text that LightGBM reads. As estimated, or less."""
    took = measure_load(
        "mlup_stream.ml.binarization.lightgbm.LightGBMBinarizer",
        big_file,
        delivery,
        answer_of="float(model.predict(__import__('numpy').ones((1, 20)))[0])",
        imports=("numpy",),
    )
    size_bytes = big_file.stat().st_size
    model_bytes = took.settled_bytes
    assert model_bytes <= 0.75 * size_bytes
    assert took.peak_bytes <= size_bytes + model_bytes + 4 * SLACK_BYTES
    assert took.estimate is not None
    assert took.peak_bytes <= took.estimate["peak_anon_bytes"]
    assert took.settled_bytes <= took.estimate["settled_anon_bytes"]


def _text_of(tmp_path: Path) -> str:
    rows = numpy.random.default_rng(3).random((200, 4))
    booster = lightgbm.train({"verbosity": -1, "num_leaves": 6}, lightgbm.Dataset(rows, rows[:, 0]), 4)
    return str(booster.model_to_string())


@pytest.mark.parametrize("delivery", ["view", "path", "bytes"])
@pytest.mark.parametrize("of", ["2.1", "2.0", "2.0 on Windows"])
def test_models_without_end_of_trees_load(tmp_path: Path, of: str, delivery: Any) -> None:
    """LightGBM wrote none before 2.2, and no `tree_sizes` before 2.1: such a model answers as its library makes it answer."""
    text = _text_of(tmp_path)
    text = re.sub(r"\nend of trees\n.*", "\nfeature importances:\nColumn_0=9\n", text, flags=re.DOTALL)
    text = re.sub(r"version=.*\n", "version=v2\n" if of == "2.1" else "", text)
    if of.startswith("2.0"):
        text = re.sub(r"tree_sizes=.*\n", "", text)
    path = tmp_path / "m.txt"
    path.write_bytes(text.replace("\n", "\r\n" if "Windows" in of else "\n").encode())
    rows = numpy.random.default_rng(4).random((5, 4))
    assert (mlup.load(path, delivery=delivery).predict(rows) == lightgbm.Booster(model_file=str(path)).predict(rows)).all()


def test_line_ends_of_windows_are_told_as_such(tmp_path: Path) -> None:
    """Where `tree_sizes` counts them, LightGBM ends the process; the error says what they are, and how to turn them back."""
    path = tmp_path / "m.txt"
    path.write_bytes(_text_of(tmp_path).replace("\n", "\r\n").encode())
    with pytest.raises(CorruptModelError, match=r"line ends of Windows.*dos2unix"):
        mlup.load(path)


@pytest.mark.parametrize("damage", ["blank line", "no equals sign", "too many lines", "return"])
def test_what_the_library_does_not_see_of_a_tree_is_not_there(tmp_path: Path, damage: str) -> None:
    """It reads up to a blank line, 22 lines at most, and a name up to the next equals sign: a key behind that is missing."""
    text = _text_of(tmp_path)
    before, after = text.split("leaf_value=", 1)
    many = "".join(f"x{i}=1\n" for i in range(22))
    inserted = {"blank line": "\n", "no equals sign": "x\n", "too many lines": many}.get(damage, "")
    if damage == "return":
        after = after.replace(" ", "\r", 1)
    text = re.sub(r"tree_sizes=.*\n", "", f"{before}{inserted}leaf_value={after}")
    path = tmp_path / "m.txt"
    path.write_bytes(text.encode())
    with pytest.raises(CorruptModelError, match="carriage return" if damage == "return" else "tree 0"):
        mlup.load(path)
