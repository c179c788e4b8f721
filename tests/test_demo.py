"""The demo: every delivery in the table, every answer compared, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

pytest.importorskip("click", reason="the command line")
pytest.importorskip("sklearn", reason="the demo trains scikit-learn models")
pytest.importorskip("onnxruntime", reason="the demo runs an ONNX network")

import demo
import demo_run
from click.testing import CliRunner
from demo_loads import LIBRARY
from demo_models import DEMO_MODELS
from fresh_process import ChildFailed

from mlup_stream.registry import binarizer_class

RUN = "import sys; sys.path.insert(0, sys.argv.pop(1)); import demo; demo.command()"
HEEDS_SIGINT = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
"""What a shell starts in the background ignores SIGINT, and so do its children: the test must not depend on who started it."""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which this process and its children make temporary ones."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


def folders_of_demo(temporary: Path) -> list[Path]:
    """Not everything: onnxruntime leaves a file of its own there when it is imported."""
    return list(temporary.glob("mlup-stream-*"))


def measurement(answer: list[list[float]], **values: Any) -> dict[str, Any]:
    figures = ("peak_rss", "peak_anon", "peak_anon_limit", "settled_rss", "settled_anon", "use_rss", "use_anon")
    found = {"seconds": 0.5, "use_seconds": 0.1, "delivery": "path", "reason": "because", "peak_exact": True, "answer": answer}
    return {**found, **dict.fromkeys(figures, 2**20), **values}


class Call(NamedTuple):
    """In place of a `FreshCall`."""

    arguments: dict[str, Any]

    def ready(self) -> None:
        pass


class Stand:
    """In place of the child processes: models of 1 MiB, and what each load of them is to say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
        self.right = [[0.75, 0.25], [0.125, 0.875]]
        self.values = values
        self.asked: list[tuple[str, str]] = []
        monkeypatch.setattr(demo_run, "_train", self.train)
        monkeypatch.setattr(demo_run, "_call", lambda function, arguments: contextlib.nullcontext(Call(arguments)))
        monkeypatch.setattr(demo_run, "answer_measured", self.load)

    def train(self, folder: str, size_bytes: int, step: Any) -> dict[str, Any]:
        for model in DEMO_MODELS:
            with open(os.path.join(folder, model.file), "wb") as file:
                file.truncate(2**20)
        return {name: {"seconds": 1.0, "accuracy": 0.9, "answers": self.right} for name in ("write_network", "write_forest")}

    def load(self, call: Call) -> dict[str, Any]:
        self.asked.append((call.arguments["model"], call.arguments["delivery"]))
        return measurement(self.values.pop("answer", self.right), **self.values)


