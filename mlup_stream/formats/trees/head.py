"""What tells the text of LightGBM and both encodings of XGBoost, and what they say of themselves near their ends."""

from __future__ import annotations

import contextlib
import re
from typing import Any

from mlup_stream.formats.listing import plain
from mlup_stream.formats.peek import Peek
from mlup_stream.formats.source import Source
from mlup_stream.units import KIB

__all__ = ["detect_lightgbm", "detect_xgboost_json", "detect_xgboost_ubj", "inspect_lightgbm", "inspect_xgboost"]

_END_BYTES = 64 * KIB


def detect_lightgbm(peek: Peek) -> str | None:
    return "the first lines of a LightGBM text model" if re.match(rb"tree\r?\n(?:version=v|num_class=)\d", peek.head) else None


def detect_xgboost_ubj(peek: Peek) -> str | None:
    # A UBJSON object whose first key, of 7 bytes in any of the integer types, is "learner".
    found = re.match(rb"\{(?:[iU]|I\0|l\0{3}|L\0{7})\x07learner\{", peek.head)
    return 'UBJSON that begins with the key "learner", as XGBoost\'s' if found else None


def detect_xgboost_json(peek: Peek) -> str | None:
    if re.match(rb'\s*\{\s*"learner"\s*:\s*\{\s*"generic_param"', peek.head):
        return None  # settings alone, as `save_config` writes them
    first = re.match(rb'\s*\{\s*"(learner|version)"\s*:\s*[{\[]', peek.head)
    if not first or (first[1] == b"version" and b'"learner"' not in peek.head):
        return None
    known = rb'"(?:attributes|feature_names|feature_types|gradient_booster|learner_model_param|objective)"'
    return 'JSON with the key "learner" and what XGBoost keeps in it' if re.search(known, peek.head) else None


def inspect_lightgbm(given: Any, name: str) -> dict[str, Any]:
    from mlup_stream.formats.trees.lightgbm import read_header

    with contextlib.ExitStack() as stack:
        file = given if hasattr(given, "read") else stack.enter_context(open(given, "rb"))
        file.seek(0)
        found = read_header(file, name)
    return {
        "version": found.version,
        "objective": plain(found.objective),
        "classes": found.classes,
        "features": found.features,
        "trees": found.trees,
        "trees_per_iteration": found.trees_per_iteration,
    }


def inspect_xgboost(given: Any, name: str) -> dict[str, Any]:
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
