"""Train real models, load them through every delivery, and compare with the libraries' own calls.

A scikit-learn network (pickle), a scikit-learn forest (joblib) and an ONNX network, each of --size and more on disk, are loaded
in fresh processes. The table shows what each load took above what the imports take, as ratios to the file's size, and whether
every model answers as the trained one did; the exit code is 1 if one does not.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mlup_stream.cli.demo_loads import LIBRARY
from mlup_stream.cli.demo_models import DEMO_MODELS, DemoModel
from mlup_stream.cli.demo_table import print_results
from mlup_stream.cli.exit_codes import exit_on_error
from mlup_stream.cli.fresh_process import ChildFailed, call_fresh
from mlup_stream.cli.measured import call_measured
from mlup_stream.constants import Delivery
from mlup_stream.extras import require
from mlup_stream.ml.binarization.registry import binarizer_class
from mlup_stream.units import MIB, format_bytes, parse_bytes

__all__ = ["command"]

_NEEDED = ("numpy", "sklearn", "joblib", "onnx", "onnxruntime")
# The network's pickle is three times its weights (see demo_models), the forest and the ONNX file are one `--size` each.
_DISK_PER_SIZE = 5.2
_CHILD_SECONDS = 300
# What a demo's loads took is not to be remembered: its files will be gone.
_CHILD_ENVIRONMENT = {"MLUP_STREAM_LEARNED": "0"}

_DELIVERIES = [kind.value for kind in Delivery]


def _size(context: click.Context, parameter: click.Parameter, value: str) -> int:
    try:
        size_bytes = parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if size_bytes < MIB:
        raise click.BadParameter(f"{value} is too small to measure; at least 1MiB")
    return size_bytes


@click.command("demo", help=__doc__)
@click.option("--size", "size_bytes", default="256MiB", show_default=True, callback=_size, help="The least size of each file.")
@click.option("--keep", type=click.Path(file_okay=False), help="Write the models to this folder and leave them there.")
@click.option("--json", "as_json", is_flag=True, help="Print the measurements as JSON.")
def command(size_bytes: int, keep: str | None, as_json: bool) -> None:
    started = time.perf_counter()
    with exit_on_error():
        for name in _NEEDED:
            # Found, not imported: the children will, and three seconds of imports are of no use here.
            if importlib.util.find_spec(name) is None:
                require(name, "the demo's models")
    with _folder(keep, int(size_bytes * _DISK_PER_SIZE)) as folder:
        try:
            results = _run(folder, size_bytes)
        except ChildFailed as error:
            raise click.ClickException(f"the models could not be made: {error}") from error
    agree = all(load["agrees"] for result in results for load in result["loads"])
    if as_json:
        click.echo(json.dumps({"models": results, "agree": agree, "seconds": time.perf_counter() - started}, indent=2))
    else:
        print_results(results, agree=agree, seconds=time.perf_counter() - started, folder=keep)
    if not agree:
        raise SystemExit(1)


@contextlib.contextmanager
def _folder(keep: str | None, needed_bytes: int) -> Iterator[str]:
    """The folder for the models: `keep`, or one that is gone afterwards, also after Ctrl-C and SIGTERM."""
    if keep is not None:
        os.makedirs(keep, exist_ok=True)
    parent = keep or tempfile.gettempdir()
    free_bytes = shutil.disk_usage(parent).free
    if free_bytes < needed_bytes:
        raise click.ClickException(
            f"{parent}: expected {format_bytes(needed_bytes)} of free disk space, found {format_bytes(free_bytes)};"
            " give a smaller --size, another folder with --keep, or set TMPDIR"
        )
    if keep is not None:
        yield keep
        return

    def end(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        with tempfile.TemporaryDirectory(prefix="mlup-stream-demo-") as folder:
            yield folder
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(folder: str, size_bytes: int) -> list[dict[str, Any]]:
    """Trains, loads, compares: for each model what it is and a dictionary per load."""
    plans = [(model, _ways(model)) for model in DEMO_MODELS]
    bar = Progress(
        BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"), console=Console(stderr=True)
    )
    with bar:
        task = bar.add_task("", total=2 + sum(len(ways) for _, ways in plans))
        trained = {}
        for function, what in (("write_network", "a network"), ("write_forest", "a forest")):
            bar.update(task, description=f"training {what} on scikit-learn's digits")
            trained[function] = call_fresh(
                f"mlup_stream.cli.demo_models:{function}", timeout_seconds=_CHILD_SECONDS, folder=folder, size_bytes=size_bytes
            )
            bar.advance(task)
        results = []
        for model, ways in plans:
            source = trained["write_forest" if model.file.startswith("forest") else "write_network"]
            loads = []
            for way in ways:
                bar.update(task, description=f"loading {model.file}: {way}")
                loads.append(_load(folder, model, way, source["answers"]))
                bar.advance(task)
            results.append(
                {
                    "model": model.title,
                    "file": model.file,
                    "size_bytes": os.path.getsize(os.path.join(folder, model.file)),
                    "training_seconds": source["seconds"],
                    "accuracy": source["accuracy"],
                    "loads": loads,
                }
            )
        bar.update(task, description="done")
    return results


def _ways(model: DemoModel) -> list[str]:
    """The library's own call, what auto chooses, and each delivery that the format's binarizer accepts."""
    accepted = [kind.value for kind in binarizer_class(model.format).deliveries]
    return [LIBRARY, *(kind for kind in _DELIVERIES if kind == Delivery.AUTO.value or kind in accepted)]


def _load(folder: str, model: DemoModel, way: str, expected: list[list[float]]) -> dict[str, Any]:
    label = model.library_call if way == LIBRARY else way
    try:
        found = call_measured(
            "mlup_stream.cli.demo_loads:measure",
            timeout_seconds=_CHILD_SECONDS,
            environment=_CHILD_ENVIRONMENT,
            folder=folder,
            model=model.file,
            delivery=way,
        )
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
