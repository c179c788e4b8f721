"""XGBoost models, UBJSON (`.ubj`) and JSON (`.json`), as a `Booster`.

The file is checked before XGBoost sees it, because a damaged one would end the process (`xgboost_checks`). XGBoost itself holds
the file, its values and the trees at the same time. With `optimize="memory"` it builds the trees in the calling thread
(`one_thread`).

A file does not say whether a `Booster` or a scikit-learn wrapper wrote it, so a `Booster` it is; its `predict` takes a `DMatrix`.

The library goes by the file's name to tell the two encodings apart. Here the content decides: a file with another name is shown
to it under one that fits, through a link in a private folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from typing import Any, BinaryIO

from mlup_stream.delivery.kinds import Delivery, Optimize
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.delivery.reader import open_buffer, open_stream
from mlup_stream.errors import CorruptModelError
from mlup_stream.extras import require
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.trees.xgboost_ubjson import WINDOW_BYTES
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.ml.binarization.base import FormatBinarizer
from mlup_stream.ml.binarization.trees.one_thread import one_processor
from mlup_stream.ml.binarization.trees.xgboost_checks import check
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
_TREES = re.compile(rb"num_treesSL.{8}(\d{1,9})[}L]", re.DOTALL)


class XGBoostBinarizer(FormatBinarizer):
    """What `Booster.save_model` wrote. Trees live in the library's own memory: nothing can stay in the file."""

    format = Format.XGBOOST
    libraries = ("xgboost",)
    deliveries = (Delivery.PATH, Delivery.BYTES)
    options = frozenset({"params"})

    @classmethod
    def prepare(cls) -> None:
        require("xgboost", "XGBoost models")

    @classmethod
    def prepare_for(cls, options: dict[str, Any]) -> None:
        cls.prepare()
        require("numpy", "XGBoost models")

    @classmethod
    def estimate(cls, loaded_file: LoadedFile, delivery: Delivery) -> Estimate | None:
        if loaded_file.has_content or loaded_file.path is None:
            return None
        try:
            with open(loaded_file.path, "rb") as file:
                encoding = _encoding_of(file, loaded_file)
                found = _TREES.search(file.read(_HEAD_BYTES))
        except (CorruptModelError, OSError):
            return None  # the load will say what is wrong
        peak, settled = _RATIOS[encoding]
        size_bytes = loaded_file.size_bytes
        # As many as the smallest trees would be, where it is not known how many there are.
        trees = int(found[1]) if found else size_bytes // 1024
        objects_bytes = _TREE_BYTES * min(trees, size_bytes // 512) if encoding == "ubj" else 0
        estimate = Estimate.private(
            int(peak * size_bytes) + objects_bytes + _FIRST_USE_BYTES,
            int(settled * size_bytes) + _FIRST_USE_BYTES,
            certainty=Certainty.CONSERVATIVE,
            why=f"the size of the {encoding}",
        )
        return estimate.with_raw(size_bytes) if delivery is Delivery.BYTES else estimate

    @classmethod
    def from_path(cls, path: str, loaded: LoadedFile, *, params: dict[str, Any] | None = None, **_: Any) -> Any:
        with open_stream(path, drop_behind=False, window_bytes=WINDOW_BYTES, on_window=loaded.on_window) as file:
            encoding = _encoding_of(file, loaded)
            check(file, loaded.name, is_json=encoding == "json")
        if path.lower().endswith(_SUFFIXES[encoding]):
            return _booster(path, loaded, params)
        with tempfile.TemporaryDirectory(prefix="mlup-stream-") as folder:
            link = os.path.join(folder, "model." + encoding)
            os.symlink(os.path.abspath(path), link)
            return _booster(link, loaded, params)

    @classmethod
    def from_buffer(
        cls,
        buffer: bytes | bytearray | memoryview,
        loaded: LoadedFile,
        *,
        params: dict[str, Any] | None = None,
        **_: Any,
    ) -> Any:
        with open_buffer(buffer) as file:
            encoding = _encoding_of(file, loaded)
            check(file, loaded.name, is_json=encoding == "json")
        # The library takes a bytearray and nothing else.
        return _booster(buffer if isinstance(buffer, bytearray) else bytearray(buffer), loaded, params)

    @classmethod
    def is_corrupt(cls, error: Exception) -> bool:
        # The library has one kind of exception for whatever is wrong with a file.
        return type(error).__name__ == "XGBoostError" or super().is_corrupt(error)


def _encoding_of(file: BinaryIO, loaded: LoadedFile) -> str:
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
            f"{loaded.name}: expected a whole XGBoost model, an object from '{{' to '}}', found {found};"
            " it may be truncated: copy or save it again",
            path=loaded.path,
            format=Format.XGBOOST.value,
        )
    return "json" if head[1:2] in (b'"', b" ", b"\n", b"\r", b"\t", b"}") else "ubj"


def _booster(source: str | bytearray, loaded: LoadedFile, params: dict[str, Any] | None) -> Any:
    booster = require("xgboost", "XGBoost models").Booster(params)
    with contextlib.nullcontext() if loaded.optimize is Optimize.SPEED else one_processor():
        booster.load_model(source)
    return booster
