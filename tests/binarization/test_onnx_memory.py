"""What an ONNX model takes, as equations: on payloads of 256 MiB, in fresh processes, by the kernel's high-water mark.

    peak(view)           = structure + session               <= 0.03 x payload, wherever the weights lie
    peak(external data)  = structure + session               <= 0.02 x payload, by view and by path
    peak(stream)         = payload + chunk + session         = 1.00 x payload
    peak(bytes)          = file + payload + chunk + session  = 2.00 x payload, and settled 1.00
    peak(view, speed)    = packed payload + one tensor that is being packed + session
    settled(saved packed) = session

of RSS, of which private memory is a part. The model's answer, the same for all, depends on every weight.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="needs the onnx extra")
pytest.importorskip("onnxruntime", reason="needs the onnx extra")

from child import run_child
from measured import Took, measure_load
from onnx_models import BUILDERS

from mlup_stream.formats.onnx.external import Place, without_payloads
from mlup_stream.formats.onnx.layout import walk
from mlup_stream.formats.source import Source
from mlup_stream.ml.binarization.onnx_runtime.abilities import installed_abilities
from mlup_stream.units import MIB

pytestmark = [
    pytest.mark.big,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the equations are about the kernel's figures in /proc"),
]

borrows_buffers = pytest.mark.skipif(
    not installed_abilities().borrows_buffers, reason="onnxruntime before 1.31 copies the buffers that it is given"
)

LAYERS, WIDTH = 4, 4096
PAYLOAD_BYTES = LAYERS * WIDTH * WIDTH * 4
SESSION_BYTES = 4 * MIB
CHUNK_BYTES = 8 * MIB
BINARIZER = "mlup_stream.ml.binarization.onnx.InferenceSessionBinarizer"
ANSWER = "[float(each) for each in model.predict(__import__('numpy').linspace(-1, 1, 4096, dtype='f4')[None])[0][0, ::512]]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("onnx")
    yield folder
    for path in folder.iterdir():
        path.unlink()


def _packed(content: bytes) -> bytes:
    """The same model with its weights in packed `float_data`: the bytes are the same, the field has another number."""
    changed = bytearray(content)
    for tensor in walk(content).tensors:
        assert tensor.payload is not None
        assert content[tensor.payload.start] == 9 << 3 | 2  # raw_data
        changed[tensor.payload.start] = 4 << 3 | 2  # float_data
    return bytes(changed)


def _with_data_in(path: Path) -> bytes:
    """The same model with external data: the file at `path`, which happens to have it."""
    with Source(path) as source:
        return without_payloads(source, walk(source), lambda tensor: tensor.payload and Place(path.name, tensor.payload.body))


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, Path]:
    content = BUILDERS["initializers"](layers=LAYERS, width=WIDTH).SerializeToString()
    written = {"initializers": content, "packed": _packed(content)}
    written["constants"] = BUILDERS["constants"](layers=LAYERS, width=WIDTH).SerializeToString()
    paths = {}
    for where, each in written.items():
        paths[where] = folder / f"{where}.onnx"
        paths[where].write_bytes(each)
    paths["external"] = folder / "external.onnx"
    paths["external"].write_bytes(_with_data_in(paths["initializers"]))
    return paths


@pytest.fixture(scope="module")
def answer(models: dict[str, Path]) -> object:
    """What the model answers by path, which onnxruntime reads itself."""
    return _measure(models["initializers"], "path").answer


def _measure(path: Path, delivery: str, optimize: str = "memory") -> Took:
    return measure_load(BINARIZER, path, delivery, answer_of=ANSWER, imports=("numpy",), optimize=optimize)


@pytest.mark.parametrize("where", ["initializers", "constants", "packed"])
def test_in_place_nothing_of_the_payload_is_private(models: dict[str, Path], answer: object, where: str) -> None:
    """peak(view) <= structure + session, and at most 0.03 of the payload, at the peak as when settled."""
    took = _measure(models[where], "view")
    structure_bytes = models[where].stat().st_size - PAYLOAD_BYTES
    assert took.peak_bytes <= 4 * structure_bytes + SESSION_BYTES
    assert took.peak_bytes <= 0.03 * PAYLOAD_BYTES
    assert took.answer == answer


@pytest.mark.parametrize("delivery", ["view", "path"])
def test_external_data_is_not_private(models: dict[str, Path], answer: object, delivery: str) -> None:
    """peak(external) <= structure + session, and at most 0.02 of the payload."""
    took = _measure(models["external"], delivery)
    assert took.peak_bytes <= 4 * models["external"].stat().st_size + SESSION_BYTES
    assert took.peak_bytes <= 0.02 * PAYLOAD_BYTES
    assert took.answer == answer


@borrows_buffers
def test_a_stream_takes_the_payload_once(models: dict[str, Path], answer: object) -> None:
    """peak(stream) <= payload + chunk + session: 1.0 where onnxruntime's own reading of the bytes takes 3.0."""
    took = _measure(models["initializers"], "stream")
    assert took.settled_anon_bytes >= 0.99 * PAYLOAD_BYTES
    assert took.peak_bytes <= PAYLOAD_BYTES + CHUNK_BYTES + SESSION_BYTES
    assert took.answer == answer


