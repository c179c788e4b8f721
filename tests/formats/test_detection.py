"""Formats are told apart by content, from little of it, and nothing that claims a file is imported to do so."""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
import tarfile
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from child import run_child
from given import detected
from sample_models import FORMAT_OF, write_models

import mlup_stream as mlup
from mlup_stream.delivery.artifact import artifact_of
from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.errors import (
    AmbiguousFormatError,
    CorruptModelError,
    FormatNotRecognizedError,
    LoadError,
    ModelNotFoundError,
    NotAModelFileError,
)
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.peek import Peek
from mlup_stream.formats.recognition import detect as recognition
from mlup_stream.ml.binarization.detection import detect, formats_of
from mlup_stream.ml.binarization.pickle import PickleBinarizer
from mlup_stream.registry import ROWS

LOOKED_AT_MOST_BYTES = 20 * 1024
"""Both ends, and a stretch of a compressed stream or of a pickle without frames. bzip2 is the exception, by its blocks."""


WRITERS = [
    ("numpy", "joblib", "safetensors", "lightgbm", "xgboost", "onnx", "gguf"),
    pytest.param(("torch",), marks=pytest.mark.torch),
    pytest.param(("tensorflow",), marks=pytest.mark.tensorflow),
]


@pytest.fixture(scope="module", params=WRITERS, ids=["light", "torch", "tensorflow"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder, *request.param)
    if not any(folder.iterdir()):
        pytest.skip(f"needs {' or '.join(request.param)}, to write the files")
    yield folder
    shutil.rmtree(folder)


def each_model(models: Path) -> list[tuple[Path, Format]]:
    return [(models / name, Format(value)) for name, value in FORMAT_OF.items() if (models / name).exists()]


def test_every_format_is_recognised_at_its_path(models: Path) -> None:
    """The file that each library wrote is recognised as that library's format, and says by what."""
    assert {path.name: detected(LoadedFile(path=path)) for path, _ in each_model(models)} == {
        path.name: format for path, format in each_model(models)
    }
    for path, _ in each_model(models):
        with Peek(path) as peek:
            (finding,) = recognition.detect(peek, ROWS)
            assert finding.evidence


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
def test_every_format_is_recognised_in_its_content(models: Path, kind: type) -> None:
    """Content that came without a path is recognised as the file is, whatever holds it."""
    for path, format in each_model(models):
        if path.is_file():
            assert detected(LoadedFile(kind(path.read_bytes()))) is format, path.name


def test_text_content_is_recognised(models: Path) -> None:
    """Formats that are text may come as `str`, as they did in the old package."""
    for path, format in each_model(models):
        if format in (Format.LIGHTGBM,) or path.suffix == ".json":
            assert detected(LoadedFile(path.read_text())) is format
            assert detected(LoadedFile(io.StringIO(path.read_text()))) is format


def test_a_file_object_is_looked_at_from_where_it_stands_and_left_there(models: Path) -> None:
    """The content of a file object begins at its cursor, which detection does not move."""
    for path, format in each_model(models):
        if path.is_file():
            file = io.BytesIO(b"something else" + path.read_bytes())
            file.seek(14)
            assert formats_of(LoadedFile(file)) == (format,), path.name
            assert file.tell() == 14


class Pipe(io.RawIOBase):
    """What cannot be rewound, such as a socket."""

    def __init__(self, data: bytes) -> None:
        self.data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        return self.data.readinto(buffer)


def test_a_stream_that_cannot_be_rewound_keeps_its_content() -> None:
    """Asking a binarizer whether it knows a pipe takes nothing from the pipe; detecting puts what it read in its place."""
    loaded = LoadedFile(Pipe(pickle.dumps([1, 2])))
    assert PickleBinarizer.is_this_type(loaded) == 0.0
    artifact = artifact_of(loaded)
    assert detect(artifact) is Format.PICKLE
    assert pickle.loads(artifact.content()) == [1, 2]


def test_the_name_does_not_matter(models: Path, tmp_path: Path) -> None:
    """A file of any format under any other format's name is what it is."""
    suffixes = (".pckl", ".joblib", ".onnx", ".pt", ".safetensors", ".keras", ".npz", ".txt", "")
    for path, format in each_model(models):
        if path.is_file():
            for suffix in suffixes:
                link = tmp_path / f"{path.name}{suffix}"
                link.symlink_to(path)
                assert detected(LoadedFile(path=link)) is format, link.name


def test_delivery_bytes_is_recognised_without_reading_the_file(tmp_path: Path) -> None:
    """The full copy that `delivery="bytes"` promises is made by the load, where it is measured, not by detection."""
    path = tmp_path / "model.pckl"
    path.write_bytes(pickle.dumps(b"x" * 1000))
    loaded = LoadedFile(path=path, delivery=Delivery.BYTES)
    assert detected(loaded) is Format.PICKLE
    assert not loaded.has_content


def test_truncated_files_are_never_another_format(models: Path) -> None:
    """A file that was cut off at any point is its own format still, or not recognised; never some other format, never a crash.

    What joblib and the old torch write begins as a pickle, and is one as long as nothing else has come.
    """
    anywhere = random.Random(0)
    for path, format in each_model(models):
        if path.is_dir():
            continue
        whole = path.read_bytes()
        cuts = {*range(0, min(len(whole), 700), 7), *(anywhere.randrange(len(whole)) for _ in range(40))}
        allowed = {format, Format.PICKLE} if path.name.startswith(("plain", "protocol2", "legacy")) else {format}
        for cut in cuts:
            assert set(formats_of(LoadedFile(whole[:cut]))) <= allowed, (path.name, cut)


def test_random_bytes_are_not_recognised() -> None:
    """Of 20000 random inputs none is a format. (Of a million, about ten begin like the shortest of pickles.)"""
    source = random.Random(1)
    for _ in range(20_000):
        data = source.randbytes(source.choice((16, 100, 600, 2000)))
        assert formats_of(LoadedFile(data)) == (), data[:40]


@pytest.mark.parametrize(
    "text",
    [
        "N. Smith wrote this.",
        "]. And so on",
        "clang/__init__.py,sha256=abc,12\nclang/other.py,,\n",
        "class Error(Exception): ...\nclass Other(Error): ...\n",
        "(((((((((((((((",
        "Various words without a line break " * 40 + "and an end.",
        "tree\nfeller\nversion=v4\n",
        "version=v4\ntree\n",
        '{"learner": 1}',
        '{"weight_map": {"a": "tf_model.h5"}}',
        "GGUF is a format",
    ],
)
def test_text_that_resembles_a_format_is_not_recognised(text: str) -> None:
    """Text whose letters happen to be opcodes, or that mentions a format's words, is not a model."""
    assert formats_of(LoadedFile(text)) == ()
    assert formats_of(LoadedFile(text.encode())) == ()


@pytest.mark.parametrize("protocol", [0, 1])
@pytest.mark.parametrize(
    "value",
    [None, 5, "a", 1.5, [], {"a": [1, (2, 3)]}, "long" * 500, Path("x"), [0] * 3000],
    ids=lambda value: str(value)[:20],
)
def test_pickles_without_a_mark_are_recognised(protocol: int, value: object) -> None:
    """Protocols 0 and 1 have no opcode that says so: they are recognised by walking."""
    assert detected(LoadedFile(pickle.dumps(value, protocol))) is Format.PICKLE


def test_a_joblib_file_is_recognised_behind_a_large_structure(tmp_path: Path) -> None:
    """The first array may come after megabytes of vocabulary: the frames lead there."""
    joblib = pytest.importorskip("joblib", reason="writes the file")
    numpy = pytest.importorskip("numpy", reason="makes the array")
    vocabulary = {f"word number {index}": index for index in range(100_000)}
    joblib.dump([vocabulary, numpy.arange(9.0)], tmp_path / "model", protocol=4)
    joblib.dump([vocabulary, "no array"], tmp_path / "other", protocol=4)
    assert (tmp_path / "model").stat().st_size > 2_000_000
    assert detected(LoadedFile(path=tmp_path / "model")) is Format.JOBLIB
    assert detected(LoadedFile(path=tmp_path / "other")) is Format.PICKLE
    with Peek(tmp_path / "model") as peek:
        recognition.detect(peek, ROWS)
        assert peek.looked_bytes <= LOOKED_AT_MOST_BYTES


WORDS = {f"word number {index}": index for index in range(10_000)}


@pytest.mark.parametrize("name", ["model", "model.joblib", "model.pkl"])
@pytest.mark.parametrize("protocol", [2, 3])
def test_what_the_beginning_leaves_undecided_goes_to_the_reader_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, name: str
) -> None:
    """Protocols 2 and 3 have no frames: where the beginning shows no array, joblib reads the file, whoever wrote it.

    Where joblib is not installed it is a pickle, unless its name says otherwise.
    """
    joblib = pytest.importorskip("joblib", reason="writes the file")
    numpy = pytest.importorskip("numpy", reason="makes the array")
    path = tmp_path / name
    joblib.dump([WORDS, numpy.arange(9.0)], path, protocol=protocol)
    assert detected(LoadedFile(path=path)) is Format.JOBLIB
    assert mlup.load(path)[1].tolist() == list(range(9))
    path.write_bytes(pickle.dumps([WORDS], protocol))
    assert detected(LoadedFile(path=path)) is Format.JOBLIB
    assert mlup.load(path) == [WORDS]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert detected(LoadedFile(path=path)) is (Format.JOBLIB if name.endswith(".joblib") else Format.PICKLE)


