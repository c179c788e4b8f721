"""What importing a library takes is weighed before it is imported: in a process that has imported nothing, under real limits."""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from child import run_child
from limits import needs_cgroups, run_limited
from models import by_library, need, onnx_matmuls, remove

import mlup_stream
from mlup_stream.constants import BinarizationType
from mlup_stream.errors import MemoryBudgetExceeded, MissingDependencyError
from mlup_stream.formats.pickles.named_libraries import named_modules
from mlup_stream.memory import imports
from mlup_stream.memory.estimate import Certainty
from mlup_stream.memory.governor import MemoryGovernor
from mlup_stream.memory.learned import LearnedStore
from mlup_stream.registry import binarizer_class
from mlup_stream.units import KIB, MIB

on_linux = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory figures and limits as Linux has them")
PROFILING = Path(__file__).resolve().parents[2] / "profiling"
LIBRARIES = ("numpy", "joblib", "sklearn", "onnx", "onnxruntime", "lightgbm", "xgboost", "safetensors", "gguf", "h5py")
MARKED = [
    *LIBRARIES,
    pytest.param("torch", marks=pytest.mark.torch),
    pytest.param("tensorflow", marks=pytest.mark.tensorflow),
    pytest.param("keras", marks=pytest.mark.tensorflow),
]


def forest(path: Path, _: int) -> None:
    """A small model of a large library."""
    run_child(
        """
        import pickle, numpy
        from sklearn.ensemble import RandomForestClassifier
        rows = numpy.random.default_rng(7).random((200, 4))
        with open(path, "wb") as file:
            pickle.dump(RandomForestClassifier(5, random_state=7).fit(rows, rows[:, 0] > 0.5), file)
        answer(True)
        """,
        path=str(path),
    )


# Their files name what they need, or there is no file.
WITHOUT_LIBRARY = (BinarizationType.MEMORY, BinarizationType.PICKLE)

# In MiB, what a whole process may have: below what the import takes, around it, and ample for it and a model of 8 MiB.
SMALL_MODELS: dict[str, tuple[str, Any, tuple[int, ...]]] = {
    "sklearn": ("forest.pkl", forest, (16, 84, 92, 96, 100, 200, 244, 400)),
    "onnxruntime": ("m.onnx", onnx_matmuls, (16, 28, 32, 36, 40, 64, 108, 400)),
    "lightgbm": ("m.txt", by_library("lightgbm"), (16, 96, 100, 104, 108, 160, 250, 400)),
    "torch": ("m.pt", by_library("torch_state_dict"), (16, 140, 152, 158, 164, 200, 236, 600)),
    "tensorflow": ("m.keras", by_library("keras"), (16, 220, 240, 248, 256, 290, 390, 900)),
}

LOAD = """
import sys
import mlup_stream as mlup
from mlup_stream.errors import MemoryBudgetExceeded
try:
    up = mlup.UP(conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": path}))
    up.ml.load()
    answer(["loaded", type(up.ml.model_obj).__name__, library in sys.modules])
except MemoryBudgetExceeded as error:
    answer(["refused", str(error), library in sys.modules])
"""


@on_linux
@pytest.mark.parametrize("by", [pytest.param("cgroup", marks=needs_cgroups), "data"])
@pytest.mark.parametrize(
    "library", [each for each in MARKED if (each if isinstance(each, str) else each.values[0]) in SMALL_MODELS]
)
def test_a_library_that_does_not_fit_is_refused_rather_than_killed(library: str, by: str, tmp_path: Path) -> None:
    """A process that has imported nothing but mlup_stream loads, or refuses and names the file; it never dies of a signal.

    What was refused for the import was not imported.
    """
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}")
    file_name, build, sizes_mib = SMALL_MODELS[library]
    path = tmp_path / file_name
    build(path, 8 * MIB)

    def outcome(size_mib: int) -> Any:
        # What an earlier step learned would hide what the table says.
        environment = {"MLUP_STREAM_LEARNED": "0", "TF_CPP_MIN_LOG_LEVEL": "3"}
        arguments = {"path": str(path), "library": library, "environment": environment}
        return run_limited(LOAD, limit_bytes=size_mib * MIB, by=by, **arguments)

    try:
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(outcome, sizes_mib))
    finally:
        remove(path)
    assert {each[0] for each in found} == {"loaded", "refused"}
    for said, what, imported in found:
        if said == "refused":
            assert path.name in what
            assert imported is ("importing" not in what)


