"""Every estimator of scikit-learn, fitted on a few rows of what it takes: material for lists and tests of what pickles name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["fitted"]

_ROWS = 60


def fitted() -> Iterator[tuple[str, Any]]:
    """The name and the fitted estimator of each that can be made, and pipelines, searches and splitters around some."""
    from sklearn.utils import all_estimators

    for name, kind in all_estimators():
        estimator = _made(name, kind)
        if estimator is not None:
            yield name, _fit(estimator)
    yield from _composed()


def _made(name: str, kind: type[Any]) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge

    regressor, classifier = Ridge(), LogisticRegression()
    inner = {
        "estimators": [("a", classifier), ("b", LogisticRegression(C=2))], "transformers": [("a", "passthrough", [0])],
        "transformer_list": [("a", _scaler())], "steps": [("a", _scaler()), ("b", classifier)],
        "param_grid": {"C": [1.0]}, "param_distributions": {"C": [1.0, 2.0]}, "base_estimator": classifier,
        "dictionary": np.eye(4), "components": 2,
    }
    if "Regressor" in name and ("Voting" in name or "Stacking" in name):
        inner["estimators"] = [("a", regressor), ("b", Ridge(alpha=2))]
    arguments = {}
    for parameter in list(inspect.signature(kind.__init__).parameters.values())[1:]:
        if parameter.default is not parameter.empty or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.name in ("estimator", "regressor", "classifier"):
            arguments[parameter.name] = regressor if "Regress" in name or "RANSAC" in name else classifier
        elif parameter.name in inner:
            arguments[parameter.name] = inner[parameter.name]
        else:
            return None
    try:
        estimator = kind(**arguments)
    except Exception:
        return None
    quick = {"n_estimators": 3, "max_iter": 5, "n_components": 2, "n_init": 1}
    known = estimator.get_params(deep=False) if hasattr(estimator, "get_params") else {}
    try:
        estimator.set_params(**{each: value for each, value in quick.items() if isinstance(known.get(each), int)})
    except Exception:
        return estimator
    return estimator


def _scaler() -> Any:
    from sklearn.preprocessing import StandardScaler

    return StandardScaler()


def _fit(estimator: Any) -> Any:
    generator = np.random.default_rng(0)
    rows = generator.random((_ROWS, 4))
    labels = (rows[:, 0] > 0.5).astype(int)
    texts = ["some words", "other words here", "and more"] * (_ROWS // 3)
    names = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}] * (_ROWS // 2)
    tries = (
        *((rows, labels), (rows, rows[:, 0]), (rows, rows[:, :2]), (rows,), (rows[:, 0], rows[:, 1])),
        *((texts,), (names,), (labels,), (rows, np.column_stack([labels, 1 - labels])), ([["a"], ["b"]],)),
    )
    for arguments in tries:
        try:
            return estimator.fit(*arguments)
        except Exception:
            continue
    return estimator


def _composed() -> Iterator[tuple[str, Any]]:
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, Matern, WhiteKernel
    from sklearn.linear_model import LogisticRegression, SGDClassifier
    from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
    from sklearn.neighbors import BallTree, KDTree, KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    rows = np.random.default_rng(0).random((_ROWS, 4))
    labels = (rows[:, 0] > 0.5).astype(int)
    columns = ColumnTransformer([("a", StandardScaler(), [0, 1]), ("b", OneHotEncoder(handle_unknown="ignore"), [2])])
    yield "pipeline of columns", make_pipeline(columns, LogisticRegression()).fit(rows, labels)
    texts = ["some words", "other words"] * (_ROWS // 2)
    yield "texts", make_pipeline(TfidfVectorizer(), SGDClassifier(max_iter=5, tol=None)).fit(texts, labels)
    yield "search", GridSearchCV(LogisticRegression(), {"C": [1.0, 2.0]}, cv=StratifiedKFold(2)).fit(rows, labels)
    for loss in ("log_loss", "exponential"):
        yield f"boosting {loss}", GradientBoostingClassifier(loss=loss, n_estimators=2).fit(rows, labels)
    yield "histogram boosting", HistGradientBoostingClassifier(max_iter=2).fit(rows, labels)
    yield "histogram boosting of three", HistGradientBoostingClassifier(max_iter=2).fit(rows, np.arange(_ROWS) % 3)
    for algorithm in ("ball_tree", "kd_tree", "brute"):
        yield f"neighbors {algorithm}", KNeighborsClassifier(algorithm=algorithm).fit(rows, labels)
    for metric in ("euclidean", "manhattan", "chebyshev", "minkowski"):
        yield f"ball tree {metric}", BallTree(rows, metric=metric)
        yield f"kd tree {metric}", KDTree(rows, metric=metric)
    for loss in ("hinge", "log_loss", "modified_huber", "squared_error", "huber", "squared_hinge", "perceptron"):
        yield f"SGD {loss}", SGDClassifier(loss=loss, max_iter=5, tol=None).fit(rows, labels)
    kernel = ConstantKernel() * RBF() + WhiteKernel() + Matern() + DotProduct()
    yield "gaussian process", GaussianProcessRegressor(kernel, optimizer=None).fit(rows, rows[:, 0])
    yield "splitter", KFold(3)