@pytest.mark.parametrize("protocol", [2, 3])
def test_an_array_that_pickle_wrote_decides(protocol: int) -> None:
    """joblib writes no array so, whatever follows: a plain pickle of arrays is not undecided."""
    numpy = pytest.importorskip("numpy", reason="makes the array")
    data = pickle.dumps([numpy.arange(9.0), WORDS], protocol)
    assert len(data) > 100_000
    assert detected(LoadedFile(data)) is Format.PICKLE


LONG = "a long document " * 6000


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize(
    "make",
    [
        lambda numpy: numpy.ma.masked_equal(numpy.arange(90_000, dtype="f4").reshape(300, 300), 7),
        lambda numpy: [LONG, LONG + ".", numpy.arange(9.0)],
        lambda numpy: [b"x" * 70_000, bytearray(80_000), {"a": LONG}, LONG, numpy.arange(9.0)],
        lambda numpy: (LONG, numpy.arange(9.0)),
        lambda numpy: {LONG: numpy.arange(90_000.0)},
    ],
    ids=["masked array", "documents", "payloads of every kind", "the first opcode", "a key"],
)
def test_a_joblib_file_is_recognised_behind_payloads(tmp_path: Path, protocol: int, make: Callable[[Any], Any]) -> None:
    """Payloads of 64 KiB and more before the first array, side by side or first of all, lead on to it; and the file loads."""
    joblib = pytest.importorskip("joblib", reason="writes the file")
    numpy = pytest.importorskip("numpy", reason="makes the array")
    path = tmp_path / "model"
    value = make(numpy)
    joblib.dump(value, path, protocol=protocol)
    assert detected(LoadedFile(path=path)) is Format.JOBLIB
    found = mlup.load(path)
    assert repr(found) == repr(value)
    plain = [LONG, LONG + ".", {"a": LONG}]
    path.write_bytes(pickle.dumps(plain, protocol))
    assert detected(LoadedFile(path=path)) is Format.PICKLE
    path.write_bytes(pickle.dumps(plain, protocol) * 2)
    assert detected(LoadedFile(path=path)) is Format.PICKLE


