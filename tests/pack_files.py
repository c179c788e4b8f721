"""Model files with arrays of sizes that push each other off every alignment, in each format that can be packed."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from given import Given, deserialize

from mlup_stream.constants import Delivery
from mlup_stream.formats.kinds import Format
from mlup_stream.registry import binarization_type_of, binarizer_class

numpy = pytest.importorskip("numpy", reason="the arrays")
joblib = pytest.importorskip("joblib", reason="its files")
safetensors = pytest.importorskip("safetensors.numpy", reason="its files")

ARRAYS = {
    "matrix": numpy.arange(20_000, dtype="f8").reshape(100, 200),
    "columns": numpy.asfortranarray(numpy.arange(30_000, dtype="f4").reshape(300, 100)),
    "short": numpy.arange(40_001, dtype="i2"),
    "small": numpy.arange(3, dtype="u1"),
    "complex": numpy.arange(9_000, dtype="c16"),
}


def _npz(path: Path, save: Callable[..., None]) -> None:
    save(path, objects=numpy.array([1, "a"], object), **ARRAYS)


def _safetensors(path: Path) -> None:
    """As no library writes it: a header of odd length, narrow items first."""
    named = {"U8": "small", "I16": "short", "F32": "columns", "F64": "matrix"}
    header: dict[str, Any] = {"__metadata__": {"made by": "a test"}}
    data = b""
    for dtype, name in named.items():
        payload = ARRAYS[name].tobytes()
        offsets = [len(data), len(data) + len(payload)]
        header[name] = {"dtype": dtype, "shape": ARRAYS[name].shape, "data_offsets": offsets}
        data += payload
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 7) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _old_npy(path: Path) -> None:
    """As NumPy before 1.14 wrote it: aligned to 16 bytes."""
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000,), }"
    text += b" " * ((6 - len(text) - 1) % 16) + b"\n"
    path.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + numpy.arange(1000.0).tobytes())


def old_joblib(path: Path) -> None:
    """As joblib before 1.2 wrote it: arrays where the opcodes end."""
    create = joblib.numpy_pickle.NumpyPickler._create_array_wrapper

    def without_alignment(self: Any, array: Any) -> Any:
        wrapper = create(self, array)
        del wrapper.numpy_array_alignment_bytes
        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joblib.numpy_pickle.NumpyPickler, "_create_array_wrapper", without_alignment)
        joblib.dump(ARRAYS, path)


FILES: dict[str, Callable[[Path], Any]] = {
    **{f"protocol{n}.pkl": lambda path, n=n: path.write_bytes(pickle.dumps(ARRAYS, n)) for n in range(6)},
    "plain.joblib": lambda path: joblib.dump(ARRAYS, path),
    "protocol2.joblib": lambda path: joblib.dump(ARRAYS, path, protocol=2),
    "zlib.joblib": lambda path: joblib.dump(ARRAYS, path, compress=("zlib", 1)),
    "gzip.joblib": lambda path: joblib.dump(ARRAYS, path, compress=("gzip", 1)),
    "bz2.joblib": lambda path: joblib.dump(ARRAYS, path, compress=("bz2", 1)),
    "xz.joblib": lambda path: joblib.dump(ARRAYS, path, compress=("xz", 1)),
    "array.npy": lambda path: numpy.save(path, ARRAYS["columns"]),
    "old.npy": _old_npy,
    "stored.npz": lambda path: _npz(path, numpy.savez),
    "deflated.npz": lambda path: _npz(path, numpy.savez_compressed),
    "library.safetensors": lambda path: safetensors.save_file(ARRAYS | {"complex": ARRAYS["small"]}, path),
    "odd.safetensors": _safetensors,
}

LIBRARIES: dict[str, Callable[[Path], Any]] = {
    ".pkl": lambda path: pickle.loads(path.read_bytes()),
    ".joblib": lambda path: joblib.load(path),
    ".npy": numpy.load,
    ".npz": lambda path: dict(numpy.load(path, allow_pickle=True)),
    ".safetensors": safetensors.load_file,
}


def write(folder: Path, name: str) -> Path:
    path = folder / name
    FILES[name](path)
    return path


def assert_same(model: Any, expected: Any) -> None:
    if not isinstance(expected, dict):
        model, expected = {"": model}, {"": expected}
    assert set(model) == set(expected)
    for name, array in expected.items():
        found = model[name]
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.flags.f_contiguous == array.flags.f_contiguous
        assert found.tolist() == array.tolist() if array.dtype.hasobject else found.tobytes() == array.tobytes()


def in_place(path: Path, format: str, **options: Any) -> tuple[Any, Given]:
    """The model by view, and the handle that says where its arrays are."""
    loaded = Given(path=path, delivery=Delivery.VIEW)
    model = deserialize(binarizer_class(binarization_type_of(Format(format))), loaded, **options)
    return model, loaded


def format_of(name: str) -> Format:
    suffix = name.rpartition(".")[2]
    return Format.PICKLE if suffix == "pkl" else Format(suffix)
