"""The command `mlup-stream`. One module per subcommand; each is imported only when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from mlup_stream._version import __version__
from mlup_stream.errors import MissingDependencyError
from mlup_stream.extras import require

if TYPE_CHECKING:
    import click

__all__ = ["main", "run"]

SUBCOMMANDS = ("doctor", "inspect", "learned", "load", "pack", "plan")


def main() -> NoReturn:
    """The entry point: runs the subcommand of this process's command line and exits with its code."""
    try:
        sys.exit(run())
    except MissingDependencyError as error:
        sys.exit(f"mlup-stream: {error}")


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand, and returns its exit code (see `cli.exit_codes`).

    Args:
        arguments: What follows the command's name; None for those of this process.

    Raises:
        MissingDependencyError: The extra `cli` is not installed.
    """
    require("rich", "the tables of the command line")
    try:
        _group().main(None if arguments is None else list(arguments), prog_name="mlup-stream")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


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
