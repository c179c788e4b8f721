"""ONNX models through onnxruntime: every delivery and content, the two `predict`, options, other files, and errors."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import warnings
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from given import Given, deserialize, detected, estimated

numpy = pytest.importorskip("numpy", reason="needs the onnx extra")
onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")

from onnx import TensorProto, helper  # noqa: E402  # after what decides whether to be here
from onnx_models import BUILDERS, WIDTH, build, rows, write_external  # noqa: E402

import mlup_stream as mlup  # noqa: E402
from mlup_stream.constants import Delivery, LoadedFile, Optimize  # noqa: E402
from mlup_stream.errors import (  # noqa: E402
    ConfigError,
    CorruptModelError,
    ModelBinarizationError,
    ModelLoadError,
    ModelNotFoundError,
    PackError,
)
from mlup_stream.formats.kinds import Format  # noqa: E402
from mlup_stream.memory.estimate import Certainty  # noqa: E402
from mlup_stream.ml.binarization.onnx import InferenceSessionBinarizer, InferenceSessionFullReturnBinarizer  # noqa: E402
from mlup_stream.ml.inspection import inspect  # noqa: E402
from mlup_stream.pack import pack  # noqa: E402

DELIVERIES = InferenceSessionBinarizer.deliveries
FOLDER_ENTRY = "session.model_external_initializers_file_folder_path"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """onnxruntime writes the errors that are provoked here to the terminal otherwise."""
    onnxruntime.set_default_logger_severity(4)
    yield
    onnxruntime.set_default_logger_severity(2)


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """After the test there are no more open descriptors than before it."""
    InferenceSessionBinarizer.prepare()
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= before


def plain(path: Path, optimize: Optimize = Optimize.MEMORY) -> Any:
    """onnxruntime's own session over the file, with the settings that we give ours."""
    from mlup_stream.formats.onnx.layout import walk
    from mlup_stream.ml.binarization.onnx_runtime.policy import policy_for

    policy = policy_for(optimize, walk(path))
    options = onnxruntime.SessionOptions()
    for key, value in policy.entries.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(path, options, disabled_optimizers=set(policy.disabled_optimizers))


def load(given: Any, binarizer: type[InferenceSessionBinarizer] = InferenceSessionBinarizer, **options: Any) -> Any:
    """The session, and `given` released, as the load cycle does it."""
    return deserialize(binarizer, given, **options)


def handles(path: Path) -> dict[str, LoadedFile]:
    """The model in every form that a storage may hand it over in."""
    content = path.read_bytes()
    by_delivery = {each.value: Given(path=path, delivery=each) for each in DELIVERIES}
    return {
        **by_delivery,
        "nothing said": Given(path=path),
        "bytes without a path": Given(content),
        "bytearray without a path": Given(bytearray(content)),
        "memoryview without a path": Given(memoryview(content)),
        "memoryview of a view": Given(memoryview(b"###" + content)[3:], delivery=Delivery.VIEW),
        "BytesIO": Given(io.BytesIO(content)),
        "bytes and a path": Given(content, path),
    }


@pytest.mark.parametrize("where", BUILDERS)
@pytest.mark.parametrize("optimize", list(Optimize))
def test_every_delivery_predicts_as_onnxruntime_does(tmp_path: Path, where: str, optimize: Optimize, nothing_left: None) -> None:
    """Bit for bit, with the same session settings, wherever the weights lie and however the bytes travel."""
    path = build(tmp_path / "m.onnx", where)
    inputs = [rows(), -rows()]  # each takes another branch
    expected = [plain(path, optimize).run(None, {"x": x}) for x in inputs]
    for form, loaded in handles(path).items():
        loaded.optimize = optimize
        session = load(loaded, binarizer=InferenceSessionFullReturnBinarizer)
        assert isinstance(session, onnxruntime.InferenceSession)
        for x, outputs in zip(inputs, expected, strict=True):
            assert [each.tobytes() for each in session.predict(x)] == [each.tobytes() for each in outputs], form


