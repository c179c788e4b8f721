"""`inspect`: what the headers of every format say, with nothing loaded, imported or left open, and a typed error for damage."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import json
import math
import os
import pickle
import shutil
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from child import run_child
from sample_models import FORMAT_OF, write_models

from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.errors import (
    CorruptModelError,
    FormatNotRecognizedError,
    LoadError,
    ModelNotFoundError,
    NotAModelFileError,
)
from mlup_stream.formats.kinds import Format, function_at
from mlup_stream.formats.listing import plain
from mlup_stream.formats.recognition.inspect import inspect as inspect_in
from mlup_stream.ml.inspection import inspect
from mlup_stream.registry import ROWS, spec_of
from mlup_stream.units import MIB

numpy = pytest.importorskip("numpy", reason="writes arrays")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of each format whose library is installed and light."""
    folder = tmp_path_factory.mktemp("samples")
    write_models(folder, "numpy", "joblib", "safetensors", "lightgbm", "xgboost", "onnx", "gguf")
    return folder


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of torch or TensorFlow, whichever is installed."""
    folder = tmp_path_factory.mktemp("heavy")
    write_models(folder, "torch", "tensorflow")
    return folder


def in_(folder: Path, name: str) -> Path:
    if not (folder / name).exists():
        pytest.skip(f"the library that writes {name} is not installed")
    return folder / name


SAID: dict[str, dict[str, Any]] = {
    "protocol0.pickle": {"protocol": None, "walked_whole": True},
    "protocol5.pickle": {"protocol": 5, "payloads": 0},
    "array.npy": {"dtype": "<f8", "shape": [1000], "order": "C", "payload_bytes": 8000, "python_objects": False},
    "arrays.npz": {"arrays_total": 2},
    "plain.joblib": {"compressor": None, "arrays": 1, "payload_bytes": 8000},
    "lz4.joblib": {"compressor": "lz4"},
    "xz.joblib": {"compressor": "xz"},
    "model.safetensors": {
        "tensors": [{"name": "weight", "dtype": "F32", "shape": [2, 3], "size_bytes": 24}],
        "payload_bytes": 24,
    },
    "shards.safetensors.index.json": {"files": {"model.safetensors": 1}, "tensors_total": 1},
    "lightgbm.txt": {"version": "v4", "objective": "regression", "features": 3, "trees": 3, "classes": 1},
    "xgboost.ubj": {"encoding": "ubjson", "objective": "reg:squarederror", "features": 3, "trees": 3},
    "xgboost.json": {"encoding": "json", "objective": "reg:squarederror", "features": 3, "trees": 3},
    "model.onnx": {
        "opsets": {"ai.onnx": 17},
        "graph": "g",
        "inputs": [{"name": "x", "type": "float", "shape": ["?", 3]}],
        "outputs": [{"name": "y", "type": "float", "shape": ["?", 2]}],
        "nodes": 1,
    },
    "model.gguf": {
        "version": 3,
        "byte_order": "little-endian",
        "metadata": {"general.architecture": "llama", "answer": 42, "tokenizer.ggml.tokens": ["a", "b", "c"]},
        "tensors": [{"name": "weight", "dtype": "F32", "shape": [2, 3], "size_bytes": 24}],
    },
}
LINEAR = [
    {"name": "weight", "dtype": "float32", "shape": [2, 3], "size_bytes": 24},
    {"name": "bias", "dtype": "float32", "shape": [2], "size_bytes": 8},
]
SAID_BY_HEAVY: dict[str, dict[str, Any]] = {
    "state_dict.pt": {"container": "zip", "script": False, "storages": 2, "payload_bytes": 32, "tensors": LINEAR},
    "module.pt": {"container": "zip", "byteorder": "little", "tensors": LINEAR},
    "script.pt": {"script": True, "tensors": LINEAR},
    "legacy_state_dict.pt": {"container": "legacy"},
    "model.keras": {"container": "zip", "model": "Sequential", "layers": {"InputLayer": 1, "Dense": 1}, "custom_objects": []},
    "model.h5": {"container": "hdf5", "model": "Sequential", "layers": {"InputLayer": 1, "Dense": 1}},
}


def assert_said(path: Path, expected: dict[str, Any]) -> None:
    said = inspect(path)
    assert {key: said.get(key) for key in expected} == expected
    json.dumps(said, allow_nan=False)


@pytest.mark.parametrize("name", SAID)
def test_the_headers_are_told(samples: Path, name: str) -> None:
    """Each format's own figures, in a dict that JSON can hold."""
    assert_said(in_(samples, name), SAID[name])


