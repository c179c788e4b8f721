"""`mlup-stream doctor`: what a load may have here, each thing in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from child import run_child

from mlup_stream import doctor
from mlup_stream.delivery import map_trouble
from mlup_stream.doctor import GOOD, NOTE, WRONG, Finding, examine


def _doctor(*arguments: str, limit_kib: int | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlup_stream", "doctor", *arguments]
    if limit_kib is not None:
        command = ["bash", "-c", f'ulimit -v {limit_kib}; exec "$@"', "bash", *command]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=120
    )


def test_it_says_a_line_of_everything_and_exits_with_0(tmp_path: Path) -> None:
    """Limits, measuring, memory, cache, libraries and the file, as text and as JSON with its schema's version."""
    path = tmp_path / "model.npy"
    path.write_bytes(b"x")
    done = _doctor(str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    for about in ("limits", "measuring", "memory", "cache", "libraries", "file"):
        assert f"\n{about} " in f"\n{done.stdout}"
    said = json.loads(_doctor(str(path), "--json").stdout)
    assert (said["schema"], said["wrong"]) == (1, 0)
    assert {each["state"] for each in said["findings"]} <= {GOOD, NOTE}
    assert any("host memory" in each["text"] for each in said["findings"])
    assert any(each["text"].startswith("numpy ") for each in said["findings"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS as Linux has it")
def test_a_limit_that_leaves_little_is_wrong() -> None:
    """`ulimit -v` so low that no library can be imported: the line names the limit, and the exit code is 9."""
    # The command itself maps about 100 MiB; 48 MiB more are less than NumPy and onnxruntime take.
    own_kib = int(run_child("import mlup_stream.cli.doctor; answer(_VMSIZE)".replace("_VMSIZE", _VM_SIZE)))
    done = _doctor(limit_kib=own_kib + 48 * 1024)
    assert done.returncode == 9, done.stdout + done.stderr
    assert "RLIMIT_AS" in done.stdout
    assert "wrong" in done.stdout


_VM_SIZE = "open('/proc/self/status').read().split('VmPeak:')[1].split()[0]"


def test_what_is_missing_is_wrong(tmp_path: Path) -> None:
    """A file that is not there: 9, with what a load would say."""
    done = _doctor(str(tmp_path / "none.onnx"))
    assert done.returncode == 9
    assert "no such file" in " ".join(done.stdout.split())


def test_a_cache_that_cannot_be_written_is_worth_knowing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is one that is switched off, and a user without one."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLUP_STREAM_LEARNED", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "cannot be written" in _of("cache").text
    monkeypatch.setenv("MLUP_STREAM_LEARNED", "0")
    assert "MLUP_STREAM_LEARNED is set to 0" in _of("cache").text


def _of(about: str) -> Finding:
    (found,) = (each for each in examine() if each.about == about)
    assert found.state == NOTE
    return found


def test_nothing_is_imported() -> None:
    """Neither NumPy nor a framework, of which it says what importing takes."""
    code = """
        import sys
        from mlup_stream.doctor import examine
        found = examine()
        answer([name for name in ("numpy", "onnxruntime", "torch", "sklearn") if name in sys.modules])
    """
    assert run_child(code) == []


def test_one_thing_that_fails_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `/proc` that raises where nobody thought of it is a line, and the others follow."""

    def broken(*arguments: Any) -> Any:
        raise RuntimeError("no /proc")

    monkeypatch.setattr(doctor, "available", broken)
    monkeypatch.setattr(doctor, "is_told_apart", lambda: False)
    found = {each.about: each for each in reversed(examine())}
    assert found["limits"] == Finding("limits", NOTE, "could not be found out (RuntimeError: no /proc)")
    assert "not told apart" in found["measuring"].text
    assert "libraries" in found


def test_an_old_library_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the line that installs a newer one."""
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "0.0.1")
    found = [each for each in examine() if each.about == "libraries"]
    wrong = next(each for each in found if each.text.startswith("numpy"))
    assert (wrong.state, wrong.text) == (WRONG, "numpy 0.0.1 is older than 1.24")
    assert wrong.to_do.startswith("pip install ")


@pytest.mark.parametrize(("version", "state"), [("1.27rc1", GOOD), ("1.23rc1", WRONG), ("2.4.6+local", GOOD)])
def test_a_pre_release_is_as_old_as_its_release(version: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that a load would take is not called wrong, which would keep a container from starting."""
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: version)
    assert next(each for each in examine() if each.text.startswith("numpy ")).state == state


@pytest.mark.parametrize(("kind", "words"), [("", "cannot be told"), ("nfs4", "nfs4"), ("fuse.s3fs", "fuse.s3fs")])
@pytest.mark.parametrize("is_folder", [False, True], ids=["file", "folder"])
def test_a_map_is_called_safe_only_where_that_is_known(
    tmp_path: Path, kind: str, words: str, is_folder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on a network's or FUSE file system nor where none can be told, and of a folder as of a file."""
    path = tmp_path if is_folder else tmp_path / "model.npy"
    if not is_folder:
        path.write_bytes(b"x")
        path.chmod(0o400)
    for module in (doctor, map_trouble):
        monkeypatch.setattr(module, "file_system_of", lambda path: kind)
    (found,) = (each for each in examine(path) if each.about == "file")
    assert found.state == NOTE
    assert words in found.text
    assert "safe and shared" not in found.text
    assert found.to_do


def test_no_path_is_cut_off_at_80_columns(tmp_path: Path) -> None:
    """Where a limit is set, and which file is meant, are there whole, in however many lines."""
    folder = tmp_path / ("deep" * 40)
    folder.mkdir()
    said = _doctor(str(folder), COLUMNS="80").stdout
    assert "\u2026" not in said
    assert str(folder) in "".join(line.rsplit("  ", 1)[-1] for line in map(str.strip, said.splitlines()))
