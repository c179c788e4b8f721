"""Models in onnxruntime's own format: used from where they lie in the file, with the answers of the model they were made from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from child import run_child
from given import Given, deserialize, estimated
from measured import Took, measure_load

numpy = pytest.importorskip("numpy", reason="needs the onnx extra")
pytest.importorskip("onnx", reason="needs the onnx extra")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")

import writers  # noqa: E402  # of profiling
from onnx_models import BUILDERS, build, rows  # noqa: E402

from mlup_stream.constants import Delivery, Optimize  # noqa: E402
from mlup_stream.errors import CorruptModelError, ModelBinarizationError  # noqa: E402
from mlup_stream.formats.onnx.ort import read_ort  # noqa: E402
from mlup_stream.ml.binarization.onnx import InferenceSessionBinarizer  # noqa: E402
from mlup_stream.ml.binarization.onnx_runtime import opener  # noqa: E402
from mlup_stream.ml.binarization.onnx_runtime.abilities import Abilities, installed_abilities  # noqa: E402
from mlup_stream.units import MIB  # noqa: E402

BINARIZER = "mlup_stream.ml.binarization.onnx.InferenceSessionBinarizer"
ANSWER = "model.predict(__import__('numpy').ones((1, model.get_inputs()[0].shape[1]), 'f4'))[0][0, ::64].tolist()"
SIZE_BYTES = 64 * MIB
SESSION_BYTES = 4 * MIB
FAULT_AROUND_BYTES = 6 * MIB
"""Pages of the map that the kernel brings in beside those of the graph and of each tensor's first bytes."""

maps_ort = pytest.mark.skipif(not installed_abilities().maps_ort, reason="onnxruntime before 1.26 reads it into memory")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """onnxruntime writes the errors that are provoked here to the terminal otherwise."""
    onnxruntime.set_default_logger_severity(4)
    yield
    onnxruntime.set_default_logger_severity(2)


def convert(model: Path) -> Path:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(model.with_suffix(".ort"))
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry("session.disable_prepacking", "1")
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return model.with_suffix(".ort")


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("ort") / "m.ort"
    writers.ort(str(path), SIZE_BYTES)
    yield path
    path.unlink()


def measured(path: Path, delivery: str, optimize: str) -> Took:
    return measure_load(BINARIZER, path, delivery, answer_of=ANSWER, optimize=optimize, imports=("numpy",))


@maps_ort
@pytest.mark.parametrize("optimize", ["memory", "speed"])
def test_weights_stay_in_the_file(big: Path, optimize: str) -> None:
    """private(view) = session, and with optimize="speed" session + packed payload; and what was estimated is what it took."""
    took = measured(big, "view", optimize)
    packed_bytes = int(1.05 * SIZE_BYTES) if optimize == "speed" else 0
    assert took.peak_anon_bytes <= SESSION_BYTES + packed_bytes
    assert took.settled_anon_bytes <= SESSION_BYTES + packed_bytes
    if optimize == "memory":
        assert took.peak_bytes <= SESSION_BYTES + FAULT_AROUND_BYTES
    assert took.estimate is not None
    assert took.settled_anon_bytes <= took.estimate["settled_anon_bytes"] + SESSION_BYTES
    assert took.answer == pytest.approx(measured(big, "path", optimize).answer, rel=1e-5)


@pytest.mark.parametrize("model", sorted(BUILDERS))
def test_predictions_are_those_of_the_model_it_was_made_from(tmp_path: Path, model: str) -> None:
    """By every delivery, whatever the model is built of."""
    path = convert(build(tmp_path / "m.onnx", model))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (first, *_) = session.get_inputs()
    expected = session.run(None, {first.name: rows()})[0]
    for delivery in InferenceSessionBinarizer.deliveries:
        found = deserialize(InferenceSessionBinarizer, Given(path=path, delivery=delivery)).predict(rows())[0]
        assert numpy.allclose(found, expected, rtol=1e-4, atol=1e-5), delivery