def test_a_file_object_is_read_from_where_it_stands(tmp_path: Path, nothing_left: None) -> None:
    """A model in the middle of a real file loads from there, and the file stays open."""
    path = tmp_path / "inside.bin"
    path.write_bytes(b"head" + BUILDERS["initializers"]().SerializeToString())
    with open(path, "rb") as file:
        file.seek(4)
        session = load(Given(file))
        assert not file.closed
    assert session.predict(rows())[0].shape == (3, WIDTH)


def test_the_two_predicts(tmp_path: Path) -> None:
    """One leaves out the last of several outputs, the other keeps all; a single output is kept by both."""
    several, single = build(tmp_path / "several.onnx", "two_outputs"), build(tmp_path / "single.onnx")
    for binarizer, counts in ((InferenceSessionBinarizer, (2, 1)), (InferenceSessionFullReturnBinarizer, (3, 1))):
        found = [len(load(Given(path=path), binarizer=binarizer).predict(rows())) for path in (several, single)]
        assert tuple(found) == counts


def test_the_old_packages_named_tuple_loads(tmp_path: Path) -> None:
    """What `mlup` hands over, with a path, with bytes, and with both."""
    path = build(tmp_path / "m.onnx")
    old = namedtuple("LoadedFile", ["raw_data", "path"], defaults=[b"", None])
    expected = plain(path).run(None, {"x": rows()})[0]
    for given in (old(path=str(path)), old(path.read_bytes()), old(path.read_bytes(), str(path))):
        assert numpy.array_equal(load(given).predict(rows())[0], expected)


def test_options_reach_onnxruntime(tmp_path: Path) -> None:
    """Providers and options, as an object and as a configuration file can write them."""
    path = build(tmp_path / "m.onnx")
    session = load(
        Given(path=path),
        providers=["CPUExecutionProvider"],
        provider_options=[{}],
        sess_options={
            "intra_op_num_threads": 1,
            "graph_optimization_level": "ORT_DISABLE_ALL",
            "session.intra_op.allow_spinning": False,
        },
    )
    found = session.get_session_options()
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert found.intra_op_num_threads == 1
    assert found.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert found.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize(
    "options",
    [{"session_options": {}}, {"sess_options": {"intra_op_threads": 1}}, {"sess_options": {"intra_op_num_threads": "x"}},
     {"sess_options": {"graph_optimization_level": "ALL"}}, {"sess_options": 5}],
)  # fmt: skip
def test_wrong_options_are_config_errors(tmp_path: Path, options: dict[str, Any]) -> None:
    """An option that onnxruntime does not have is named before anything is opened."""
    with pytest.raises(ConfigError, match="binarization_kwargs"):
        load(Given(path=build(tmp_path / "m.onnx")), **options)


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_the_users_own_options_are_as_before(tmp_path: Path, delivery: Delivery) -> None:
    """A `SessionOptions` of the user's serves again, for our sessions and for theirs, also with external data."""
    path = build(tmp_path / "m.onnx")
    external = write_external(tmp_path / "external.onnx")
    options = onnxruntime.SessionOptions()
    severity = options.log_severity_level
    for _ in range(2):
        session = load(Given(path=path, delivery=delivery), sess_options=options)
        assert numpy.array_equal(session.predict(rows())[0], plain(path).run(None, {"x": rows()})[0])
        del session
    assert options.log_severity_level == severity
    for key in (FOLDER_ENTRY, "session.disable_prepacking"):
        with contextlib.suppress(RuntimeError):  # it was never set
            assert options.get_session_config_entry(key) == ""
    assert onnxruntime.InferenceSession(external, options).run(None, {"x": rows()})


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    """`disable_prepacking` set by the user decides, whatever `optimize` says."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_prepacking", "0")
    path = build(tmp_path / "m.onnx")
    session = load(Given(path=path), sess_options=options)
    assert options.get_session_config_entry("session.disable_prepacking") == "0"
    assert numpy.array_equal(session.predict(rows())[0], onnxruntime.InferenceSession(path).run(None, {"x": rows()})[0])


def test_providers_can_be_changed_only_where_the_file_is_still_there(tmp_path: Path) -> None:
    """By path onnxruntime's `set_providers` works; in place it is an error that says what to do instead."""
    path = build(tmp_path / "m.onnx")
    by_path = load(Given(path=path, delivery=Delivery.PATH))
    by_path.set_providers(["CPUExecutionProvider"])
    assert by_path.predict(rows())[0].shape == (3, WIDTH)
    with pytest.raises(ModelBinarizationError, match="providers"):
        load(Given(path=path)).set_providers(["CPUExecutionProvider"])


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_external_data_is_found_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delivery: Delivery, nothing_left: None
) -> None:
    """Whatever the current folder is, and with a relative path too."""
    path = write_external(tmp_path / "m.onnx")
    expected = plain(path).run(None, {"x": rows()})[0]
    (tmp_path / "elsewhere").mkdir()
    for folder, given in ((tmp_path / "elsewhere", path), (tmp_path, Path("m.onnx"))):
        monkeypatch.chdir(folder)
        session = load(Given(path=given, delivery=delivery))
        assert numpy.array_equal(session.predict(rows())[0], expected)


