"""What the headers of a model file say, for every format; loads and builds nothing, and imports no framework.

Each format has a function that reads its headers through the format's own walker, which is where lengths are checked: what comes
back is JSON values, and damage is the walker's typed error.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from mlup_stream.formats.kinds import Format

__all__ = ["inspect"]

_MAX_METADATA_CHARACTERS = 200


def inspect(given: Any, format: Format, name: str | None = None) -> dict[str, Any]:
    """What the headers of `given`, a file of that format, say.

    Args:
        given: A path, a buffer, a seekable binary file or a view.
        format: What it was recognised as.
        name: What to call it in a message.

    Returns:
        JSON values: sizes in bytes; `tensors`, where the format lists them, with name, dtype and shape. Empty for a format whose
        headers say nothing.

    Raises:
        CorruptModelError: The headers are damaged.

    Peak memory: the headers.
    """
    describe = _DESCRIBE.get(format)
    if isinstance(given, os.PathLike):
        given = os.fspath(given)  # a Path has an `open` of its own, which reads text
    return {} if describe is None else describe(given, name)


def _pickle(given: Any, name: str | None) -> dict[str, Any]:
    from mlup_stream.formats.pickle import walk

    found = walk(given, name)
    return {
        "protocol": found.protocol,
        "payload_bytes": found.payload_bytes,
        "structure_bytes": found.structure_bytes,
        "payloads": found.payloads,
        "largest_payload_bytes": found.largest_payload_bytes,
        "walked_whole": found.whole,
    }


def _npy(given: Any, name: str | None) -> dict[str, Any]:
    from mlup_stream.formats.npy import read_header

    header = read_header(given, name)
    return {"version": ".".join(map(str, header.version)), "tensors": [_npy_entry(name or "array", header)]}


def _npz(given: Any, name: str | None) -> dict[str, Any]:
    from mlup_stream.formats.npz import read_members

    members = read_members(given, name)
    return {
        "tensors": [_npy_entry(member.place.name, member.header) for member in members if member.header is not None],
        "compressed_members": sum(1 for member in members if member.place.method != 0),
    }


def _npy_entry(name: str, header: Any) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": header.descr if isinstance(header.descr, str) else repr(header.descr),
        "shape": list(header.shape),
        "size_bytes": header.data_bytes,
        "fortran_order": header.fortran_order,
    }


def _safetensors(given: Any, name: str | None) -> dict[str, Any]:
    from mlup_stream.formats.safetensors import INDEX_SUFFIX, read_header, read_index

    if isinstance(given, (str, os.PathLike)) and os.fspath(given).endswith(INDEX_SUFFIX):
        return {"shards": {file: len(tensors) for file, tensors in read_index(given, name).items()}}
    header = read_header(given, name)
    return {
        "metadata": _shortened(header.metadata),
        "tensors": [
            {"name": each.name, "dtype": each.dtype, "shape": list(each.shape), "size_bytes": each.stop - each.start}
            for each in header.tensors
        ],
    }


def _onnx(given: Any, name: str | None) -> dict[str, Any]:
    from mlup_stream.formats.onnx import walk

    found = walk(given)
    return {
        "ir_version": found.ir_version,
        "producer": f"{found.producer_name} {found.producer_version}".strip(),
        "opsets": {domain or "ai.onnx": version for domain, version in found.opsets.items()},
        "inputs": [_onnx_value(value) for value in found.inputs],
        "outputs": [_onnx_value(value) for value in found.outputs],
        "nodes": found.node_count,
        "payload_bytes": found.payload_bytes,
        "external_bytes": found.external_bytes,
        "external_files": list(found.external_locations),
        "large_tensors": len(found.tensors),
    }


def _onnx_value(value: Any) -> dict[str, Any]:
    return {"name": value.name, "type": value.type_name, "shape": None if value.shape is None else list(value.shape)}


def _zip(given: Any, name: str | None) -> dict[str, Any]:
    from mlup_stream.formats.zip import read_directory

    members = read_directory(given, name)
    return {
        "members": len(members),
        "payload_bytes": sum(member.size_bytes for member in members),
        "largest": [
            {"name": member.name, "size_bytes": member.size_bytes}
            for member in sorted(members, key=lambda member: -member.size_bytes)[:10]
        ],
    }


def _torch(given: Any, name: str | None) -> dict[str, Any]:
    # The format from before torch 1.6 is a row of pickles, which has no directory.
    return _zip(given, name) if _begins_with(given, b"PK") else {"layout": "legacy, from before torch 1.6"}


def _keras(given: Any, name: str | None) -> dict[str, Any]:
    return _zip(given, name) if _begins_with(given, b"PK") else {"layout": "HDF5"}


def _gguf(given: Any, name: str | None) -> dict[str, Any]:
    from mlup_stream.formats.gguf import read_header

    header = read_header(given, name)
    return {
        "version": header.version,
        "metadata": _shortened(header.metadata),
        "tensors": [
            {"name": each.name, "dtype": each.type.name, "shape": list(each.shape), "size_bytes": each.size_bytes}
            for each in header.tensors
        ],
    }


def _saved_model(given: Any, name: str | None) -> dict[str, Any]:
    folder = os.fspath(given)
    paths = sorted(os.path.join(root, each) for root, _, names in os.walk(folder) for each in names)
    return {"files": {os.path.relpath(path, folder): os.path.getsize(path) for path in paths if os.path.isfile(path)}}


def _begins_with(given: Any, mark: bytes) -> bool:
    from mlup_stream.formats.source import Source

    with Source(given) as source:
        return source.size_bytes >= len(mark) and bytes(source.read(0, len(mark), "the first bytes")) == mark


def _shortened(metadata: dict[str, Any]) -> dict[str, str]:
    """Metadata as text, each value short enough to be looked at: a tokenizer's vocabulary is one value of megabytes."""
    found = {}
    for key, value in metadata.items():
        count = f"[{len(value)} values]" if isinstance(value, (list, tuple)) and len(value) > 8 else str(value)
        found[key] = count if len(count) <= _MAX_METADATA_CHARACTERS else count[:_MAX_METADATA_CHARACTERS] + "..."
    return found


_DESCRIBE: dict[Format, Callable[[Any, str | None], dict[str, Any]]] = {
    Format.PICKLE: _pickle,
    Format.NPY: _npy,
    Format.NPZ: _npz,
    Format.SAFETENSORS: _safetensors,
    Format.ONNX: _onnx,
    Format.TORCH: _torch,
    Format.TORCHSCRIPT: _zip,
    Format.KERAS: _keras,
    Format.GGUF: _gguf,
    Format.SAVED_MODEL: _saved_model,
}
