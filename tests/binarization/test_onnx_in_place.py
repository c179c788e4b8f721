"""Weights that stay in the file of an ONNX model: what is mapped, what was copied and why, and which file it is."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from given import Given, deserialize

numpy = pytest.importorskip("numpy", reason="needs the onnx extra")
onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402  # after what decides whether to be here
from onnx_models import BUILDERS, WIDTH, build, rows, write_external  # noqa: E402

from mlup_stream.constants import Delivery, Optimize  # noqa: E402
from mlup_stream.delivery.artifact import artifact_of  # noqa: E402
from mlup_stream.delivery.loaded_file import LoadedFile  # noqa: E402
from mlup_stream.delivery.placement import Placement  # noqa: E402
from mlup_stream.delivery.terms import Terms  # noqa: E402
from mlup_stream.errors import CorruptModelError, ModelBinarizationError, ModelFileChanged, ModelLoadError  # noqa: E402
from mlup_stream.formats.onnx.layout import walk  # noqa: E402
from mlup_stream.ml.binarization.onnx import InferenceSessionFullReturnBinarizer  # noqa: E402
from mlup_stream.ml.binarization.onnx_runtime import opener as onnx_opener  # noqa: E402
from mlup_stream.ml.binarization.onnx_runtime.abilities import Abilities, installed_abilities  # noqa: E402
from mlup_stream.ml.binarization.onnx_runtime.policy import policy_for  # noqa: E402

needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is mapped is read from /proc")

MATRIX_BYTES = WIDTH * WIDTH * 4
SAME_SIZE_OTHER_WEIGHTS = "the same model with other weights"


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """onnxruntime writes the errors that are provoked here to the terminal otherwise."""
    onnxruntime.set_default_logger_severity(4)
    yield
    onnxruntime.set_default_logger_severity(2)


def load(path: Path, delivery: Delivery = Delivery.VIEW, optimize: Optimize = Optimize.MEMORY) -> tuple[Any, Placement]:
    """The session, and where its payload went."""
    loaded = Given(path=path, delivery=delivery, optimize=optimize)
    try:
        session = deserialize(InferenceSessionFullReturnBinarizer, loaded)
        assert loaded.placement is not None
        return session, loaded.placement
    finally:
        loaded.release()


def expected(path: Path) -> Any:
    """What onnxruntime's own session answers, with the settings of `optimize="memory"`."""
    policy = policy_for(Optimize.MEMORY, walk(path))
    options = onnxruntime.SessionOptions()
    for key, value in policy.entries.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(path, options, disabled_optimizers=set(policy.disabled_optimizers))
    return session.run(None, {"x": rows()})[0]


PAYLOADS = {
    "initializers": 3 * MATRIX_BYTES,
    "constants": 3 * MATRIX_BYTES,
    "function_bodies": MATRIX_BYTES,
    "branches": 4 * MATRIX_BYTES,
    "loops": 2 * MATRIX_BYTES,
    "two_outputs": MATRIX_BYTES,
}


@needs_proc
@pytest.mark.parametrize("where", PAYLOADS)
def test_all_weights_stay_in_the_file(tmp_path: Path, where: str) -> None:
    """Every byte of the payload is mapped, none copied, wherever in the model it lies."""
    session, placement = load(build(tmp_path / "m.onnx", where))
    assert placement == Placement(PAYLOADS[where], 0)
    assert numpy.array_equal(session.run(None, {"x": rows()})[0], expected(tmp_path / "m.onnx"))


@needs_proc
def test_weights_that_the_graph_transposes_stay(tmp_path: Path) -> None:
    """They are multiplied by transposed, from where they lie; each is above the size that may be folded."""
    session, placement = load(build(tmp_path / "m.onnx", "transposed", layers=2, width=600))
    assert placement == Placement(2 * 600 * 600 * 4, 0)
    own = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": rows(width=600)})[0]
    assert numpy.allclose(session.run(None, {"x": rows(width=600)})[0], own, rtol=1e-4, atol=1e-5)