def test_what_it_says_of_itself_is_what_onnxruntime_says(tmp_path: Path) -> None:
    """Names, tensors and nodes, from the flatbuffer alone; every tensor's bytes are where it says."""
    writers.ort(str(tmp_path / "m.ort"), 64 * 1024)
    found = read_ort(tmp_path / "m.ort")
    session = onnxruntime.InferenceSession(tmp_path / "m.ort", providers=["CPUExecutionProvider"])
    assert found.inputs == tuple(each.name for each in session.get_inputs())
    assert found.outputs == tuple(each.name for each in session.get_outputs())
    assert found.nodes == 8
    expected = writers._arrays(64 * 1024)
    content = (tmp_path / "m.ort").read_bytes()
    for tensor in found.tensors:
        array = expected.pop(tensor.name)
        assert tensor.dims == array.shape
        assert content[tensor.start :][: tensor.size_bytes] == array.tobytes()
    assert expected == {}


def test_an_onnxruntime_that_cannot_map_it_reads_it_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 1.26 the weights are copied; the placement says which version leaves them, and the estimate counts the copy."""
    path = convert(build(tmp_path / "m.onnx"))
    given = Given(path=path, delivery=Delivery.VIEW)
    monkeypatch.setattr(opener, "_ABILITIES", Abilities.of("1.25.1"))
    monkeypatch.setattr("mlup_stream.ml.binarization.onnx.installed_abilities", lambda: Abilities.of("1.25.1"))
    assert deserialize(InferenceSessionBinarizer, given) is not None
    assert given.placement is not None
    assert given.placement.mapped_bytes == 0
    assert "1.26 and newer map them" in given.placement.reasons[0]
    estimate = estimated(InferenceSessionBinarizer, Given(path=path), Delivery.VIEW)
    assert estimate is not None
    assert estimate.settled_anon_bytes >= read_ort(path).payload_bytes
    assert not Abilities.of("1.25.1").maps_ort
    assert Abilities.of("1.26.0").maps_ort


def test_damage_is_told(tmp_path: Path) -> None:
    """By our walk, or where onnxruntime verifies the flatbuffer: a typed error, and the offsets lead nowhere outside."""
    good = convert(build(tmp_path / "m.onnx")).read_bytes()
    path = tmp_path / "bad.ort"
    for at in (0, 8, len(good) // 2, len(good) - 40):
        path.write_bytes(good[:at] + b"\xff\xff\xff\x7f" + good[at + 4 :])
        with contextlib.suppress(ModelBinarizationError):  # some damage is to numbers, which are as good as others
            deserialize(InferenceSessionBinarizer, Given(path=path))
    for length in range(9, len(good), 199):
        path.write_bytes(good[:length])
        with pytest.raises(CorruptModelError):
            deserialize(InferenceSessionBinarizer, Given(path=path))


@maps_ort
def test_a_model_outlives_its_name(tmp_path: Path) -> None:
    """The file is replaced and removed while the model is in use: the map is of the file that was opened."""
    path = convert(build(tmp_path / "m.onnx"))
    other = convert(build(tmp_path / "other.onnx"))
    said = run_child(
        """
        import os, numpy
        import mlup_stream as mlup
        model = mlup.load(path)
        rows = numpy.ones(shape, "f4")
        before = model.predict(rows)[0].tolist()
        os.replace(other, path)
        os.unlink(path)
        answer([before, model.predict(rows)[0].tolist()])
        """,
        path=str(path),
        other=str(other),
        shape=list(rows().shape),
    )
    assert said[0] == said[1]


def test_speed_is_estimated_with_what_is_packed(tmp_path: Path) -> None:
    """estimate(speed) = estimate(memory) + 1.05 x payload, and is no longer exact."""
    path = convert(build(tmp_path / "m.onnx"))
    memory = estimated(InferenceSessionBinarizer, Given(path=path), Delivery.VIEW)
    speed = estimated(InferenceSessionBinarizer, Given(path=path, optimize=Optimize.SPEED), Delivery.VIEW)
    assert memory is not None
    assert speed is not None
    assert speed.peak_anon_bytes - memory.peak_anon_bytes == int(1.05 * read_ort(path).payload_bytes)
