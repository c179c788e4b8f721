"""`inspect`: what headers say, for each format, without loading and without any framework."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from child import run_child
from models import KINDS

from mlup_stream.errors import CorruptModelError
from mlup_stream.formats.inspect import inspect
from mlup_stream.formats.kinds import Format

pytest.importorskip("numpy", reason="the extra `numpy` is not installed")

EXPECTED: dict[str, dict[str, Any]] = {
    "npy": {"dtype": "<f8", "shape": [8192]},
    "npz": {"dtype": "<f8", "shape": [1024]},
    "safetensors": {"dtype": "F64", "shape": [1024]},
}


@pytest.fixture
def small(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    made = KINDS[request.param]
    for name in made.imports.split(", "):
        pytest.importorskip(name, reason=f"{name} is not installed")
    if request.param == "onnx":
        pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    path = tmp_path / made.file_name
    made.build(path, 64 * 1024)
    return path


@pytest.mark.parametrize("small", sorted(EXPECTED), indirect=True)
def test_tensors_are_listed_with_dtype_and_shape(small: Path) -> None:
    """As the format writes them."""
    kind = small.suffix.removeprefix(".")
    tensors = inspect(small, Format(kind))["tensors"]
    assert len(tensors) == (1 if kind == "npy" else 8)
    for name, value in EXPECTED[kind].items():
        assert tensors[0][name] == value


@pytest.mark.parametrize("small", ["pickle"], indirect=True)
def test_a_pickle_is_described_by_its_frames(small: Path) -> None:
    """Payload and structure add up to the file."""
    found = inspect(small, Format.PICKLE)
    assert found["protocol"] == 5
    assert found["payload_bytes"] + found["structure_bytes"] == small.stat().st_size


@pytest.mark.parametrize("small", ["onnx"], indirect=True)
def test_an_onnx_model_is_described_by_its_graph(small: Path) -> None:
    """Inputs, outputs and opsets, and how much of the file is weights."""
    found = inspect(small, Format.ONNX)
    assert found["inputs"] == [{"name": "h0", "type": "float", "shape": ["n", 1024]}]
    assert found["opsets"] == {"ai.onnx": 17}
    assert found["payload_bytes"] == 1024 * 1024 * 4


@pytest.mark.parametrize("small", sorted(KINDS), indirect=True)
def test_what_is_said_is_json_and_imports_nothing(small: Path) -> None:
    """In a fresh process neither numpy nor a framework is imported by inspecting."""
    code = """
        import json, sys
        from mlup_stream.delivery.loaded_file import LoadedFile
        from mlup_stream.formats.inspect import inspect
        from mlup_stream.ml.binarization.detection import detect
        found = json.loads(json.dumps(inspect(path, detect(LoadedFile(path=path)))))
        answer([found, [name for name in ("numpy", "onnx", "onnxruntime", "joblib", "torch") if name in sys.modules]])
    """
    found, heavy = run_child(code, path=str(small))
    assert isinstance(found, dict)
    assert heavy == []


@pytest.mark.parametrize("small", ["npz", "onnx", "safetensors"], indirect=True)
def test_damaged_headers_are_a_typed_error(small: Path) -> None:
    """Cut in the middle, each is told as damaged."""
    whole = small.read_bytes()
    small.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptModelError):
        inspect(small, Format(small.suffix.removeprefix(".")))


def test_a_saved_model_is_its_files(tmp_path: Path) -> None:
    """Names and sizes of what lies in the folder."""
    (tmp_path / "variables").mkdir()
    (tmp_path / "saved_model.pb").write_bytes(b"12345")
    (tmp_path / "variables" / "variables.index").write_bytes(b"12")
    found = inspect(tmp_path, Format.SAVED_MODEL)
    assert json.dumps(found) == '{"files": {"saved_model.pb": 5, "variables/variables.index": 2}}'
