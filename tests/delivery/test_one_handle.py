"""One handle for a load, pinned once: how often a file is opened and walked, what is built, and what a change does to it."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import pytest
from child import write_from_outside
from models import KINDS, MIB, each_of

import mlup_stream as mlup
from mlup_stream.delivery.artifact import artifact_of
from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.delivery.pinned import PinnedFile
from mlup_stream.delivery.terms import Terms
from mlup_stream.errors import ModelFileChanged
from mlup_stream.ml import model as load_cycle
from mlup_stream.ml.binarization.base import FormatBinarizer

numpy = pytest.importorskip("numpy", reason="the arrays")

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

# TensorFlow's are in tests/binarization/test_tensorflow.py: an import of ten seconds for each.
HERE = [name for name, kind in KINDS.items() if kind.framework != "tensorflow"]
BY_DELIVERY = [
    pytest.param(name, delivery, marks=getattr(pytest.mark, KINDS[name].framework) if KINDS[name].framework else ())
    for name in HERE
    for delivery in ("auto", *KINDS[name].deliveries)
]

WALKERS = ("walk", "scan", "survey", "read_header", "read_members", "read_index", "read_directory")
DIRECTORY = "zip.read_directory"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("originals")

    def original(name: str) -> Path:
        path = folder / KINDS[name].file_name
        if not path.exists():
            models.need(name)
            KINDS[name].build(path, 2 * MIB)
        return path

    return original


@pytest.fixture
def copy(originals: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    def copied(name: str) -> Path:
        for module in KINDS[name].imports.split(", "):
            importlib.import_module(module)
        return Path(shutil.copy(originals(name), tmp_path / KINDS[name].file_name))

    return copied


def model_of(path: Path, delivery: str = "auto", **settings: Any) -> mlup.MLupModel:
    arguments = {"path_to_files": path, "delivery": delivery}
    conf = mlup.Config(storage_type="disk", storage_kwargs=arguments, memory_learned=False, **settings)
    return mlup.MLupModel(conf=conf)


def answer(name: str, model: Any) -> float:
    names = {module.partition(".")[0]: sys.modules[module] for module in KINDS[name].imports.split(", ")}
    return float(eval(KINDS[name].answer_of, {**names, "numpy": numpy, "model": model}))


_opened: list[str] = []
_watched: list[str] = []


def _note_opens(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watched and isinstance(arguments[0], (str, os.PathLike)):
        name = os.fspath(arguments[0])
        if name == _watched[0] or name.startswith("/proc/self/fd/"):
            _opened.append(name)


@pytest.fixture(scope="module", autouse=True)
def _audited() -> None:
    sys.addaudithook(_note_opens)  # for good: there is no way to take one away


@pytest.mark.parametrize(("name", "delivery"), BY_DELIVERY)
def test_a_file_is_opened_once_by_name_and_walked_once(name: str, delivery: str, copy: Callable[[str], Path]) -> None:
    """Opens in one load: once by name, and at most once more by a library that opens files itself; each walker runs once.

    The directory of a zip is read twice: detection looks at the names in it.
    """
    path = copy(name)
    model = model_of(path, delivery)
    model.load()  # what is imported and opened once in a process
    model.unload()
    walks: Counter[str] = Counter()

    def count(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_name in WALKERS and os.sep + "formats" + os.sep in code.co_filename:
            walks[f"{Path(code.co_filename).stem}.{code.co_name}"] += 1

    _opened.clear()
    _watched.append(str(path))
    sys.setprofile(count)
    try:
        model.load()
    finally:
        sys.setprofile(None)
        _watched.clear()
    assert _opened.count(str(path)) <= 1 + (KINDS[name].binarizer or name).startswith(("onnx", "xgboost"))
    assert len(_opened) <= 2
    members = walks.pop("npy.read_header", 0) if name in ("npz", "skops") else 0
    assert members in (0, {"npz": models.ARRAYS, "skops": 4}.get(name))  # four layers
    assert walks.pop(DIRECTORY, 0) <= 2
    assert all(count == 1 for count in walks.values()), walks
    model.unload()


@pytest.mark.parametrize(("name", "delivery"), BY_DELIVERY)
def test_a_file_overwritten_in_place_is_told_by_every_delivery(
    name: str, delivery: str, copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write while the model is built is ModelFileChanged, never a mix; and nothing of the load stays."""
    path = copy(name)
    builds = FormatBinarizer.__dict__["_dispatch"].__func__

    def overwritten(cls: Any, artifact: Any, terms: Any) -> Any:
        built = builds(cls, artifact, terms)
        write_from_outside(path, path.read_bytes()[:1])
        return built

    monkeypatch.setattr(FormatBinarizer, "_dispatch", classmethod(overwritten))
    model = model_of(path, delivery)
    with pytest.raises(ModelFileChanged, match="changed while it was being loaded"):
        model.load()
    assert not model.loaded


@pytest.mark.parametrize("delivery", [Delivery.PATH, Delivery.STREAM])
@pytest.mark.parametrize("name", ["pickle", "joblib", "npy", "npz", "safetensors", "gguf"])
def test_a_write_between_two_windows_is_no_mix_of_two_models(
    name: str, delivery: Delivery, copy: Callable[[str], Path]
) -> None:
    """Half of the old and half of the new weights are never handed out."""
    from mlup_stream.formats.kinds import Format
    from mlup_stream.registry import binarization_type_of, binarizer_class

    path = copy(name)
    written: list[int] = []

    def overwrite(passed_bytes: int) -> None:
        if not written and passed_bytes >= MIB:
            written.append(passed_bytes)
            with open(path, "r+b") as file:
                file.seek(passed_bytes)
                file.write(b"\0" * (path.stat().st_size - passed_bytes))

    artifact = artifact_of(LoadedFile(path=path))
    try:
        with pytest.raises(ModelFileChanged):
            binarizer_class(binarization_type_of(Format(name))).build(artifact, Terms(delivery, on_window=overwrite))
    finally:
        artifact.release()
    assert written


