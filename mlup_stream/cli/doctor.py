"""Say which limits apply here, what can be measured, and what is installed; of FILE, whether it can be mapped.

Example: mlup-stream doctor models/model.onnx && exec serve
"""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlup_stream.cli.exit_codes import SOMETHING_WRONG
from mlup_stream.doctor import GOOD, WRONG, as_dict, examine

__all__ = ["command"]

_STYLES = {GOOD: "green", WRONG: "bold red"}


@click.command("doctor", help=__doc__)
@click.argument("file", type=click.Path(), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def command(file: str | None, as_json: bool) -> None:
    findings = examine(file)
    if as_json:
        click.echo(json.dumps(as_dict(findings), indent=2))
    else:
        table = Table.grid(padding=(0, 2))
        table.add_column()
        table.add_column()
        table.add_column(overflow="fold")  # a path that is cut off cannot be looked at
        for each in findings:
            hint = f"; {each.to_do}" if each.to_do else ""
            table.add_row(each.about, Text(each.state, style=_STYLES.get(each.state, "yellow")), Text(f"{each.text}{hint}"))
        Console().print(table)
    if any(each.state == WRONG for each in findings):
        raise SystemExit(SOMETHING_WRONG)
