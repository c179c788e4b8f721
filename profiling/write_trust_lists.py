"""Which classes and functions do the pickles of each library's own models name? Writes `mlup_stream/trust/lists/`.

    python profiling/write_trust_lists.py            # adds what is missing, keeps what other versions have needed
    python profiling/write_trust_lists.py --check    # says what is missing, and exits with 1 if anything is

For each library that is installed: models are fitted on a few rows, pickled by every protocol and by joblib, and what the pickles
name is collected without loading them. What calls what it is given, reads or writes files, or unpickles is left out, whoever
needs it (`REFUSED`); a model that needs it is named, and loads with `trusted_globals`.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import importlib.metadata
import io
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import common

from mlup_stream.formats.pickles.globals_of import globals_of
from mlup_stream.trust.ready import FOLDER

REFUSED = (
    *("builtins getattr", "builtins setattr", "builtins eval", "builtins exec", "builtins compile", "builtins __import__"),
    *("builtins map", "builtins filter", "builtins sorted", "builtins apply", "builtins open", "builtins super"),
    *("functools partial", "functools reduce", "operator attrgetter", "operator itemgetter", "operator methodcaller"),
    *("joblib.numpy_pickle load", "joblib.memory Memory", "numpy load", "numpy.lib.npyio DataSource", "numpy memmap"),
    *("types MethodType", "types FunctionType", "types CodeType"),
)
PYTHON = (
    *("builtins object", "builtins set", "builtins frozenset", "builtins bytearray", "builtins complex", "builtins slice"),
    *("builtins range", "builtins dict", "builtins list", "builtins tuple", "builtins int", "builtins float", "builtins str"),
    *("builtins bool", "builtins bytes", "copyreg _reconstructor", "_codecs encode", "collections OrderedDict"),
    *("collections defaultdict", "collections Counter", "collections deque", "datetime datetime", "datetime date"),
    *("datetime timedelta", "datetime time", "datetime timezone", "decimal Decimal", "fractions Fraction", "uuid UUID"),
    *("pathlib PurePosixPath", "pathlib PosixPath", "pathlib Path", "random Random"),
)
# NumPy 1 calls them otherwise, and writes what NumPy 2 reads.
NUMPY_ALIASES = ("numpy.core.", "numpy._core.")


def _numpy() -> Iterator[tuple[str, Any]]:
    import numpy as np

    yield "array", np.arange(4.0)
    yield "array of objects", np.array([None, "a", 1.5], dtype=object)
    yield "strided", np.asfortranarray(np.ones((3, 3)))[:, ::2]
    yield "structured", np.zeros(2, dtype=[("a", "f4"), ("b", "S3")])
    yield "record", np.rec.array([(1, 2.0)], dtype=[("a", int), ("b", float)])
    yield "dates", np.array(["2020-01-01"], dtype="M8[D]")
    yield "masked", np.ma.masked_array([1.0, 2.0], mask=[True, False])
    yield "matrix", np.asmatrix(np.ones((2, 2)))
    for kind in (np.float32, np.float64, np.int32, np.int64, np.bool_, np.uint8, np.complex128, np.str_):
        yield f"scalar {kind.__name__}", kind(1)
    yield "random", np.random.default_rng(0)
    yield "random state", np.random.RandomState(0)
    for kind in (np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64, np.random.PCG64DXSM):
        yield kind.__name__, np.random.Generator(kind(0))
    yield "polynomial", np.polynomial.Polynomial([1, 2, 3])
    integers = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
    for name in ("bool_", "float16", "float32", "float64", *integers):
        yield f"type {name}", getattr(np, name)
    for name in ("exp", "expm1", "log", "log1p", "log2", "log10", "sqrt", "square", "abs", "mean"):
        yield f"function {name}", getattr(np, name)


def _scipy() -> Iterator[tuple[str, Any]]:
    import numpy as np
    import scipy.interpolate
    import scipy.sparse
    import scipy.spatial
    import scipy.stats

    dense = np.eye(3)
    for kind in ("csr", "csc", "coo", "bsr", "dia", "dok", "lil"):
        yield f"{kind} matrix", getattr(scipy.sparse, f"{kind}_matrix")(dense)
        yield f"{kind} array", getattr(scipy.sparse, f"{kind}_array")(dense)
    yield "tree", scipy.spatial.cKDTree(np.random.default_rng(0).random((20, 2)))
    yield "KD tree", scipy.spatial.KDTree(np.random.default_rng(0).random((20, 2)))
    yield "spline", scipy.interpolate.make_interp_spline([0, 1, 2, 3], [0, 1, 4, 9])
    yield "interp1d", scipy.interpolate.interp1d([0, 1, 2], [0, 1, 4])
    yield "pchip", scipy.interpolate.PchipInterpolator([0, 1, 2], [0, 1, 4])
    for name in ("norm", "uniform", "expon", "randint", "loguniform"):
        arguments = {"randint": (1, 5), "loguniform": (1e-3, 1)}.get(name, ())
        yield name, getattr(scipy.stats, name)(*arguments)


def _pandas() -> Iterator[tuple[str, Any]]:
    import pandas as pd

    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"], "c": pd.Categorical(["u", "v"]), "d": pd.date_range("2020", periods=2)})
    yield "frame", frame
    yield "series", frame["a"]
    yield "string series", frame["b"]
    yield "index", frame.index
    yield "categorical", frame["c"]
    yield "grouped", frame.set_index(["a", "b"])
    yield "nullable", frame["a"].astype("Int64")
    yield "interval", pd.cut(pd.Series([1, 2, 3]), 2)
    yield "timestamp", pd.Timestamp("2020-01-01", tz="UTC")
    yield "timedelta", pd.Timedelta("1D")
    yield "period", pd.period_range("2020-01", periods=2, freq="M")


def _sklearn() -> Iterator[tuple[str, Any]]:
    from sklearn_estimators import fitted

    yield from fitted()


def _lightgbm() -> Iterator[tuple[str, Any]]:
    import lightgbm
    import numpy as np

    rows = np.random.default_rng(0).random((60, 3))
    quick: dict[str, Any] = {"n_estimators": 2, "verbose": -1, "n_jobs": 1, "min_child_samples": 2}
    yield "regressor", lightgbm.LGBMRegressor(**quick).fit(rows, rows[:, 0])
    yield "classifier", lightgbm.LGBMClassifier(**quick).fit(rows, (rows[:, 0] > 0.5).astype(int))
    yield "ranker", lightgbm.LGBMRanker(**quick).fit(rows, (rows[:, 0] > 0.5).astype(int), group=[30, 30])
    yield "booster", lightgbm.train({"verbose": -1, "num_threads": 1}, lightgbm.Dataset(rows, rows[:, 0]), 2)


def _xgboost() -> Iterator[tuple[str, Any]]:
    import numpy as np
    import xgboost

    rows = np.random.default_rng(0).random((60, 3))
    quick: dict[str, Any] = {"n_estimators": 2, "n_jobs": 1}
    yield "regressor", xgboost.XGBRegressor(**quick).fit(rows, rows[:, 0])
    yield "classifier", xgboost.XGBClassifier(**quick).fit(rows, (rows[:, 0] > 0.5).astype(int))
    yield "random forest", xgboost.XGBRFRegressor(**quick).fit(rows, rows[:, 0])
    yield "random forest classifier", xgboost.XGBRFClassifier(**quick).fit(rows, (rows[:, 0] > 0.5).astype(int))
    yield "ranker", xgboost.XGBRanker(**quick).fit(rows, (rows[:, 0] > 0.5).astype(int), group=[30, 30])
    yield "booster", xgboost.train({"nthread": 1}, xgboost.DMatrix(rows, rows[:, 0]), 2)


def _catboost() -> Iterator[tuple[str, Any]]:
    import catboost
    import numpy as np

    rows = np.random.default_rng(0).random((60, 3))
    quick: dict[str, Any] = {"iterations": 2, "verbose": False, "allow_writing_files": False, "thread_count": 1}
    yield "regressor", catboost.CatBoostRegressor(**quick).fit(rows, rows[:, 0])
    yield "classifier", catboost.CatBoostClassifier(**quick).fit(rows, (rows[:, 0] > 0.5).astype(int))
    yield "ranker", catboost.CatBoostRanker(**quick).fit(rows, rows[:, 0], group_id=np.repeat([0, 1], 30))
    yield "base", catboost.CatBoost(quick).fit(rows, rows[:, 0])


MODELS: dict[str, Callable[[], Iterator[tuple[str, Any]]]] = {
    "numpy": _numpy,
    "scipy": _scipy,
    "pandas": _pandas,
    "sklearn": _sklearn,
    "lightgbm": _lightgbm,
    "xgboost": _xgboost,
    "catboost": _catboost,
}
DISTRIBUTIONS = {"sklearn": "scikit-learn"}


def names_of(model: Any) -> set[str]:
    """What the pickles of a model name, `module name` each."""
    found: set[str] = set()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with contextlib.suppress(TypeError, ValueError):  # protocol 0 and 1 take no classes with slots
            packed = pickle.dumps(model, protocol=protocol)
            found.update(map(" ".join, globals_of(io.BytesIO(packed))))
    with contextlib.suppress(ImportError):
        joblib = importlib.import_module("joblib")
        for protocol in (2, pickle.HIGHEST_PROTOCOL):
            file = io.BytesIO()
            joblib.dump(model, file, protocol=protocol)
            found.update(map(" ".join, globals_of(io.BytesIO(file.getvalue()))))
    return found


def needed(library: str) -> tuple[set[str], list[str]]:
    """What the library's models need, and which of them need what is refused."""
    found: set[str] = set()
    refused = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, model in MODELS[library]():
            names = {_in_python_3(each) for each in names_of(model)}
            bad = sorted(names.intersection(REFUSED))
            if bad:
                refused.append(f"{name}: {', '.join(bad)}")
            found |= names.difference(REFUSED)
    if library == "numpy":
        found |= {each.replace(old, new) for each in found for old in NUMPY_ALIASES for new in NUMPY_ALIASES if old in each}
    return found, refused


