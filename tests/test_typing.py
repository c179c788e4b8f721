"""What a type checker finds in a caller, and what `help()` shows."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mlup_stream as mlup
from mlup_stream.constants import BinarizationType
from mlup_stream.settings import LoadSettings

CALLERS = Path(__file__).parent / "typing"
ROOT = Path(__file__).parent.parent


def _found(name: str, cache: Path) -> list[tuple[int, str]]:
    pytest.importorskip("mypy", reason="the extra `lint` is not installed")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(cache)]
    done = subprocess.run(
        [*command, str(CALLERS / name)], capture_output=True, text=True, check=False, cwd=ROOT, timeout=280
    )
    assert done.returncode in (0, 1), done.stderr
    errors = re.findall(rf"{name}:(\d+): error: .*\[([a-z-]+)\]", done.stdout)
    return [(int(line), kind) for line, kind in errors]


def test_callers_that_are_right_pass(tmp_path: Path) -> None:
    """Strictly: no attribute or parameter of the face is untyped or too narrow."""
    assert _found("passing.py", tmp_path) == []


def test_callers_that_are_wrong_are_found(tmp_path: Path) -> None:
    """Each misspelled name, setting and choice, in its line, and nothing else."""
    lines = (CALLERS / "failing.py").read_text().splitlines()
    expected = [(number, line.partition("# error: ")[2]) for number, line in enumerate(lines, 1) if "# error: " in line]
    assert _found("failing.py", tmp_path) == expected


def test_the_keywords_of_load_are_all_settings_and_all_options() -> None:
    """`LoadSettings` is written out for checkers: it has each field of `Config` and each option of our binarizers, no more."""
    options: set[str] = set()
    for kind in BinarizationType:
        module, _, name = kind.value.rpartition(".")
        options |= getattr(getattr(importlib.import_module(module), name), "option_names", frozenset())
    fields = {each.name for each in dataclasses.fields(mlup.Config)}
    assert options.isdisjoint(fields)
    assert LoadSettings.__annotations__.keys() == fields | options


def test_help_shows_every_field_of_config() -> None:
    """With its default in the signature, and its meaning in the docstring."""
    parameters = inspect.signature(mlup.Config).parameters
    assert list(parameters) == [each.name for each in dataclasses.fields(mlup.Config)]
    assert parameters["memory_budget"].default == "auto"
    for name in parameters:
        assert f"\n        {name}: " in str(mlup.Config.__doc__)


@pytest.mark.parametrize("name", mlup.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """In `dir`, as an attribute, and in the page of the API."""
    assert getattr(mlup, name) is not None
    assert name in dir(mlup)
    assert f"`{name}" in (ROOT / "docs" / "api.md").read_text()


@pytest.mark.parametrize("name", ["model", "plan", "report", "storage", "binarization", "inspection"])
def test_modules_of_ml_are_attributes(name: str) -> None:
    """`mlup.ml.model` works without an import of its own."""
    assert getattr(mlup.ml, name).__name__ == f"mlup_stream.ml.{name}"


@pytest.mark.parametrize("module", [mlup, mlup.ml])
def test_a_name_that_is_not_there_is_an_attribute_error(module: Any) -> None:
    """At run time too."""
    with pytest.raises(AttributeError, match="laod"):
        _ = module.laod
