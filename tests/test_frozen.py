"""A program that PyInstaller has frozen."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy
import pytest

from mlup_stream import extras
from mlup_stream.__pyinstaller import hook_folders
from mlup_stream.errors import MissingDependencyError

PROGRAM = """
import json, sys
import mlup_stream
from mlup_stream.errors import MissingDependencyError

loaded = mlup_stream.load(sys.argv[1])
try:
    mlup_stream.load(sys.argv[2])
except MissingDependencyError as error:
    print(json.dumps({"sum": float(loaded["w"].sum()), "missing": str(error)}))
"""


@pytest.mark.slow
def test_a_frozen_program_loads(tmp_path: Path) -> None:
    """What the registry names by strings is in it; of a library that is not, the message says how to build it in."""
    program = tmp_path / "serve.py"
    program.write_text(textwrap.dedent(PROGRAM))
    numpy.savez(tmp_path / "model.npz", w=numpy.arange(1000.0))
    (tmp_path / "model.txt").write_bytes(b"tree\nversion=v4\nnum_class=1\n")
    command = [sys.executable, "-m", "PyInstaller", "--onedir", "--noconfirm", "--log-level", "ERROR"]
    folders = [f"--{kind}path={tmp_path / kind}" for kind in ("dist", "work", "spec")]
    hooks = ["--additional-hooks-dir", *hook_folders()]  # as the entry point says, where the package is installed
    excluded = [f"--exclude-module={name}" for name in ("lightgbm", "torch", "tensorflow", "scipy", "pytest")]
    subprocess.run([*command, *folders, *hooks, *excluded, str(program)], check=True, timeout=280)
    run = [tmp_path / "dist" / "serve" / "serve", tmp_path / "model.npz", tmp_path / "model.txt"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "sum": 499500.0,
        "missing": "LightGBM models need lightgbm 4.0 or newer, which is not installed;"
        " build the program with --hidden-import lightgbm",
    }


def test_what_a_frozen_program_lacks_is_told_with_the_builders_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip can install nothing into it."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(MissingDependencyError, match=r"build the program with --hidden-import no_such_library$"):
        extras.require("no_such_library", "Nonsense models")