def _in_python_3(name: str) -> str:
    """What protocols 0 to 2 name as Python 2 did, as Python 3 calls it (`_compat_pickle`)."""
    from mlup_stream.trust.policy import in_python_3

    return " ".join(in_python_3(*name.split(" ", 1)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    lists: dict[str, set[str]] = {"python": set(PYTHON)}
    made_by: dict[str, str] = {"python": f"Python {sys.version_info[0]}.{sys.version_info[1]}"}
    for library in MODELS:
        try:
            version = importlib.metadata.version(DISTRIBUTIONS.get(library, library))
        except importlib.metadata.PackageNotFoundError:
            common.note(f"{library}: not installed")
            continue
        found, refused = needed(library)
        known = set().union(*lists.values())
        for line in refused:
            print(f"{library}: needs what is refused: {line}")
        lists[library], made_by[library] = found - known, f"{library} {version}"
    missing = 0
    for library, names in lists.items():
        path = FOLDER / f"{library}.txt"
        before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = {line for line in before if line and not line.startswith("#")}
        new = names - kept
        missing += len(new)
        print(f"{library}: {len(names)} names, {len(new)} of them new")
        if new and not arguments.check:
            heads = [line for line in before if line.startswith("#")]
            heads.append(f"# {made_by[library]}, {datetime.date.today().isoformat()}: {len(new)} added")
            path.write_text("\n".join([*heads, *sorted(kept | names)]) + "\n", encoding="utf-8")
    return 1 if missing and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
