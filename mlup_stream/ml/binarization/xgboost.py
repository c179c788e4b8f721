"""XGBoost models, UBJSON (`.ubj`) and JSON (`.json`), as a `Booster`.

The file is checked before XGBoost sees it, because a damaged one would end the process (`xgboost_checks`). XGBoost itself holds
the file, its values and the trees at the same time; of a view it parses the mapped file, without a copy of it.
With `optimize="memory"` it builds the trees in the calling thread (`one_thread`).

A file does not say whether a `Booster` or a scikit-learn wrapper wrote it, so a `Booster` it is; its `predict` takes a `DMatrix`.

By path the library goes by the file's name to tell the two encodings apart. Here the content decides: a file with another name,
or a private copy without one, is given to it as a buffer.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.checked_once import checked_once
from mlup_stream.delivery.kinds import Delivery, Optimize
from mlup_stream.delivery.reader import open_buffer
from mlup_stream.delivery.terms import Built, Terms
from mlup_stream.delivery.view import View
from mlup_stream.errors import CorruptModelError
from mlup_stream.extras import require
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.trees.xgboost_ubjson import WINDOW_BYTES
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.ml.binarization.base import FormatBinarizer
from mlup_stream.ml.binarization.trees.one_thread import one_processor
from mlup_stream.ml.binarization.trees.xgboost_checks import WALK_VERSION, check
from mlup_stream.units import MIB

__all__ = ["XGBoostBinarizer"]

_TAIL_BYTES = 16
_SUFFIXES = {"json": (".json",), "ubj": (".ubj",)}

# Peak and settled, over the size of the file, of trees of 13 to 6000 nodes: measured 3.6 and 1.4, and 12.2 and 0.8.
_RATIOS = {"ubj": (3.75, 1.6), "json": (12.5, 1.0)}
_TREE_BYTES = 2560
"""A tree beside its lists, while it is being read. Measured: 2 KiB."""
_FIRST_USE_BYTES = 8 * MIB
"""What the library allocates once: its threads. Measured: 6.7 MiB."""
_HEAD_BYTES = 256 * 1024
_WHERE = re.compile(r"^\[[\d:]+\] \S+:\d+: ")
_TREES = re.compile(rb"num_treesSL.{8}(\d{1,9})[}L]", re.DOTALL)


class XGBoostBinarizer(FormatBinarizer):
    """What `Booster.save_model` wrote. Trees live in the library's own memory: nothing can stay in the file."""

    format = Format.XGBOOST
    libraries = ("xgboost",)
    deliveries = (Delivery.VIEW, Delivery.PATH, Delivery.BYTES)
    option_names = frozenset({"params"})

    @classmethod
    def prepare(cls) -> None:
        require("xgboost", "XGBoost models")

    @classmethod
    def prepare_for(cls, options: Mapping[str, Any]) -> None:
        cls.prepare()
        require("numpy", "XGBoost models")

    @classmethod
    def estimate(cls, artifact: Artifact, terms: Terms) -> Estimate | None:
        if artifact.has_content:
            return None
        try:
            encoding, found = artifact.header(_head)
        except (CorruptModelError, OSError):
            return None  # the load will say what is wrong
        peak, settled = _RATIOS[encoding]
        size_bytes = artifact.size_bytes
        # As many as the smallest trees would be, where it is not known how many there are.
        trees = found if found is not None else size_bytes // 1024
        objects_bytes = _TREE_BYTES * min(trees, size_bytes // 512) if encoding == "ubj" else 0
        # The library's own copy of the file is a part of its peak; of a view it makes none, and the file's pages are touched.
        in_view = terms.delivery is Delivery.VIEW
        peak_bytes = int((peak - 1 if in_view else peak) * size_bytes) + objects_bytes + _FIRST_USE_BYTES
        settled_bytes = int(settled * size_bytes) + _FIRST_USE_BYTES
        why = f"the size of the {encoding}"
        if in_view:
            return Estimate(peak_bytes, size_bytes, settled_bytes, 0, Certainty.CONSERVATIVE, why, size_bytes)
        return Estimate.private(peak_bytes, settled_bytes, certainty=Certainty.CONSERVATIVE, why=why)

    @classmethod
    def from_path(cls, artifact: Artifact, terms: Terms) -> Built:
        encoding = _checked(artifact, lambda: artifact.open(window_bytes=WINDOW_BYTES, on_window=terms.on_window))
        if artifact.is_snapshot or not (artifact.path or "").lower().endswith(_SUFFIXES[encoding]):
            return _booster(artifact.content(), terms)
        # Not by a name in /proc, which has no suffix.
        with artifact.by_name(own=True) as path:
            return _booster(path, terms)

    @classmethod
    def from_view(cls, view: View, artifact: Artifact, terms: Terms) -> Built:
        _checked(artifact, view.open)
        return _booster(view.buffer, terms)

    @classmethod
    def from_buffer(cls, buffer: bytes | bytearray | memoryview, artifact: Artifact, terms: Terms) -> Built:
        _checked(artifact, lambda: open_buffer(buffer))
        return _booster(buffer, terms)

    @classmethod
    def is_corrupt(cls, error: Exception) -> bool:
        return False  # damage is what the check found: what the library refuses afterwards is whole

    @classmethod
    def said(cls, error: Exception) -> str:
        # "[time] source file:line: reason", and a stack trace.
        return super().said(ValueError(_WHERE.sub("", str(error).partition("Stack trace:")[0])))


def _encoding_of(file: BinaryIO, name: str) -> str:
    """JSON begins with a brace and text; UBJSON with a brace and a length's type, or a count (universal binary JSON, draft 12).

    Both end with the brace's counterpart: most files that are cut off are told by that. Leaves the file at its beginning.
    """
    head = file.read(2)
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
    tail = file.read()
    file.seek(0)
    if head[:1] != b"{" or not tail.rstrip(b" \r\n\t").endswith(b"}"):
        found = f"{head!r} at its start and {tail[-2:]!r} at its end"
        raise CorruptModelError(
            f"{name}: expected a whole XGBoost model, an object from '{{' to '}}', found {found};"
            " it may be truncated: copy or save it again",
            path=name,
            format=Format.XGBOOST.value,
        )
    return "json" if head[1:2] in (b'"', b" ", b"\n", b"\r", b"\t", b"}") else "ubj"


def _head(file: BinaryIO, name: str) -> tuple[str, int | None]:
    """The encoding, and how many trees there are, where the beginning of the file says so."""
    encoding = _encoding_of(file, name)
    found = _TREES.search(file.read(_HEAD_BYTES))
    return encoding, int(found[1]) if found else None


def _checked(artifact: Artifact, open_file: Callable[[], BinaryIO]) -> str:
    """The encoding of a whole model."""
    library = tuple(map(int, re.findall(r"\d+", require("xgboost", "XGBoost models").__version__)[:2]))
    with open_file() as file:
        encoding = _encoding_of(file, artifact.name)
        checked_once(
            artifact,
            f"xgboost {WALK_VERSION} of {'.'.join(map(str, library))}",
            lambda: check(file, artifact.name, is_json=encoding == "json", library=library),
        )
    return encoding


def _booster(source: str | bytes | bytearray | memoryview, terms: Terms) -> Built:
    booster = require("xgboost", "XGBoost models").Booster(terms.options.get("params"))
    with contextlib.nullcontext() if terms.optimize is Optimize.SPEED else one_processor():
        if isinstance(source, (str, bytearray)):
            booster.load_model(source)
        else:
            _load_from(booster, source)
    return Built(booster)


def _load_from(booster: Any, buffer: bytes | memoryview) -> None:
    """What `load_model` does with a bytearray, for memory that may not be written to.

    XGBoost keeps nothing of the buffer (`XGBoosterLoadModelFromBuffer` parses it into values of its own).
    """
    core = require("xgboost.core", "XGBoost models")
    held = require("numpy", "XGBoost models").frombuffer(buffer, "u1")
    pointer, length = ctypes.c_void_p(held.ctypes.data), ctypes.c_uint64(held.size)
    core._check_call(core._LIB.XGBoosterLoadModelFromBuffer(booster.handle, pointer, length))
