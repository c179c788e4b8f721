"""torch: every delivery gives torch's own tensors, a view leaves them in the file, and damaged files are typed errors."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import re
import sys
import types
import warnings
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from child import run_child
from given import Given, deserialize, estimated
from measured import SLACK_BYTES, measure_load

import mlup_stream as mlup
from mlup_stream.delivery.kinds import Delivery, MappingMode
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.errors import (
    ConfigError,
    CorruptModelError,
    LoadError,
    MissingClassError,
    ModelBinarizationError,
    ModelNotFoundError,
    PackError,
)
from mlup_stream.ml.binarization.torch import TorchBinarizer, TorchJITBinarizer
from mlup_stream.ml.inspection import inspect
from mlup_stream.pack import pack
from mlup_stream.units import MIB

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # of torch 2.13, which still has it
]

MODULE = "mlup_stream.ml.binarization.torch."
NAMES = ["state_dict.pt", "module.pt", "legacy_state_dict.pt", "legacy_module.pt"]


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="loads the models")


@pytest.fixture(scope="module")
def models(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch")
    module = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Dropout(0.5), torch.nn.Linear(20, 3))
    state = {"model": module.state_dict(), "half": torch.arange(9).half(), "shared": (module[0].weight, module[0].weight)}
    torch.save(state, folder / "state_dict.pt")
    torch.save(module, folder / "module.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and so is the format before it
        torch.jit.save(torch.jit.script(module), folder / "script.pt")
        torch.save(state, folder / "legacy_state_dict.pt", _use_new_zipfile_serialization=False)
        torch.save(module, folder / "legacy_module.pt", _use_new_zipfile_serialization=False)
    return folder


def load(loaded: Given, binarizer: type[Any] = TorchBinarizer, **options: Any) -> Any:
    """The model, after everything that the handle holds was given back."""
    return deserialize(binarizer, loaded, **options)


def tensors_of(model: Any) -> list[Any]:
    if isinstance(model, dict):
        return [*model["model"].values(), model["half"], *model["shared"]]
    return list(model.state_dict().values())


def assert_same(torch: Any, model: Any, path: Path) -> None:
    expected = torch.load(path, weights_only=False)
    assert type(model) is type(expected)
    for found, wanted in zip(tensors_of(model), tensors_of(expected), strict=True):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("delivery", list(TorchBinarizer.deliveries))
@pytest.mark.parametrize("name", NAMES)
def test_every_delivery_gives_what_torch_gives(torch: Any, models: Path, name: str, delivery: Delivery) -> None:
    """The same objects and tensors, of a state_dict and of a module, of the zip and of the format before it."""
    model = load(Given(path=models / name, delivery=delivery))
    assert_same(torch, model, models / name)
    if isinstance(model, dict):
        assert model["shared"][0] is model["shared"][1]
    else:
        assert not model.training


@pytest.mark.parametrize("delivery", [None, Delivery.VIEW])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_content_is_taken(torch: Any, models: Path, name: str, kind: type, delivery: Delivery | None) -> None:
    """Content without a path gives the same model, also through a view of it."""
    assert_same(torch, load(Given(kind((models / name).read_bytes()), delivery=delivery)), models / name)


@pytest.mark.parametrize("kind", [None, bytes, bytearray, memoryview, io.BytesIO])
def test_torchscript(torch: Any, models: Path, kind: type | None) -> None:
    """A script answers as the module that it was made of, in evaluation mode, whatever its content came in."""
    path = models / "script.pt"
    loaded = Given(path=path) if kind is None else Given(kind(path.read_bytes()))
    model = load(loaded, TorchJITBinarizer)
    assert not model.training
    sample = torch.ones(2, 30)
    assert torch.equal(model(sample), torch.load(models / "module.pt", weights_only=False).eval()(sample))


def test_the_old_package_may_call_them(torch: Any, models: Path) -> None:
    """The old named tuple is understood, and the handles made for it are given back."""
    Old = namedtuple("LoadedFile", ("raw_data", "path"))
    assert_same(torch, TorchBinarizer.deserialize(Old(b"", str(models / "module.pt"))), models / "module.pt")
    assert not TorchJITBinarizer.deserialize(Old(b"", str(models / "script.pt"))).training
    assert TorchBinarizer.is_this_type(Old(b"", str(models / "script.pt"))) == 0.0
    assert TorchJITBinarizer.is_this_type(Old(b"", str(models / "script.pt"))) == 1.0


def test_what_lies_in_the_file_may_be_written_to(torch: Any, models: Path) -> None:
    """Mapped tensors are copy-on-write: a training step works, and the file does not change."""
    before = (models / "module.pt").read_bytes()
    model = load(Given(path=models / "module.pt", delivery=Delivery.VIEW))
    model(torch.ones(1, 30)).sum().backward()
    with torch.no_grad():
        model[0].weight -= model[0].weight.grad + 1
    assert not torch.equal(model[0].weight, torch.load(models / "module.pt", weights_only=False)[0].weight)
    assert (models / "module.pt").read_bytes() == before


def test_read_only_tensors_are_refused(models: Path) -> None:
    """torch has none: asking for them is an error, not a crash at the first write."""
    with pytest.raises(ConfigError, match="mapping='read-only'"):
        load(Given(path=models / "state_dict.pt", delivery=Delivery.VIEW, mapping=MappingMode.READ_ONLY))


def test_the_placement_says_what_stayed_in_the_file(torch: Any, models: Path, tmp_path: Path) -> None:
    """All of a zip's tensors stay; of older and of compressed files none, and it says why. A deflated file loads right."""
    loaded = Given(path=models / "module.pt", delivery=Delivery.VIEW)
    load(loaded)
    assert loaded.placement is not None
    assert (loaded.placement.mapped_bytes, loaded.placement.copied_bytes) == (4 * (30 * 20 + 20 + 20 * 3 + 3), 0)
    with zipfile.ZipFile(models / "module.pt") as source, zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    for path, why in ((models / "legacy_module.pt", "before 1.6"), (tmp_path / "m.pt", "compressed")):
        loaded = Given(path=path, delivery=Delivery.VIEW)
        assert_same(torch, load(loaded), path)
        assert loaded.placement is not None
        assert loaded.placement.mapped_bytes == 0
        assert why in loaded.placement.reasons[0]