@pytest.mark.torch
@pytest.mark.parametrize("name", [name for name in SAID_BY_HEAVY if name.endswith(".pt")])
def test_torch_files_are_told_without_torch(heavy: Path, name: str) -> None:
    """Tensors by the names of a state_dict, of a module and of a script."""
    assert_said(in_(heavy, name), SAID_BY_HEAVY[name])


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", [name for name in SAID_BY_HEAVY if not name.endswith(".pt")])
def test_keras_files_are_told_without_keras(heavy: Path, name: str) -> None:
    """The model's class and its layers."""
    assert_said(in_(heavy, name), SAID_BY_HEAVY[name])


@pytest.mark.tensorflow
def test_a_saved_model_is_told_by_its_files(heavy: Path) -> None:
    """Each with its size."""
    said = inspect(in_(heavy, "saved_model"))
    assert said["format"] == "savedmodel"
    assert said["files"]["saved_model.pb"] == said["graph_bytes"] > 0
    assert said["variables_bytes"] > 0


@pytest.mark.torch
@pytest.mark.tensorflow
def test_every_heavy_sample_is_told(heavy: Path) -> None:
    """Whatever the frameworks write has the right format."""
    for name, format in FORMAT_OF.items():
        if (heavy / name).exists():
            assert inspect(heavy / name)["format"] == format


def test_every_sample_is_told_the_same_as_content(samples: Path) -> None:
    """A path, bytes, a file object and a LoadedFile say the same, apart from the name; the file object stays where it stood."""
    for name, format in FORMAT_OF.items():
        if not (samples / name).exists():
            continue
        path = samples / name
        said = inspect(path)
        assert (said["file"], said["format"], said["size_bytes"]) == (str(path), format, path.stat().st_size)
        assert said["evidence"]
        content = path.read_bytes()
        file = io.BytesIO(content)
        for source in (content, memoryview(content), file, LoadedFile(content), LoadedFile(path=path)):
            assert {**inspect(source), "file": ""} == {**said, "file": ""}, name
        assert file.read() == content


def test_every_format_has_an_inspector() -> None:
    """The table is complete."""
    assert {row.format for row in ROWS if callable(function_at(row.inspector))} == set(Format)


def test_nothing_is_imported_and_nothing_runs(samples: Path, tmp_path: Path) -> None:
    """No framework is in sys.modules afterwards, and what a pickle would call is not called."""
    path = tmp_path / "evil.pickle"
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    zipped = tmp_path / "evil.pt"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.")
        archive.writestr("a/version", "3\n")
    names = [str(samples / name) for name in FORMAT_OF if (samples / name).exists()]
    imported = run_child(
        """
        import sys
        from mlup_stream.ml.inspection import inspect
        said = [inspect(path) for path in paths]
        heavy = {"torch", "tensorflow", "keras", "onnx", "onnxruntime", "numpy", "joblib", "lightgbm", "xgboost", "gguf"}
        answer([sorted(heavy & set(sys.modules)), said[-2]["globals_in_head"], said[-1]["globals_in_head"]])
        """,
        paths=[*names, str(path), str(zipped)],
    )
    assert imported == [[], ["os.system"], ["os.system"]]
    assert not (tmp_path / "ran").exists()


def test_classes_of_a_pickle_are_named_in_every_protocol() -> None:
    """By GLOBAL, by STACK_GLOBAL, and by strings that come out of the memo."""
    model = [io.BytesIO, LoadedFile, io.StringIO, LoadedFile]
    for protocol in range(2, 6):
        said = inspect_in(spec_of(Format.PICKLE), pickle.dumps(model, protocol), "m")
        names = [name.replace("io.", "_io.").replace("__io", "_io") for name in said["globals_in_head"]]
        assert names == ["_io.BytesIO", "mlup_stream.delivery.loaded_file.LoadedFile", "_io.StringIO"]


