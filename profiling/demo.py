"""Train real models, load them through every delivery, and compare with the libraries' own calls.

A scikit-learn network (pickle), a scikit-learn forest (joblib) and an ONNX network, each of --size and more on disk, are loaded
in fresh processes. The table shows what each load took above what the imports take, as ratios to the file's size, and whether
every model answers as the trained one did; the exit code is 1 if one does not.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import click
from demo_run import run, steps
from demo_table import print_results
from fresh_process import ChildFailed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mlup_stream.cli.exit_codes import exit_on_error
from mlup_stream.extras import require
from mlup_stream.units import MIB, format_bytes, parse_bytes

__all__ = ["command"]

_NEEDED = ("numpy", "sklearn", "joblib", "onnx", "onnxruntime")
# The network's pickle is three times its weights (see demo_models), the forest and the ONNX file are one `--size` each.
_DISK_PER_SIZE = 5.2


def _size(context: click.Context, parameter: click.Parameter, value: str) -> int:
    try:
        size_bytes = parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if size_bytes < MIB:
        raise click.BadParameter(f"{value} is too small to measure; at least 1MiB")
    return size_bytes


@click.command(help=__doc__)
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
        results = _run(folder, size_bytes)
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
    """The demo itself, with a progress bar on standard error."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=steps())
        begun = 0

        def step(what: str) -> None:
            nonlocal begun
            bar.update(task, description=what, completed=begun)
            begun += 1

        try:
            results = run(folder, size_bytes, step)
        except ChildFailed as error:
            raise click.ClickException(f"the models could not be made: {error}") from error
        bar.update(task, description="done", completed=begun)
    return results


if __name__ == "__main__":
    command()
