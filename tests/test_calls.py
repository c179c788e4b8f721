"""What the package does in one call: `load` of every kind of source, `open`, `plan`, `inspect`, `pack`, and `python -m`."""

from __future__ import annotations

import array
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mlup_stream as mlup
from mlup_stream import errors

MODEL = {"weights": list(range(1000))}


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.pckl"
    path.write_bytes(pickle.dumps(MODEL))
    return path


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda content: array.array("B", content), io.BytesIO])
def test_content_is_loaded_as_a_file_is(kind: Any) -> None:
    """Bytes, any buffer, and a binary file object; each for `plan` and `inspect` too."""
    content = pickle.dumps(MODEL)
    assert mlup.load(kind(content)) == MODEL
    assert mlup.inspect(kind(content))["format"] == "pickle"
    assert [row.delivery for row in mlup.plan(kind(content)).deliveries] == ["bytes"]


def test_a_file_that_is_open_stays_open(model_file: Path) -> None:
    """It is the caller's."""
    with open(model_file, "rb") as file:
        assert mlup.load(file) == MODEL
        assert not file.closed


def test_what_is_no_content_is_told() -> None:
    """And where to find a model is not said twice."""
    with pytest.raises(errors.MLupError, match="int"):
        mlup.load(3)  # type: ignore[arg-type]
    with pytest.raises(errors.ConfigError, match="leave them out"):
        mlup.load(b"x", storage_type="disk")


def test_open_gives_model_and_report_and_the_memory_back(model_file: Path) -> None:
    """After the block nothing is loaded, and asking says so."""
    with mlup.open(model_file, delivery="stream") as loaded:
        assert loaded.model == MODEL
        assert (loaded.report.delivery, loaded.report.file) == ("stream", str(model_file))
    with pytest.raises(errors.ModelLoadError, match="not loaded"):
        _ = loaded.model
    assert loaded.report.format == "pickle"
    assert loaded.unload() == ()


def test_plan_says_what_fits_and_loads_nothing(model_file: Path) -> None:
    """The rows of `mlup-stream plan`; a delivery that is asked for is the one that has to fit."""
    said = mlup.plan(model_file)
    assert said.fits
    assert {row.delivery for row in said.deliveries} >= {"path", "view", "stream", "bytes"}
    assert not mlup.plan(model_file, memory_budget=101, delivery="bytes").fits
    assert json.dumps(said.to_dict())
    with pytest.raises(errors.ConfigError, match="'view'"):
        mlup.plan(model_file, delivery="viwe")  # type: ignore[arg-type]


def test_pack_is_a_function_whether_or_not_its_module_was_imported(tmp_path: Path) -> None:
    """`mlup_stream.pack` is also a package; calling it and importing from it both work."""
    numpy = pytest.importorskip("numpy")
    source = tmp_path / "a.pckl"
    source.write_bytes(pickle.dumps({"w": numpy.arange(100_000)}, protocol=4))
    from mlup_stream.pack import pack

    assert mlup.pack(source, tmp_path / "b.pckl").format == "pickle"
    assert pack(source, tmp_path / "c.pckl").format == "pickle"
    assert mlup.load(tmp_path / "b.pckl")["w"].sum() == numpy.arange(100_000).sum()


def test_an_option_of_the_binarizer_is_a_keyword(model_file: Path) -> None:
    """The same as in `binarization_kwargs`, and before what is there."""
    text = b"\x8c\x01\xe9."  # a short text of UTF-8, that is none
    old = b"U\x01\xe9."  # a text of Python 2, whose encoding is an option
    assert mlup.load(old, binarization_type="pickle", encoding="latin-1") == "\xe9"
    assert mlup.load(old, binarization_type="pickle", encoding="latin-1", binarization_kwargs={"encoding": "ascii"}) == "\xe9"
    with pytest.raises(errors.MLupError):
        mlup.load(text, binarization_type="pickle")


def test_a_wrong_keyword_is_answered_with_settings_and_options(model_file: Path) -> None:
    """Near one of them, that is suggested; else both lists are given, and nothing has been imported or built."""
    with pytest.raises(errors.ConfigError, match="did you mean 'framework'"):
        mlup.load(model_file, framwork="torch")  # type: ignore[call-arg]
    for call in (mlup.load, mlup.plan, mlup.open):
        with pytest.raises(errors.ConfigError) as failed:
            call(model_file, framework="torch")
        message = str(failed.value)
        for word in ("PickleBinarizer has no option 'framework'", "encoding", "fix_imports", "memory_budget", "snapshot"):
            assert word in message
        assert failed.value.field == "framework"
        assert {"encoding", "memory_budget"} <= set(failed.value.allowed)


def test_the_package_is_a_command(model_file: Path) -> None:
    """`python -m mlup_stream` is `mlup-stream`; `load` and `plan` share their options."""
    pytest.importorskip("click", reason="the extra `cli` is not installed")
    shared = ["--budget", "1GiB", "--mapping", "read-only", "--snapshot", "--option", "encoding=latin-1", "--delivery", "stream"]
    for name, code in (("load", 0), ("plan", 0)):
        command = [sys.executable, "-m", "mlup_stream", name, str(model_file), "--json", *shared]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code, done.stderr
        assert json.loads(done.stdout)["file"] == str(model_file)


def test_the_command_can_be_called(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It returns its exit code and does not end the process."""
    pytest.importorskip("click", reason="the extra `cli` is not installed")
    from mlup_stream.cli.main import run

    assert run(["plan", str(model_file), "--json"]) == 0
    assert run(["plan", str(model_file), "--budget", "101"]) == 7
    assert run(["load", str(model_file), "--option", "framework"]) == 2
    assert run(["load", str(model_file.with_name("none"))]) == 3
    assert run(["no-such"]) == 2
    capsys.readouterr()
