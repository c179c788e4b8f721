"""Load FILE and show what it took.

The figures are the kernel's: RSS and its parts before the binarizer runs (imports done), at the highest point, and afterwards.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.table import Table

from mlup_stream.calls import open_model
from mlup_stream.cli.exit_codes import exit_on_error
from mlup_stream.cli.options import add_load_options, settings_of
from mlup_stream.memory.meter import Peak
from mlup_stream.ml.report import LoadReport
from mlup_stream.units import format_bytes

__all__ = ["command", "report_table"]


@click.command("load", help=__doc__)
@click.argument("file", type=click.Path())
@add_load_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(file: str, as_json: bool, **options: Any) -> None:
    with exit_on_error(), open_model(file, **settings_of(options)) as loaded:
        report = loaded.report
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        Console().print(report_table(report))


def report_table(report: LoadReport) -> RenderableType:
    """The report for a terminal: memory with its ratio to the file's size, then the facts."""
    memory = report.memory
    table = Table(title=report.file, title_justify="left")
    table.add_column()
    for heading in ("baseline", "peak", "settled"):
        table.add_column(heading, justify="right")
    for label, name in (("RSS", "rss_bytes"), ("anon", "anon_bytes"), ("file", "file_bytes")):
        baseline_bytes = getattr(memory.baseline, name)

        def grown(size_bytes: int | None, since_bytes: int | None = baseline_bytes) -> str:
            return _growth(size_bytes, since_bytes, report.size_bytes)

        table.add_row(label, _size(baseline_bytes), _at_peak(memory.peak, name, grown), grown(getattr(memory.settled, name)))
    facts = Table.grid(padding=(0, 2))
    for label, value in _facts(report):
        facts.add_row(label, value)
    return Group(table, facts)


def _at_peak(peak: Peak, name: str, grown: Callable[[int | None], str]) -> str:
    if name == "rss_bytes":
        return grown(peak.rss_bytes) + ("" if peak.rss_exact else " or more")
    if name == "file_bytes":
        return ""  # no kernel keeps its high-water mark; what RSS has above anon is a bound for it
    if peak.anon_low_bytes is None or peak.anon_high_bytes is None:
        return grown(peak.anon_low_bytes) + ("" if peak.anon_low_bytes is None else " or more")
    low, high = grown(peak.anon_low_bytes), grown(peak.anon_high_bytes)
    narrow = peak.anon_high_bytes - peak.anon_low_bytes <= peak.anon_high_bytes // 100
    return high if narrow else f"{low} to {high}"


def _growth(size_bytes: int | None, since_bytes: int | None, file_bytes: int) -> str:
    if size_bytes is None or since_bytes is None:
        return "unknown here"
    grown_bytes = size_bytes - since_bytes
    ratio = f" ({grown_bytes / file_bytes:.2f}x)" if file_bytes else ""
    return f"{'+' if grown_bytes >= 0 else ''}{format_bytes(grown_bytes)}{ratio}"


def _facts(report: LoadReport) -> list[tuple[str, str]]:
    facts = [
        ("format", report.format),
        ("size", format_bytes(report.size_bytes)),
        ("delivery", f"{report.delivery}: {report.delivery_reason}"),
        ("seconds", f"{report.seconds:.2f}: {_stages(report)}"),
        ("peak from", report.memory.peak.source),
    ]
    if report.placement is not None:
        mapped, copied = format_bytes(report.placement.mapped_bytes), format_bytes(report.placement.copied_bytes)
        facts.append(("payload", "; ".join([f"{mapped} in the file, {copied} copied", *report.placement.reasons])))
    facts += [
        (step.name, format_bytes(step.returned_bytes) + "".join(f"; held by {holder}" for holder in step.held_by))
        for step in report.memory.steps
    ]
    return facts


def _stages(report: LoadReport) -> str:
    stages = dataclasses.asdict(report.stage_seconds)
    return ", ".join(f"{name.replace('_', ' ')} {seconds:.2f}" for name, seconds in stages.items())


def _size(size_bytes: int | None) -> str:
    return "unknown here" if size_bytes is None else format_bytes(size_bytes)
