"""The walkers as `fuzz_walkers` calls them, and what has to hold of whatever they return."""

from __future__ import annotations

import importlib
import io
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from mlup_stream.formats.peek import Peek
from mlup_stream.formats.recognition.detect import detect
from mlup_stream.registry import ROWS

__all__ = ["TARGETS", "Target", "Wrong"]

_MIN_PAYLOAD_BYTES = 16
"""What a walk of an ONNX model takes for a payload: less than by default, so that small files have some."""

_NAMES = ("model", "model.joblib", "model.pkl", "model.pt", "model.onnx", "model.npz", "model.safetensors", "model.json")
"""A name breaks ties; which of these an input has is decided by its length."""

_LZMA_BYTES = 80 << 20
"""The dictionary that a stream asks for; the allocator touches no page of it before it is written to."""


class Wrong(Exception):
    """What a walker returned cannot be true of the file."""


class Target(NamedTuple):
    """One walker.

    Attributes:
        formats: Of the files that inputs are made from, by their names in `fuzz_seeds`.
        modules: Of `mlup_stream.formats` where its errors are raised.
        call: Called with an input and with what the walker is to be given, the input itself or a file of it; returns what is true
            of it in a word or two, for telling inputs apart.
        reserved_bytes: Memory that a library reserves for it by what the input says, within a limit.
        passes: How often a byte of an input may be read: more often where a line is looked for 1 KiB at a time.
    """

    formats: tuple[str, ...]
    modules: tuple[str, ...]
    call: Callable[[bytes, Any], str]
    reserved_bytes: int = 0
    passes: int = 4


def _of(module: str, function: str) -> Any:
    return getattr(importlib.import_module(f"mlup_stream.formats.{module}"), function)


def _hold(condition: bool, what: str) -> None:
    if not condition:
        raise Wrong(what)


def _pickle(data: bytes, given: Any) -> str:
    return _checked_pickle(data, _of("pickles.frames", "walk")(given))


def _pickle_in_frames(data: bytes, given: Any) -> str:
    found = _of("pickles.frames", "scan")(given)
    _hold(found.whole and len(found.fetched) <= len(data), "the whole pickle, and no more memo indices than opcodes")
    return _checked_pickle(data, found)


def _checked_pickle(data: bytes, found: Any) -> str:
    parts = (found.payload_bytes, found.text_bytes, found.structure_bytes)
    _hold(sum(parts) == len(data) and min(parts) >= 0, "parts and whole")
    _hold(found.largest_payload_bytes <= found.payload_bytes, "the largest payload is one of them")
    _hold(found.steps <= len(data) + 1, "a step takes a byte or more")
    return "whole" if found.whole else "too many steps"


def _joblib(data: bytes, given: Any) -> str:
    found = _of("pickles.joblib", "survey")(given)
    _hold(0 <= found.payload_bytes <= len(data), "payload within the file")
    _hold(found.payload_bytes + found.structure_bytes == len(data), "parts and whole")
    return f"{'whole' if found.whole else 'given up'}, {min(found.arrays, 2)} arrays"


def _onnx(data: bytes, given: Any) -> str:
    walk = _of("onnx.layout", "walk")
    layout = walk(given, min_payload_bytes=_MIN_PAYLOAD_BYTES)
    for tensor in layout.tensors:
        _hold(0 <= tensor.field.start < tensor.field.body <= tensor.field.stop <= len(data), "a tensor within the file")
        if tensor.payload is not None:
            payload = tensor.payload
            _hold(tensor.field.body <= payload.start < payload.body <= payload.stop <= tensor.field.stop, "payload in its tensor")
            fits = tensor.size_bytes == payload.body_bytes
            _hold(bool(tensor.stays_because or tensor.external) or fits, "payload as long as its shape")
    _hold(0 <= layout.payload_bytes <= len(data), "payload within the file")
    movable = {tensor.field for tensor in layout.tensors if tensor.payload and not tensor.stays_because and not tensor.external}
    if movable:
        _without_payloads(data, layout, movable)
    return f"{len(movable) and 'payload'} {sorted({tensor.stays_because for tensor in layout.tensors})}"


