"""Show or forget what earlier loads of this user's models took, by which the next ones are judged."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.table import Table

from mlup_stream.memory.learned import LearnedStore
from mlup_stream.units import format_bytes

__all__ = ["command"]


@click.group("learned", help=__doc__)
def command() -> None:
    pass


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def list_(as_json: bool) -> None:
    """Show what is remembered, the last load first."""
    store = LearnedStore(enabled=True)
    entries = store.remembered()
    if as_json:
        click.echo(json.dumps([{**each._asdict(), "measured": each.measured._asdict()} for each in entries], indent=2))
        return
    table = Table(title=store.folder, title_justify="left")
    for heading in ("file", "format", "delivery", "loads", "peak private", "settled private"):
        table.add_column(heading, justify="left" if heading in ("file", "format", "delivery") else "right", overflow="fold")
    for name, format, delivery, measured in entries:
        sizes = map(format_bytes, (measured.peak_anon_bytes, measured.settled_anon_bytes))
        table.add_row(name, format, delivery, str(measured.loads), *sizes)
    Console().print(table)


@command.command("forget")
@click.argument("files", type=click.Path(), nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Forget every load of every file, and what imports took.")
def forget(files: tuple[str, ...], everything: bool) -> None:
    """Forget what loads of FILES took; they are judged by their headers then."""
    if bool(files) == everything:
        raise click.UsageError("give the files whose loads are to be forgotten, or --all")
    store = LearnedStore(enabled=True)
    forgotten = store.clear() if everything else sum(map(store.forget, files))
    click.echo(f"forgot {forgotten} of what was remembered")