def test_a_pickle_that_speaks_of_joblib_is_a_pickle() -> None:
    """The names of joblib's wrapper as plain strings do not make a joblib file."""
    for protocol in range(6):
        data = pickle.dumps(["joblib.numpy_pickle and", "NumpyArrayWrapper", "joblib.numpy_pickle"], protocol)
        assert detected(LoadedFile(data)) is Format.PICKLE


def test_every_old_joblib_file_is_recognised() -> None:
    """joblib ships files that each of its versions wrote: all are recognised, and as what they are."""
    joblib = pytest.importorskip("joblib", reason="its package holds the files")
    folder = Path(joblib.__file__).parent / "test" / "data"
    paths = [path for path in folder.glob("joblib_*") if ".npy" not in path.name] if folder.is_dir() else []
    if not paths:
        pytest.skip("this build of joblib ships no test data")
    assert {path.name: detected(LoadedFile(path=path)) for path in paths} == {path.name: Format.JOBLIB for path in paths}


def test_torch_from_before_0_1_10_is_recognised(tmp_path: Path) -> None:
    """The oldest torch files are tars; any other tar is not a model."""
    for names, expected in ((("sys_info", "pickle", "tensors", "storages"), (Format.TORCH,)), (("sys_info", "pickle"), ())):
        with tarfile.open(tmp_path / "model.pt", "w") as tar:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = 1000
                tar.addfile(member, io.BytesIO(bytes(1000)))
        assert formats_of(LoadedFile(path=tmp_path / "model.pt")) == expected


def zip_of(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"data")
    return file.getvalue()