def test_real_models_answer_alike_through_every_way_of_loading(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that were really trained and written are loaded in fresh processes, and answer as they did when trained."""
    ways = demo_run._ways
    # Every delivery of ONNX, whose import is quick; of the others, which import scikit-learn, one each.
    few = {"pickle": ["auto"], "joblib": [LIBRARY]}
    monkeypatch.setattr(demo_run, "_ways", lambda model: few.get(model.format) or ways(model))
    done = CliRunner().invoke(demo.command, ["--size", "1MiB", "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert done.exit_code == 0
    assert found["agree"] is True
    assert [model["size_bytes"] >= 2**20 for model in found["models"]] == [True, True, True]
    for model in found["models"]:
        for load in model["loads"]:
            assert "failure" not in load
            assert load["agrees"]
            assert load["seconds"] > 0
    assert folders_of_demo(temporary) == []


def test_the_table_has_the_library_and_every_delivery(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each model is loaded by its library, by auto and by each delivery that its binarizer accepts, and each is a row."""
    stand = Stand(monkeypatch)
    done = CliRunner().invoke(demo.command, ["--size", "1MiB"], catch_exceptions=False)
    assert done.exit_code == 0
    for model in DEMO_MODELS:
        accepted = {kind.value for kind in binarizer_class(model.format).deliveries}
        assert {way for file, way in stand.asked if file == model.file} == {LIBRARY, "auto", *accepted}
        assert model.library_call in done.stdout
    assert "auto: path" in done.stdout
    assert "1.00" in done.stdout
    assert folders_of_demo(temporary) == []


@pytest.mark.parametrize(
    "answer",
    [
        [[0.75, 0.25], [0.125, 0.876]],
        [[0.75, 0.25], [0.875, 0.125]],
        [[0.75, 0.25]],
        [[0.75, 0.25], [0.125, float("nan")]],
    ],
)
def test_one_wrong_answer_is_an_exit_code(answer: list[list[float]], temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single load that answers otherwise, by a digit, by a thousandth, by its shape or by a NaN, fails the demo."""
    Stand(monkeypatch, answer=answer)
    done = CliRunner().invoke(demo.command, ["--size", "1MiB"], catch_exceptions=False)
    assert done.exit_code == 1
    assert "WRONG" in done.stdout


def test_a_load_that_dies_is_a_row_and_an_exit_code(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that ends without an answer fails the demo, and the table goes on."""
    stand = Stand(monkeypatch)

    def die(call: Call) -> dict[str, Any]:
        if call.arguments["delivery"] == "bytes":
            raise ChildFailed("measure", -9, "")
        return stand.load(call)

    monkeypatch.setattr(demo_run, "answer_measured", die)
    done = CliRunner().invoke(demo.command, ["--size", "1MiB"], catch_exceptions=False)
    assert done.exit_code == 1
    assert "failed" in done.stdout
    assert "exit code -9" in done.stdout
    assert folders_of_demo(temporary) == []


def test_what_the_system_does_not_say_is_not_guessed(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc there is no anon, and no mark that can be set back: the table says so, and has no number there."""
    Stand(monkeypatch, peak_exact=False, peak_anon=None, settled_anon=None, use_anon=None)
    done = CliRunner().invoke(demo.command, ["--size", "1MiB"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "1.00*" in done.stdout
    assert "does not tell anonymous memory" in done.stdout


def test_kept_models_stay(temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--keep leaves the models in its folder, and takes nothing away that was there."""
    Stand(monkeypatch)
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "mine.txt").touch()
    done = CliRunner().invoke(demo.command, ["--size", "1MiB", "--keep", str(folder)], catch_exceptions=False)
    assert done.exit_code == 0
    assert {each.name for each in folder.iterdir()} == {"mine.txt", *(model.file for model in DEMO_MODELS)}


def test_too_little_disk_is_said_before_anything_is_written(temporary: Path) -> None:
    """A size that the disk cannot hold is one line that says how much is needed and how much is free."""
    done = CliRunner().invoke(demo.command, ["--size", "1000TiB"])
    assert done.exit_code == 1
    assert "free disk space" in done.stderr
    assert folders_of_demo(temporary) == []


@pytest.mark.parametrize("size", ["no size", "17B"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    """A size that cannot be read, or is too small to measure, is an error of usage."""
    assert CliRunner().invoke(demo.command, ["--size", size]).exit_code == 2


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(number: int, temporary: Path) -> None:
    """Ctrl-C and SIGTERM end the demo and its child, and its folder is gone."""
    with subprocess.Popen(
        [sys.executable, "-c", HEEDS_SIGINT + RUN, os.path.dirname(demo.__file__), "--size", "64MiB"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while not (children := psutil.Process(process.pid).children(recursive=True)):
                assert process.poll() is None, "the demo ended before it had a child"
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert len(folders_of_demo(temporary)) == 1
            process.send_signal(number)
            process.communicate(timeout=60)
            _, alive = psutil.wait_procs(children, timeout=10)
            assert alive == []
        finally:
            process.kill()
    assert process.returncode != 0
    assert folders_of_demo(temporary) == []
