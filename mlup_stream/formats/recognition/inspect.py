"""What the headers of a model file say, as a dict that JSON can hold: for every format, building nothing, importing no framework.

One literal table, from a format to what describes it. Each describer walks the format's own structure with the walker that the
loader uses, so what it says is what a load would find; it reads headers and directories, never a payload. Lists are cut at
`LISTED` entries, texts at `SHOWN_CHARACTERS`; how many there are is said beside them.

To add a format: a describer below, a row in the table.
"""

from __future__ import annotations

import array
import contextlib
import io
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from mlup_stream.formats.kinds import Format
from mlup_stream.formats.source import Source
from mlup_stream.units import KIB

__all__ = ["LISTED", "SHOWN_CHARACTERS", "describe"]

LISTED = 1000
SHOWN_CHARACTERS = 200
_SHOWN_ITEMS = 5
_END_BYTES = 64 * KIB


def describe(format: Format, given: Any, name: str) -> dict[str, Any]:
    """What the headers say.

    Args:
        format: What the file was recognised as.
        given: The path of the file or folder, a buffer, or a seekable binary file, whose cursor may move.
        name: What to call it in a message.

    Raises:
        CorruptModelError: The headers are damaged.
        OSError: The path cannot be opened.
    """
    if isinstance(given, (bytearray, bytes, memoryview)):
        given = io.BytesIO(given)  # which copies nothing of `bytes`
    return _DESCRIBERS[format](given, name)


def _pickle(given: Any, name: str) -> dict[str, Any]:
    from mlup_stream.formats.pickles.frames import walk
    from mlup_stream.formats.pickles.named_globals import first_globals

    found = walk(given, name)
    return {
        "protocol": found.protocol or None,  # 0 and 1 are not declared
        "payload_bytes": found.payload_bytes,
        "text_bytes": found.text_bytes,
        "structure_bytes": found.structure_bytes,
        "payloads": found.payloads,
        "largest_payload_bytes": found.largest_payload_bytes,
        "walked_whole": found.whole,
        "globals_in_head": first_globals(given, name),
    }


def _joblib(given: Any, name: str) -> dict[str, Any]:
    from mlup_stream.formats.peek import Peek
    from mlup_stream.formats.pickles.compressed_head import unpacked_head
    from mlup_stream.formats.pickles.joblib import survey
    from mlup_stream.formats.pickles.named_globals import first_globals

    with Peek(given, name) as peek:
        packed = unpacked_head(peek)
    if packed is not None:
        return {"compressor": packed.compressor, "globals_in_head": first_globals(packed.data, name)}
    found = survey(given, name)
    return {
        "compressor": None,
        "arrays": found.arrays,
        "payload_bytes": found.payload_bytes,
        "structure_bytes": found.structure_bytes,
        "largest_payload_bytes": found.largest_payload_bytes,
        "walked_whole": found.whole,
        "globals_in_head": first_globals(given, name),
    }


def _npy(given: Any, name: str) -> dict[str, Any]:
    from mlup_stream.formats.arrays.npy import read_header

    said = _npy_header(read_header(given, name))
    return {"payload_bytes": said.pop("size_bytes"), **said}


def _npy_header(header: Any) -> dict[str, Any]:
    return {
        "dtype": _plain(header.descr),
        "shape": list(header.shape),
        "size_bytes": header.data_bytes,
        "order": "F" if header.fortran_order else "C",
        "aligned": header.aligned,
        "python_objects": header.has_objects,
    }


def _npz(given: Any, name: str) -> dict[str, Any]:
    from mlup_stream.formats.arrays.npz import read_members

    members = read_members(given, name)
    arrays = [
        {"name": each.key, "stored": each.stored, **(_npy_header(each.header) if each.header is not None else {})}
        for each in members
    ]
    return _listed("arrays", arrays)