def test_external_data_of_content_without_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a path there is no folder to look in: the error says so, and how to name one, which then works."""
    path = write_external(tmp_path / "m.onnx")
    content = path.read_bytes()
    monkeypatch.chdir(tmp_path)  # the files being in the current folder by accident does not count
    with pytest.raises(ModelBinarizationError, match="no folder to look in"):
        load(Given(content))
    session = load(Given(content), sess_options={FOLDER_ENTRY: str(tmp_path)})
    assert numpy.array_equal(session.predict(rows())[0], plain(path).run(None, {"x": rows()})[0])


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_missing_short_and_stray_external_data(tmp_path: Path, delivery: Delivery, nothing_left: None) -> None:
    """A file that is not there, one that ends early, and a name that leads out of the folder are errors that name it."""
    path = write_external(tmp_path / "m.onnx")
    data = tmp_path / "m.onnx.data"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    with pytest.raises(CorruptModelError, match=r"m\.onnx\.data"):
        load(Given(path=path, delivery=delivery))
    data.unlink()
    for options in ({}, {"sess_options": onnxruntime.SessionOptions()}):
        with pytest.raises(ModelNotFoundError, match=r"m\.onnx\.data"):
            load(Given(path=path, delivery=delivery), **options)
    (tmp_path.parent / "secret.bin").write_bytes(whole)
    for stray in ("../secret.bin", str(tmp_path.parent / "secret.bin"), "", "a\0b"):
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = stray if entry.key == "location" else entry.value
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ModelBinarizationError, match="files beside it"):
            load(Given(path=path, delivery=delivery))


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_names_that_step_into_a_folder_and_out_again(tmp_path: Path, delivery: Delivery, nothing_left: None) -> None:
    """`x/../w.bin` is the file beside the model, as for the library, if `x` is a folder; a link there leads anywhere."""
    folder = tmp_path / "model"
    (folder / "x" / "y").mkdir(parents=True)
    path = write_external(folder / "m.onnx")
    expected = plain(path).run(None, {"x": rows()})[0]

    def load_named(location: str) -> Any:
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = location if entry.key == "location" else entry.value
        path.write_bytes(model.SerializeToString())
        return load(Given(path=path, delivery=delivery)).predict(rows())[0]

    for location in ("./m.onnx.data", "x/../m.onnx.data", "x/y/../.././m.onnx.data"):
        assert numpy.array_equal(load_named(location), expected), location
    (tmp_path / "m.onnx.data").write_bytes((folder / "m.onnx.data").read_bytes())
    (folder / "link").symlink_to(folder / "x" / "y")
    for location in ("x/../../m.onnx.data", "nothing/../m.onnx.data", "link/../../m.onnx.data", "link/../m.onnx.data"):
        with pytest.raises(ModelBinarizationError, match="files beside it"):
            load_named(location)


PROVIDER, SETTINGS = "CPUExecutionProvider", {"use_arena": "0"}


@pytest.mark.parametrize(
    ("providers", "wanted"),
    [
        (PROVIDER, PROVIDER),
        ([PROVIDER], PROVIDER),
        ([[PROVIDER]], PROVIDER),
        ([(PROVIDER, SETTINGS)], (PROVIDER, SETTINGS)),
        ([[PROVIDER, SETTINGS]], (PROVIDER, SETTINGS)),
        ({PROVIDER: SETTINGS}, (PROVIDER, SETTINGS)),
    ],
    ids=str,
)
def test_providers_may_be_what_a_file_of_settings_has(
    tmp_path: Path, providers: Any, wanted: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Lists for tuples, as YAML and JSON have them, reach onnxruntime as tuples; it does not fall back to the CPU in silence."""
    asked: list[Any] = []
    made = onnxruntime.InferenceSession.__init__

    def note(self: Any, *given: Any, **named: Any) -> None:
        asked.append(named["providers"])
        made(self, *given, **named)

    path = build(tmp_path / "m.onnx")
    conf = mlup.Config(
        storage_type="disk", storage_kwargs={"path_to_files": str(path)}, binarization_kwargs={"providers": providers}
    )
    up = mlup.UP(conf=conf)
    up.to_yaml(tmp_path / "up.yaml")
    up.to_json(tmp_path / "up.json")
    InferenceSessionBinarizer.prepare()
    monkeypatch.setattr(onnxruntime.InferenceSession, "__init__", note)
    for again in (up, mlup.UP.load_from_yaml(tmp_path / "up.yaml", False), mlup.UP.load_from_json(tmp_path / "up.json", False)):
        again.ml.load()
        assert again.ml.model_obj.get_providers() == [PROVIDER]
    assert asked == [[wanted]] * 3
    assert "EP Error" not in capfd.readouterr().out


