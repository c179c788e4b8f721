"""Say what FILE is and what its headers say. Loads nothing.

Imports no framework and reads no payload: a model that could not be loaded here is described all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mlup_stream.cli.exit_codes import NOT_TRUSTED, exit_on_error
from mlup_stream.cli.options import trusted_global
from mlup_stream.ml.inspection import inspect
from mlup_stream.trust.policy import Trust
from mlup_stream.units import format_bytes

__all__ = ["command", "rendering"]

_SHOWN_ROWS = 20
_SIZES = "_bytes"


@click.command("inspect", help=__doc__)
@click.argument("file", type=click.Path())
@click.option("--all", "show_all", is_flag=True, help=f"Show lists whole, not their first {_SHOWN_ROWS} entries.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.option(
    "--trust",
    type=click.Choice([kind.value for kind in Trust]),
    help="Say what FILE would import and call, and whether a load under this trust would begin; if not, exit with 8.",
)
@trusted_global
def command(file: str, show_all: bool, as_json: bool, trust: str | None, trusted_globals: tuple[str, ...]) -> None:
    with exit_on_error():
        said = inspect(file, trust=trust, trusted_globals=trusted_globals)
    if as_json:
        click.echo(json.dumps(said, indent=2))
    else:
        Console().print(rendering(said, None if show_all else _SHOWN_ROWS))
    if not said.get("safe", True):
        raise SystemExit(NOT_TRUSTED)


def rendering(said: dict[str, Any], rows: int | None = _SHOWN_ROWS) -> RenderableType:
    """What `inspect` said, for a terminal: the facts, then a table for each list of things.

    Args:
        said: What `inspect` returned.
        rows: How many entries of each list to show; None for all.
    """
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    tables: list[RenderableType] = []
    for key, value in said.items():
        if key == "file" or key.endswith("_total"):
            continue
        if isinstance(value, list) and value and isinstance(value[0], dict):
            tables.append(_table(key, value, said.get(f"{key}_total", len(value)), rows))
        else:
            facts.add_row(_label(key), Text(_cell(key, value, rows)))
    return Group(Text(str(said["file"]), style="bold underline"), facts, *tables)


def _table(key: str, entries: list[dict[str, Any]], total: int, rows: int | None) -> Table:
    shown = entries[:rows]
    more = total - len(shown)
    table = Table(title=f"{_label(key)} ({total})", title_justify="left", caption_justify="left")
    if more:
        table.caption = f"and {more} more" + ("; --all shows them" if len(shown) < len(entries) else "")
    columns = list(dict.fromkeys(column for entry in shown for column in entry))
    for column in columns:
        table.add_column(_label(column), justify="right" if column.endswith(_SIZES) else "left", overflow="fold")
    for entry in shown:
        table.add_row(*(Text(_cell(column, entry.get(column), rows)) for column in columns))
    return table


def _cell(key: str, value: Any, rows: int | None) -> str:
    if value is None or value == "":
        return "not said"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and key.endswith(_SIZES):
        return format_bytes(value)
    if key == "shape":
        return " x ".join(map(str, value)) or "scalar"
    if isinstance(value, dict):
        lines = [f"{name}: {_cell('', each, rows)}" for name, each in value.items()]
        return _cut(lines, rows, "\n") or "none"
    if isinstance(value, list):
        return _cut([_cell("", each, rows) for each in value], rows, ", ") or "none"
    return str(value)


def _cut(parts: list[str], rows: int | None, between: str) -> str:
    more = len(parts) - len(parts[:rows])
    return between.join(_with_rest(parts[:rows], more))


def _with_rest(parts: list[str], more: int) -> Iterable[str]:
    return [*parts, f"and {more} more"] if more else parts


def _label(key: str) -> str:
    return key.removesuffix(_SIZES).replace("_", " ")
