"""What is said of a pickle that cannot be built: damaged only where that is proven, otherwise why, and what helps."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import functools
import io
import pickle
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mlup_stream as mlup
from mlup_stream.errors import CorruptModelError, MissingClassError, ModelBinarizationError
from mlup_stream.formats.pickles.damage import damage_in

numpy = pytest.importorskip("numpy", reason="the extra `numpy` is not installed")
joblib = pytest.importorskip("joblib", reason="writes joblib files")

MODULE = "models_of_yesterday"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType(MODULE)
    monkeypatch.setitem(sys.modules, MODULE, module)
    return module


def shown_by(kind: type[Any], module: types.ModuleType) -> type[Any]:
    kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
    setattr(module, kind.__name__, kind)
    return kind


def namedtuple_grows(module: types.ModuleType) -> tuple[Any, Callable[[], None]]:
    model = shown_by(collections.namedtuple("Pair", "a b"), module)(1, 2)
    return model, lambda: setattr(module, "Pair", collections.namedtuple("Pair", "a b c"))


def constructor_wants_more(module: types.ModuleType) -> tuple[Any, Callable[[], None]]:
    class Model:
        def __reduce__(self) -> Any:
            return type(self), (1,)

        def __init__(self, one: int) -> None:
            pass

    def newer() -> None:
        class Model:
            def __init__(self, one: int, two: int) -> None:
                pass

        module.Model = Model  # type: ignore[attr-defined]

    return shown_by(Model, module)(1), newer


def code_of_another_python(module: types.ModuleType) -> tuple[Any, Callable[[], None]]:
    def make_code(*fields: Any) -> Any:
        return types.CodeType(*fields)

    class Function:
        def __reduce__(self) -> Any:
            return make_code, (0, 0, b"")

    shown_by(make_code, module)  # type: ignore[arg-type]  # as cloudpickle has one
    return shown_by(Function, module)(), lambda: None


def value_that_is_no_number(module: types.ModuleType) -> tuple[Any, Callable[[], None]]:
    class Number:
        def __reduce__(self) -> Any:
            return int, ("x",)

    return shown_by(Number, module)(), lambda: None


def state_that_is_another(module: types.ModuleType) -> tuple[Any, Callable[[], None]]:
    class Tree:
        def __setstate__(self, state: Any) -> None:
            names = ", ".join(f"'a_field_{number}'" for number in range(30))
            raise ValueError(f"node array has an incompatible dtype:\n- expected: {{{names}}}\n- got     : {{{names}, 'last'}}")

    tree = shown_by(Tree, module)()
    tree.nodes, tree._sklearn_version = [1], "0.19.2"
    return tree, lambda: None


CHANGES = {
    namedtuple_grows: r"TypeError: .*__new__\(\) missing 1 required positional argument: 'c'",
    constructor_wants_more: "TypeError: .* missing 1 required positional argument: 'two'",
    code_of_another_python: "TypeError: code",
    value_that_is_no_number: "ValueError: invalid literal for int",
    state_that_is_another: r"incompatible dtype: - expected: .* - got : .*'last'\}.*use scikit-learn 0\.19\.2, which did",
}


@pytest.mark.parametrize("kind", ["pkl", "payload.pkl", "joblib", "arrays.joblib", "packed.joblib", "npy"])
@pytest.mark.parametrize("change", CHANGES)
def test_another_version_is_no_damage(
    tmp_path: Path, module: types.ModuleType, change: Callable[..., Any], kind: str
) -> None:
    """The file is said to be whole, with all that the library says; in every container, and by either unpickler."""
    path = tmp_path / f"m.{kind}"
    model, newer = change(module)
    options = {}
    if kind == "npy":
        array = numpy.empty(1, object)
        array[0] = model
        numpy.save(path, array)
        options = {"allow_pickle": True}
    elif kind.endswith("pkl"):
        path.write_bytes(pickle.dumps([numpy.arange(100_000.0 if kind == "payload.pkl" else 10), model]))
    else:
        joblib.dump([numpy.arange(100.0), model] if kind == "arrays.joblib" else [model], path, compress=kind == "packed.joblib")
    newer()
    expected = CHANGES[change].partition(".*use")[0] if kind == "packed.joblib" else CHANGES[change]
    with pytest.raises(ModelBinarizationError, match=f"is whole, but .*{expected}") as failed:
        mlup.load(path, **options)
    assert not isinstance(failed.value, CorruptModelError)
    assert "\n" not in str(failed.value)
    assert failed.value.__cause__ is not None
    assert failed.value.path is not None


PYTHON_2 = b"\x80\x02}U\x01aU\x04caf\xe9s."


def test_text_of_python_2_is_told_and_read(tmp_path: Path) -> None:
    """The setting that the error names reads it: by `load`, and by the command line."""
    path = tmp_path / "m.pkl"
    path.write_bytes(PYTHON_2)
    with pytest.raises(ModelBinarizationError, match=r"whole, but .*Python 2.*\"latin1\".*--option encoding=latin1") as failed:
        mlup.load(path)
    assert not isinstance(failed.value, CorruptModelError)
    assert mlup.load(path, encoding="latin1") == {"a": "café"}
    assert mlup.load(path, encoding="bytes") == {b"a": b"caf\xe9"}
    command = [sys.executable, "-m", "mlup_stream", "load", str(path), "--option", "encoding=latin1"]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.parametrize("compress", [0, 3])
def test_text_of_python_2_in_a_joblib_file(tmp_path: Path, compress: int) -> None:
    """The same, which `joblib.load` itself cannot do; the arrays beside the text are what they were."""
    path = tmp_path / "m.joblib"
    joblib.dump({"w": numpy.arange(30_000.0), "name": "NAME"}, path, protocol=2)
    content = path.read_bytes()
    at = content.rindex(b"X\x04\0\0\0NAME")
    path.write_bytes(content[:at] + b"U\x04caf\xe9" + content[at + 9 :])
    if compress:
        import zlib

        path.write_bytes(zlib.compress(path.read_bytes()))
    with pytest.raises(ModelBinarizationError, match="encoding=latin1"):
        mlup.load(path)
    model = mlup.load(path, encoding="latin1")
    assert model["name"] == "café"
    assert (model["w"] == numpy.arange(30_000.0)).all()


def test_buffers_that_are_missing_are_told_and_taken(tmp_path: Path) -> None:
    """Pickled out of band, the file is whole without them."""
    buffers: list[Any] = []
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps(numpy.arange(10.0), 5, buffer_callback=buffers.append))
    with pytest.raises(ModelBinarizationError, match=r'whole, but .*binarization_kwargs=\{"buffers"') as failed:
        mlup.load(path)
    assert not isinstance(failed.value, CorruptModelError)
    assert (mlup.load(path, buffers=buffers) == numpy.arange(10.0)).all()


def test_persistent_ids_are_told(tmp_path: Path) -> None:
    """What refers to objects elsewhere is no damage."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return "far" if isinstance(value, bytes) else None

    content = io.BytesIO()
    Pickler(content).dump([b"x"])
    path = tmp_path / "m.pkl"
    path.write_bytes(content.getvalue())
    with pytest.raises(ModelBinarizationError, match=r"whole, but .*read it with the program that wrote it"):
        mlup.load(path)


