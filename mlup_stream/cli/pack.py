"""Rewrite SRC to DST once, so that its arrays are aligned and stay in the file when it is loaded.

The format stays what it is: pickle, joblib, npy, npz, safetensors and torch files go on being read by their own libraries. What
was compressed is unpacked, shards of safetensors become one file, and an ONNX model gets its weights in a file beside it.

Nothing that SRC names is imported or run; what cannot be rewritten so is refused, unless --trust full says otherwise.

DST appears whole, compared with SRC bit for bit, or not at all. SRC is not changed. Little memory is needed, and as much disk
space as the unpacked arrays take. Exit code 1 when there is nothing to gain, no room, or something at DST; the others are those
of `load`.
"""

from __future__ import annotations

import json
import signal
from typing import Literal, NoReturn

import click
from rich.console import Console
from rich.table import Table

from mlup_stream.cli.exit_codes import exit_on_error
from mlup_stream.pack import Packed, pack
from mlup_stream.units import format_bytes

__all__ = ["command"]


@click.command("pack", help=__doc__)
@click.argument("src", type=click.Path())
@click.argument("dst", type=click.Path())
@click.option("--force", is_flag=True, help="Replace what is at DST.")
@click.option("--format", "format_name", metavar="FORMAT", help="What SRC is, if unclear.")
@click.option(
    "--trust",
    type=click.Choice(["none", "full"]),
    default="none",
    show_default=True,
    help="'full' lets SRC run its code where a rewrite takes that: pickles of protocols 0 to 2.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def command(
    src: str, dst: str, force: bool, format_name: str | None, trust: Literal["none", "full"], as_json: bool
) -> None:
    # As after Ctrl-C, nothing is left behind: an exception goes through everything that cleans up.
    signal.signal(signal.SIGTERM, _end)
    with exit_on_error():
        packed = pack(src, dst, force=force, format=format_name, trust=trust)
    if as_json:
        click.echo(json.dumps(packed.to_dict(), indent=2))
    else:
        Console().print(_table(packed))


def _end(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _table(packed: Packed) -> Table:
    table = Table(title=f"{packed.source} -> {packed.destination}", title_justify="left", show_header=False)
    rows = [
        ("format", packed.format),
        ("files", "\n".join(packed.files)),
        ("bytes", f"{format_bytes(packed.source_bytes)} read, {format_bytes(packed.destination_bytes)} written"),
        ("in place", _in_place(packed)),
        ("verified", packed.verified),
        ("seconds", f"{packed.seconds:.2f}"),
        *(("note", note) for note in packed.notes),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _in_place(packed: Packed) -> str:
    total = packed.payload_bytes or 1
    before, after = packed.mappable_before_bytes, packed.mappable_after_bytes
    return (
        f"{format_bytes(after)} of {format_bytes(packed.payload_bytes)} of arrays can stay in the file ({after / total:.0%});"
        f" before, {format_bytes(before)} ({before / total:.0%})"
    )
