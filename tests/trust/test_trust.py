"""What a file may import and call: the ways around lists of allowed names are refused, and no honest model is."""

from __future__ import annotations

import contextlib
import copyreg
import io
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import mlup_stream as mlup
from mlup_stream.config import config_from_dict, config_to_dict
from mlup_stream.errors import ConfigError, CorruptModelError, MLupError, TrustError
from mlup_stream.formats.pickles.globals_of import globals_of
from mlup_stream.trust.policy import Policy, Trust, parse_global
from mlup_stream.trust.ready import FOLDER, ready_globals

DELIVERIES = ("view", "stream", "path", "bytes")


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLUP_STREAM_LEARNED", "0")


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that exists once something of the file's was imported or called."""
    path = tmp_path / "canary"
    module = f"import os\nos.mkdir({str(path)!r})\ndef call(*arguments):\n    return 1\n"
    (tmp_path / "evil_module.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "evil_module", raising=False)
    monkeypatch.chdir(tmp_path)
    return path


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def of_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def of_call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def whole(body: bytes, protocol: int = 4) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


MKDIR = text("canary")
NDARRAY, DTYPE = of_global("numpy", "ndarray"), of_global("numpy", "dtype")
OBJECTS = of_call(DTYPE, text("O8"))
FOREST = of_global("sklearn.ensemble._forest", "RandomForestClassifier")

WAYS: dict[str, bytes] = {
    "a plain call": whole(of_call(of_global("os", "mkdir"), MKDIR)),
    "a call under its own module's name": whole(of_call(of_global("posix", "mkdir"), MKDIR)),
    "GLOBAL, protocol 0": b"cos\nmkdir\n(Vcanary\ntR.",
    "INST": b"(Vcanary\nios\nmkdir\n.",
    "OBJ": whole(b"(" + of_global("os", "mkdir") + MKDIR + b"o"),
    "NEWOBJ": whole(of_global("evil_module", "call") + b"(" + MKDIR + b"t\x81"),
    "NEWOBJ_EX": whole(of_global("evil_module", "call") + b"(" + MKDIR + b"t}\x92"),
    "STACK_GLOBAL of strings from the memo": whole(
        text("os") + b"\x94" + text("mkdir") + b"\x94" + b"00h\0h\1\x93(" + MKDIR + b"tR"
    ),
    "a dotted name out of a listed module": whole(of_call(of_global("numpy", "os.mkdir"), MKDIR)),
    "a dotted name out of a listed class": whole(of_global("sklearn.tree._tree", "Tree.__init__.__globals__")),
    "a module that a listed one imported": whole(of_call(of_global("sklearn.ensemble._forest", "threading.Thread"), MKDIR)),
    "a name of Python 2": b"\x80\x02c__builtin__\neval\n(U\x011tR.",
    "getattr": whole(of_call(of_global("builtins", "getattr"), FOREST, text("fit"))),
    "operator.attrgetter": whole(of_call(of_global("operator", "attrgetter"), text("fit"))),
    "functools.partial": whole(of_call(of_global("functools", "partial"), FOREST)),
    "builtins.exec": whole(of_call(of_global("builtins", "exec"), text("import evil_module"))),
    "importlib": whole(of_call(of_global("importlib", "import_module"), text("evil_module"))),
    "an import is the attack": whole(of_global("evil_module", "call")),
    "a nested pickle": whole(of_call(of_global("pickle", "loads"), b"C" + bytes([3]) + b"N..")),
    "numpy.load": whole(of_call(of_global("numpy", "load"), MKDIR)),
    "numpy's runstring": whole(of_call(of_global("numpy.testing._private.utils", "runstring"), MKDIR, b"}")),
    "joblib.load": whole(of_call(of_global("joblib.numpy_pickle", "load"), MKDIR)),
    "pandas.read_pickle": whole(of_call(of_global("pandas.io.pickle", "read_pickle"), MKDIR)),
    "cProfile.run": whole(of_call(of_global("cProfile", "run"), MKDIR)),
    "timeit": whole(of_call(of_global("timeit", "timeit"), MKDIR)),
    "a state for a class": whole(FOREST + b"}" + text("predict") + FOREST + b"sb"),
    "slots of a class": whole(FOREST + b"N}" + text("predict") + FOREST + b"s\x86b"),
    "an array type that is called": whole(of_call(NDARRAY, b"K\1\x85", OBJECTS, b"C\x08" + b"\1" * 8)),
    "an array type by NEWOBJ": whole(NDARRAY + b"(K\1\x85" + OBJECTS + b"C\x08" + b"\1" * 8 + b"t\x81"),
    "a class back from a call": whole(
        of_call(of_call(of_global("numpy._core.multiarray", "scalar"), OBJECTS, NDARRAY), b"K\1\x85", OBJECTS)
    ),
    "a call of a call's result": whole(of_call(of_call(of_global("builtins", "object")), MKDIR)),
    "a dtype that says no objects and has some": whole(
        of_call(DTYPE, text("V8"))
        + (b"(K\3" + text("|") + b"N" + text("a") + b"\x85" + b"}" + text("a") + OBJECTS + b"K\0\x86s" + b"K\x08K\1K\0tb")
    ),
    "a dtype with a field outside": whole(
        of_call(DTYPE, text("V8"))
        + (b"(K\3" + text("|") + b"N" + text("a") + b"\x85" + b"}" + text("a"))
        + (of_call(DTYPE, text("f8")) + b"K\x64\x86s" + b"K\x08K\1K\0tb")
    ),
    "an extension code": whole(b"\x82\xf0"),
    "a persistent id": whole(text("x") + b"Q"),
    "code, and then a break": b"\x80\x04" + of_call(of_global("os", "mkdir"), MKDIR) + b"0\xff\xff",
    "a second pickle that calls": whole(b"N") + whole(of_call(of_global("os", "mkdir"), MKDIR)),
}
HARMLESS = {"a second pickle that calls"}  # nobody reads it


@pytest.mark.parametrize("way", WAYS)
def test_a_way_around_the_list_is_refused(way: str, canary: Path, tmp_path: Path) -> None:
    """By every delivery, before anything is imported or called; `inspect` says the same and runs nothing either."""
    path = tmp_path / "model.pkl"
    path.write_bytes(WAYS[way])
    for delivery in DELIVERIES:
        if way in HARMLESS:
            assert mlup.load(path, trust="listed", delivery=delivery, binarization_type="pickle") is None
            continue
        with pytest.raises((TrustError, CorruptModelError)) as caught:
            mlup.load(path, trust="listed", delivery=delivery, binarization_type="pickle")
        assert "\n" not in str(caught.value)
    with contextlib.nullcontext() if way in HARMLESS else pytest.raises(MLupError):
        mlup.plan(path, trust="listed", binarization_type="pickle")
    assert not canary.exists()
    assert "evil_module" not in sys.modules


def test_a_refusal_names_the_global_and_its_place(tmp_path: Path) -> None:
    """With the setting that allows it, in the message and as attributes."""
    path = tmp_path / "model.pkl"
    path.write_bytes(WAYS["a plain call"])
    with pytest.raises(TrustError, match=r'names os\.mkdir at byte 14, .* set trusted_globals=\["os:mkdir"\]') as caught:
        mlup.load(path, trust="listed")
    error = caught.value
    assert (error.module, error.qualname, error.position) == ("os", "mkdir", 14)


def test_the_unpickler_asks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, canary: Path) -> None:
    """Were the walk before the load deceived, the load itself would refuse: in C, in Python and in joblib's."""
    from mlup_stream.trust import gate

    monkeypatch.setattr(gate, "check_trust", lambda *arguments: None)
    import joblib

    joblib.dump([numpy.ones(4), os.mkdir], tmp_path / "model.joblib")
    (tmp_path / "small.pkl").write_bytes(WAYS["a plain call"])
    in_place = pickle.dumps({"w": numpy.ones(1 << 18), "call": _Calls("canary")}, protocol=5)
    (tmp_path / "arrays.pkl").write_bytes(in_place)
    for name in ("model.joblib", "small.pkl", "arrays.pkl"):
        with pytest.raises(TrustError, match=r"names (posix|os)\.mkdir"):
            mlup.load(tmp_path / name, trust="listed")
    assert not canary.exists()