def _without_payloads(data: bytes, layout: Any, movable: set[Any]) -> None:
    """The model that is written anew for a runtime has to be one too, with the same tensors, elsewhere."""
    external, source = importlib.import_module("mlup_stream.formats.onnx.external"), _of("source", "Source")
    with source(data) as opened:
        written = external.without_payloads(
            opened, layout, lambda tensor: external.Place("f", tensor.payload.body) if tensor.field in movable else None
        )
    again = _of("onnx.layout", "walk")(written, min_payload_bytes=_MIN_PAYLOAD_BYTES)
    found = [tensor for tensor in again.tensors if tensor.external.get("location") == "f"]
    _hold(len(found) >= len(movable), "as many external tensors as were moved")


def _zip(data: bytes, given: Any) -> str:
    members = _of("zip", "walk")(given)
    for member in members:
        _hold(0 <= member.header_offset < member.data_offset <= member.data_end <= len(data), "a member within the file")
    ends = sorted((member.header_offset, member.data_end) for member in members)
    _hold(all(end <= start for (_, end), (start, _) in itertools.pairwise(ends)), "members that do not overlap")
    return f"{min(len(members), 3)} members"


def _safetensors(data: bytes, given: Any) -> str:
    header = _of("arrays.safetensors", "read_header")(given)
    _hold(header.header_bytes + header.payload_bytes == len(data), "header and tensors are the file")
    _hold(all(header.header_bytes <= each.start <= each.stop <= len(data) for each in header.tensors), "tensors within the file")
    return f"{min(len(header.tensors), 2)} tensors"


def _safetensors_index(data: bytes, given: Any) -> str:
    files = _of("shards", "read_index")(given)
    _hold(all(name and "/" not in name and "\\" not in name for name in files), "names of files beside the index")
    return f"{min(len(files), 2)} files"


def _npy(data: bytes, given: Any) -> str:
    header = _of("arrays.npy", "read_header")(given)
    _hold(0 < header.data_start <= header.data_start + header.data_bytes <= len(data), "an array within the file")
    _hold(header.alignment > 0 and header.item_bytes >= 0, "an alignment")
    return f"{'objects' if header.has_objects else 'numbers'}, version {header.version[0]}"


def _npz(data: bytes, given: Any) -> str:
    read_members, open_member = _of("arrays.npz", "read_members"), _of("arrays.npz", "open_member")
    file = io.BytesIO(data) if given is data else given
    members = read_members(file, "input")
    for member in members:
        with open_member(file, member.place, "input") as unpacked:
            size_bytes = sum(map(len, iter(lambda: unpacked.read(4096), b"")))
        _hold(size_bytes == member.place.size_bytes, "a member as long as the directory says")
        _hold(member.header is None or 0 <= member.header.data_bytes <= size_bytes, "an array within its member")
    return f"{min(len(members), 3)} members"


def _gguf(data: bytes, given: Any) -> str:
    header = _of("arrays.gguf", "read_header")(given)
    for tensor in header.tensors:
        _hold(0 <= tensor.start <= tensor.start + tensor.size_bytes <= len(data), "a tensor within the file")
    return f"{min(len(header.tensors), 2)} tensors"


def _ort(data: bytes, given: Any) -> str:
    model = _of("onnx.ort", "read_ort")(given)
    for tensor in model.tensors:
        _hold(0 <= tensor.start <= tensor.start + tensor.size_bytes <= len(data), "a tensor within the file")
    _hold(model.nodes <= len(data), "no more nodes than there is room for")
    return f"{min(len(model.tensors), 2)} tensors, {min(model.nodes, 2)} nodes"


def _arrow(data: bytes, given: Any) -> str:
    table = _of("arrays.arrow", "read_table")(given)
    sizes = (table.stored_bytes, table.compressed_bytes, table.unpacked_bytes, table.batches, table.arrays)
    _hold(min(sizes) >= 0, "no negative sizes")
    _hold(table.batches <= len(data), "no more batches than there is room for")
    _hold(table.unpacked_bytes <= (table.batches * len(data) + 1) << 17, "nothing unpacks to more than its codec can")
    return f"{table.container}, {table.codec or 'as it is'}, {min(table.batches, 2)} batches"


