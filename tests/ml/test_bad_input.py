"""Bad input through the whole cycle: each is a typed error that names the file, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from models import KINDS, each_of, installed, need

import mlup_stream as mlup
from mlup_stream import errors
from mlup_stream.constants import LoadedFile
from mlup_stream.errors import CorruptModelError
from mlup_stream.ml.inspection import inspect

SMALL_BYTES = 64 * 1024

ONE_FILE = [kind for kind in KINDS if kind != "savedmodel"]  # which is a folder, and has tests of its own in test_tensorflow.py
BINARIZERS = {kind: KINDS[kind].binarizer or kind for kind in KINDS}

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # of torch 2.13, which still has it
]


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    """Every load runs the collector, which would walk all that pytest holds thousands of times; it passes over frozen objects."""
    _freeze()
    yield
    gc.unfreeze()


def _freeze() -> None:
    gc.collect()
    gc.freeze()


@pytest.fixture
def nothing_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
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


class Files(dict[str, bytes]):
    """The content of one small whole file of each kind, made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __missing__(self, kind: str) -> bytes:
        need(kind)
        made = KINDS[kind]
        path = self._folder / made.file_name
        made.build(path, 4 * 1024 * 1024 if kind == "onnx" else SMALL_BYTES)
        self[kind] = path.read_bytes()
        mlup.load(path)  # libraries open descriptors and files of their own when they are first used
        _freeze()  # what was imported for it
        return self[kind]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return Files(tmp_path_factory.mktemp("small"))


@pytest.fixture
def whole(request: pytest.FixtureRequest, files: dict[str, bytes]) -> bytes:
    """The file of the test's kind, before anything of the test is counted; libraries may warn while they are imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return files[request.node.callspec.params["kind"]]


@pytest.fixture
def others(request: pytest.FixtureRequest, files: dict[str, bytes], whole: bytes) -> dict[str, bytes]:
    """The files of every kind whose tests run together with the test's own, if its libraries are here."""
    frameworks = ("", KINDS[request.node.callspec.params["kind"]].framework)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            other: files[other]
            for other in ONE_FILE
            if KINDS[other].framework in frameworks and all(map(installed, KINDS[other].imports.split(", ")))
        }


