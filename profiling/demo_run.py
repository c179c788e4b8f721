"""Trains the demo's models, loads each of them in every way, and compares what they answer."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

from demo_loads import LIBRARY
from demo_models import DEMO_MODELS, DemoModel
from fresh_process import ChildFailed, FreshCall
from measurement import answer_measured

from mlup_stream.constants import Delivery
from mlup_stream.registry import binarizer_class

__all__ = ["run", "steps"]

_CHILD_SECONDS = 1200  # of a child that hangs; a busy machine is only slow
# What a demo's loads took is not to be remembered: its files will be gone.
_ENVIRONMENT = {"MLUP_STREAM_LEARNED": "0"}
# Importing scikit-learn takes longer than most of the loads: as many processes import at a time as there are cores, at most
# these, and load one after the other when all of them are done.
_MOST_AT_A_TIME = 4


def steps() -> int:
    """How often `run` says that it goes on."""
    return len(_TRAINING) + sum(len(_ways(model)) for model in DEMO_MODELS)


def run(folder: str, size_bytes: int, step: Callable[[str], None]) -> list[dict[str, Any]]:
    """Trains, loads, compares.

    Args:
        folder: For the models' files.
        size_bytes: The least size of each.
        step: Told what comes next, `steps()` times.

    Returns:
        For each model what it is, and a dictionary per load: as `measured`, with its `label`, the `way`, whether it `agrees`
        with the trained model and the largest `difference`; or a `failure` instead of the figures.

    Raises:
        ChildFailed: The models could not be made.
    """
    trained = _train(folder, size_bytes, step)
    results = []
    for model in DEMO_MODELS:
        source = trained["write_forest" if model.file.startswith("forest") else "write_network"]
        results.append(
            {
                "model": model.title,
                "file": model.file,
                "size_bytes": os.path.getsize(os.path.join(folder, model.file)),
                "training_seconds": source["seconds"],
                "accuracy": source["accuracy"],
                "loads": list(_loads(folder, model, source["answers"], step)),
            }
        )
    return results


_TRAINING = {"write_network": "training a network on scikit-learn's digits", "write_forest": "training a forest on them"}


def _train(folder: str, size_bytes: int, step: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    calls = {name: ("demo_models:" + name, {"folder": folder, "size_bytes": size_bytes}) for name in _TRAINING}
    trained = {}
    with contextlib.ExitStack() as children:
        started = {name: children.enter_context(_call(*call)) for name, call in calls.items()}
        for name, call in started.items():
            step(_TRAINING[name])
            trained[name] = call.answer()
    return trained


def _call(function: str, arguments: dict[str, Any]) -> FreshCall:
    return FreshCall(function, timeout_seconds=_CHILD_SECONDS, environment=_ENVIRONMENT, **arguments)


def _ways(model: DemoModel) -> list[str]:
    """The library's own call, what auto chooses, and each delivery that the format's binarizer accepts."""
    accepted = binarizer_class(model.format).deliveries
    return [LIBRARY, *(kind.value for kind in Delivery if kind is Delivery.AUTO or kind in accepted)]


def _loads(folder: str, model: DemoModel, expected: list[list[float]], step: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    ways = _ways(model)
    at_a_time = min(os.cpu_count() or 1, _MOST_AT_A_TIME)
    for first in range(0, len(ways), at_a_time):
        with contextlib.ExitStack() as children:
            calls = {
                way: children.enter_context(
                    _call("demo_loads:measure", {"folder": folder, "model": model.file, "delivery": way})
                )
                for way in ways[first : first + at_a_time]
            }
            for call in calls.values():
                with contextlib.suppress(ChildFailed):  # which answer_measured says again
                    call.ready()
            for way, call in calls.items():
                step(f"loading {model.file}: {way}")
                yield _load(call, model, way, expected)


def _load(call: FreshCall, model: DemoModel, way: str, expected: list[list[float]]) -> dict[str, Any]:
    label = model.library_call if way == LIBRARY else way
    try:
        found = answer_measured(call)
    except ChildFailed as error:
        return {"label": label, "way": way, "agrees": False, "failure": str(error)}
    agrees, difference = _compare(found.pop("answer"), expected, model.tolerance)
    return {"label": label, "way": way, "agrees": agrees, "difference": difference, **found}


def _compare(answers: list[list[float]], expected: list[list[float]], tolerance: float) -> tuple[bool, float]:
    """Whether each row names the same digit and no probability differs by more; and the largest difference."""
    if [len(row) for row in answers] != [len(row) for row in expected]:
        return False, math.inf
    differences = [abs(a - b) for ours, theirs in zip(answers, expected, strict=True) for a, b in zip(ours, theirs, strict=True)]
    same_digits = [row.index(max(row)) for row in answers] == [row.index(max(row)) for row in expected]
    within = all(difference <= tolerance for difference in differences)  # a NaN is not
    return same_digits and within, max(differences)