def test_without_the_private_function_torch_maps_by_itself(
    torch: Any, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torch that changed inside still loads in place, in its own way, and content without a path is read."""
    monkeypatch.delattr(torch.serialization, "_open_zipfile_reader")
    from mlup_stream.ml.binarization.frameworks.torch_in_place import can_map

    assert not can_map(torch)
    monkeypatch.undo()
    monkeypatch.setattr("mlup_stream.ml.binarization.torch.can_map", lambda torch: False)
    path = models / "state_dict.pt"
    assert_same(torch, load(Given(path=path, delivery=Delivery.VIEW)), path)
    assert_same(torch, load(Given(path.read_bytes(), delivery=Delivery.VIEW)), path)


@pytest.mark.parametrize("delivery", list(TorchBinarizer.deliveries))
def test_a_class_that_cannot_be_imported_is_named(
    torch: Any, tmp_path: Path, delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has module and name, and with weights_only it names what is more than weights."""
    elsewhere = types.ModuleType("module_that_is_gone")
    elsewhere.Network = type("Network", (torch.nn.Linear,), {"__module__": "module_that_is_gone"})  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "module_that_is_gone", elsewhere)
        torch.save(elsewhere.Network(2, 2), tmp_path / "model.pt")
    with pytest.raises(MissingClassError, match=r"module_that_is_gone\.Network") as caught:
        load(Given(path=tmp_path / "model.pt", delivery=delivery))
    assert (caught.value.module, caught.value.qualname) == ("module_that_is_gone", "Network")
    with pytest.raises(ModelBinarizationError, match=r"found more \(module_that_is_gone\.Network\)"):
        load(Given(path=tmp_path / "model.pt", delivery=delivery), weights_only=True)


@pytest.mark.parametrize("delivery", list(TorchBinarizer.deliveries))
def test_options_reach_torch(torch: Any, models: Path, delivery: Delivery) -> None:
    """`weights_only` and `map_location` are torch's own; another option is an error."""
    options = {"weights_only": True, "map_location": "cpu"}
    model = load(Given(path=models / "state_dict.pt", delivery=delivery), **options)
    assert_same(torch, model, models / "state_dict.pt")
    meta = load(Given(path=models / "state_dict.pt", delivery=delivery), map_location="meta")
    assert meta["half"].is_meta
    with pytest.raises(ConfigError, match="encoding, map_location, weights_only"):
        load(Given(path=models / "state_dict.pt", delivery=delivery), strict=True)


