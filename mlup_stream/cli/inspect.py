"""Say what FILE is and what its headers say. Loads nothing."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from mlup_stream.cli.exit_codes import exit_on_error
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.errors import AmbiguousModelError
from mlup_stream.formats.inspect import inspect
from mlup_stream.ml.binarization.detection import detect, findings_of
from mlup_stream.ml.storage.local_disk import DiskStorage
from mlup_stream.units import format_bytes

__all__ = ["command"]

_SHOWN_ROWS = 40


@click.command("inspect", help=__doc__)
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(file: str, as_json: bool) -> None:
    with exit_on_error():
        found = _inspected(file)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _show(found)


def _inspected(file: str) -> dict[str, Any]:
    files = DiskStorage(file).load()
    if len(files) > 1:
        names = ", ".join(each.name for each in files[:10])
        raise AmbiguousModelError(f"{file}: expected one model, found {len(files)}: {names}; give one of them")
    loaded: LoadedFile = files[0]
    kind = detect(loaded)
    evidence = next((finding.evidence for finding in findings_of(loaded) if finding.format is kind), "")
    return {
        "file": loaded.name,
        "format": kind.value,
        "evidence": evidence,
        "size_bytes": loaded.size_bytes,
        **inspect(loaded.path, kind, loaded.name),
    }


def _show(found: dict[str, Any]) -> None:
    """Facts first, then whatever is a list of things with the same fields as a table of its own."""
    console = Console()
    facts = Table.grid(padding=(0, 2))
    for name, value in found.items():
        if not isinstance(value, (list, dict)):
            facts.add_row(*_fact(name, value))
        elif isinstance(value, dict):
            facts.add_row(name, ", ".join(f"{key} {item}" for key, item in value.items()) or "none")
        elif not value or not isinstance(value[0], dict):
            facts.add_row(name, ", ".join(map(str, value)) or "none")
    console.print(facts)
    for name, value in found.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            console.print(_rows(name, value))


def _rows(title: str, rows: list[dict[str, Any]]) -> Table:
    more = len(rows) - _SHOWN_ROWS
    table = Table(title=title, title_justify="left", caption=f"and {more} more; --json has them all" if more > 0 else None)
    for name in rows[0]:
        table.add_column(_fact(name, 0)[0], justify="right" if name.endswith("_bytes") else "left")
    for row in rows[:_SHOWN_ROWS]:
        table.add_row(*(_fact(name, value)[1] for name, value in row.items()))
    return table


def _fact(name: str, value: Any) -> tuple[str, str]:
    """A heading and a text: sizes with their unit, the other names as they are."""
    if name.endswith("_bytes") and isinstance(value, int):
        return name.removesuffix("_bytes"), format_bytes(value)
    return name, str(value)