def test_offsets_that_are_no_numbers(tmp_path: Path) -> None:
    """What an external tensor says of its place is checked before onnxruntime believes it."""
    path = write_external(tmp_path / "m.onnx")
    for value in ("-1", "x", "1" * 30, "\u0663"):
        model = onnx.load(path, load_external_data=False)
        next(entry for entry in model.graph.initializer[0].external_data if entry.key == "offset").value = value
        path.write_bytes(model.SerializeToString())
        with pytest.raises(CorruptModelError):
            load(Given(path=path))


def _with_opset(version: int) -> bytes:
    model = BUILDERS["initializers"]()
    model.opset_import[0].version = version
    return bytes(model.SerializeToString())


def _with_operator(name: str) -> bytes:
    model = BUILDERS["initializers"]()
    model.graph.node[0].op_type = name
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize(
    ("content", "said"),
    [(_with_opset(999), "999"), (_with_operator("Nonsense"), "Nonsense")],
    ids=["an opset of the future", "an operator that does not exist"],
)
def test_what_onnxruntime_does_not_support(
    tmp_path: Path, content: bytes, said: str, delivery: Delivery, nothing_left: None
) -> None:
    """Its own message, in one line that names the file; not called damaged, because it is not."""
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelBinarizationError, match=said) as failed:
        load(Given(path=path, delivery=delivery))
    assert not isinstance(failed.value, CorruptModelError)
    assert str(path) in str(failed.value)
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_truncated_at_any_byte(tmp_path: Path, delivery: Delivery, nothing_left: None) -> None:
    """Every cut of a model is damaged content, told before onnxruntime sees it."""
    content = BUILDERS["branches"](width=4).SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CorruptModelError, match=r"m\.onnx"):
            load(Given(path=path, delivery=delivery))


