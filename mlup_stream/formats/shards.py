"""A model in several files: the index that says which of them has which tensor.

Source: `modeling_utils.py` of huggingface/transformers. The index is JSON whose `weight_map` maps the name of each tensor to that
of a file beside it; safetensors and torch files have the same one.

Hardened: an index is at most `MAX_INDEX_BYTES`, and names nothing but files in its own folder. Peak memory: about ten times the
index.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

from mlup_stream.formats.peek import Peek
from mlup_stream.formats.source import Source

__all__ = ["MAX_INDEX_BYTES", "index_in", "inspect_index", "is_index", "parsed", "read_index"]

MAX_INDEX_BYTES = 100_000_000
"""As long as a header of safetensors may be."""


def index_in(peek: Peek, suffix: str) -> str | None:
    """The index of a model in several files whose names end in `suffix`."""
    if not re.match(rb"\s*\{", peek.head):
        return None
    ending = re.escape(suffix.encode())
    # Metadata before the map may be as long as it likes; the map then ends the file.
    is_after_metadata = re.match(rb'\s*\{\s*"metadata"\s*:', peek.head)
    if re.search(rb'"weight_map"\s*:\s*\{[^}]*?' + ending + rb'"', peek.head) or (
        is_after_metadata and re.search(rb'"[^"]+' + ending + rb'"\s*\}\s*\}\s*\Z', peek.tail)
    ):
        return f"JSON with a weight_map of {suffix} files: the index of a sharded model"
    return None


def is_index(given: Any) -> bool:
    """Whether this is an index: JSON from the first byte on, which no length at the beginning of safetensors can look like."""
    with Source(given) as source:
        first = source.read(0, min(8, source.size_bytes), "first bytes")
    return int.from_bytes(first, "little") > MAX_INDEX_BYTES and first.lstrip().startswith(b"{")


def read_index(given: Any, name: str | None = None) -> dict[str, tuple[str, ...]]:
    """The files of a sharded model, each with the names of the tensors that it is to have.

    Raises:
        CorruptModelError: It is no index, or names a file outside its folder.
        OSError: The path cannot be opened.
    """
    with Source(given, name) as source:
        if source.size_bytes > MAX_INDEX_BYTES:
            raise source.corrupt(f"an index of at most {MAX_INDEX_BYTES} bytes", f"{source.size_bytes}")
        weight_map = parsed(source, source.read(0, source.size_bytes, "index")).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise source.corrupt("an index with a weight_map", f"{type(weight_map).__name__} there")
        files: dict[str, list[str]] = {}
        for tensor_name, file_name in weight_map.items():
            if not _is_beside(file_name):
                raise source.corrupt("the name of a file beside the index", repr(file_name)[:80])
            files.setdefault(file_name, []).append(tensor_name)
        return {file_name: tuple(names) for file_name, names in files.items()}


def _is_beside(file_name: Any) -> bool:
    """Whether it names a file in the same folder: an index comes from somebody else, and may name nothing further away."""
    return (
        isinstance(file_name, str)
        and os.path.basename(file_name) == file_name
        and file_name not in ("", ".", "..")
        and "\0" not in file_name
        and "\\" not in file_name
    )


def inspect_index(given: Any, name: str) -> dict[str, Any]:
    files = read_index(given, name)
    return {"files": {file: len(names) for file, names in files.items()}, "tensors_total": sum(map(len, files.values()))}


def parsed(source: Source, data: bytes) -> dict[str, Any]:
    """The JSON object; a key that comes twice in it is a damage.

    Raises:
        CorruptModelError: It is none.
    """
    try:
        parsed = json.loads(data.decode(), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        cause = ValueError(str(error).splitlines()[0][:120])  # the error itself holds the document
    else:
        if not isinstance(parsed, dict):
            raise source.corrupt("a JSON object", type(parsed).__name__)
        return parsed
    raise source.corrupt("JSON in UTF-8", str(cause)) from cause


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found