def _onnx(given: Any, name: str) -> dict[str, Any]:
    from mlup_stream.formats.onnx.layout import walk

    with Source(given, name) as source:
        found = walk(source)
    tensors = [
        {"name": each.name, "dtype": each.type_name, "shape": list(each.dims), "size_bytes": each.size_bytes, "where": each.where}
        for each in found.tensors
    ]
    return {
        "ir_version": found.ir_version,
        "producer": f"{found.producer_name} {found.producer_version}".strip(),
        "opsets": {domain or "ai.onnx": version for domain, version in found.opsets.items()},
        "graph": found.graph_name,
        "inputs": [_value(each) for each in found.inputs],
        "outputs": [_value(each) for each in found.outputs],
        "nodes": found.node_count,
        "payload_bytes": found.payload_bytes,
        "structure_bytes": found.structure_bytes,
        "external_bytes": found.external_bytes,
        "external_files": list(found.external_locations),
        **_listed("tensors", tensors),
    }


def _value(value: Any) -> dict[str, Any]:
    return {"name": value.name, "type": value.type_name, "shape": None if value.shape is None else list(value.shape)}


def _safetensors(given: Any, name: str) -> dict[str, Any]:
    from mlup_stream.formats.arrays.safetensors import MAX_HEADER_BYTES, read_header, read_index

    with Source(given, name) as source:
        first = source.read(0, min(8, source.size_bytes), "first bytes")
    if int.from_bytes(first, "little") > MAX_HEADER_BYTES and first.lstrip().startswith(b"{"):
        files = read_index(given, name)
        return {"files": {file: len(names) for file, names in files.items()}, "tensors_total": sum(map(len, files.values()))}
    header = read_header(given, name)
    tensors = [
        {"name": each.name, "dtype": each.dtype, "shape": list(each.shape), "size_bytes": each.size_bytes}
        for each in header.tensors
    ]
    metadata = {key: _plain(value) for key, value in list(header.metadata.items())[:LISTED]}
    return {"metadata": metadata, "payload_bytes": header.payload_bytes, **_listed("tensors", tensors)}


def _gguf(given: Any, name: str) -> dict[str, Any]:
    from mlup_stream.formats.arrays.gguf import read_header

    header = read_header(given, name)
    tensors = [
        {"name": each.name, "dtype": each.type.name, "shape": list(each.shape), "size_bytes": each.size_bytes}
        for each in header.tensors
    ]
    return {
        "version": header.version,
        "byte_order": "big-endian" if header.big_endian else "little-endian",
        "metadata": {key: _plain(value) for key, value in list(header.metadata.items())[:LISTED]},
        "payload_bytes": header.payload_bytes,
        **_listed("tensors", tensors),
    }


def _torch(given: Any, name: str) -> dict[str, Any]:
    from mlup_stream.formats.frameworks.torch import describe_torch

    return describe_torch(given, name)


def _keras(given: Any, name: str) -> dict[str, Any]:
    from mlup_stream.formats.frameworks.hdf5 import MAGIC
    from mlup_stream.formats.frameworks.keras import read_hdf5, read_zip

    with Source(given, name) as source:
        is_hdf5 = source.read(0, min(len(MAGIC), source.size_bytes), "first bytes") == MAGIC
    members: dict[str, Any] = {}
    if is_hdf5:
        config = read_hdf5(given, name)
    else:
        config, found = read_zip(given, name)
        members = {"members": {each.name: each.size_bytes for each in found[:LISTED]}}
    if config is None:
        return {"container": "hdf5", "note": "install h5py to see more"}
    return {
        "container": "hdf5" if is_hdf5 else "zip",
        "model": config.class_name,
        "name": config.name,
        "layers": config.layers,
        "custom_objects": list(config.custom),
        **config.metadata,
        **members,
    }


def _saved_model(given: Any, name: str) -> dict[str, Any]:
    from mlup_stream.formats.frameworks.saved_model import read_folder

    folder = read_folder(given)
    return {
        "graph_bytes": folder.graph_bytes,
        "variables_bytes": folder.variables_bytes,
        "files": dict(list(folder.files.items())[:LISTED]),
    }