@needs_proc
def test_what_onnxruntime_converts_is_told(tmp_path: Path) -> None:
    """A weight that is cast is folded into a new one: copied, and the reason given; its neighbours stay."""
    _, placement = load(build(tmp_path / "m.onnx", "packed"))
    assert (placement.mapped_bytes, placement.copied_bytes) == (2 * MATRIX_BYTES, 2 * MATRIX_BYTES)  # double was cast to float
    assert placement.reasons == ("1 tensor: onnxruntime packed, folded, fused or converted it",)


@needs_proc
def test_speed_packs_and_says_so(tmp_path: Path) -> None:
    """`optimize="speed"` is onnxruntime's own choice, and the weights that it packs for its kernels are told as copied."""
    session, placement = load(build(tmp_path / "m.onnx"), optimize=Optimize.SPEED)
    assert placement.copied_bytes == 3 * MATRIX_BYTES
    own = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": rows()})[0]
    assert session.run(None, {"x": rows()})[0].tobytes() == own.tobytes()


@needs_proc
def test_external_data_is_mapped(tmp_path: Path) -> None:
    """By whichever delivery."""
    path = write_external(tmp_path / "m.onnx")
    for delivery in InferenceSessionFullReturnBinarizer.deliveries:
        _, placement = load(path, delivery)
        assert placement == Placement(3 * MATRIX_BYTES, 0), delivery


def _partly_external(path: Path) -> Path:
    """A model with one weight inside and two in a file beside it."""
    write_external(path)
    model = onnx.load(path, load_external_data=False)
    onnx.external_data_helper.load_external_data_for_tensor(model.graph.initializer[1], str(path.parent))
    model.graph.initializer[1].ClearField("external_data")
    model.graph.initializer[1].ClearField("data_location")
    path.write_bytes(model.SerializeToString())
    return path


@needs_proc
def test_weights_inside_and_outside_in_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are mapped, from two files, whatever the current folder."""
    path = _partly_external(tmp_path / "m.onnx")
    monkeypatch.chdir("/")
    session, placement = load(path)
    assert placement == Placement(3 * MATRIX_BYTES, 0)
    assert numpy.array_equal(session.run(None, {"x": rows()})[0], expected(build(tmp_path / "whole.onnx")))


@needs_proc
def test_convolutions_and_batch_normalisation_stay(tmp_path: Path) -> None:
    """Weights of convolutions are neither fused with what follows nor reordered."""
    random = numpy.random.default_rng(0)
    names = ("scale", "shift", "mean", "variance")
    values = [numpy_helper.from_array(numpy.abs(random.standard_normal(16, dtype="f4")) + 0.5, name) for name in names]
    values.append(numpy_helper.from_array(random.standard_normal((16, 16, 3, 3), dtype="f4"), "w"))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", *names], ["n"]),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    shape = ["batch", 16, 8, 8]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        values,
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    session, placement = load(path)
    assert placement == Placement(16 * 16 * 9 * 4, 0)
    x = random.standard_normal((2, 16, 8, 8), dtype="f4")
    own = onnxruntime.InferenceSession(path).run(None, {"x": x})[0]
    assert numpy.allclose(session.run(None, {"x": x})[0], own, rtol=1e-4, atol=1e-4)


def test_weights_of_less_than_a_byte_are_packed_all_the_same() -> None:
    """Unpacking them at every prediction would cost more than it saves: prepacking stays on for them, and off for others."""
    tensor = TensorProto(name="w", data_type=TensorProto.INT4, dims=[128, 128], raw_data=bytes(128 * 64))
    graph = helper.make_graph([helper.make_node("DequantizeLinear", ["w", "s"], ["y"])], "g", [], [], [tensor])
    packed = walk(helper.make_model(graph, ir_version=10).SerializeToString())
    others = walk(BUILDERS["initializers"]().SerializeToString())
    key = "session.disable_prepacking"
    assert key not in policy_for(Optimize.MEMORY, packed).entries
    assert policy_for(Optimize.MEMORY, others).entries[key] == "1"
    assert policy_for(Optimize.SPEED, others).entries == {}


def _other_weights(path: Path) -> bytes:
    """A model of the same size whose weights are the negatives of those at `path`."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    content: bytes = model.SerializeToString()
    assert len(content) == path.stat().st_size
    return content


