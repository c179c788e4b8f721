"""The command `mlup-stream`. One module per subcommand; each is imported only when it is called."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from mlup_stream._version import __version__
from mlup_stream.errors import MissingDependencyError
from mlup_stream.extras import require

if TYPE_CHECKING:
    import click

__all__ = ["main"]

SUBCOMMANDS = ("demo", "inspect", "load", "pack", "plan")


def main() -> None:
    """The entry point: runs the subcommand and exits with its code (see `cli.exit_codes`)."""
    try:
        require("rich", "the tables of the command line")
        _group().main(prog_name="mlup-stream")
    except MissingDependencyError as error:
        sys.exit(f"mlup-stream: {error}")


def _group() -> click.Group:
    click = require("click", "the subcommands")

    class Subcommands(click.Group):  # type: ignore[misc, name-defined]  # click is imported at run time
        def list_commands(self, context: Any) -> list[str]:
            return list(SUBCOMMANDS)

        def get_command(self, context: Any, name: str) -> Any:
            if name not in SUBCOMMANDS:
                return None
            return importlib.import_module(f"mlup_stream.cli.{name}").command

    group = Subcommands(help="Load machine-learning models with as little memory as their format allows.")
    return click.version_option(__version__, prog_name="mlup-stream")(group)  # type: ignore[no-any-return]