@pytest.mark.parametrize("name", [*NAMES, "script.pt"])
def test_truncation_is_a_typed_error(models: Path, name: str, tmp_path: Path) -> None:
    """Cut off anywhere, a file is damaged: no crash, no other error, and nothing stays open."""
    whole = (models / name).read_bytes()
    binarizer = TorchJITBinarizer if name == "script.pt" else TorchBinarizer
    path = tmp_path / "model.pt"
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    for cut in range(1, len(whole), max(1, len(whole) // 24)):
        path.write_bytes(whole[:cut])
        for delivery in binarizer.deliveries:
            with pytest.raises(CorruptModelError):
                load(Given(path=path, delivery=delivery), binarizer)
    if before:
        assert os.listdir("/proc/self/fd") == before


class Stubborn:
    """Its state is that of another version."""

    raises: type[Exception] = KeyError

    def __setstate__(self, state: Any) -> None:
        raise self.raises("weights_of_tomorrow")


@pytest.mark.parametrize("delivery", TorchBinarizer.deliveries)
@pytest.mark.parametrize("raises", [KeyError, TypeError, ValueError, IndexError, AssertionError])
def test_a_class_that_refuses_its_state_is_no_damage(
    torch: Any, tmp_path: Path, delivery: Delivery, raises: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is whole, and the error says so with the class's own words; a pickle in it that was changed is damaged."""
    path = tmp_path / "m.pt"
    model = Stubborn()
    model.weights = torch.ones(3)  # type: ignore[attr-defined]
    torch.save(model, path)
    monkeypatch.setattr(Stubborn, "raises", raises)
    with pytest.raises(ModelBinarizationError, match=r"the torch file is whole.*weights_of_tomorrow") as failed:
        load(Given(path=path, delivery=delivery))
    assert not isinstance(failed.value, CorruptModelError)
    path.write_bytes(path.read_bytes().replace(b"Stubborn", b"\xff" * 8))
    with pytest.raises(CorruptModelError):
        load(Given(path=path, delivery=delivery))


def test_a_storage_that_lies_about_its_length_is_a_typed_error(torch: Any, tmp_path: Path) -> None:
    """A tensor longer than the file, in place or not, is an error: what lies behind the map is never read."""
    torch.save(torch.arange(100, dtype=torch.float32), tmp_path / "honest.pt")
    with zipfile.ZipFile(tmp_path / "honest.pt") as source, zipfile.ZipFile(tmp_path / "liar.pt", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            # BININT1 100 becomes BININT of 1e9, in both the storage's length and the shape.
            target.writestr(name, data.replace(b"Kd", b"J\x00\xca\x9a\x3b") if name.endswith("data.pkl") else data)
    for delivery in TorchBinarizer.deliveries:
        with pytest.raises(LoadError):
            load(Given(path=tmp_path / "liar.pt", delivery=delivery))


@pytest.fixture(scope="module")
def big_files(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """256 MB in each format, written by a child that takes its memory along when it goes."""
    folder = tmp_path_factory.mktemp("big")
    run_child(
        """
        import torch
        model = torch.nn.Sequential(*[torch.nn.Linear(2048, 2048) for _ in range(16)])
        torch.save(model.state_dict(), folder + "/state_dict.pt")
        torch.save(model.state_dict(), folder + "/legacy.pt", _use_new_zipfile_serialization=False)
        torch.jit.save(torch.jit.script(model), folder + "/script.pt")
        answer(True)
        """,
        folder=str(folder),
    )
    yield folder
    for path in folder.iterdir():
        path.unlink()


on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the equations are about the kernel's figures")
WARM_UP = """
import io, torch
small = io.BytesIO()
torch.save({"a": torch.ones(3)}, small)
torch.load(io.BytesIO(small.getvalue()), weights_only=False)
torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), small := io.BytesIO())
torch.jit.load(io.BytesIO(small.getvalue()))
"""
WINDOW_BYTES = 1 * MIB
TENSORS = "float(sum(float(each.sum()) for each in model.values()))"
SCRIPT = "float(sum(float(each.sum()) for each in model.state_dict().values()))"


@pytest.mark.big
@on_linux
def test_a_view_leaves_the_tensors_in_the_file(big_files: Path) -> None:
    """peak(view) = objects + window + slack, and nothing of the payload: at most 0.02 of the file."""
    path = big_files / "state_dict.pt"
    took = measure_load(MODULE + "TorchBinarizer", path, "view", answer_of=TENSORS, warm_up=WARM_UP)
    assert took.peak_anon_bytes <= WINDOW_BYTES + SLACK_BYTES
    assert took.peak_bytes <= 0.02 * path.stat().st_size
    assert took.settled_anon_bytes <= SLACK_BYTES
    assert took.estimate is not None
    assert took.estimate["peak_anon_bytes"] <= SLACK_BYTES
    assert took.answer == measure_load(MODULE + "TorchBinarizer", path, "path", answer_of=TENSORS, warm_up=WARM_UP).answer


@pytest.mark.big
@on_linux
@pytest.mark.parametrize(
    ("name", "delivery", "times"),
    [
        ("state_dict.pt", "path", 1),
        ("state_dict.pt", "stream", 1),
        ("state_dict.pt", "bytes", 2),
        ("legacy.pt", "view", 1),
        ("legacy.pt", "path", 1),
        ("script.pt", "path", 1),
        ("script.pt", "bytes", 2),
    ],
)
def test_the_other_deliveries_take_what_is_documented(big_files: Path, name: str, delivery: str, times: int) -> None:
    """peak = payload + window + slack, and raw beside it for `bytes`: 2 x, for TorchScript too, and 1 x once settled."""
    path = big_files / name
    binarizer = "TorchJITBinarizer" if name == "script.pt" else "TorchBinarizer"
    answer_of = SCRIPT if name == "script.pt" else TENSORS
    took = measure_load(MODULE + binarizer, path, delivery, answer_of=answer_of, warm_up=WARM_UP)
    size_bytes = path.stat().st_size
    assert abs(took.peak_bytes - times * size_bytes) <= WINDOW_BYTES + SLACK_BYTES
    assert abs(took.settled_bytes - size_bytes) <= SLACK_BYTES
    if took.estimate is not None:
        assert abs(took.peak_bytes - took.estimate["peak_anon_bytes"]) <= 0.05 * size_bytes


@pytest.mark.big
@on_linux
def test_a_mapped_model_is_not_charged_to_the_commit_limit(big_files: Path) -> None:
    """The map of the file reserves nothing, where torch's own is charged with the whole file."""
    path = big_files / "state_dict.pt"
    flags = run_child(
        """
        from mlup_stream.delivery.kinds import Delivery
        from mlup_stream.delivery.loaded_file import LoadedFile
        from mlup_stream.ml.binarization.torch import TorchBinarizer
        loaded = LoadedFile(path=path, delivery=Delivery.VIEW)
        model = TorchBinarizer.deserialize(loaded)
        found, mine = [], False
        for line in open("/proc/self/smaps"):
            if "-" in line.split()[0]:
                mine = line.rstrip().endswith(path)
            elif mine and line.startswith("VmFlags:"):
                found.append(line.split()[1:])
        answer(found)
        """,
        path=str(path),
    )
    assert flags
    # "ac": accounted; "nr": reserves nothing (proc(5), smaps).
    assert all("ac" not in each and "nr" in each for each in flags)


@pytest.mark.parametrize(("name", "binarizer"), [("state_dict.pt", TorchBinarizer), ("script.pt", TorchJITBinarizer)])
def test_content_is_estimated_as_its_file_is(models: Path, name: str, binarizer: Any) -> None:
    """Bytes that somebody handed over are read into as much memory as the file, and no copy of them is made before."""
    path = models / name
    by_path = estimated(binarizer, Given(path=path), Delivery.PATH)
    for content in (path.read_bytes(), io.BytesIO(path.read_bytes())):
        for delivery in (Delivery.BYTES, Delivery.VIEW):
            assert estimated(binarizer, Given(content), delivery) == by_path
    assert estimated(binarizer, Given(path=path), Delivery.BYTES).peak_anon_bytes == (
        by_path.peak_anon_bytes + path.stat().st_size
    )


def cycle(path: Path, delivery: Delivery, **options: Any) -> Any:
    """The model as `mlup.load` gives it."""
    return mlup.load(path, delivery=delivery.value, binarization_kwargs=options, memory_learned=False)


@pytest.mark.parametrize("delivery", TorchBinarizer.deliveries)
def test_a_load_is_as_careful_as_torchs_own_default(torch: Any, models: Path, delivery: Delivery) -> None:
    """Weights alone; a module is refused with its globals and the setting that admits it, and loads with that."""
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(models / "module.pt")
    with pytest.raises(ModelBinarizationError, match=r'torch\.nn\.modules.*"weights_only": False'):
        cycle(models / "module.pt", delivery)
    assert isinstance(cycle(models / "module.pt", delivery, weights_only=False), torch.nn.Module)
    assert set(cycle(models / "state_dict.pt", delivery)) == set(torch.load(models / "state_dict.pt"))
    # Called directly, as by the old package, it does as it always did.
    assert isinstance(TorchBinarizer.deserialize(LoadedFile(path=models / "module.pt")), torch.nn.Module)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("as_content", [True, False])
def test_what_is_more_than_weights_is_named(torch: Any, tmp_path: Path, is_zip: bool, as_content: bool) -> None:
    """The class and both ways to allow it, in every container; what the program has admitted to torch is admitted here."""
    path = tmp_path / "m.pt"
    torch.save({"settings": argparse.Namespace(rate=1), "w": torch.ones(2)}, path, _use_new_zipfile_serialization=is_zip)
    source: Any = path.read_bytes() if as_content else path
    with pytest.raises(ModelBinarizationError, match=r'more \(argparse\.Namespace\).*"weights_only": False.*add_safe_globals'):
        mlup.load(source)
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert mlup.load(source)["settings"].rate == 1


@pytest.mark.parametrize("delivery", TorchBinarizer.deliveries)
def test_torchs_switches_are_heeded_by_every_delivery(
    torch: Any, models: Path, delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forced, it is weights alone whatever was asked for, and a plain state_dict loads; the other switch changes the default."""
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    assert cycle(models / "state_dict.pt", delivery)
    for load_module in (
        lambda: cycle(models / "module.pt", delivery, weights_only=False),
        lambda: TorchBinarizer.deserialize(LoadedFile(path=models / "module.pt", delivery=delivery)),
    ):
        with pytest.raises(ModelBinarizationError, match="unset TORCH_FORCE_WEIGHTS_ONLY_LOAD"):
            load_module()
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "yes")
    assert isinstance(cycle(models / "module.pt", delivery), torch.nn.Module)


DEVICES = ["cuda", "cuda:0", "mps", "xla:0", "npu:0", "hpu", "xpu:0", "mtia:0", "privateuseone:0", "device_of_tomorrow"]
SAYS_MAP_LOCATION = r'those of another .*; set binarization_kwargs=\{"map_location": "cpu"\}'


def _is_here(torch: Any, device: str) -> bool:
    try:
        torch.zeros(1, device=device)
    except Exception:  # of whatever kind
        return False
    return True


@pytest.fixture(params=DEVICES)
def device(torch: Any, request: pytest.FixtureRequest) -> str:
    if _is_here(torch, request.param):
        pytest.skip("this machine has the device")
    return str(request.param)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("delivery", TorchBinarizer.deliveries)
def test_a_device_that_is_not_here_is_told_with_our_setting(
    torch: Any, tmp_path: Path, delivery: Delivery, is_zip: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint with the tag of another device names `map_location`, and loads with it, `auto` included."""
    path = tmp_path / "m.pt"
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: device)
        torch.save({"w": torch.arange(8)}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ModelBinarizationError, match=SAYS_MAP_LOCATION) as failed:
        cycle(path, delivery)
    assert "torch.load" not in str(failed.value)  # a call that nobody here has made
    for where in ("cpu", "auto"):
        assert cycle(path, delivery, map_location=where)["w"].tolist() == list(range(8))


def test_a_device_that_is_here_is_kept_by_auto(torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`map_location="auto"` asks this machine, and not only whether the tag is the CPU's."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "meta")
    torch.save({"w": torch.arange(8)}, tmp_path / "m.pt")
    assert cycle(tmp_path / "m.pt", Delivery.VIEW, map_location="auto")["w"].is_meta


@pytest.mark.parametrize("device", ["cuda:0", "mps:0", "xla:0", "privateuseone:0"], indirect=True)
def test_a_script_for_a_device_that_is_not_here(torch: Any, models: Path, tmp_path: Path, device: str) -> None:
    """TorchScript has other words for it; the setting is the same."""
    path = tmp_path / "m.pt"
    # The tag lies in data.pkl, whose length and checksum change with it.
    with zipfile.ZipFile(models / "script.pt") as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            tag = b"X" + len(device).to_bytes(4, "little") + device.encode()
            target.writestr(name, source.read(name).replace(b"X\x03\0\0\0cpu", tag))
    with pytest.raises(ModelBinarizationError, match=SAYS_MAP_LOCATION):
        cycle(path, Delivery.PATH)
    assert cycle(path, Delivery.PATH, map_location="cpu")


@pytest.fixture
def sharded(torch: Any, tmp_path: Path) -> Path:
    """The index of a model in two files, one of them as torch wrote them before 1.6."""
    for number, is_zip in ((1, True), (2, False)):
        torch.save(
            {f"w{number}": torch.full((1000,), float(number)), "not listed": torch.zeros(3)},
            tmp_path / f"pytorch_model-0000{number}-of-00002.bin",
            _use_new_zipfile_serialization=is_zip,
        )
    index = {"metadata": {"total_size": 8000}, "weight_map": {f"w{n}": f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)}}
    path = tmp_path / "pytorch_model.bin.index.json"
    path.write_text(json.dumps(index))
    return path


@pytest.mark.parametrize("snapshot", [False, True])
@pytest.mark.parametrize("delivery", TorchBinarizer.deliveries)
def test_a_model_in_several_files_is_one_dict(torch: Any, sharded: Path, delivery: Delivery, snapshot: bool) -> None:
    """The index, or the folder, leads to its files; what the index does not list is left out."""
    for source in (sharded, sharded.parent):
        with mlup.open(source, delivery=delivery.value, snapshot=snapshot, memory_learned=False) as loaded:
            assert {name: float(tensor.sum()) for name, tensor in loaded.model.items()} == {"w1": 1000, "w2": 2000}
            if delivery is Delivery.VIEW:
                assert loaded.report.placement.mapped_bytes >= 4000
                assert "before 1.6" in str(loaded.report.placement.reasons)
    assert inspect(sharded)["files"] == {f"pytorch_model-0000{n}-of-00002.bin": 1 for n in (1, 2)}


def test_a_model_in_several_files_is_estimated_as_they_are(torch: Any, sharded: Path) -> None:
    """The sum of its files, in place and copied."""
    second = sharded.parent / "pytorch_model-00002-of-00002.bin"
    torch.save({"w2": torch.ones(10**5)}, second)
    for delivery, least in ((Delivery.VIEW, 0), (Delivery.STREAM, 404_000), (Delivery.BYTES, 804_000)):
        found = estimated(TorchBinarizer, Given(path=sharded), delivery)
        assert least <= found.peak_anon_bytes <= least + 60_000
    assert estimated(TorchBinarizer, Given(path=sharded), Delivery.VIEW).mapped_bytes >= 404_000


def test_a_model_in_several_files_that_is_not_whole(torch: Any, sharded: Path) -> None:
    """A tensor, a file or the path that is missing is named; only its files are packed."""
    with pytest.raises(ModelBinarizationError, match="without its path"):
        load(Given(sharded.read_bytes()))
    with pytest.raises(PackError, match="only an index"):
        pack(sharded, sharded.parent / "packed.bin")
    second = sharded.parent / "pytorch_model-00002-of-00002.bin"
    for other in ({"w3": torch.ones(1)}, [torch.ones(1)]):
        torch.save(other, second)
        with pytest.raises(CorruptModelError, match=f"{re.escape(str(second))}: expected tensor 'w2'"):
            load(Given(path=sharded))
    second.unlink()
    with pytest.raises(ModelNotFoundError, match=re.escape(str(second))):
        load(Given(path=sharded))
    sharded.write_text('{"weight_map": {"a": "../elsewhere.bin"}}')
    with pytest.raises(CorruptModelError, match="beside the index"):
        load(Given(path=sharded))
