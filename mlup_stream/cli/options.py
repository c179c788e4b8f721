"""The options that `load` and `plan` share, and what they mean for the functions of the same names.

    @click.command("load")
    @add_load_options
    def command(file, **options):
        load(file, **settings_of(options))
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from mlup_stream.constants import Delivery, MappingMode, Optimize
from mlup_stream.trust.policy import Trust

__all__ = ["add_load_options", "settings_of", "trusted_global"]


def _split(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """`NAME=VALUE` as a dictionary; a value that is JSON is read as such: a number, true, a list. All else is text."""
    options = {}
    for each in values:
        name, equals, text = each.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{each!r}: expected NAME=VALUE, such as framework=torch")
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return options


trusted_global = click.option(
    "--trusted-global",
    "trusted_globals",
    metavar="NAME",
    multiple=True,
    help="A class or function, package.module.Name, that it may name beside those listed; may be given more than once.",
)
_OPTIONS = (
    click.option("--budget", "memory_budget", default="auto", show_default=True, help="auto, none, 512MiB, bytes, or 0.8."),
    click.option("--delivery", type=click.Choice([kind.value for kind in Delivery]), default="auto", show_default=True),
    click.option("--format", "binarization_type", default="auto", show_default=True, help="A format's name, such as onnx."),
    click.option("--mapping", type=click.Choice([kind.value for kind in MappingMode]), default="auto", show_default=True),
    click.option("--memory-limit", type=click.Choice(["soft", "hard"]), default="soft", show_default=True),
    click.option("--optimize", type=click.Choice([kind.value for kind in Optimize]), default="memory", show_default=True),
    click.option(
        "--option",
        "binarization_kwargs",
        metavar="NAME=VALUE",
        multiple=True,
        callback=_split,
        help="An option of the format's binarizer; may be given more than once.",
    ),
    click.option("--snapshot", is_flag=True, help="Load a private copy of the file."),
    click.option(
        "--trust",
        type=click.Choice([kind.value for kind in Trust]),
        default="full",
        show_default=True,
        help="What a pickle may import and call: all, what is listed, or nothing: no pickle is loaded.",
    ),
    click.option("--sha256", metavar="DIGEST", help="What FILE has to have; `beside`: what FILE.sha256 or SHA256SUMS says."),
    trusted_global,
)


def add_load_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a load, each with the name and the meaning of a field of `Config`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def settings_of(options: dict[str, Any]) -> dict[str, Any]:
    """The keywords of `mlup_stream.load` for the options that were given."""
    budget = options["memory_budget"]
    return {**options, "memory_budget": None if budget.lower() == "none" else budget}
