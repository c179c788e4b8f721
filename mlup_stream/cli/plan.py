"""Say what loading FILE would take, by each delivery, and whether it fits. Loads nothing.

Exit code 0 when at least one delivery fits (the one that --delivery names, if it is given), 7 when none does; the other codes
are those of `load`.
"""

from __future__ import annotations

import json
import sys

import click
from rich.console import Console
from rich.table import Table

from mlup_stream.cli.exit_codes import BUDGET_EXCEEDED, exit_on_error
from mlup_stream.config import Config
from mlup_stream.constants import Delivery, Optimize, StorageType
from mlup_stream.memory.budget import Available
from mlup_stream.memory.gate import Weighed
from mlup_stream.memory.governor import MemoryGovernor
from mlup_stream.ml.model import MLupModel
from mlup_stream.units import format_bytes

__all__ = ["command"]


@click.command("plan", help=__doc__)
@click.argument("file", type=click.Path())
@click.option("--budget", default="auto", show_default=True, help="auto, 512MiB, a number of bytes, or a fraction (0.8).")
@click.option("--delivery", type=click.Choice([kind.value for kind in Delivery]), default="auto", show_default=True)
@click.option("--format", "binarization_type", default="auto", show_default=True, help="A format's name, such as onnx.")
@click.option("--optimize", type=click.Choice([kind.value for kind in Optimize]), default="memory", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def command(file: str, budget: str, delivery: str, binarization_type: str, optimize: str, as_json: bool) -> None:
    with exit_on_error():
        conf = Config(
            storage_type=StorageType.disk,
            storage_kwargs={"path_to_files": file},
            binarization_type=binarization_type,
            optimize=optimize,
            memory_budget=budget,
        )
        with MemoryGovernor(conf.memory_budget) as governor:
            rows = MLupModel(conf=conf).plan(governor)
            room = governor.available()
    asked = [row for row in rows if delivery in (Delivery.AUTO.value, row.delivery)]
    if as_json:
        click.echo(json.dumps({"file": file, **room.to_dict(), "deliveries": [row.to_dict() for row in rows]}, indent=2))
    else:
        Console().print(_table(file, rows, room))
    sys.exit(0 if any(row.fits for row in asked) else BUDGET_EXCEEDED)


def _table(file: str, rows: tuple[Weighed, ...], room: Available) -> Table:
    tightest = "no limit was found" if room.tightest is None else f"{format_bytes(room.bytes or 0)} left of {room.tightest}"
    table = Table(title=file, title_justify="left", caption=tightest, caption_justify="left")
    for heading in ("delivery", "peak anon", "peak file", "settled", "fits", "why"):
        table.add_column(heading, justify="left" if heading in ("delivery", "fits", "why") else "right")
    for row in rows:
        estimate = row.estimate
        sizes = (
            ("unknown",) * 3
            if estimate is None
            else tuple(map(format_bytes, (estimate.peak_anon_bytes, estimate.peak_file_bytes, estimate.settled_bytes)))
        )
        table.add_row(row.delivery, *sizes, "yes" if row.fits else "no", row.why)
    return table