def _lightgbm(given: Any, name: str) -> dict[str, Any]:
    from mlup_stream.formats.trees.lightgbm import read_header

    with contextlib.ExitStack() as stack:
        file = given if hasattr(given, "read") else stack.enter_context(open(given, "rb"))
        file.seek(0)
        found = read_header(file, name)
    return {
        "version": found.version,
        "objective": _plain(found.objective),
        "classes": found.classes,
        "features": found.features,
        "trees": found.trees,
        "trees_per_iteration": found.trees_per_iteration,
    }


def _xgboost(given: Any, name: str) -> dict[str, Any]:
    """A few values near the two ends, found by their keys: both encodings keep the trees in between."""
    with Source(given, name) as source:
        head = source.read(0, min(_END_BYTES, source.size_bytes), "head")
        tail_bytes = min(_END_BYTES, source.size_bytes)
        tail = source.read(source.size_bytes - tail_bytes, tail_bytes, "tail")
    is_json = bool(re.match(rb'\s*\{\s*"', head))
    found: dict[str, Any] = {"encoding": "json" if is_json else "ubjson"}
    version = re.search(rb'"version"\s*:\s*\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)', tail + head) if is_json else None
    if version is not None:
        found["version"] = b".".join(version.groups()).decode()
    elif (packed := re.search(rb"version\[#L\0{7}\x03i(.)i(.)i(.)", tail + head, re.DOTALL)) is not None:
        found["version"] = ".".join(str(part[0]) for part in packed.groups())
    for label, inside, key in (
        ("objective", b"objective", b"name"),
        ("features", b"", b"num_feature"),
        ("classes", b"", b"num_class"),
        ("trees", b"", b"num_trees"),
    ):
        value = _xgboost_text(head if key == b"num_trees" else tail, inside, key, is_json)
        if value is not None:
            found[label] = int(value) if re.fullmatch(r"\d{1,18}", value) else value
    return found


def _xgboost_text(data: bytes, inside: bytes, key: bytes, is_json: bool) -> str | None:
    """The text at `key`, directly in the object at `inside`, where that is said: the last one, which is the learner's own."""
    if is_json:
        before = rb'"' + inside + rb'"\s*:\s*\{\s*' if inside else b""
        matches = re.findall(before + rb'"' + key + rb'"\s*:\s*"([^"]{0,200})"', data)
        return matches[-1].decode("utf-8", "replace") if matches else None
    before = inside + rb"\{L\0{7}." if inside else b""
    found = list(re.finditer(before + key + rb"SL\0{7}(.)", data, re.DOTALL))
    return data[found[-1].end() :][: found[-1][1][0]].decode("utf-8", "replace") if found else None


def _listed(key: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """A list and its length, the list itself cut at `LISTED`."""
    return {key: entries[:LISTED], f"{key}_total": len(entries)}


def _plain(value: Any) -> Any:
    """The value as JSON can hold it, and as a reader can take it in."""
    if isinstance(value, str):
        return value if len(value) <= SHOWN_CHARACTERS else f"{value[:SHOWN_CHARACTERS]}... ({len(value)} characters)"
    if isinstance(value, (list, tuple, array.array)):
        shown = [_plain(each) for each in _first(value)]
        return shown if len(value) <= _SHOWN_ITEMS else {"first": shown, "length": len(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity, nor what is not a number
    return value


def _first(value: Iterable[Any]) -> list[Any]:
    return [each for each, _ in zip(value, range(_SHOWN_ITEMS), strict=False)]


_DESCRIBERS: dict[Format, Callable[[Any, str], dict[str, Any]]] = {
    Format.PICKLE: _pickle,
    Format.JOBLIB: _joblib,
    Format.NPY: _npy,
    Format.NPZ: _npz,
    Format.ONNX: _onnx,
    Format.LIGHTGBM: _lightgbm,
    Format.XGBOOST: _xgboost,
    Format.TORCH: _torch,
    Format.TORCHSCRIPT: _torch,
    Format.SAFETENSORS: _safetensors,
    Format.KERAS: _keras,
    Format.SAVED_MODEL: _saved_model,
    Format.GGUF: _gguf,
}