class _Calls:
    def __init__(self, argument: str) -> None:
        self.argument = argument

    def __reduce__(self) -> Any:
        return os.mkdir, (self.argument,)


def test_arrays_of_objects_are_followed_too(tmp_path: Path, canary: Path) -> None:
    """The pickle within a joblib file's array of objects is held against the same list."""
    import joblib

    joblib.dump({"a": numpy.array([1, _Calls("canary")], dtype=object), "b": numpy.ones(100)}, tmp_path / "model.joblib")
    with pytest.raises(TrustError, match=r"names posix\.mkdir"):
        mlup.load(tmp_path / "model.joblib", trust="listed")
    assert not canary.exists()


def test_an_extension_code_that_is_registered_is_refused(tmp_path: Path) -> None:
    """Also when the unpickler in C has its class in a cache."""
    copyreg.add_extension("builtins", "eval", 240)
    try:
        (tmp_path / "m.pkl").write_bytes(whole(of_call(b"\x82\xf0", text("1"))))
        with pytest.raises(TrustError, match=r"an extension code \(240\)"):
            mlup.load(tmp_path / "m.pkl", trust="listed")
    finally:
        copyreg.remove_extension("builtins", "eval", 240)


def _estimators() -> Iterator[tuple[str, Any]]:
    from sklearn_estimators import fitted

    yield from fitted()