@on_linux
@pytest.mark.parametrize("library", MARKED)
def test_the_table_knows_what_an_import_takes(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """measured <= estimated <= measured * 1.1 + 4 MiB of private memory, and no less address space than is used.

    Then the margin, for versions that nobody has measured.
    """
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}")
    monkeypatch.syspath_prepend(PROFILING)
    from framework_imports import measure, modules_of

    found = measure(modules_of(library))
    private_bytes, data_bytes = found["anon"], found["data"]
    estimated_bytes, estimated_data_bytes = found["estimated_anon"] / imports.MARGIN, found["estimated_data"]
    assert private_bytes <= estimated_bytes <= private_bytes * 1.1 + 4 * MIB
    assert found["address"] <= found["estimated_address"]
    assert data_bytes <= estimated_data_bytes + 8 * MIB  # a thread's stack


def test_what_was_measured_judges_the_next_import(tmp_path: Path) -> None:
    """The table is for the first import; a measurement replaces it, but for one that something else fell into."""
    pytest.importorskip("numpy", reason="is what was imported")
    store = LearnedStore(str(tmp_path), enabled=True)
    by_table = imports.estimate_of(("numpy",), store)
    imports.record(("numpy",), by_table.peak_anon_bytes // 2, store)
    learned = imports.estimate_of(("numpy",), store)
    assert (learned.peak_anon_bytes, learned.certainty) == (by_table.peak_anon_bytes // 2, Certainty.LEARNED)
    imports.record(("numpy",), 50 * by_table.peak_anon_bytes, store)
    most_bytes = 2 * by_table.peak_anon_bytes / imports.MARGIN
    assert imports.estimate_of(("numpy",), store).peak_anon_bytes == pytest.approx(most_bytes, abs=2)


def test_what_is_imported_where_it_is_installed_is_weighed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """scikit-learn, LightGBM, XGBoost and TensorFlow import pandas, and that pyarrow, if they are there: 23 to 41 MiB more."""
    installed = {"numpy", "joblib", "sklearn", "lightgbm", "tensorflow", "h5py"}
    monkeypatch.setattr(imports, "_origin", lambda root: root if root in installed else None)
    monkeypatch.setattr(imports, "sys", SimpleNamespace(modules={}))

    def expected(library: str) -> int:
        return imports.estimate_of(imports.to_import([library]), LearnedStore(enabled=False)).peak_anon_bytes

    without = {library: expected(library) for library in ("sklearn", "lightgbm", "tensorflow")}
    installed |= {"pandas", "pyarrow", "matplotlib"}
    for library, before_bytes in without.items():
        assert "pandas" in imports.to_import([library])
        assert 30 * MIB <= expected(library) - before_bytes <= 80 * MIB


@pytest.mark.parametrize(
    ("raised", "expected", "words"),
    [
        ("OSError('libgomp.so.1: cannot open shared object file')", MissingDependencyError, "OSError: libgomp"),
        ("AttributeError('__doc__')", MissingDependencyError, "cannot be imported"),
        ("ImportError('lib.so: failed to map segment from shared object')", MemoryBudgetExceeded, "an allocation failed"),
        ("MemoryError()", MemoryBudgetExceeded, "an allocation failed"),
    ],
)
def test_an_import_that_fails_is_told_by_its_reason(
    raised: str, expected: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared library that is missing is a dependency that is; one that found no room in memory is not."""
    for name in [each for each in sys.modules if each.partition(".")[0] == "lightgbm"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "lightgbm").mkdir()
    (tmp_path / "lightgbm" / "__init__.py").write_text(f"raise {raised}")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "m.txt"
    path.write_bytes(b"tree\nversion=v4\n")
    with pytest.raises(expected, match=words):
        mlup_stream.load(path, binarization_type="lightgbm")


@on_linux
def test_an_import_is_remembered_and_is_no_part_of_a_budget(tmp_path: Path) -> None:
    """A budget of 16 MiB loads a small model of a library that takes 70 MiB, and the next process knows what that took."""
    need("pickle")
    pytest.importorskip("sklearn")
    path = tmp_path / "forest.pkl"
    forest(path, 0)
    code = """
        import mlup_stream as mlup
        from mlup_stream.memory import imports
        from mlup_stream.memory.learned import LearnedStore
        roots = imports.to_import(["sklearn.ensemble._forest"])
        estimate = imports.estimate_of(roots, LearnedStore())
        model = mlup.load(path, memory_budget="16MiB")
        answer([type(model).__name__, estimate.certainty.value, estimate.peak_anon_bytes])
        """
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "MLUP_STREAM_LEARNED": "1"}
    first, second = (run_child(code, path=str(path), environment=environment) for _ in range(2))
    assert [first[:2], second[:2]] == [["RandomForestClassifier", "conservative"], ["RandomForestClassifier", "learned"]]
    assert abs(second[2] - first[2] / imports.MARGIN) <= 16 * MIB


def test_an_import_that_runs_out_of_memory_is_the_typed_error() -> None:
    """Whatever the table said: a `MemoryError` under way becomes the error that names the file and the limit."""
    governor = MemoryGovernor(learned=False)
    with pytest.raises(MemoryBudgetExceeded, match=r"model\.txt: an allocation failed"), governor.importing((), name="model.txt"):
        raise MemoryError


@pytest.mark.parametrize("protocol", range(6))
def test_the_modules_that_a_pickle_names_are_found(protocol: int) -> None:
    """In every protocol, with the dots, and none but those of the libraries that were asked for."""
    from collections import OrderedDict
    from logging import Handler
    from logging.handlers import MemoryHandler

    data = pickle.dumps([OrderedDict, Handler, MemoryHandler, pickle.Pickler], protocol=protocol)
    assert set(named_modules(io.BytesIO(data), ["logging", "numpy"])) == {"logging", "logging.handlers"}


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_text_that_speaks_of_a_library_names_no_module(protocol: int) -> None:
    """Words in a longer string are no module of the model, nor is a string that is nothing but a library's name."""
    data = pickle.dumps(["sklearn or numpy.random", {"torch": "keras", "uses torch": "2.1"}, "c", "numpy"], protocol=protocol)
    assert named_modules(io.BytesIO(data), imports.KNOWN) == ()


def test_a_class_is_found_whatever_is_remembered_of_its_name() -> None:
    """With names that came before as text, and without the marks of the memo, as `pickletools.optimize` leaves a pickle."""
    import logging
    import pickletools

    data = pickle.dumps(["".join(["Hand", "ler"]), logging.Handler, logging.Handler], protocol=4)
    for each in (data, pickletools.optimize(data)):
        assert named_modules(io.BytesIO(each), ["logging"]) == ("logging",)


def test_what_is_named_is_looked_for_in_a_bounded_head() -> None:
    """20 names at most, out of 16 KiB at most, whatever the file repeats."""
    data = b"".join(b"cnumpy.m%d\nx\n" % index for index in range(5000))  # opcodes of protocol 0
    file = io.BytesIO(data)
    assert len(named_modules(file, ["numpy"])) == 20
    late = io.BytesIO(b"\0" * (16 * KIB) + b"csklearn.tree\nx\n")
    assert named_modules(late, ["sklearn"]) == ()


@pytest.mark.parametrize("kind", [each for each in BinarizationType if each not in WITHOUT_LIBRARY])
def test_every_binarizer_says_what_it_imports(kind: BinarizationType) -> None:
    """A library that a binarizer does not name, or that nobody measured, would be imported unweighed."""
    libraries = binarizer_class(kind).libraries_for({})
    assert libraries
    assert set(libraries) <= imports.KNOWN