def _catboost(data: bytes, given: Any) -> str:
    model = _of("trees.catboost", "read_model")(given)
    for vector in (model.sizes, model.starts, model.splits, model.packed, model.steps, model.leaf_ids):
        _hold(vector.start >= 0 and vector.start + 4 * vector.size <= len(data), "a vector within the file")
    for vector in (model.leaves, model.weights):
        _hold(vector.start >= 0 and vector.start + 8 * vector.size <= len(data), "a vector within the file")
    for table in model.tables:
        _hold(table.hashes.start + 12 * table.hashes.size <= len(data), "a table within the file")
        _hold(0 <= table.values <= len(data), "no more values than there is room for")
    return f"{min(model.sizes.size, 2)} trees, {min(len(model.tables), 2)} tables, {bool(model.steps.size)}"


def _faiss(data: bytes, given: Any) -> str:
    index = _of("arrays.faiss", "read_index")(given)
    _hold(index.private_bytes is None or index.private_bytes >= 0, "no negative size")
    return f"{index.code if index.private_bytes is not None else 'another'}, lists {index.lists is not None}"


def _usearch(data: bytes, given: Any) -> str:
    index = _of("arrays.usearch", "read_index")(given)
    _hold(index.nodes_at <= len(data), "the levels within the file")
    return f"{min(index.nodes, 2)} nodes, known {index.is_known}"


def _tflite(data: bytes, given: Any) -> str:
    model = _of("frameworks.tflite", "read_model")(given)
    _hold(0 <= model.weights_bytes <= len(data) and model.working_bytes >= 0, "weights within the file")
    return f"{min(model.nodes, 2)} nodes, weights {model.weights_bytes > 0}"


def _skops(data: bytes, given: Any) -> str:
    found = _of("frameworks.skops", "read_skops")(io.BytesIO(data) if given is data else given, "input")
    _hold(found.nodes <= 1032 * len(data), "a node takes a byte or more, unpacked")
    _hold(all(member.place.data_end <= len(data) for member in found.members.values()), "members within the file")
    return f"{min(found.nodes, 3)} nodes, {min(len(found.references), 2)} references"


def _detect(data: bytes, given: Any) -> str:
    with Peek(given, _NAMES[len(data) % len(_NAMES)]) as peek:
        found = detect(peek, ROWS)
        _hold(peek.looked_bytes < 3 << 20, "a bounded look")
        said = [finding.spec.name for finding in found] or [remark[:24] for remark in peek.remarks]
    return " and ".join(said) or ("damaged" if peek.damage else "nothing known")


TARGETS: dict[str, Target] = {
    "pickle": Target(("pickle",), ("pickle",), _pickle),
    "pickle-in-frames": Target(("pickle",), ("pickle",), _pickle_in_frames),
    "joblib": Target(("joblib", "pickle"), ("joblib", "pickle"), _joblib, passes=64),
    "onnx": Target(("onnx",), ("onnx", "onnx_tensor", "onnx_values", "protobuf"), _onnx),
    "zip": Target(("zip",), ("zip",), _zip),
    "safetensors": Target(("safetensors",), ("safetensors", "shards"), _safetensors),
    "safetensors-index": Target(("safetensors index",), ("shards",), _safetensors_index),
    "npy": Target(("npy",), ("npy", "npy_literal"), _npy),
    "npz": Target(("zip",), ("zip", "npy", "npz"), _npz),
    "gguf": Target(("gguf",), ("gguf",), _gguf),
    "skops": Target(("skops",), ("frameworks.skops", "zip", "npy", "npz"), _skops),
    "arrow": Target(("arrow",), ("flatbuffers", "arrays.arrow"), _arrow, passes=64),
    "ort": Target(("ort",), ("flatbuffers", "onnx.ort"), _ort, passes=64),
    "catboost": Target(("catboost",), ("flatbuffers", "trees.catboost"), _catboost, passes=64),
    "faiss": Target(("faiss",), ("arrays.faiss",), _faiss),
    "usearch": Target(("usearch",), ("arrays.usearch",), _usearch),
    "tflite": Target(("tflite",), ("flatbuffers", "frameworks.tflite"), _tflite, passes=64),
    "detect": Target(
        (
            *("pickle", "joblib", "onnx", "zip", "safetensors", "safetensors index", "npy", "gguf", "ort", "arrow", "skops"),
            *("catboost", "faiss", "usearch", "tflite", "others"),
        ),
        ("detect",),
        _detect,
        _LZMA_BYTES,
        passes=16,  # each detector looks for itself
    ),
}
"""By name. A walker that is not written yet is not here."""
