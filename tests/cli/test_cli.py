"""`mlup-stream` as a shell sees it: what it prints, and its exit codes."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from child import run_child

pytest.importorskip("click", reason="the extra `cli` is not installed")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from mlup_stream.cli.main import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.pckl"
    path.write_bytes(pickle.dumps({"weights": list(range(1000))}))
    return path


def test_help_lists_every_subcommand() -> None:
    """Each subcommand is there, with its module's docstring as help."""
    done = _run("--help")
    assert done.returncode == 0
    for name in ("inspect", "learned", "load", "pack", "plan"):
        assert f"\n  {name} " in done.stdout
        assert _run(name, "--help").returncode == 0


def test_what_was_learned_is_listed_and_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the file's name, its format and delivery; `forget` wants files, or --all."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MLUP_STREAM_LEARNED", "1")
    path = tmp_path / "model.pckl"
    path.write_bytes(pickle.dumps([{index: str(index)} for index in range(100_000)]))
    assert _run("load", str(path)).returncode == 0
    (entry,) = json.loads(_run("learned", "list", "--json").stdout)
    assert (entry["name"], entry["format"], entry["measured"]["loads"]) == (str(path), "pickle", 1)
    assert "pickle" in _run("learned", "list").stdout
    assert _run("learned", "forget").returncode == 2
    assert "forgot 1 " in _run("learned", "forget", str(path)).stdout
    assert json.loads(_run("learned", "list", "--json").stdout) == []


def test_load_shows_the_report_as_a_table(model_file: Path) -> None:
    """Format, delivery, and RSS, anon and file memory at baseline, peak and settled."""
    done = _run("load", str(model_file))
    assert done.returncode == 0, done.stderr
    for word in ("pickle", "delivery", "RSS", "anon", "file", "baseline", "peak", "settled"):
        assert word in done.stdout


def test_load_prints_the_same_report_as_json(model_file: Path) -> None:
    """`--json` is the report's to_dict; `--delivery` is obeyed."""
    done = _run("load", str(model_file), "--json", "--delivery", "bytes")
    report = json.loads(done.stdout)
    assert (report["file"], report["format"], report["delivery"]) == (str(model_file), "pickle", "bytes")


def test_inspect_says_what_the_headers_say_and_loads_nothing(tmp_path: Path) -> None:
    """A pickle whose loading would fail is described all the same."""
    path = tmp_path / "model.pckl"
    path.write_bytes(b"\x80\x02cno_such_module\nModel\nq\x00.")
    done = _run("inspect", str(path), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["format"] == "pickle"
    assert "pickle" in _run("inspect", str(path)).stdout


@pytest.mark.parametrize(
    ("content", "arguments", "code"),
    [
        (None, (), 3),
        (b"no model at all, only prose", (), 4),
        (b"", (), 6),
        (b"\x80\x04\x95\xff", ("--format", "pickle"), 6),
        (b"\x80\x04N.", ("--delivery", "sideways"), 2),
        (b"\x80\x04N.", ("--format", "nonsense"), 1),
    ],
)
def test_each_failure_has_its_exit_code_and_one_line(
    tmp_path: Path, content: bytes | None, arguments: tuple[str, ...], code: int
) -> None:
    """The documented codes; an error of ours is one line without a traceback."""
    path = tmp_path / "model.bin"
    if content is not None:
        path.write_bytes(content)
    done = _run("load", str(path), *arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code != 2:
        assert len(done.stderr.strip().splitlines()) == 1


def test_without_its_extra_the_command_says_what_to_install() -> None:
    """A missing `rich` is a line to paste, not a traceback."""
    code = """
        import sys
        sys.modules["rich"] = None
        from mlup_stream.cli.main import main
        try:
            main()
        except SystemExit as stop:
            answer(str(stop))
    """
    assert 'pip install "mlup-stream[cli]"' in run_child(code)