def _loads(name: str, model: Any, folder: Path) -> str:
    """Why the model does not load under the lists, pickled in every way that it can be; empty if it does."""
    import joblib

    for protocol in (2, 4, 5):
        (folder / "m.pkl").write_bytes(pickle.dumps(model, protocol=protocol))
        try:
            mlup.load(folder / "m.pkl", trust="listed")
        except TrustError as error:
            return f"{name}: {error}"
    joblib.dump(model, folder / "m.joblib")
    try:
        mlup.load(folder / "m.joblib", trust="listed", binarization_type="joblib")
    except TrustError as error:
        return f"{name}: {error}"
    return ""


def test_no_estimator_of_scikit_learn_is_refused(tmp_path: Path) -> None:
    """All of `all_estimators` that can be made, fitted, and compositions of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [(name, _loads(name, model, tmp_path)) for name, model in _estimators()]
    assert [why for _, why in found if why] == []
    assert len(found) >= 200


@pytest.mark.parametrize("library", ["numpy", "scipy", "lightgbm", "xgboost"])
def test_what_models_hold_is_not_refused(library: str, tmp_path: Path) -> None:
    """Of each library the objects from which its list was made, but for those that need what calls what it is given."""
    import write_trust_lists

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused = [_loads(name, model, tmp_path) for name, model in write_trust_lists.MODELS[library]()]
    needs_getattr = [why for why in refused if why]
    assert all("builtins.getattr" in why for why in needs_getattr), needs_getattr
    assert len(needs_getattr) == {"scipy": 2}.get(library, 0)


def test_the_lists_have_nothing_that_calls_what_it_is_given() -> None:
    """Exact names, one to a line, none of what is refused whoever needs it, and what they name can be found here."""
    import write_trust_lists

    names = {f"{module} {name}" for module, name in ready_globals()}
    assert names.isdisjoint(write_trust_lists.REFUSED)
    assert not any("*" in each or each.count(" ") != 1 for each in names)
    heads = [path.read_text().splitlines()[0] for path in FOLDER.glob("*.txt")]
    assert all(head.startswith("# ") and ", 20" in head for head in heads)


def test_what_a_user_lists_is_allowed_and_nothing_beside_it(tmp_path: Path) -> None:
    """An exact name; not another of its module, and not by a dotted way to the same object."""
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(fractions_of(3)))
    with pytest.raises(TrustError, match="test_trust"):
        mlup.load(path, trust="listed")
    name = f"{__name__}.Mine"
    assert mlup.load(path, trust="listed", trusted_globals=[name]).value == 3
    assert mlup.load(path, trust="listed", trusted_globals=[name.replace(".Mine", ":Mine")]).value == 3
    with pytest.raises(TrustError):
        mlup.load(path, trust="listed", trusted_globals=[f"{__name__}.Other"])
    policy = Policy.of("listed", ["package.module.Name"])
    assert policy.allows("package.module", "Name")
    assert not policy.allows("package", "module.Name")


class Mine:
    def __init__(self, value: int) -> None:
        self.value = value


def fractions_of(value: int) -> Mine:
    return Mine(value)


@pytest.mark.parametrize("wrong", ["os system", "", "os", "os.system()", "os..system", ".x", "os:", "a:b:c"])
def test_a_wrong_name_is_told(wrong: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(ConfigError, match="trusted_globals"):
        parse_global(wrong)


def test_trust_is_a_setting_like_others() -> None:
    """It is validated, and goes to a file and back."""
    conf = mlup.Config(trust="listed", trusted_globals=["a.b"])
    back = config_from_dict(config_to_dict(conf))
    assert (back.trust, back.trusted_globals) == (conf.trust, conf.trusted_globals) == (Trust.LISTED, ("a.b",))
    with pytest.raises(ConfigError, match="expected 'full', 'listed', 'none'"):
        mlup.Config(trust="some")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="trusted_globals"):
        mlup.Config(trusted_globals="a.b")


def test_without_trust_only_data_is_loaded(tmp_path: Path) -> None:
    """`trust="none"`: arrays and safetensors load, pickles do not, and no option may make a library run code."""
    numpy.save(tmp_path / "a.npy", numpy.arange(3))
    (tmp_path / "m.pkl").write_bytes(pickle.dumps([1]))
    assert mlup.load(tmp_path / "a.npy", trust="none").tolist() == [0, 1, 2]
    with pytest.raises(TrustError, match=r'which can run code.*set trust="listed"'):
        mlup.load(tmp_path / "m.pkl", trust="none")
    numpy.save(tmp_path / "o.npy", numpy.array([_Calls("canary")], dtype=object))
    for level in ("none", "listed"):
        with pytest.raises(TrustError, match="allow_pickle=True lets the file run code"):
            mlup.load(tmp_path / "o.npy", trust=level, allow_pickle=True)


def test_what_cannot_be_checked_is_refused(tmp_path: Path) -> None:
    """A compressed file, a stream that cannot go back, and a binarizer of somebody else's: each with what to do."""
    import joblib

    joblib.dump([numpy.ones(10)], tmp_path / "m.joblib", compress=3)
    with pytest.raises(TrustError, match=r"it is compressed.*mlup-stream pack"):
        mlup.load(tmp_path / "m.joblib", trust="listed")
    assert mlup.load(tmp_path / "m.joblib")[0].sum() == 10

    class Stream(io.BytesIO):
        def seekable(self) -> bool:
            return False

    with pytest.raises(TrustError, match="cannot go back"):
        mlup.load(Stream(pickle.dumps([1])), trust="listed", binarization_type="pickle")
    with pytest.raises(TrustError, match="built by CustomBinarizer"):
        mlup.load(tmp_path / "m.joblib", trust="listed", binarization_type=f"{__name__}.CustomBinarizer")