@pytest.mark.parametrize(("name", "delivery"), BY_DELIVERY)
def test_what_was_planned_is_what_is_built(
    name: str, delivery: str, copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is replaced by rename after the plan is not looked at: the model is that of the file that was planned.

    A library that has to open the file by its own name would get another one, which is an error.
    """
    path = copy(name)
    expected = answer(name, mlup.load(path))
    plans = load_cycle.plan_load

    def replaced(*arguments: Any, **more: Any) -> Any:
        plan = plans(*arguments, **more)
        (path.parent / "other").write_bytes(b"not a model at all")
        os.replace(path.parent / "other", path)
        return plan

    monkeypatch.setattr(load_cycle, "plan_load", replaced)
    model = model_of(path, delivery)
    try:
        model.load()
    except ModelFileChanged as error:
        assert delivery == "path" or name == "xgboost"
        assert "replaced" in str(error)  # noqa: PT017
    else:
        assert answer(name, model.model_obj) == expected
        model.unload()


@pytest.mark.parametrize("delivery", ["auto", "stream", "bytes"])
@pytest.mark.parametrize("name", each_of(HERE))
def test_a_snapshot_is_of_any_format(name: str, delivery: str, copy: Callable[[str], Path]) -> None:
    """Overwriting the file in place after the load changes nothing of the model."""
    if delivery not in ("auto", *KINDS[name].deliveries):
        delivery = "path"
    path = copy(name)
    expected = answer(name, mlup.load(path))
    model = model_of(path, delivery, snapshot=True)
    model.load()
    write_from_outside(path, b"\xff" * path.stat().st_size)
    assert answer(name, model.model_obj) == expected
    assert model.report is not None
    assert model.report.file == str(path)
    assert os.listdir(path.parent) == [path.name]
    model.unload()


def test_a_snapshot_of_a_model_in_several_files_is_of_all_of_them(tmp_path: Path) -> None:
    """The shards that an index names are copied too, whatever is written to them afterwards."""
    library = pytest.importorskip("safetensors.numpy", reason="writes the shards")
    index: dict[str, Any] = {"weight_map": {}}
    for number in range(2):
        library.save_file({f"w{number}": numpy.arange(1000.0) + number}, tmp_path / f"m-{number}.safetensors")
        index["weight_map"][f"w{number}"] = f"m-{number}.safetensors"
    path = tmp_path / "m.safetensors.index.json"
    path.write_text(json.dumps(index))
    for delivery in ("auto", "path", "stream", "bytes"):
        model = model_of(path, delivery, snapshot=True).load().model_obj
        before = (tmp_path / "m-1.safetensors").read_bytes()
        write_from_outside(tmp_path / "m-1.safetensors", b"\xff" * len(before))
        assert (model["w1"] == numpy.arange(1000.0) + 1).all()
        (tmp_path / "m-1.safetensors").write_bytes(before)


@pytest.fixture
def artifacts(tmp_path: Path) -> Iterator[list[Any]]:
    """One of each kind: a file, a snapshot, a folder, a buffer, a file object, a stream, a model."""
    path = tmp_path / "m.bin"
    path.write_bytes(b"content")
    (tmp_path / "folder").mkdir()
    with open(path, "rb") as file:
        yield [
            artifact_of(LoadedFile(path=path)),
            artifact_of(LoadedFile(path=path)).snapshot(),
            artifact_of(LoadedFile(path=tmp_path / "folder")),
            artifact_of(LoadedFile(b"content")),
            artifact_of(LoadedFile(file)),
            artifact_of(LoadedFile(object()), is_model=True),
        ]


def test_after_its_release_a_handle_says_that_it_was_released(artifacts: list[Any]) -> None:
    """Whatever is asked for: the content, a view, a file, headers or what lies beside it. Releasing it again is harmless."""
    uses: list[Callable[[Any], Any]] = [
        lambda artifact: artifact.content(),
        lambda artifact: artifact.view(),
        lambda artifact: artifact.open(),
        lambda artifact: artifact.header(lambda file, name: 1),
        lambda artifact: artifact.beside("other"),
        lambda artifact: artifact.given(),
    ]
    for artifact in artifacts:
        assert artifact.release() == ()
        assert artifact.release() == ()
        for use in uses:
            with pytest.raises(ValueError, match="released; load it again"):
                use(artifact)


@pytest.mark.parametrize("change", ["rename", "link", "permissions", "renamed away"])
def test_what_changes_names_and_permissions_changes_no_model(tmp_path: Path, change: str) -> None:
    """Each of these sets the change time of a file whose content stays."""
    path = tmp_path / "m.bin"
    path.write_bytes(b"content")
    file = PinnedFile(path)
    if change == "rename":
        (tmp_path / "new").write_bytes(b"another")
        os.replace(tmp_path / "new", path)
    elif change == "link":
        os.link(path, tmp_path / "link")
    elif change == "permissions":
        path.chmod(0o600)
    else:
        path.rename(tmp_path / "elsewhere")
    file.check()
    file.close()


def test_a_write_that_sets_the_modification_time_back_is_told(tmp_path: Path) -> None:
    """The change time cannot be set back, and nothing else explains it."""
    path = tmp_path / "m.bin"
    path.write_bytes(b"content")
    file = PinnedFile(path)
    status = path.stat()
    with open(path, "r+b") as writer:
        writer.write(b"CONTENT")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ModelFileChanged, match="changed while it was being loaded"):
        file.check()
    file.close()