@pytest.mark.parametrize("content", [b"\x08", b"garbage" * 100, bytes(range(256)) * 8, b"\0" * 64])
def test_garbage(content: bytes) -> None:
    """Content that never was a model is damaged content, as bytes and as a file object."""
    for given in (content, io.BytesIO(content)):
        with pytest.raises(CorruptModelError):
            load(Given(given))


def test_a_model_that_the_walk_accepts_and_protobuf_does_not(tmp_path: Path) -> None:
    """What only onnxruntime's parser sees is damaged content as well: a name that is a number, say."""
    tensor = TensorProto(name="w", data_type=1, dims=[1], raw_data=b"\0" * 4)
    model = helper.make_model(helper.make_graph([], "g", [], [], [tensor]), ir_version=8)
    content = model.SerializeToString() + b"\x72\x05\x0a\xff\xff\xff\xff"  # metadata_props whose key has a length that lies
    with pytest.raises(ModelLoadError) as failed:
        load(Given(content))
    assert isinstance(failed.value, CorruptModelError)


def test_nothing_is_warned(tmp_path: Path) -> None:
    """Loading and predicting raise no Python warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(Given(path=build(tmp_path / "m.onnx"))).predict(rows())


def test_estimates_follow_the_headers(tmp_path: Path) -> None:
    """In place the weights cost nothing private; copied they cost themselves, and bytes the file as well."""
    path = build(tmp_path / "m.onnx", layers=2, width=1024)
    payload_bytes = 2 * 1024 * 1024 * 4
    found = {each: estimated(InferenceSessionBinarizer, Given(path=path), each) for each in DELIVERIES}
    view, stream, by_path, as_bytes = (found[each] for each in DELIVERIES)
    assert view is not None
    assert stream is not None
    assert by_path is not None
    assert as_bytes is not None
    assert view.certainty is Certainty.EXACT
    assert view.mapped_bytes == payload_bytes
    rest_bytes = view.peak_anon_bytes
    assert rest_bytes < 4 * 1024 * 1024
    assert stream.peak_anon_bytes == payload_bytes + rest_bytes
    assert by_path.peak_anon_bytes == payload_bytes + payload_bytes // 2 + rest_bytes  # one of the two is being moved
    assert as_bytes.peak_anon_bytes == stream.peak_anon_bytes + path.stat().st_size
    assert as_bytes.settled_anon_bytes == stream.settled_anon_bytes


def test_estimating_leaves_a_file_object_where_it_stands(tmp_path: Path) -> None:
    """And says nothing of a damaged model, which the load will speak of."""
    content = build(tmp_path / "m.onnx").read_bytes()
    file = io.BytesIO(b"head" + content)
    file.seek(4)
    assert estimated(InferenceSessionBinarizer, Given(file), Delivery.BYTES) is not None
    assert file.tell() == 4
    assert estimated(InferenceSessionBinarizer, Given(content[:100]), Delivery.BYTES) is None


def test_models_in_onnxruntimes_own_format(tmp_path: Path) -> None:
    """A `.ort` file is onnxruntime's to read, by whichever delivery, and under whichever name."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(build(tmp_path / "m.onnx"), options)
    path = (tmp_path / "m.ort").rename(tmp_path / "renamed.bin")
    assert detected(LoadedFile(path=path)) is Format.ONNX
    said = inspect(path)
    assert (said["container"], said["inputs"], said["ir_version"]) == ("ort", ["x"], 8)
    assert said["payload_bytes"] == sum(each["size_bytes"] for each in said["tensors"]) > 0
    with pytest.raises(PackError, match=r"pack the \.onnx"):
        pack(path, tmp_path / "packed.ort")
    expected = plain(tmp_path / "m.onnx", Optimize.SPEED).run(None, {"x": rows()})[0]
    for delivery in DELIVERIES:
        found = load(Given(path=path, delivery=delivery)).predict(rows())[0]
        assert numpy.allclose(found, expected, rtol=1e-5, atol=1e-6), delivery