def _cuts(size: int) -> list[int]:
    """Every one of the first and last 40 lengths, and 25 spread between."""
    return sorted({*range(1, min(40, size)), *range(max(1, size - 40), size), *range(1, size, max(1, size // 25))})


@pytest.mark.parametrize("kind", each_of(ONE_FILE))
@pytest.mark.parametrize("delivery", ["auto", "path", "bytes"])
def test_truncated_at_any_byte(tmp_path: Path, whole: bytes, kind: str, delivery: str, nothing_left: None) -> None:
    """A file that ends early is never a model and never a crash: a typed error that names it."""
    path = tmp_path / KINDS[kind].file_name
    first = mlup.load(_written(path, whole), delivery=delivery)
    del first
    for length in _cuts(_needed(kind, whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(errors.ModelLoadError) as failed:
            mlup.load(path, delivery=delivery, binarization_type=BINARIZERS[kind])
        assert str(path) in str(failed.value)
        assert "\n" not in str(failed.value)
        with pytest.raises(errors.ModelLoadError):
            mlup.load(path, delivery=delivery)


def _needed(kind: str, whole: bytes) -> int:
    """How much of a file is needed: LightGBM's text ends in what it was trained with; `.ort` in padding."""
    if kind == "ort":
        return len(whole.rstrip(b"\0"))
    return whole.index(b"end of trees") + len(b"end of trees") if kind == "lightgbm" else len(whole)


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", each_of(ONE_FILE))
def test_garbage_under_a_right_name(tmp_path: Path, whole: bytes, kind: str, nothing_left: None) -> None:
    """The name does not make it a model: not recognised, and damaged when the format is insisted on."""
    path = _written(tmp_path / KINDS[kind].file_name, bytes(range(256)) * 64)
    with pytest.raises(errors.FormatNotRecognizedError, match="00 01 02") as failed:
        mlup.load(path)
    assert str(path) in str(failed.value)
    with pytest.raises(errors.ModelBinarizationError) as failed_too:
        mlup.load(path, binarization_type=BINARIZERS[kind])
    assert str(path) in str(failed_too.value)


@pytest.mark.parametrize("kind", each_of(ONE_FILE))
def test_a_file_object_is_loaded_whatever_was_looked_at_before(tmp_path: Path, whole: bytes, kind: str) -> None:
    """A storage may give an open file: detection and estimates leave it where it stood, and the load finds all of it."""
    path = _written(tmp_path / KINDS[kind].file_name, whole)
    with path.open("rb") as file:

        class Storage:
            def load(self) -> list[LoadedFile]:
                return [LoadedFile(file)]

        up = mlup.UP(conf=mlup.Config(storage_type=Storage))
        assert up.ml.load().model_obj is not None
        up.ml.unload()


@pytest.mark.parametrize("kind", each_of(ONE_FILE))
def test_a_wrong_name_does_not_hide_the_format(tmp_path: Path, whole: bytes, kind: str) -> None:
    """Content decides: any file loads under any name."""
    for name in ("model.bin", "model.txt", "model.onnx", "model.pckl", "model.json"):
        model = mlup.load(_written(tmp_path / name, whole))
        assert model is not None
        del model


@pytest.mark.parametrize("kind", each_of(ONE_FILE))
def test_another_formats_file_is_told(tmp_path: Path, others: dict[str, bytes], kind: str, nothing_left: None) -> None:
    """Insisting on the wrong binarizer is a typed error, whatever the file is, of the formats whose tests run together."""
    for other, content in others.items():
        if BINARIZERS[other] == BINARIZERS[kind] or {kind, other} == {"pickle", "joblib"}:
            continue
        path = _written(tmp_path / "model.bin", content)
        with pytest.raises(errors.ModelLoadError) as failed:
            mlup.load(path, binarization_type=BINARIZERS[kind])
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


def _held_bytes(error: BaseException | None) -> int:
    """What the documents that an error and its chain complain of take."""
    if error is None:
        return 0
    texts = [getattr(error, name, None) for name in ("object", "doc")]
    own_bytes = sum(len(text) for text in texts if isinstance(text, (bytes, str)))
    behind = {id(each): each for each in (error.__cause__, error.__context__)}
    return own_bytes + sum(map(_held_bytes, behind.values()))


def _broken_json(size_bytes: int) -> bytes:
    return b'{"a": "' + b"x" * size_bytes + b'" "b": 1}'


def _of_safetensors(path: Path) -> None:
    data = _broken_json(1 << 20)
    path.write_bytes(len(data).to_bytes(8, "little") + data)


def _of_keras(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", _broken_json(1 << 20))
        archive.writestr("metadata.json", "{}")
        archive.writestr("model.weights.h5", b"")


def _of_gguf(path: Path) -> None:
    text = b"\xff" * (1 << 20)
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<IQ", 8, len(text)) + text
    path.write_bytes(header + bytes(64))


def _of_lightgbm(path: Path) -> None:
    path.write_bytes(b"tree\nversion=v4\nnum_class=x\nnum_tree_per_iteration=1\nmax_feature_idx=1\ntree_sizes=1 y\n\nTree=0\n")


@pytest.mark.parametrize("write", [_of_safetensors, _of_keras, _of_gguf, _of_lightgbm])
def test_damage_has_its_cause_and_not_the_document(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """What a parser says of damage is chained to what the standard library said, and neither holds the text that it is about."""
    write(tmp_path / "m")
    with pytest.raises(CorruptModelError) as caught:
        inspect(tmp_path / "m")
    assert caught.value.__cause__ is not None
    assert _held_bytes(caught.value) < 1000
