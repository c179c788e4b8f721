"""TensorFlow Lite: every delivery answers as the library's own interpreter, and without XNNPACK the weights stay in the file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from given import Given, deserialize, detected
from measured import SLACK_BYTES, measure_load

import mlup_stream as mlup
from mlup_stream.constants import LoadedFile
from mlup_stream.delivery.kinds import Delivery, Optimize
from mlup_stream.errors import CorruptModelError
from mlup_stream.formats.kinds import Format
from mlup_stream.ml.binarization.tflite import TfliteBinarizer
from mlup_stream.ml.inspection import inspect

pytestmark = pytest.mark.formats

litert = pytest.importorskip("ai_edge_litert.interpreter", reason="needs the tflite extra")
numpy = pytest.importorskip("numpy", reason="what the model is asked")

BINARIZER = "mlup_stream.ml.binarization.tflite.TfliteBinarizer"
ANSWER = (
    "(model.set_tensor(0, __import__('numpy').ones((1, 1024), 'f4')), model.invoke(),"
    " float(model.get_tensor(model.get_output_details()[0]['index']).sum()))[2]"
)


def write(path: Path, size_bytes: int = 4096) -> Path:
    import writers

    writers.tflite(str(path), size_bytes)
    return path


def answer(model: Any) -> Any:
    given = model.get_input_details()[0]
    model.set_tensor(given["index"], numpy.linspace(0, 1, given["shape"].prod(), dtype="f4").reshape(given["shape"]))
    model.invoke()
    return model.get_tensor(model.get_output_details()[0]["index"])


@pytest.mark.parametrize("optimize", list(Optimize))
@pytest.mark.parametrize("delivery", TfliteBinarizer.deliveries)
def test_every_delivery_answers_as_the_library(tmp_path: Path, delivery: Delivery, optimize: Optimize) -> None:
    """The same numbers, with XNNPACK and without, also once the file has lost its name."""
    path = write(tmp_path / "model.bin")
    assert detected(LoadedFile(path=path)) is Format.TFLITE
    theirs = litert.Interpreter(str(path))
    theirs.allocate_tensors()
    expected = answer(theirs)
    model = deserialize(TfliteBinarizer, Given(path=path, delivery=delivery, optimize=optimize), num_threads=1)
    path.unlink()
    assert numpy.allclose(answer(model), expected, rtol=1e-5)
    assert expected.any()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
def test_every_kind_of_content_is_taken(tmp_path: Path, kind: Any) -> None:
    """Content without a path gives the same model, and what happens to it afterwards is nothing to the model."""
    path = write(tmp_path / "m.tflite")
    content = bytearray(path.read_bytes())
    model = deserialize(TfliteBinarizer, Given(content if kind is bytearray else kind(content)))
    content[:] = bytes(len(content))
    assert numpy.array_equal(answer(model), answer(mlup.load(path)))


@pytest.mark.parametrize("optimize", ["memory", "speed"])
def test_memory_and_speed(tmp_path: Path, optimize: str) -> None:
    """private(memory) <= 2% of the file + slack; private(speed) = the weights, packed for XNNPACK; neither is underestimated."""
    path = write(tmp_path / "m.tflite", 64 << 20)
    size_bytes = path.stat().st_size
    took = measure_load(
        BINARIZER, path, "view", answer_of=ANSWER, imports=("numpy", "ai_edge_litert.interpreter"), optimize=optimize
    )
    packed_bytes = size_bytes if optimize == "speed" else 0
    assert packed_bytes * 0.95 <= took.settled_anon_bytes <= packed_bytes + 0.02 * size_bytes + SLACK_BYTES
    assert took.estimate is not None
    # What it settles at, which is its peak too: the peak's own bound counts the pages of the file, and others' huge pages.
    assert took.settled_anon_bytes <= took.estimate["peak_anon_bytes"] <= packed_bytes + SLACK_BYTES


def test_the_report_says_where_the_weights_are(tmp_path: Path) -> None:
    """Mapped without XNNPACK, copied with it, and why."""
    path = write(tmp_path / "m.tflite", 1 << 22)
    placements = {}
    for optimize in Optimize:
        given = Given(path=path, delivery=Delivery.VIEW, optimize=optimize)
        deserialize(TfliteBinarizer, given)
        placements[optimize.value] = given.placement
    assert placements["memory"].mapped_bytes == placements["speed"].copied_bytes > 4_000_000
    assert placements["speed"].reasons == ("packed for XNNPACK",)


def test_what_the_interpreter_does_not_verify_is_told(tmp_path: Path) -> None:
    """A file that is no flatbuffer, and one whose graph names a tensor that is not there, are damaged, not crashes."""
    path = write(tmp_path / "m.tflite")
    good = path.read_bytes()
    path.write_bytes(good[:40] + b"\xff" * 40 + good[80:])
    with pytest.raises(CorruptModelError, match=r"m\.tflite"):
        mlup.load(path)


def test_inspect_says_what_is_in_it(tmp_path: Path) -> None:
    """Inputs, outputs, nodes and weights, without the library's help."""
    said = inspect(write(tmp_path / "m.tflite"))
    assert said["inputs"] == [{"name": "h0", "dtype": "float32", "shape": [1, 16]}]
    assert said["outputs"][0]["name"] == "h4"
    assert (said["nodes"], said["weights_bytes"], said["description"]) == (4, 4096, "by hand")