def test_zips_are_told_apart_by_their_members() -> None:
    """The names in the directory decide, and a zip that fits none is not a model."""
    torch = ("archive/data.pkl", "archive/version", "archive/data/0")
    assert formats_of(LoadedFile(zip_of(*torch))) == (Format.TORCH,)
    assert formats_of(LoadedFile(zip_of(*torch, "archive/constants.pkl", "archive/code/m.py"))) == (Format.TORCHSCRIPT,)
    assert formats_of(LoadedFile(zip_of(*torch, "elsewhere/data.pkl"))) == ()
    assert formats_of(LoadedFile(zip_of("a.npy", "b.npy"))) == (Format.NPZ,)
    assert formats_of(LoadedFile(zip_of("a.npy", "b.txt"))) == ()
    assert formats_of(LoadedFile(zip_of())) == ()
    with pytest.raises(FormatNotRecognizedError, match=r"it has a\.txt"):
        detected(LoadedFile(zip_of("a.txt")))


def test_a_truncated_zip_says_so() -> None:
    """Without its directory a zip cannot be told from another: the error says that it is damaged, not that it is unknown."""
    with pytest.raises(CorruptModelError, match="truncated"):
        detected(LoadedFile(zip_of("a.npy")[:-30]))


def test_a_file_that_two_formats_claim_is_ambiguous_unless_its_name_decides(tmp_path: Path) -> None:
    """The candidates are listed; the name breaks a tie among them, and nothing else."""
    both = b'{"learner":{"objective":1},"weight_map":{"a":"b.safetensors"}}'
    with pytest.raises(AmbiguousFormatError) as caught:
        detected(LoadedFile(both))
    assert set(caught.value.candidates) == {"xgboost", "safetensors"}
    (tmp_path / "model.pckl").write_bytes(both)
    with pytest.raises(AmbiguousFormatError):
        detected(LoadedFile(path=tmp_path / "model.pckl"))
    (tmp_path / "model.safetensors.index.json").write_bytes(both)
    assert formats_of(LoadedFile(path=tmp_path / "model.safetensors.index.json")) != ()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (bytes(1000), "zeros"),
        (b"\x89PNG\r\n\x1a\n", "picture"),
        (b"just some text, which is not a model of anything", "just some text"),
    ],
)
def test_what_is_not_recognised_is_described(data: bytes, says: str) -> None:
    """The message has the first bytes, in hexadecimal and as text, what it may be, and which formats are known."""
    with pytest.raises(FormatNotRecognizedError) as caught:
        detected(LoadedFile(data))
    message = str(caught.value)
    assert says in message
    assert data[:16].hex(" ") in message
    assert "safetensors" in message
    assert "\n" not in message


@pytest.mark.parametrize("models", WRITERS[2:], ids=["tensorflow"], indirect=True)
def test_weights_without_their_model_say_so(models: Path) -> None:
    """An HDF5 file of weights alone is not a model that can be built, and the message says what to save."""
    with pytest.raises(FormatNotRecognizedError, match="save the whole Keras model"):
        detected(LoadedFile(path=models / "only.weights.h5"))


def test_what_cannot_be_a_model_has_its_own_error(tmp_path: Path) -> None:
    """Nothing there, nothing in it, a folder that is no model: each says which it is."""
    (tmp_path / "empty.pckl").touch()
    with pytest.raises(NotAModelFileError, match="0 bytes"):
        detected(LoadedFile(path=tmp_path / "empty.pckl"))
    with pytest.raises(FormatNotRecognizedError, match=r"empty\.pckl"):
        detected(LoadedFile(path=tmp_path))
    with pytest.raises(ModelNotFoundError):
        detected(LoadedFile(path=tmp_path / "missing"))
    with pytest.raises(NotAModelFileError):
        detected(LoadedFile(object()))
    with pytest.raises(LoadError):
        detected(LoadedFile())
    assert formats_of(LoadedFile(path=tmp_path / "missing")) == ()


def test_the_old_named_tuple_is_recognised(tmp_path: Path) -> None:
    """A binarizer of ours answers the old package, which asks with a named tuple."""
    Old = namedtuple("LoadedFile", ("raw_data", "path"))
    (tmp_path / "model").write_bytes(pickle.dumps([1, 2]))
    (tmp_path / "text").write_text("not a pickle")
    assert PickleBinarizer.is_this_type(Old(b"", str(tmp_path / "model"))) == 1.0
    assert PickleBinarizer.is_this_type(Old(pickle.dumps([1, 2]), None)) == 1.0
    assert PickleBinarizer.is_this_type(Old(b"not a pickle", None)) == 0.0
    assert PickleBinarizer.is_this_type(Old(b"", str(tmp_path / "text"))) == 0.0
    assert PickleBinarizer.is_this_type(Old(b"", str(tmp_path / "missing"))) == 0.0


