"""XGBoost models, UBJSON (`.ubj`) and JSON (`.json`), as a `Booster`.

A file does not say whether a `Booster` or a scikit-learn wrapper wrote it, so a `Booster` it is; its `predict` takes a `DMatrix`.

The library goes by the file's name to tell the two encodings apart. Here the content decides: a file with another name is shown
to it under one that fits, through a link in a private folder.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.errors import CorruptModelError
from mlup_stream.extras import require
from mlup_stream.formats.kinds import Format
from mlup_stream.ml.binarization.base import FormatBinarizer

__all__ = ["XGBoostBinarizer"]

_TAIL_BYTES = 16
_SUFFIXES = {"json": (".json",), "ubj": (".ubj",)}


class XGBoostBinarizer(FormatBinarizer):
    """What `Booster.save_model` wrote. Trees live in the library's own memory: nothing can stay in the file."""

    format = Format.XGBOOST
    deliveries = (Delivery.PATH, Delivery.BYTES)
    options = frozenset({"params"})

    @classmethod
    def prepare(cls) -> None:
        require("xgboost", "XGBoost models")

    @classmethod
    def from_path(cls, path: str, loaded: LoadedFile, *, params: dict[str, Any] | None = None, **_: Any) -> Any:
        with open(path, "rb") as file:
            head = file.read(2)
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            encoding = _encoding(head, file.read(), loaded)
        if path.lower().endswith(_SUFFIXES[encoding]):
            return _booster(path, params)
        with tempfile.TemporaryDirectory(prefix="mlup-stream-") as folder:
            link = os.path.join(folder, "model." + encoding)
            os.symlink(os.path.abspath(path), link)
            return _booster(link, params)

    @classmethod
    def from_buffer(
        cls,
        buffer: bytes | bytearray | memoryview,
        loaded: LoadedFile,
        *,
        params: dict[str, Any] | None = None,
        **_: Any,
    ) -> Any:
        _encoding(bytes(buffer[:2]), bytes(buffer[-_TAIL_BYTES:]), loaded)
        # The library takes a bytearray and nothing else.
        return _booster(buffer if isinstance(buffer, bytearray) else bytearray(buffer), params)

    @classmethod
    def is_corrupt(cls, error: Exception) -> bool:
        # The library has one kind of exception for whatever is wrong with a file.
        return type(error).__name__ == "XGBoostError" or super().is_corrupt(error)


def _encoding(head: bytes, tail: bytes, loaded: LoadedFile) -> str:
    """JSON begins with a brace and text; UBJSON with a brace and a length's type, or a count (universal binary JSON, draft 12).

    Both end with the brace's counterpart. A file that does not is refused here: the library would allocate by whatever number it
    finds where a length should be.
    """
    if head[:1] != b"{" or not tail.rstrip(b" \r\n\t").endswith(b"}"):
        found = f"{head!r} at its start and {tail[-2:]!r} at its end"
        raise CorruptModelError(
            f"{loaded.name}: expected a whole XGBoost model, an object from '{{' to '}}', found {found};"
            " it may be truncated: copy or save it again",
            path=loaded.path,
            format=Format.XGBOOST.value,
        )
    return "json" if head[1:2] in (b'"', b" ", b"\n", b"\r", b"\t", b"}") else "ubj"


def _booster(source: str | bytearray, params: dict[str, Any] | None) -> Any:
    booster = require("xgboost", "XGBoost models").Booster(params)
    booster.load_model(source)
    return booster
