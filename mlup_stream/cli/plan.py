"""Say what loading FILE would take, by each delivery, and whether it fits. Loads nothing.

Exit code 0 when at least one delivery fits (the one that --delivery names, if it is given), 7 when none does; the other codes
are those of `load`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from mlup_stream.calls import plan
from mlup_stream.cli.exit_codes import BUDGET_EXCEEDED, exit_on_error
from mlup_stream.cli.options import add_load_options, settings_of
from mlup_stream.memory.budget import Available
from mlup_stream.memory.gate import Weighed
from mlup_stream.units import format_bytes

__all__ = ["command"]


@click.command("plan", help=__doc__)
@click.argument("file", type=click.Path())
@add_load_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def command(file: str, as_json: bool, **options: Any) -> None:
    with exit_on_error():
        said = plan(file, **settings_of(options))
    if as_json:
        click.echo(json.dumps(said.to_dict(), indent=2))
    else:
        Console().print(_table(file, said.deliveries, said.available))
    sys.exit(0 if said.fits else BUDGET_EXCEEDED)


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