@pytest.mark.parametrize(
    ("module", "name", "advice"),
    [
        ("__main__", "Model", "define or import Model in the main module"),
        ("dill._dill", "_no_such_type", "install dill, and read with dill.load"),
        ("pandas.indexes.base", "_new_Index", "pandas.read_pickle knows where"),
        ("no_such_package.models", "Model", "install or import its package, in the version that wrote the file"),
    ],
)
def test_advice_that_can_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str, advice: str
) -> None:
    """Each of the usual ways to lose a class has its own remedy, in pickles and in joblib files."""
    pandas: Any = types.ModuleType("pandas")
    pandas.__path__ = []
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    for binarizer in ("pickle", "joblib"):
        path = tmp_path / "m.bin"
        path.write_bytes(b"\x80\x02" + f"c{module}\n{name}\n.".encode())
        with pytest.raises(MissingClassError, match=advice):
            mlup.load(path, binarization_type=binarizer)


def test_pandas_that_is_not_there_is_to_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own reader is no help then."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    path = tmp_path / "m.pkl"
    path.write_bytes(b"\x80\x02cpandas.core.frame\nDataFrame\n.")
    with pytest.raises(MissingClassError, match="install or import its package"):
        mlup.load(path)


class Colour(enum.Enum):
    RED = 1


def whole_pickles() -> Iterator[Any]:
    yield collections.OrderedDict(a=1)
    yield collections.defaultdict(list, a=[1])
    yield collections.deque([1, 2], 3)
    yield functools.partial(int, base=2)
    yield [1].append
    yield {"a": datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc), "b": decimal.Decimal("1.5"), "c": Colour.RED}
    yield {frozenset([1]), ("a", 2**100), -(2**70), 1.5, None, True}
    yield bytearray(b"x" * 100_000)
    yield "x" * 100_000
    yield numpy.arange(30_000.0)
    yield numpy.array(["a", "b"], object)
    yield numpy.zeros(3, [("a", "f4"), ("b", "M8[ns]")])
    yield numpy.float32(1.5)
    yield numpy.random.default_rng(1)
    yield numpy.ma.masked_equal([1, 2], 2)
    yield ValueError("x")


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_that_was_pickled_is_called_damaged(tmp_path: Path, protocol: int) -> None:
    """The walk over stand-ins follows whatever the standard library, NumPy and joblib write."""
    for number, model in enumerate(whole_pickles()):
        assert damage_in(pickle.dumps(model, protocol), "m") is None, model
        if protocol > 1:
            path = tmp_path / f"{number}.joblib"
            joblib.dump([model, numpy.arange(3), model], path, protocol=protocol)
            assert damage_in(path, "m", has_arrays=True) is None, model


def test_models_of_libraries_are_not_called_damaged(tmp_path: Path) -> None:
    """A forest and a table, as pickle and as joblib write them."""
    ensemble = pytest.importorskip("sklearn.ensemble", reason="writes a forest")
    pandas = pytest.importorskip("pandas", reason="writes a table")
    x = numpy.arange(40.0).reshape(20, 2)
    forest = ensemble.RandomForestRegressor(3).fit(x, x[:, 0])
    table = pandas.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"], "c": pandas.Categorical(["u", "v"])})
    for model in (forest, table):
        assert damage_in(pickle.dumps(model), "m") is None
        joblib.dump(model, tmp_path / "m.joblib")
        assert damage_in(tmp_path / "m.joblib", "m", has_arrays=True) is None


def test_every_cut_is_damage() -> None:
    """Wherever a pickle ends too early, the walk says so."""
    for protocol in range(6):
        whole = pickle.dumps([{"a": numpy.arange(5.0), "b": "text"}, 1.5, Colour.RED], protocol)
        for length in range(len(whole)):
            assert isinstance(damage_in(whole[:length], "m"), CorruptModelError), (protocol, length)