def _before_opening(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Does something between the walk of the file and onnxruntime's opening it."""
    opened = onnx_opener.Opener._open

    def act_and_open(self: Any, model: Any, entries: Any) -> Any:
        monkeypatch.setattr(onnx_opener.Opener, "_open", opened)
        act()
        return opened(self, model, entries)

    monkeypatch.setattr(onnx_opener.Opener, "_open", act_and_open)


@needs_proc
@pytest.mark.parametrize("how", ["renamed over", "unlinked", "folder renamed"])
def test_a_replacement_by_rename_is_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The weights are those of the file that was walked, although its name leads elsewhere when onnxruntime opens it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = build(folder / "m.onnx")
    answer = expected(path)
    (tmp_path / "new.onnx").write_bytes(_other_weights(path))
    acts: dict[str, Callable[[], object]] = {
        "renamed over": lambda: os.replace(tmp_path / "new.onnx", path),
        "unlinked": path.unlink,
        "folder renamed": lambda: folder.rename(tmp_path / "other"),
    }
    _before_opening(monkeypatch, acts[how])
    session, _ = load(path)
    assert numpy.array_equal(session.run(None, {"x": rows()})[0], answer)


@pytest.mark.parametrize("how", ["overwritten in place", "truncated in place"])
def test_a_change_in_place_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Never a session over bytes that nobody walked, and never a crash."""
    path = build(tmp_path / "m.onnx")
    other = _other_weights(path)
    acts: dict[str, Callable[[], object]] = {
        "overwritten in place": lambda: path.write_bytes(other),
        "truncated in place": lambda: os.truncate(path, 100),
    }
    _before_opening(monkeypatch, acts[how])
    with pytest.raises(ModelLoadError) as failed:
        load(path)
    if how == "overwritten in place":
        assert isinstance(failed.value, ModelFileChanged)


def test_a_file_that_is_opened_by_name_is_checked_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights outside too, the name has to be the model's own: a replacement meanwhile is an error."""
    path = _partly_external(tmp_path / "m.onnx")
    (tmp_path / "new.onnx").write_bytes(path.read_bytes())
    _before_opening(monkeypatch, lambda: os.replace(tmp_path / "new.onnx", path))
    with pytest.raises(ModelFileChanged, match="replaced"):
        load(path)


@needs_proc
def test_a_tensor_called_location(tmp_path: Path) -> None:
    """A name that looks like a reference to another file changes how the file is opened, and nothing else."""
    model = BUILDERS["initializers"]()
    for node in model.graph.node:
        node.input[:] = [name.replace("w", "location_") for name in node.input]
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.replace("w", "location_")
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    session, placement = load(path)
    assert placement == Placement(3 * MATRIX_BYTES, 0)
    assert numpy.array_equal(session.run(None, {"x": rows()})[0], expected(path))


@pytest.mark.parametrize("delivery", InferenceSessionFullReturnBinarizer.deliveries)
def test_a_hidden_reference_cannot_read_the_file_system(tmp_path: Path, delivery: Delivery) -> None:
    """External data where the walk does not look is confined to the model's folder: no file of the system becomes a weight."""
    secret = Path(tempfile.gettempdir()) / f"secret-{os.getpid()}.bin"
    model = BUILDERS["initializers"](layers=1)
    hidden = helper.make_node("Constant", [], ["hidden"], value=numpy_helper.from_array(numpy.zeros(16, numpy.float32)))
    attribute = hidden.attribute[0]
    attribute.floats.append(0.0)  # before the tensor in the file: an attribute that is a list of numbers is not descended into
    attribute.t.ClearField("raw_data")
    attribute.t.data_location = TensorProto.EXTERNAL
    for key, value in (("location", str(secret).lstrip("/")), ("offset", "0"), ("length", "64")):
        entry = attribute.t.external_data.add()
        entry.key, entry.value = key, value
    parts = {field.number: field for field in attribute.DESCRIPTOR.fields}
    assert parts  # of AttributeProto
    model.graph.node.insert(0, hidden)
    model.graph.node.append(helper.make_node("Identity", ["hidden"], ["leak"]))
    model.graph.output.append(helper.make_tensor_value_info("leak", TensorProto.FLOAT, [16]))
    content = _floats_first(model.SerializeToString())
    assert all(not tensor.external for tensor in walk(content).tensors)
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    secret.write_bytes(b"secret__" * 8)
    try:
        with pytest.raises(ModelLoadError):
            load(path, delivery)
    finally:
        secret.unlink()


def _floats_first(content: bytes) -> bytes:
    """Moves the packed or unpacked float of the first attribute before its tensor."""
    model = onnx.load_from_string(content)
    attribute = model.graph.node[0].attribute[0]
    whole = attribute.SerializeToString()
    alone = onnx.AttributeProto(floats=[0.0]).SerializeToString()
    assert whole.count(alone) == 1
    return content.replace(whole, alone + whole.replace(alone, b""))


@needs_proc
def test_links_to_the_file(tmp_path: Path) -> None:
    """A symlink as model hubs have them, and a second hard link, load in place."""
    path = build(tmp_path / "blob")
    (tmp_path / "snapshot").mkdir()
    symlink, hard_link = tmp_path / "snapshot" / "m.onnx", tmp_path / "hard.onnx"
    symlink.symlink_to(Path("..") / "blob")
    os.link(path, hard_link)
    for each in (symlink, hard_link):
        session, placement = load(each)
        assert placement == Placement(3 * MATRIX_BYTES, 0)
        assert numpy.array_equal(session.run(None, {"x": rows()})[0], expected(path))


HUB_DELIVERIES = InferenceSessionFullReturnBinarizer.deliveries


def _in_a_hub(folder: Path, write: Callable[[Path], Path]) -> Path:
    """The model as a hub's cache has it: what `write` wrote lies in `blobs` under other names, and links lead there."""
    (folder / "written").mkdir()
    (folder / "blobs").mkdir()
    snapshot = folder / "snapshots" / "revision" / "onnx"
    snapshot.mkdir(parents=True)
    write(folder / "written" / "m.onnx")
    for number, path in enumerate(sorted((folder / "written").iterdir())):
        path.rename(folder / "blobs" / f"blob{number}")
        (snapshot / path.name).symlink_to(Path("../../../blobs") / f"blob{number}")
    return snapshot / "m.onnx"


def _constant_inside(path: Path) -> Path:
    """As `onnx.save` leaves it: initializers outside, values of `Constant` nodes inside, and one called `location`."""
    model = BUILDERS["constants"](layers=1)
    model.graph.node[0].attribute[0].t.name = "location"
    model.graph.node.insert(0, helper.make_node("MatMul", ["x", "w"], ["xw"]))
    model.graph.node[2].input[0] = "xw"
    model.graph.initializer.append(numpy_helper.from_array(numpy.eye(WIDTH, dtype=numpy.float32), "w"))
    onnx.save_model(model, path, save_as_external_data=True, location=path.name + ".data", size_threshold=256)
    return path


@needs_proc
@pytest.mark.parametrize("delivery", HUB_DELIVERIES)
@pytest.mark.parametrize("write", [write_external, _partly_external, _constant_inside])
def test_a_model_of_several_files_behind_links(tmp_path: Path, write: Callable[[Path], Path], delivery: Delivery) -> None:
    """Each file is a link out of the folder, its weights outside, or inside and outside: each delivery answers as the library."""
    path = _in_a_hub(tmp_path, write)
    for options in ({}, {"sess_options": onnxruntime.SessionOptions()}):  # whose object may replace files, so that it is asked
        given = Given(path=path, delivery=delivery, options=options)
        session = deserialize(InferenceSessionFullReturnBinarizer, given)
        assert numpy.array_equal(session.run(None, {"x": rows()})[0], expected(path))
    if delivery is Delivery.VIEW and write is not _constant_inside:
        assert load(path)[1] == Placement(3 * MATRIX_BYTES, 0)


@needs_proc
@pytest.mark.parametrize("write", [write_external, _partly_external])
def test_content_of_a_model_whose_other_files_are_links(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    """Content that says where it came from, as a storage of the user's gives it, finds weights behind links out of it."""
    path = _in_a_hub(tmp_path, write)
    given = Given(path.read_bytes(), path)
    session = deserialize(InferenceSessionFullReturnBinarizer, given)
    assert given.placement is not None
    assert given.placement.mapped_bytes == (3 if write is write_external else 2) * MATRIX_BYTES
    assert numpy.array_equal(session.run(None, {"x": rows()})[0], expected(path))


@pytest.mark.parametrize("delivery", [*HUB_DELIVERIES, None])
@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("given_as", ["tensors", "a file"])
def test_weights_that_the_user_gives_beside_the_model(
    tmp_path: Path, delivery: Delivery | None, is_there: bool, given_as: str
) -> None:
    """What a `SessionOptions` has instead of a file is used, whether the file is there, or has other weights, or is a link."""
    path = write_external(tmp_path / "m.onnx", layers=1)
    data = tmp_path / "m.onnx.data"
    ours = onnx.load(path).graph.initializer[0]
    values = 2 * numpy_helper.to_array(ours)
    data.rename(tmp_path / "blob") if is_there else data.unlink()
    if is_there:
        data.symlink_to("blob")
    options = onnxruntime.SessionOptions()
    if given_as == "tensors":
        tensor = onnxruntime.OrtValue.ortvalue_from_numpy(values)
        options.add_external_initializers([ours.name], [tensor])
    else:
        options.add_external_initializers_from_files_in_memory([data.name], [values.view(numpy.uint8).ravel()], [values.nbytes])
    given = Given(path=path, delivery=delivery) if delivery else Given(path.read_bytes())
    session = deserialize(InferenceSessionFullReturnBinarizer, given, sess_options=options)
    wanted = numpy.tanh(rows() @ values)
    assert numpy.allclose(session.run(None, {"x": rows()})[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("delivery", [*HUB_DELIVERIES, None])
@pytest.mark.parametrize("as_mapping", [True, False])
def test_what_onnxruntime_saves_is_whole(tmp_path: Path, delivery: Delivery | None, as_mapping: bool) -> None:
    """`optimized_model_filepath`, given as attribute or in a mapping: the file has the weights and answers on its own."""
    path, saved = build(tmp_path / "m.onnx"), tmp_path / "saved.onnx"
    options: Any = {"optimized_model_filepath": str(saved)}
    if not as_mapping:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(saved)
    given = Given(path=path, delivery=delivery) if delivery else Given(path.read_bytes())
    deserialize(InferenceSessionFullReturnBinarizer, given, sess_options=options)
    answer = expected(path)
    path.unlink()
    assert saved.stat().st_size > 3 * MATRIX_BYTES
    assert numpy.array_equal(onnxruntime.InferenceSession(saved).run(None, {"x": rows()})[0], answer)


def _prepacked(path: Path) -> Path:
    """The model at `path` as onnxruntime saves it with its weights packed for this processor, by way of our load."""
    saved = path.with_name("prepacked.onnx")
    options = {
        "optimized_model_filepath": str(saved),
        "session.optimized_model_external_initializers_file_name": saved.name + ".data",
        "session.optimized_model_external_initializers_min_size_in_bytes": 1024,
        "session.save_external_prepacked_constant_initializers": 1,
    }
    deserialize(InferenceSessionFullReturnBinarizer, Given(path=path, optimize=Optimize.SPEED), sess_options=options)
    return saved


@needs_proc
@pytest.mark.parametrize("delivery", HUB_DELIVERIES)
@pytest.mark.parametrize("optimize", list(Optimize))
def test_weights_that_lie_packed_in_the_file_stay_there(tmp_path: Path, delivery: Delivery, optimize: Optimize) -> None:
    """What onnxruntime has saved packed is mapped, not packed into memory again: as fast as `speed`, as small as `memory`."""
    path = _prepacked(build(tmp_path / "m.onnx", width=256))
    tensors = [tensor for tensor in walk(path).tensors if tensor.prepacked]
    assert len(tensors) == 3
    session, placement = load(path, delivery, optimize)
    assert placement == Placement(3 * 256 * 256 * 4, 0)
    own = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": rows(width=256)})[0]
    assert session.run(None, {"x": rows(width=256)})[0].tobytes() == own.tobytes()


@pytest.mark.parametrize("delivery", HUB_DELIVERIES)
def test_packed_weights_that_are_cut_off(tmp_path: Path, delivery: Delivery) -> None:
    """They are part of what has to be there: without them a prediction would die of SIGBUS."""
    path = _prepacked(build(tmp_path / "m.onnx", width=256))
    data = path.with_name(path.name + ".data")
    os.truncate(data, data.stat().st_size - 4096)
    with pytest.raises(CorruptModelError, match="copy it again"):
        load(path, delivery)


def test_a_provider_that_saves_what_it_compiled_reads_the_file_itself(tmp_path: Path) -> None:
    """What it saves refers to weights by the names that the model has, and not by ours, which are gone."""
    options = {"ep.context_enable": "1", "ep.context_file_path": str(tmp_path / "context.onnx")}
    given = Given(path=build(tmp_path / "m.onnx"), delivery=Delivery.VIEW, options={"sess_options": options})
    deserialize(InferenceSessionFullReturnBinarizer, given)
    assert given.placement == Placement(0, 3 * MATRIX_BYTES, ("onnxruntime reads the file itself",))


@needs_proc
def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """A file name that is not UTF-8 loads in place."""
    path = build(Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff.onnx")))
    assert load(path)[1] == Placement(3 * MATRIX_BYTES, 0)


def test_nothing_is_left_open(tmp_path: Path) -> None:
    """The session holds maps of the file and no descriptor; without the session not even these."""
    path = build(tmp_path / "m.onnx")
    InferenceSessionFullReturnBinarizer.prepare()
    gc.collect()
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    session, _ = load(path)
    if before:
        assert set(os.listdir("/proc/self/fd")) <= before
        assert str(path) in Path("/proc/self/maps").read_text()
    path.unlink()
    assert session.run(None, {"x": rows()})[0].shape == (3, WIDTH)
    del session
    gc.collect()
    if before:
        assert str(path) not in Path("/proc/self/maps").read_text()


def test_models_that_are_loaded_at_the_same_time(tmp_path: Path) -> None:
    """Descriptors come and go under the same numbers; every session has the weights of its own file."""
    paths = []
    for index in range(8):
        path = build(tmp_path / f"{index}.onnx")
        path.write_bytes(_other_weights(path) if index % 2 else path.read_bytes())
        paths.append(path)
    answers = [expected(path) for path in paths]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        sessions = [session for session, _ in pool.map(load, paths * 3)]
    for index, session in enumerate(sessions):
        assert numpy.array_equal(session.run(None, {"x": rows()})[0], answers[index % 8])


def test_a_streams_weights_live_as_long_as_their_session(tmp_path: Path) -> None:
    """The memory that a session borrows is neither given back before it nor kept after it."""
    path = build(tmp_path / "m.onnx", layers=4, width=512)
    answer = None
    for _ in range(3):
        session, placement = load(path, Delivery.STREAM)
        gc.collect()
        waste = [bytes([index]) * (4 * 512 * 512) for index in range(8)]  # what was freed too early would be overwritten
        found = session.run(None, {"x": rows(width=512)})[0]
        answer = found if answer is None else answer
        assert numpy.array_equal(found, answer)
        assert placement.copied_bytes == 4 * 512 * 512 * 4
        del waste, session


def test_an_older_onnxruntime_reads_the_file_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the abilities of newer versions every delivery loads all the same, and says what it could not do."""
    path = build(tmp_path / "m.onnx")
    monkeypatch.setattr(onnx_opener, "_ABILITIES", Abilities.of("1.17.3"))
    for delivery in InferenceSessionFullReturnBinarizer.deliveries:
        session, placement = load(path, delivery)
        assert (placement.mapped_bytes, placement.copied_bytes) == (0, 3 * MATRIX_BYTES)
        assert len(placement.reasons) == 1
        assert numpy.array_equal(session.run(None, {"x": rows()})[0], expected(path))


def test_abilities_are_those_of_the_version() -> None:
    """By number, not by text; and the installed one is the imported one."""
    assert Abilities.of("1.9.0") == Abilities.of("1.20.1") == Abilities(False, False, False)
    assert Abilities.of("1.21.0") == Abilities(True, False, False)
    assert Abilities.of("1.26.0") == Abilities(True, False, True)
    assert Abilities.of("1.31.0") == Abilities.of("2.0") == Abilities(True, True, True)
    assert installed_abilities() == Abilities.of(onnxruntime.__version__)


@pytest.mark.parametrize("delivery", [Delivery.VIEW, Delivery.STREAM])
def test_when_onnxruntime_does_not_take_external_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delivery: Delivery
) -> None:
    """It reads the file itself, and the placement says what it objected to; but want of memory is not tried twice."""
    path = build(tmp_path / "m.onnx")
    opened = onnx_opener.Opener._open

    def refuse(words: str) -> None:
        def open_by_path_only(self: Any, model: Any, entries: Any) -> Any:
            if isinstance(model, bytes):
                raise RuntimeError(words)
            return opened(self, model, entries)

        monkeypatch.setattr(onnx_opener.Opener, "_open", open_by_path_only)

    refuse("[ONNXRuntimeError] : 1 : FAIL : not this one")
    session, placement = load(path, delivery)
    assert placement == Placement(0, 3 * MATRIX_BYTES, ("onnxruntime does not take it as external data: not this one",))
    assert numpy.array_equal(session.run(None, {"x": rows()})[0], expected(path))
    refuse("std::bad_alloc")
    with pytest.raises(ModelBinarizationError, match="bad_alloc"):
        load(path, delivery)


@needs_proc
def test_where_numbers_have_to_be_aligned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor that needs it, what is not aligned is copied and told; what is stays."""
    path = build(tmp_path / "m.onnx")
    aligned = [tensor for tensor in walk(path).tensors if tensor.payload and tensor.payload.body % 4 == 0]
    monkeypatch.setattr(onnx_opener, "_READS_UNALIGNED", False)
    session, placement = load(path)
    assert (placement.mapped_bytes, placement.copied_bytes) == (
        len(aligned) * MATRIX_BYTES,
        (3 - len(aligned)) * MATRIX_BYTES,
    )
    assert ("not aligned" in str(placement.reasons)) == (len(aligned) < 3)
    assert numpy.array_equal(session.run(None, {"x": rows()})[0], expected(path))


@needs_proc
def test_more_tensors_than_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only as many tensors are mapped as a process may have maps; the others are copied and told."""
    monkeypatch.setattr(onnx_opener, "_MAX_MAPS", 2)
    session, placement = load(build(tmp_path / "m.onnx"))
    assert (placement.mapped_bytes, placement.copied_bytes) == (2 * MATRIX_BYTES, MATRIX_BYTES)
    assert numpy.array_equal(session.run(None, {"x": rows()})[0], expected(tmp_path / "m.onnx"))


def snapshot(path: Path) -> Any:
    """The artifact of a private copy of the model."""
    return artifact_of(LoadedFile(path=path)).snapshot()


def test_a_snapshot_of_a_model_with_other_files(tmp_path: Path) -> None:
    """The other files are copied too: what is written to them afterwards changes nothing, and all weights are mapped."""
    path = write_external(tmp_path / "m.onnx")
    artifact = snapshot(path)
    built = InferenceSessionFullReturnBinarizer.build(artifact, Terms(Delivery.VIEW))
    assert built.placement is not None
    assert built.placement.mapped_bytes == 3 * MATRIX_BYTES
    artifact.release()
    (tmp_path / "m.onnx.data").write_bytes(b"\xff" * (tmp_path / "m.onnx.data").stat().st_size)
    assert numpy.array_equal(built.model.run(None, {"x": rows()})[0], expected(build(tmp_path / "other.onnx")))


def test_a_snapshot_is_loaded_in_place(tmp_path: Path) -> None:
    """A file without a name is mapped like any other."""
    path = build(tmp_path / "m.onnx")
    artifact = snapshot(path)
    built = InferenceSessionFullReturnBinarizer.build(artifact, Terms(Delivery.VIEW))
    assert built.placement is not None
    assert built.placement.mapped_bytes == 3 * MATRIX_BYTES
    artifact.release()
    assert numpy.array_equal(built.model.run(None, {"x": rows()})[0], expected(path))