@borrows_buffers
def test_bytes_take_the_payload_twice_and_settle_at_once(models: dict[str, Path], answer: object) -> None:
    """peak(bytes) <= file + payload + session; after the release payload + session."""
    took = _measure(models["initializers"], "bytes")
    file_bytes = models["initializers"].stat().st_size
    assert 1.95 * PAYLOAD_BYTES <= took.peak_bytes <= file_bytes + PAYLOAD_BYTES + CHUNK_BYTES + SESSION_BYTES
    assert took.settled_bytes <= PAYLOAD_BYTES + CHUNK_BYTES + SESSION_BYTES
    assert took.answer == answer


def test_speed_takes_the_packed_payload(models: dict[str, Path]) -> None:
    """peak(view, speed) <= packed payload + one tensor + session, where onnxruntime's own reading of the path takes 2.0."""
    took = _measure(models["initializers"], "view", "speed")
    assert 0.9 * PAYLOAD_BYTES <= took.peak_bytes <= PAYLOAD_BYTES + PAYLOAD_BYTES // LAYERS + SESSION_BYTES
    assert took.settled_anon_bytes <= PAYLOAD_BYTES + SESSION_BYTES


@pytest.mark.parametrize("optimize", ["memory", "speed"])
@pytest.mark.parametrize("delivery", ["view", "path"])
def test_what_was_saved_packed_settles_in_the_file(models: dict[str, Path], folder: Path, delivery: str, optimize: str) -> None:
    """settled anon <= session: each tensor is packed for a moment, to compare, and the packed one of the file is kept."""
    path = folder / "saved.onnx"
    if not path.exists():
        run_child(
            """
            import mlup_stream
            mlup_stream.load(path, optimize="speed", sess_options={
                "optimized_model_filepath": saved,
                "session.optimized_model_external_initializers_file_name": "saved.onnx.data",
                "session.optimized_model_external_initializers_min_size_in_bytes": 4096,
                "session.save_external_prepacked_constant_initializers": 1,
            })
            answer(True)
            """,
            path=str(models["initializers"]),
            saved=str(path),
        )
    took = _measure(path, delivery, optimize)
    assert took.settled_anon_bytes <= SESSION_BYTES
    assert took.estimate is not None
    assert took.peak_bytes <= took.estimate["peak_bytes"] + 2 * PAYLOAD_BYTES  # the pages of the file that the comparison reads


@pytest.mark.parametrize("delivery", ["view", "stream", "bytes", "path"])
def test_estimates_are_what_is_measured(models: dict[str, Path], delivery: str) -> None:
    """An estimate that calls itself exact is within 5% of the file's size of what the load took."""
    took = _measure(models["initializers"], delivery)
    assert took.estimate is not None
    assert took.estimate["certainty"] == "exact"
    within_bytes = 0.05 * models["initializers"].stat().st_size
    assert abs(took.estimate["peak_bytes"] - took.peak_bytes) <= within_bytes
    assert abs(took.estimate["settled_bytes"] - took.settled_bytes) <= within_bytes
