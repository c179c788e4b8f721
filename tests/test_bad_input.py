"""Bad input through the whole cycle: each is a typed error that names the file, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from models import KINDS

import mlup_stream as mlup
from mlup_stream import errors

SMALL_BYTES = 64 * 1024

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    """Every load runs the collector, which would walk all that pytest holds thousands of times; it passes over frozen objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def nothing_left(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """After the test no more descriptors are open than before it, and the folder for temporary files is empty."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("counts descriptors in /proc/self/fd")
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert list(temporary.iterdir()) == []


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The content of one small whole file of each kind."""
    folder = tmp_path_factory.mktemp("small")
    contents = {}
    for kind, made in KINDS.items():
        path = folder / made.file_name
        if kind == "onnx":
            made.build(path, 1024 * 1024 * 4)
        else:
            made.build(path, SMALL_BYTES)
        contents[kind] = path.read_bytes()
        mlup.load(path)  # libraries open descriptors and files of their own when they are first used
    return contents


def _cuts(size: int) -> list[int]:
    """Every one of the first and last 40 lengths, and 25 spread between."""
    return sorted({*range(1, min(40, size)), *range(max(1, size - 40), size), *range(1, size, max(1, size // 25))})


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("delivery", ["auto", "path", "bytes"])
def test_truncated_at_any_byte(
    tmp_path: Path, files: dict[str, bytes], kind: str, delivery: str, nothing_left: None
) -> None:
    """A file that ends early is never a model and never a crash: a typed error that names it."""
    whole = files[kind]
    path = tmp_path / KINDS[kind].file_name
    first = mlup.load(_written(path, whole), delivery=delivery)
    del first
    for length in _cuts(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(errors.ModelLoadError) as failed:
            mlup.load(path, delivery=delivery, binarization_type=kind)
        assert str(path) in str(failed.value)
        assert "\n" not in str(failed.value)
        with pytest.raises(errors.ModelLoadError):
            mlup.load(path, delivery=delivery)


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_garbage_under_a_right_name(tmp_path: Path, kind: str, nothing_left: None) -> None:
    """The name does not make it a model: not recognised, and damaged when the format is insisted on."""
    path = _written(tmp_path / KINDS[kind].file_name, bytes(range(256)) * 64)
    with pytest.raises(errors.FormatNotRecognizedError, match="00 01 02") as failed:
        mlup.load(path)
    assert str(path) in str(failed.value)
    with pytest.raises(errors.ModelBinarizationError) as failed_too:
        mlup.load(path, binarization_type=kind)
    assert str(path) in str(failed_too.value)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_wrong_name_does_not_hide_the_format(tmp_path: Path, files: dict[str, bytes], kind: str) -> None:
    """Content decides: any file loads under any name."""
    for name in ("model.bin", "model.txt", "model.onnx", "model.pckl", "model.json"):
        model = mlup.load(_written(tmp_path / name, files[kind]))
        assert model is not None
        del model


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_another_formats_file_is_told(tmp_path: Path, files: dict[str, bytes], kind: str, nothing_left: None) -> None:
    """Insisting on the wrong binarizer is a typed error, whatever the file is."""
    for other, content in files.items():
        if other == kind or {kind, other} == {"pickle", "joblib"}:
            continue
        path = _written(tmp_path / "model.bin", content)
        with pytest.raises(errors.ModelLoadError) as failed:
            mlup.load(path, binarization_type=kind)
        assert str(path) in str(failed.value)


def test_a_zip_that_is_no_model(tmp_path: Path, nothing_left: None) -> None:
    """Any zip is not a model: the message says that it is a zip and what is in it."""
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "nothing")
    with pytest.raises(errors.FormatNotRecognizedError, match="zip"):
        mlup.load(path)


def test_an_empty_file_missing_file_and_folder(tmp_path: Path, nothing_left: None) -> None:
    """Each is told for what it is, as the builtin error that a caller would expect."""
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(errors.NotAModelFileError, match=r"empty\.onnx.*empty"):
        mlup.load(tmp_path / "empty.onnx")
    with pytest.raises(FileNotFoundError, match=r"gone\.onnx"):
        mlup.load(tmp_path / "gone.onnx")
    with pytest.raises(FileNotFoundError, match="folder"):
        mlup.load(tmp_path / "folder")


def test_text_that_is_no_model(tmp_path: Path) -> None:
    """Prose, source code and JSON are not models."""
    for text in ("hello world\n", "version=3\nname=x\n", '{"a": 1}', "import pickle\n", "<html></html>"):
        with pytest.raises(errors.FormatNotRecognizedError):
            mlup.load(_written(tmp_path / "model.txt", text.encode()))
