"""Load, change, save under the same name: the file is the new model, and what was loaded keeps its values."""

from __future__ import annotations

import ctypes
import os
import pickle
import shutil
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from child import run_child

import mlup_stream as mlup
from mlup_stream.delivery import writers
from mlup_stream.delivery.view import View
from mlup_stream.errors import ModelFileInUse

numpy = pytest.importorskip("numpy", reason="the extra `numpy` is not installed")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows does not let a mapped file be truncated")

SAVERS = {
    "pkl": """
        def save(model):
            with open(path, "wb") as file:
                pickle.dump(dict(model), file, 5)
        def read():
            with open(path, "rb") as file:
                return pickle.load(file)
    """,
    "joblib": """
        import joblib
        def save(model):
            joblib.dump(dict(model), path)
        def read():
            return joblib.load(path)
    """,
    "npz": """
        def save(model):
            numpy.savez(path, **model)
        def read():
            return numpy.load(path)
    """,
    "npy": """
        def save(model):
            numpy.save(path, numpy.stack([model["a"], model["b"]]))
        def read():
            return dict(zip("ab", numpy.load(path)))
    """,
    "safetensors": """
        import safetensors.numpy
        def save(model):
            safetensors.numpy.save_file(dict(model), path)
        def read():
            return safetensors.numpy.load_file(path)
    """,
    "pt": """
        import torch
        def save(model):
            torch.save({name: torch.as_tensor(each) for name, each in model.items()}, path)
        def read():
            return torch.load(path)
    """,
}
SAVE_AGAIN = """
    import os, pickle, numpy
    import mlup_stream as mlup
    os.chdir(os.path.dirname(path))
    path = os.path.basename(path)
    old = {"a": numpy.arange(300_000.0), "b": numpy.arange(300_000.0) + 1}
    for settings in settings_of_loads:
        save(old)
        os.chmod(path, 0o640)
        model = mlup.load(path, **settings)
        model = dict(zip("ab", model)) if path.endswith("npy") else {name: model[name] for name in old}
        save({**model, "b": numpy.full(300_000, 7.0)})
        found = read()
        for given, expected in ((model["b"], old["b"]), (found["a"], old["a"]), (found["b"], numpy.full(300_000, 7.0))):
            assert numpy.array_equal(numpy.asarray(given), expected), settings
        assert path.endswith("safetensors") or os.stat(path).st_mode & 0o777 == 0o640
        assert os.listdir() == [path]
    answer(True)
"""


@pytest.mark.parametrize("suffix", [pytest.param(each, marks=[pytest.mark.torch] * (each == "pt")) for each in SAVERS])
def test_a_model_is_saved_under_its_own_name(tmp_path: Path, suffix: str) -> None:
    """By its library's own function, whatever the settings of the load; owner and mode stay, nothing is left beside it."""
    if suffix not in ("pkl", "npz", "npy"):
        pytest.importorskip({"pt": "torch"}.get(suffix, suffix), reason="its library saves it")
    settings = [{}, {"optimize": "speed"}] + [{"mapping": "read-only"}] * (suffix != "pt")
    code = "import pickle, numpy\n" + textwrap.dedent(SAVERS[suffix]) + textwrap.dedent(SAVE_AGAIN)
    assert run_child(code, path=str(tmp_path / f"m.{suffix}"), settings_of_loads=settings)


def written_through(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 1000)


def truncated_by_name(path: Path) -> None:
    os.truncate(path, 200)


