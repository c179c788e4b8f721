"""skops: the library's objects with their arrays in the file, after the library's own audit; what it refuses is refused."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from child import run_child
from given import Given, deserialize, detected, estimated
from measured import SLACK_BYTES, measure_load

from mlup_stream.constants import LoadedFile
from mlup_stream.delivery.kinds import Delivery, MappingMode
from mlup_stream.errors import ConfigError, CorruptModelError, MLupError, ModelBinarizationError, ModelLoadError
from mlup_stream.formats.frameworks.skops import read_skops
from mlup_stream.formats.kinds import Format
from mlup_stream.ml.binarization.skops import SkopsBinarizer
from mlup_stream.ml.inspection import inspect
from mlup_stream.units import MIB

pytestmark = [pytest.mark.formats, pytest.mark.filterwarnings("default")]

pytest.importorskip("skops", reason="needs the skops extra")
numpy = pytest.importorskip("numpy", reason="the arrays")

import mlup_stream as mlup  # noqa: E402  # after what decides whether to be here

BINARIZER = "mlup_stream.ml.binarization.skops.SkopsBinarizer"
DELIVERIES = SkopsBinarizer.deliveries
TREE = "sklearn.tree._tree.Tree"
SIZE_BYTES = 64 * MIB


@pytest.fixture(scope="module")
def skops() -> Any:
    import skops.io

    return skops.io


def dump(path: Path, content: Any, **options: Any) -> Path:
    import skops.io

    skops.io.dump(content, path, **options)
    return path


def things() -> dict[str, Any]:
    """What skops stores in members of their own, and beside them."""
    from scipy import sparse

    return {
        "matrix": numpy.arange(12, dtype="f4").reshape(3, 4),
        "fortran": numpy.asfortranarray(numpy.arange(12.0).reshape(3, 4)),
        "nothing": numpy.zeros((0, 3), "i8"),
        "text": numpy.array(["a", "bc"]),
        "scalar": numpy.float64(3.5),
        "objects": numpy.array([1, "a", None], dtype=object),
        "masked": numpy.ma.MaskedArray([1.0, 2.0], [True, False]),
        "records": numpy.zeros(3, [("x", "f4"), ("y", "i8")]),
        "sparse": sparse.csr_matrix(numpy.eye(3)),
        "bytes": b"some bytes",
        "bytearray": bytearray(b"more"),
        "dtype": numpy.dtype("f4"),
        "nested": [{"a": (1, 2.5, True, None)}, {3, 4}],
    }


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert_same(found[name], value)
    elif isinstance(expected, (list, tuple)):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif hasattr(expected, "toarray"):
        assert numpy.array_equal(found.toarray(), expected.toarray())
    elif isinstance(expected, numpy.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert (found.flags.c_contiguous, found.flags.f_contiguous) == (expected.flags.c_contiguous, expected.flags.f_contiguous)
        assert numpy.array_equal(found, expected)
    else:
        assert found == expected


def estimators() -> dict[str, Any]:
    from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingRegressor
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = numpy.random.default_rng(7).random((200, 5))
    labels = (rows[:, 0] > 0.5).astype(int)
    made = {
        "linear": LogisticRegression(),
        "pipeline": make_pipeline(StandardScaler(), LogisticRegression()),
        "forest": ExtraTreesClassifier(5, random_state=1),
        "boosting": HistGradientBoostingRegressor(max_iter=5),
    }
    return {name: each.fit(rows, labels) for name, each in made.items()}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("mapping", list(MappingMode))
@pytest.mark.parametrize("delivery", DELIVERIES)
def test_every_delivery_gives_what_the_library_gives(
    tmp_path: Path, skops: Any, delivery: Delivery, mapping: MappingMode, compression: int
) -> None:
    """The same objects, types and values; recognised by content; arrays can be written to as the mapping says."""
    path = dump(tmp_path / "model.bin", things(), compression=compression)
    assert detected(LoadedFile(path=path)) is Format.SKOPS
    trusted = skops.get_untrusted_types(file=path)
    options = {"trusted": trusted}
    model = deserialize(SkopsBinarizer, Given(path=path, delivery=delivery, mapping=mapping, options=options))
    assert_same(model, skops.load(path, trusted=trusted))
    assert model["matrix"].flags.writeable is (mapping is not MappingMode.READ_ONLY)


@pytest.mark.parametrize("name", ["linear", "pipeline", "forest", "boosting"])
def test_estimators_predict_the_same(tmp_path: Path, skops: Any, name: str) -> None:
    """Bit for bit, by every delivery, and written again they give the same schema."""
    model = estimators()[name]
    path = dump(tmp_path / "model.skops", model)
    trusted = skops.get_untrusted_types(file=path)
    rows = numpy.random.default_rng(8).random((20, 5))
    for delivery in DELIVERIES:
        found = deserialize(SkopsBinarizer, Given(path=path, delivery=delivery, options={"trusted": trusted}))
        assert numpy.array_equal(found.predict(rows), model.predict(rows)), delivery
    again = inspect(dump(tmp_path / "again.skops", found))
    assert again["types"] == inspect(path)["types"]
    assert again["arrays_total"] == inspect(path)["arrays_total"]


def test_what_is_not_trusted_is_refused_by_name(tmp_path: Path) -> None:
    """The error names the types and the setting; a list within the file changes nothing; the setting lets it load."""
    path = dump(tmp_path / "model.skops", estimators()["forest"])
    assert estimated(SkopsBinarizer, Given(path=path), Delivery.VIEW) is not None
    with pytest.raises(ModelBinarizationError, match=TREE) as caught:
        mlup.load(path)
    assert caught.value.untrusted == (TREE,)  # type: ignore[attr-defined]
    assert f'binarization_kwargs={{"trusted": ["{TREE}"]}}' in str(caught.value)
    assert not isinstance(caught.value, CorruptModelError)
    claims = changed(path, lambda schema: schema | {"trusted": [TREE]})
    with pytest.raises(ModelBinarizationError, match=TREE):
        mlup.load(claims)
    assert mlup.load(path, binarization_kwargs={"trusted": [TREE]}).n_estimators == 5
    for wrong in (True, TREE, [3]):
        with pytest.raises(ConfigError, match="expected a list such as"):
            mlup.load(path, binarization_kwargs={"trusted": wrong})


def changed(path: Path, change: Callable[[Any], Any], *, members: dict[str, bytes] | None = None) -> Path:
    """The same archive with another schema: what `change` returns, as JSON unless it is bytes."""
    out = path.with_name("changed.skops")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename == "schema.json":
                said = change(json.loads(content))
                content = said if isinstance(said, bytes) else json.dumps(said).encode()
            new.writestr(info.filename, (members or {}).get(info.filename, content))
    return out


def node(loader: str, module: str, name: str, **more: Any) -> dict[str, Any]:
    return {"__class__": name, "__module__": module, "__loader__": loader, **more}


def wrapped(content: Any) -> dict[str, Any]:
    return {**node("ListNode", "builtins", "list", content=[content]), "protocol": 2, "_skops_version": "0.16.0"}


def text(value: Any) -> dict[str, Any]:
    return node("JsonNode", "builtins", "str", content=json.dumps(value), is_json=True)


HOSTILE = {
    "a class that runs a program": node("ConstructorFromReduceNode", "subprocess", "Popen", content=text(["touch", "x"])),
    "a function": node("FunctionNode", "os", "system"),
    "a function by a type's loader": node("TypeNode", "os", "system"),
    "an estimator that is none": node("ObjectNode", "os", "system"),
    "a loader and a class that do not fit": node("ListNode", "os", "system", content=[]),
    "a method of another class": node(
        "MethodNode", "builtins", "str", content={"func": "format", "obj": node("ListNode", "builtins", "list", content=[])}
    ),
    "a method": node("MethodNode", "builtins", "str", content={"func": "format", "obj": text("x")}),
    "an operator of another module": node("OperatorFuncNode", "os", "system", attrs=text(["x"])),
    "a partial of a function": node(
        "PartialNode",
        "functools",
        "partial",
        content={"func": node("FunctionNode", "os", "system"), "args": text([]), "kwds": text({}), "namespace": text(None)},
    ),
    "a tree that is another class": node(
        "TreeNode", "os", "system", content=text({}), __reduce__={"args": text([])}
    ),
    "a loss that is a function": node(
        "LossNode", "os", "system", content=text({}), __reduce__={"args": text(["touch x"])}
    ),
    "keys made by a function": node(
        "DictNode", "builtins", "dict", content={"x": text(1)}, key_types=wrapped(node("TypeNode", "os", "system"))
    ),
    "an unknown loader": node("NoSuchNode", "builtins", "list", content=[]),
    "no loader": {"__class__": "list", "__module__": "builtins"},
    "a member that is not there": node("NdArrayNode", "numpy", "ndarray", type="numpy", file="nothing.npy"),
    "a member outside": node("BytesNode", "builtins", "bytes", file="../../etc/passwd"),
    "a member whose name is a list": node("BytesNode", "builtins", "bytes", file=["a.npy"]),
    "the schema as bytes": node("BytesNode", "builtins", "bytes", file="schema.json"),
    "an array of no type": node("NdArrayNode", "numpy", "ndarray", type="pickle", file="a.npy"),
    "a cached node of nothing": node("CachedNode", "builtins", "list", __id__=77),
    "an old protocol": {
        **wrapped(node("FunctionNode", "os", "system", content={"module_path": "os", "function": "system"})),
        "protocol": 0,
    },
    "a protocol that is true": {**wrapped(text(1)), "protocol": True},
    "a protocol to come": {**wrapped(text(1)), "protocol": 99},
    "a list for a schema": [1, 2],
    "a number for a schema": 7,
    "no JSON": b"{",
    "JSON that is nested too deep": b'{"content":' * 200_000,
    "nodes that are nested too deep": (json.dumps(node("ListNode", "builtins", "list"))[:-1] + ', "content": [').encode() * 5000
    + b"]}" * 5000,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_skops_refuses_is_refused(tmp_path: Path, skops: Any, what: str) -> None:
    """Crafted schemas: the library raises, we raise something typed, and neither has called anything."""
    good = dump(tmp_path / "good.skops", {"a": numpy.arange(3.0)})
    given = HOSTILE[what]
    schema = given if isinstance(given, (bytes, list, int)) or "protocol" in given else wrapped(given)
    path = changed(good, lambda _: schema)
    if "the schema as bytes" not in what:  # which skops would give, and never writes
        with pytest.raises(Exception):  # noqa: B017, PT011  # whatever skops raises
            skops.load(path)
    for delivery in ("view", "path", "bytes"):
        with pytest.raises(MLupError) as caught:
            mlup.load(path, delivery=delivery)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, ModelLoadError)


def test_nothing_is_imported_before_the_audit(tmp_path: Path) -> None:
    """A module that a refused file names stays unimported, whichever loader names it."""
    (tmp_path / "tells.py").write_text("raise SystemExit('imported')")
    good = dump(tmp_path / "good.skops", {"a": numpy.arange(3.0)})
    paths = {}
    for loader in ("ObjectNode", "TypeNode", "FunctionNode", "ConstructorFromReduceNode", "TupleNode", "DictNode", "LossNode"):
        content: Any = [] if loader == "TupleNode" else text({})
        schema = wrapped(
            node(loader, "tells", "Thing", content=content, key_types=text([]), __reduce__={"args": text([])})
        )
        paths[loader] = str(changed(good, lambda _, schema=schema: schema).rename(tmp_path / f"{loader}.skops"))
    said = run_child(
        """
        import sys, warnings
        warnings.simplefilter("ignore")
        sys.path.insert(0, folder)
        import mlup_stream as mlup
        said = {}
        for loader, path in paths.items():
            try:
                mlup.load(path)
            except mlup.errors.ModelLoadError as error:
                said[loader] = ["tells" in sys.modules, type(error).__name__]
        answer(said)
        """,
        folder=str(tmp_path),
        paths=paths,
    )
    assert said.pop("DictNode")[0] is False
    assert set(map(tuple, said.values())) == {(False, "ModelBinarizationError")}
    assert len(said) == len(paths) - 1


def test_an_audit_that_would_never_end_ends(tmp_path: Path) -> None:
    """Lists that share a list, 60 deep: 2**60 ways lead to the last, and each node is asked once."""
    levels = [{**node("ListNode", "builtins", "list", content=[text(1)]), "__id__": 1}]
    for number in range(2, 61):
        again = {**text(None), "__id__": number - 1}
        levels.append({**node("ListNode", "builtins", "list", content=[again, again]), "__id__": number})
    good = dump(tmp_path / "good.skops", {"a": numpy.arange(3.0)})
    schema = {**node("ListNode", "builtins", "list", content=levels), "protocol": 2}
    model = mlup.load(changed(good, lambda _: schema))
    assert model[59][0] is model[58]
    levels[0]["content"].append(node("FunctionNode", "os", "system"))
    with pytest.raises(ModelBinarizationError, match=r"os\.system"):
        mlup.load(changed(good, lambda _: schema))


def test_a_member_is_made_as_often_as_the_pass_over_the_schema_saw_it(tmp_path: Path) -> None:
    """A name with an escape in it hides from the pass, and what hides from the estimate is not made; bytes are no array."""
    good = dump(tmp_path / "good.skops", {"a": numpy.arange(3.0)})
    (name,) = (each for each in zipfile.ZipFile(good).namelist() if each.endswith(".npy"))
    array = node("NdArrayNode", "numpy", "ndarray", type="numpy", file=name)
    assert len(mlup.load(changed(good, lambda _: wrapped(array)))) == 1
    twice = {**node("ListNode", "builtins", "list", content=[array, array]), "protocol": 2}
    first, second = mlup.load(changed(good, lambda _: twice))
    assert numpy.array_equal(first, second)
    hidden = json.dumps(wrapped(array)).replace('"file"', '"\\u0066ile"').encode()
    with pytest.raises(CorruptModelError, match="each named plainly"):
        mlup.load(changed(good, lambda _: hidden))
    with pytest.raises(CorruptModelError, match="arrays where they belong"):
        mlup.load(changed(good, lambda _: wrapped(node("BytesNode", "builtins", "bytes", file=name))))


@pytest.mark.parametrize("shape", ["(99999999999,)", "(3, 99999999999)", "(-1,)"])
def test_a_shape_that_the_member_has_no_room_for_is_damage(tmp_path: Path, shape: str) -> None:
    """Nothing is allocated by it."""
    good = dump(tmp_path / "good.skops", {"a": numpy.arange(3.0)})
    (name,) = (each for each in zipfile.ZipFile(good).namelist() if each.endswith(".npy"))
    content = zipfile.ZipFile(good).read(name)
    lying = content.replace(b"(3,), }".ljust(40), f"{shape}, }}".encode().ljust(40)[:40])
    assert lying != content
    for delivery in DELIVERIES:
        with pytest.raises(CorruptModelError):
            mlup.load(changed(good, lambda schema: schema, members={name: lying}), delivery=delivery.value)


def test_arrays_of_objects_in_a_member_are_refused(tmp_path: Path) -> None:
    """skops has numpy refuse pickles; a file that brings one is not as skops writes it."""
    good = dump(tmp_path / "good.skops", {"a": numpy.arange(3.0)})
    (name,) = (each for each in zipfile.ZipFile(good).namelist() if each.endswith(".npy"))
    buffer = io.BytesIO()
    numpy.save(buffer, numpy.array([print, {}], dtype=object), allow_pickle=True)
    with pytest.raises(CorruptModelError, match="Python objects"):
        mlup.load(changed(good, lambda schema: schema, members={name: buffer.getvalue()}))


SUM = "float(sum(float(model[name].sum()) for name in sorted(model)))"


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arrays = {f"w{i}": numpy.arange(SIZE_BYTES // 64, dtype="f8") + i for i in range(8)}
    return dump(tmp_path_factory.mktemp("skops") / "m.skops", arrays)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the equations are about the kernel's figures in /proc")
def test_arrays_stay_in_the_file_where_mapping_is_asked_for(big: Path) -> None:
    """private(view, copy-on-write) = objects; private(stream) = arrays; estimated before."""
    for delivery, own_bytes in (("view", 0), ("stream", SIZE_BYTES)):
        took = measure_load(BINARIZER, big, delivery, answer_of=SUM, imports=("numpy", "skops.io"), mapping="copy-on-write")
        assert took.peak_anon_bytes <= own_bytes + SLACK_BYTES, delivery
        assert took.settled_anon_bytes <= own_bytes + SLACK_BYTES, delivery
        assert took.estimate is not None
        assert took.peak_anon_bytes <= took.estimate["peak_anon_bytes"] + SLACK_BYTES, delivery
        assert took.estimate["peak_anon_bytes"] <= took.peak_anon_bytes + 2 * SLACK_BYTES, delivery


def test_packing_aligns_the_arrays(big: Path, tmp_path: Path) -> None:
    """After it a load without any setting leaves all of them in the file."""
    mlup.pack(big, tmp_path / "packed.skops")
    given = Given(path=tmp_path / "packed.skops", delivery=Delivery.VIEW)
    model = deserialize(SkopsBinarizer, given)
    assert given.placement is not None
    assert (given.placement.mapped_bytes, given.placement.copied_bytes) == (SIZE_BYTES, 0)
    assert sorted(model) == [f"w{i}" for i in range(8)]
    del model
    big.with_name("m.skops").unlink()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the equations are about the kernel's figures in /proc")
def test_a_forest_takes_what_its_trees_do(tmp_path: Path) -> None:
    """peak(view) <= 1.10 x file of RSS, 1.05 of private memory once settled: arrays that a tree has copied are let go of."""
    path = tmp_path / "forest.skops"
    run_child(
        """
        import sys, warnings
        warnings.simplefilter("ignore")
        sys.path.append(profiling)
        import writers
        writers.skops_forest(path, 64 << 20)
        answer(True)
        """,
        profiling=str(Path(__file__).resolve().parents[2] / "profiling"),
        path=str(path),
    )
    size_bytes = path.stat().st_size
    took = measure_load(
        BINARIZER,
        path,
        "view",
        answer_of="float(model.predict_proba(__import__('numpy').ones((1, 16)))[0, 0])",
        imports=("numpy", "skops.io", "sklearn.ensemble"),
        trusted=[TREE],
    )
    assert took.peak_bytes <= 1.10 * size_bytes + SLACK_BYTES
    assert took.settled_anon_bytes <= 1.05 * size_bytes
    assert took.estimate is not None
    assert took.peak_anon_bytes <= took.estimate["peak_anon_bytes"]


def test_the_pass_over_the_schema_counts_what_is_there(tmp_path: Path) -> None:
    """Nodes and references as in the parsed schema, also where a window of it ends within one."""
    path = dump(tmp_path / "m.skops", {"filler": "x" * 3_000_000, **{f"a{i}": numpy.arange(2.0) for i in range(300)}})
    schema = json.loads(zipfile.ZipFile(path).read("schema.json"))

    def nodes(value: Any) -> int:
        if isinstance(value, list):
            return sum(map(nodes, value))
        if isinstance(value, dict):
            return ("__loader__" in value) + sum(map(nodes, value.values()))
        return 0

    with open(path, "rb") as file:
        found = read_skops(file, str(path))
    assert found.nodes == nodes(schema)
    assert set(found.references) == set(found.members)
    assert set(found.references.values()) == {1}
    assert found.version


def test_inspect_says_what_is_in_it(tmp_path: Path) -> None:
    """The types that the file names, by how often, and its arrays."""
    said = inspect(dump(tmp_path / "m.skops", estimators()["forest"]))
    assert said["types"][TREE] == 5
    assert said["types"]["sklearn.ensemble._forest.ExtraTreesClassifier"] == 1
    assert said["arrays_total"] >= 10
    assert said["arrays"][0]["stored"] is True