def test_little_is_read(models: Path) -> None:
    """Detection looks at a few hundred bytes at each end, and at no more than a few KiB where those ask for it."""
    for path, _ in each_model(models):
        with Peek(path) as peek:
            recognition.detect(peek, ROWS)
            assert peek.looked_bytes <= LOOKED_AT_MOST_BYTES, path.name


def test_little_is_read_of_a_large_file(tmp_path: Path) -> None:
    """What detection reads is bounded whatever the size, counted at the file itself."""
    large = tmp_path / "large.pckl"
    with large.open("wb") as file:
        pickle.dump(b"x" * 50_000_000, file)
    read = []
    with open(large, "rb") as file:

        class Counted(io.RawIOBase):
            def readable(self) -> bool:
                return True

            def seekable(self) -> bool:
                return True

            def seek(self, offset: int, whence: int = 0) -> int:
                return file.seek(offset, whence)

            def tell(self) -> int:
                return file.tell()

            def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
                read.append(len(buffer))
                return file.readinto(buffer)

        with Peek(Counted(), "large.pckl") as peek:
            assert [finding.format for finding in recognition.detect(peek, ROWS)] == [Format.PICKLE]
    assert 0 < sum(read) <= LOOKED_AT_MOST_BYTES


def test_a_stream_that_unpacks_to_gigabytes_is_not_unpacked() -> None:
    """A few KiB of a compressed stream are unpacked, whatever it would become."""
    import lzma
    import zlib

    bomb = zlib.compressobj()
    data = b"".join(bomb.compress(bytes(1 << 24)) for _ in range(16)) + bomb.flush()
    assert formats_of(LoadedFile(data)) == ()
    hungry = lzma.compress(pickle.dumps(1), format=lzma.FORMAT_ALONE)
    assert formats_of(LoadedFile(hungry)) == (Format.JOBLIB,)
    asks_for_4_gib = hungry[:1] + b"\xff\xff\xff\xff" + hungry[5:]
    assert formats_of(LoadedFile(asks_for_4_gib)) == ()


def test_nothing_is_imported_to_recognise(models: Path) -> None:
    """Recognising every format imports no framework, and not numpy."""
    imported = run_child(
        """
        import sys
        from mlup_stream.delivery.artifact import artifact_of
        from mlup_stream.delivery.loaded_file import LoadedFile
        from mlup_stream.ml.binarization.detection import detect
        for path in paths:
            artifact = artifact_of(LoadedFile(path=path))
            detect(artifact)
            artifact.release()
        answer(sorted({name.partition(".")[0] for name in sys.modules}))
        """,
        paths=[os.fspath(path) for path, _ in each_model(models)],
    )
    frameworks = "numpy joblib lz4 sklearn onnx onnxruntime lightgbm xgboost torch safetensors tensorflow keras h5py gguf google"
    assert not set(imported) & set(frameworks.split())


def test_nothing_stays_open(models: Path) -> None:
    """Recognising, or failing to, leaves no descriptor open."""
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for path, _ in each_model(models):
        detected(LoadedFile(path=path))
    with pytest.raises(FormatNotRecognizedError):
        detected(LoadedFile(path=__file__))
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_only_what_the_first_bytes_ask_for_is_imported(tmp_path: Path) -> None:
    """A pickle, a GGUF file and a text each import the detectors that they begin like, and no other format's parser."""
    (tmp_path / "pickle").write_bytes(pickle.dumps([1, 2]))
    (tmp_path / "gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(16))
    (tmp_path / "text").write_bytes(b"nothing in particular")
    code = """
        import sys
        from mlup_stream.delivery.loaded_file import LoadedFile
        from mlup_stream.ml.binarization.detection import formats_of
        formats_of(LoadedFile(path=path))
        wings = [name.removeprefix("mlup_stream.formats.") for name in sys.modules if name.startswith("mlup_stream.formats.")]
        answer(sorted(name for name in wings if "." in name and not name.startswith("recognition.")))
    """
    found = {name: run_child(code, path=str(tmp_path / name)) for name in ("pickle", "gguf", "text")}
    pickles = ["pickles.detection", "pickles.head"]
    assert found == {
        "pickle": ["frameworks.torch_head", *pickles],
        "gguf": ["arrays.gguf"],
        "text": ["arrays.usearch", "onnx.head", *pickles],
    }