def opened_by_descriptor(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def opened_within_a_folder(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    os.close(os.open(path.name, os.O_WRONLY | os.O_TRUNC, dir_fd=folder))
    os.close(folder)


def copied_over(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"other")
    shutil.copy(other, path)
    other.unlink()


def mapped_for_writing(path: Path) -> None:
    again = numpy.load(path, mmap_mode="r+")
    again[:] = 7.0
    again.flush()


WRITES = [written_through, truncated_by_name, opened_by_descriptor, opened_within_a_folder, copied_over, mapped_for_writing]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "m.npy"
    numpy.save(path, numpy.arange(100_000.0))
    monkeypatch.chdir(tmp_path)
    return path


@pytest.mark.parametrize("write", WRITES)
def test_a_write_by_any_way_of_python_s_does_what_it_says(path: Path, write: Callable[[Path], None]) -> None:
    """The file is byte for byte what it would be if nobody had it mapped; the model is what it was."""
    same = path.with_name("same.npy")
    shutil.copy(path, same)
    array = mlup.load(path)
    write(path)
    write(same)
    assert path.read_bytes() == same.read_bytes()
    assert sorted(os.listdir(path.parent)) == ["m.npy", "same.npy"]
    assert (array == numpy.arange(100_000.0)).all()


def test_a_link_stays_a_link(path: Path) -> None:
    """What it leads to gets the new content, as when it is written to."""
    link = path.with_name("link.npy")
    link.symlink_to(path.name)
    array = mlup.load(link)
    numpy.save(link, array + 1)
    assert link.is_symlink()
    assert (numpy.load(path) == array + 1).all()


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="extended attributes are Linux's")
def test_the_new_file_has_the_old_one_s_attributes(path: Path) -> None:
    """Mode and extended attributes, and with a write that does not truncate the times as they were before it."""
    path.chmod(0o604)
    try:
        os.setxattr(path, "user.origin", b"here")
    except OSError:
        pytest.skip("the file system has no extended attributes")
    array = mlup.load(path)
    path.write_bytes(b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert os.getxattr(path, "user.origin") == b"here"
    assert array[1] == 1.0


@pytest.mark.parametrize("mode", ["r", "rb", "xb"])
def test_who_reads_or_must_make_it_gets_the_file_itself(path: Path, mode: str) -> None:
    """Its name leads to the same file afterwards."""
    array = mlup.load(path)
    before = path.stat().st_ino
    try:
        open(path, mode).close()
    except FileExistsError:
        assert mode == "xb"
    assert path.stat().st_ino == before
    assert array[1] == 1.0


def test_a_file_that_is_no_longer_mapped_is_written_in_place(path: Path) -> None:
    """The name gets another file only while a model lives in it: hard links and watchers of the file see the write."""
    array = mlup.load(path)
    before = path.stat().st_ino
    del array
    path.write_bytes(b"new")
    assert path.stat().st_ino == before


@pytest.mark.parametrize("truncates", [True, False])
def test_a_writer_of_which_python_hears_nothing(path: Path, truncates: bool) -> None:
    """Once it is announced, it writes to a file of its own as well; announced twice, it is the same function."""

    class Library:
        @staticmethod
        def save(content: bytes, name: str) -> None:
            libc = ctypes.CDLL(None)
            file = libc.creat(name.encode(), 0o644)
            libc.write(file, content, len(content))
            libc.close(file)

    writers.announced(Library, "save", 1, truncates=truncates)
    announced = Library.save
    writers.announced(Library, "save", 1, truncates=truncates)
    writers.announced(Library, "no_such_function", 1)
    assert Library.save is announced
    array = mlup.load(path)
    Library.save(b"new", str(path))
    assert path.read_bytes() == b"new"
    assert (array == numpy.arange(100_000.0)).all()


@pytest.mark.parametrize(("version", "is_announced"), [("0.5.3", True), ("0.8.0", False)])
def test_which_safetensors_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, is_announced: bool
) -> None:
    """From 0.8 on it renames a new file itself: nothing has to be copied for it."""
    library = pytest.importorskip("safetensors", reason="writes the file")
    numpy_part = pytest.importorskip("safetensors.numpy", reason="writes the file")
    path = tmp_path / "m.safetensors"
    numpy_part.save_file({"a": numpy.arange(10.0)}, path)
    monkeypatch.setattr(library, "__version__", version)
    for part in (library, numpy_part):
        monkeypatch.setattr(part, "serialize_file", lambda *arguments, **keywords: None)
    assert (mlup.load(path, delivery="view")["a"] == numpy.arange(10.0)).all()
    assert hasattr(numpy_part.serialize_file, writers._ANNOUNCED) == is_announced


def test_what_cannot_be_kept_is_refused_before_anything_is_lost(path: Path) -> None:
    """A descriptor that was open before the load leads to the mapped file itself: truncating it is a typed error."""
    with open(path, "r+b") as file:
        array = mlup.load(path)
        with pytest.raises(ModelFileInUse, match=r"m\.npy: .* would be truncated; save it under another name") as error:
            os.ftruncate(file.fileno(), 100)
        assert error.value.filename == str(path)
    assert (array == numpy.arange(100_000.0)).all()


def test_a_folder_that_takes_no_other_file_is_a_typed_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a single file that is mounted into a container: nothing is truncated, nothing is left behind."""
    array = mlup.load(path)

    def busy(*arguments: Any) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(writers.os, "replace", busy)
    with pytest.raises(ModelFileInUse, match="Device or resource busy"):
        path.write_bytes(b"new")
    assert os.listdir(path.parent) == [path.name]
    assert (numpy.load(path) == array).all()


def test_another_process_is_not_seen(path: Path) -> None:
    """The known limit that the documents tell: an in-place write from elsewhere shows in the model."""
    array = mlup.load(path)
    code = "import sys; file = open(sys.argv[1], 'r+b'); file.seek(-8, 2); file.write(bytes(8))"
    subprocess.run([sys.executable, "-S", "-c", code, str(path)], check=True)
    assert array[-1] == 0.0


def test_how_many_files_are_noted_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that loads file after file: those that are mapped stay noted, whatever came after them."""
    monkeypatch.setattr(writers, "_noted", {})
    monkeypatch.setattr(writers, "_MOST_NOTED", 10)
    monkeypatch.setattr(writers, "_LATEST", 5)
    with View(path) as view:
        assert view.buffer
        status = path.stat()
        for number in range(100):
            writers.note_mapped(0, number)
        assert (status.st_dev, status.st_ino) in writers._noted
        assert len(writers._noted) <= 11


def test_nothing_is_watched_before_a_file_is_mapped() -> None:
    """Importing the package, or loading content, puts no audit hook in place."""
    code = """
        import pickle, sys
        hooks = []
        add, sys.addaudithook = sys.addaudithook, hooks.append
        import mlup_stream as mlup
        mlup.load(pickle.dumps([1]))
        answer(len(hooks))
    """
    assert run_child(code) == 0


def test_a_pickle_of_objects_alone_is_saved_under_its_own_name(tmp_path: Path) -> None:
    """Nothing of it is mapped: it is written in place."""
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps({"a": 1}))
    before = path.stat().st_ino
    model = mlup.load(path)
    path.write_bytes(pickle.dumps({**model, "b": 2}))
    assert mlup.load(path) == {"a": 1, "b": 2}
    assert path.stat().st_ino == before