class CustomBinarizer:
    @classmethod
    def deserialize(cls, data: Any) -> Any:
        return data


def test_content_is_held_against_the_list_as_files_are(tmp_path: Path, canary: Path) -> None:
    """Bytes, and a file object."""
    evil = WAYS["a plain call"]
    for source in (evil, memoryview(evil), io.BytesIO(evil)):
        with pytest.raises(TrustError):
            mlup.load(source, trust="listed", binarization_type="pickle")
    assert mlup.load(pickle.dumps({"a": 1}), trust="listed", binarization_type="pickle") == {"a": 1}
    assert not canary.exists()


def test_inspect_says_what_a_file_would_call(tmp_path: Path, canary: Path) -> None:
    """Every name with its place and whether it is listed; the verdict; nothing imported."""
    path = tmp_path / "m.pkl"
    path.write_bytes(whole(of_global("numpy", "dtype") + of_call(of_global("evil_module", "call"), MKDIR) + b"\x86"))
    said = mlup.inspect(path, trust="listed")
    assert [(each["name"], each["listed"]) for each in said["names"]] == [("numpy.dtype", True), ("evil_module.call", False)]
    assert not said["safe"]
    assert "evil_module.call" in said["refused"]
    assert mlup.inspect(path, trust="listed", trusted_globals=["evil_module.call"])["safe"]
    assert "safe" not in mlup.inspect(path)
    assert not canary.exists()


def test_the_walk_counts_every_name(tmp_path: Path) -> None:
    """In the order of the file, whatever protocol and however deep; what lies behind 64 KiB too."""
    from collections import OrderedDict, deque

    model = [b"x" * 300_000, OrderedDict(a=deque([numpy.float32(1), {"b": frozenset([1])}]))]
    for protocol in (0, 2, 4, 5):
        found = globals_of(io.BytesIO(pickle.dumps(model, protocol=protocol)))
        names = {name for _, name in found}
        assert {"OrderedDict", "deque", "scalar", "dtype"} <= names, protocol


def test_a_truncated_or_odd_pickle_is_no_crash(tmp_path: Path) -> None:
    """Each prefix of a model's pickle, and each with a byte changed, is a typed error or loads."""
    content = pickle.dumps({"a": numpy.arange(5.0), "b": [1, "x", None]}, protocol=4)
    path = tmp_path / "m.pkl"
    tries: list[Callable[[int], bytes]] = [lambda at: content[:at], lambda at: content[:at] + b"\x92" + content[at + 1 :]]
    for make in tries:
        for at in range(0, len(content), 3):
            path.write_bytes(make(at))
            with contextlib.suppress(MLupError):
                mlup.load(path, trust="listed", binarization_type="pickle")


def test_a_listed_load_by_the_command_line(tmp_path: Path) -> None:
    """`--trust listed` refuses and so does `inspect --trust listed`, with 8; with the name listed both go through."""
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps([posixpath_of("x")]))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mlup_stream", *arguments, "--trust", "listed"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    for command in ("load", "inspect"):
        refused = run(command, str(path))
        assert refused.returncode == 8, refused.stderr
        assert "PureWindowsPath" in refused.stdout + refused.stderr
        name = f"{pathlib.PureWindowsPath.__module__}:PureWindowsPath"
        allowed = run(command, str(path), "--trusted-global", name)
        assert allowed.returncode == 0, allowed.stderr


def posixpath_of(text: str) -> pathlib.PurePath:
    """Of a class that is on no list."""
    return pathlib.PureWindowsPath(text)


def test_lengths_that_lie_allocate_nothing(tmp_path: Path) -> None:
    """The walk before the load reads no more than there is."""
    path = tmp_path / "m.pkl"
    path.write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.")
    with pytest.raises(MLupError):
        mlup.load(path, trust="listed", binarization_type="pickle")