def test_long_things_are_cut(tmp_path: Path) -> None:
    """Lists have their length beside them; text is cut; what JSON cannot hold is text."""
    header = {f"t{index}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for index in range(1500)}
    text = json.dumps({"__metadata__": {"long": "x" * 5000}, **header}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    said = inspect(path)
    assert (len(said["tensors"]), said["tensors_total"]) == (1000, 1500)
    assert len(said["metadata"]["long"]) < 300
    assert plain([math.inf, 1.0] * 4) == {"first": ["inf", 1.0, "inf", 1.0, "inf"], "length": 8}


def test_bad_input_is_a_typed_error(tmp_path: Path) -> None:
    """Missing, empty, a folder, not a model."""
    with pytest.raises(ModelNotFoundError):
        inspect(tmp_path / "gone.onnx")
    with pytest.raises(FormatNotRecognizedError):
        inspect(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(NotAModelFileError):
        inspect(tmp_path / "empty")
    with pytest.raises(FormatNotRecognizedError):
        inspect(b"prose, and nothing else")


TOLERANT = {"lightgbm.txt", "xgboost.ubj", "xgboost.json"}
"""Whose header is whole although the trees behind it are cut off."""


@pytest.mark.parametrize("name", SAID)
def test_truncation_anywhere_is_a_typed_error(samples: Path, tmp_path: Path, name: str) -> None:
    """Whatever is cut off: a typed error that names the file, or, where the headers are whole, what they say."""
    whole = in_(samples, name).read_bytes()
    path = tmp_path / name
    for other in ("model.safetensors",):
        shutil.copy(in_(samples, other), tmp_path / other)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    said: list[str] = []
    cuts = sorted({*range(1, min(200, len(whole))), *range(1, len(whole), max(1, len(whole) // 50)), len(whole) - 1})
    for cut in cuts:
        path.write_bytes(whole[:cut])
        try:
            inspect(path)
        except LoadError as error:
            said.append(str(error))
    assert all(str(path) in each and "\n" not in each for each in said)
    gc.collect()
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before
    assert len(said) >= (1 if name in TOLERANT or name.endswith(".joblib") else len(cuts) // 2)


@pytest.mark.parametrize("name", [name for name in SAID if name != "lz4.joblib"])  # whose blocks Python itself unpacks: slow
def test_garbled_headers_never_end_in_another_error(samples: Path, name: str) -> None:
    """Every byte of the two ends changed in turn: a typed error or an answer."""
    whole = bytearray(in_(samples, name).read_bytes())
    for at in sorted({*range(min(len(whole), 150)), *range(max(0, len(whole) - 150), len(whole))}):
        kept = whole[at]
        whole[at] = kept ^ 0x55
        for format in (None, Format(FORMAT_OF[name])):
            with contextlib.suppress(LoadError):
                json.dumps(
                    inspect(bytes(whole)) if format is None else inspect_in(spec_of(format), bytes(whole), "m"), allow_nan=False
                )
        whole[at] = kept


def test_a_pickle_in_a_torch_file_cannot_take_long(tmp_path: Path) -> None:
    """A pickle of many opcodes is followed for a while and then let be; what the directory says is still told."""
    path = tmp_path / "many.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"N0" * (2 * MIB) + b"N.")
        archive.writestr("a/version", "3\n")
    said = inspect(path)
    assert said["format"] == "torch"
    assert "tensors" not in said


def test_a_configuration_that_is_too_large_is_refused(tmp_path: Path) -> None:
    """A config.json that unpacks to a gigabyte is not unpacked."""
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", b" " * (65 * MIB))
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(CorruptModelError, match=r"config\.json of at most"):
        inspect(path)


@pytest.mark.big
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the figures are of /proc")
@pytest.mark.skipif(importlib.util.find_spec("safetensors") is None, reason="writes the file")
def test_memory_is_that_of_the_headers(tmp_path: Path) -> None:
    """peak(inspect) = headers + slack: 256 MB of weights cost at most 8 MB, in any of the formats with payloads."""
    from models import npz, pickle_arrays, safetensors

    for name, build in (("m.npz", npz), ("m.pickle", pickle_arrays), ("m.safetensors", safetensors)):
        path = tmp_path / name
        build(path, 256 * MIB)
        grown = run_child(
            """
            from mlup_stream.memory.meter import PeakMeter
            from mlup_stream.ml.inspection import inspect
            inspect(b"\\x80\\x04N.")
            with PeakMeter() as meter:
                inspect(path)
            answer(meter.peak.rss_bytes - meter.baseline.rss_bytes)
            """,
            path=str(path),
        )
        path.unlink()
        assert grown <= 8 * MIB


def test_the_rendering_shows_every_fact_and_cuts_long_lists(tmp_path: Path) -> None:
    """Facts, a table for each list, how many entries are left out; brackets in names are no markup."""
    pytest.importorskip("rich", reason="the extra `cli` is not installed")
    from rich.console import Console

    from mlup_stream.cli.inspect import rendering

    tensors = [{"name": f"[red]t{index}", "shape": [2, index], "size_bytes": 2048} for index in range(30)]
    said = {
        "file": "model.x",
        "format": "safetensors",
        "size_bytes": 3 * MIB,
        "flag": True,
        "nothing": None,
        "metadata": {"a": 1},
        "tensors": tensors,
        "tensors_total": 40,
    }
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(rendering(said))
    shown = console.export_text()
    for part in ("model.x", "3.0 MiB", "yes", "not said", "a: 1", "tensors (40)", "[red]t19", "2 x 19", "2.0 KiB", "and 20 more"):
        assert part in shown
    assert "t20" not in shown
