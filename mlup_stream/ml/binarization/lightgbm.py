"""LightGBM's text models, as a `Booster`.

The library reads a truncated file without complaint, as a model of fewer trees, or dies of it. The header says how long each tree
is, so that the end of the trees is looked at first.
"""

from __future__ import annotations

import re
from typing import Any, BinaryIO

from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.delivery.reader import open_buffer
from mlup_stream.errors import CorruptModelError
from mlup_stream.extras import require
from mlup_stream.formats.kinds import Format
from mlup_stream.ml.binarization.base import FormatBinarizer
from mlup_stream.units import KIB, MIB

__all__ = ["LightGBMBinarizer"]

_FIRST_TREE = b"\nTree=0\n"
_END = b"end of trees"
_PARAMETERS_END = b"end of parameters"
_TAIL_BYTES = 64 * KIB
_MAX_HEADER_BYTES = 256 * MIB
"""A model of a million features has a header of about 40 MB."""


class LightGBMBinarizer(FormatBinarizer):
    """What `Booster.save_model` wrote. Trees live in the library's own memory: nothing can stay in the file."""

    format = Format.LIGHTGBM
    deliveries = (Delivery.PATH, Delivery.BYTES)
    options = frozenset({"params"})

    @classmethod
    def prepare(cls) -> None:
        require("lightgbm", "LightGBM models")

    @classmethod
    def from_path(cls, path: str, loaded: LoadedFile, *, params: dict[str, Any] | None = None, **_: Any) -> Any:
        with open(path, "rb") as file:
            _check_whole(file, loaded)
        return require("lightgbm", "LightGBM models").Booster(params=params, model_file=path)

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
            _check_whole(file, loaded)
        text = str(buffer, "utf-8")
        return require("lightgbm", "LightGBM models").Booster(params=params, model_str=text)

    @classmethod
    def is_corrupt(cls, error: Exception) -> bool:
        # The library has one kind of exception for whatever is wrong with a file.
        return type(error).__name__ == "LightGBMError" or super().is_corrupt(error)


def _check_whole(file: BinaryIO, loaded: LoadedFile) -> None:
    """Refuses a file whose trees do not end where its header says, or whose parameters do not end at all."""
    header = bytearray()
    while _FIRST_TREE not in header:
        chunk = file.read(64 * KIB)
        if not chunk or len(header) > _MAX_HEADER_BYTES:
            if header.startswith(b"tree") and _END in header:
                return  # a model without trees
            raise _damaged(loaded, "no first tree")
        header += chunk
    start = header.index(_FIRST_TREE) + 1
    sizes = re.search(rb"\ntree_sizes=([\d ]*)\n", header[:start])
    if sizes is None:
        return  # written before LightGBM 2.1, which had no sizes
    trees_end = start + sum(map(int, sizes[1].split()))
    size_bytes = file.seek(0, 2)
    file.seek(min(trees_end, size_bytes))
    found = file.read(len(_END))
    if found != _END:
        raise _damaged(loaded, f"{found!r} at byte {trees_end} of {size_bytes}, where the trees should end")
    file.seek(max(trees_end, size_bytes - _TAIL_BYTES))
    tail = file.read()
    if b"\nparameters:" in tail and _PARAMETERS_END not in tail:
        raise _damaged(loaded, "parameters without an end")


def _damaged(loaded: LoadedFile, found: str) -> CorruptModelError:
    return CorruptModelError(
        f"{loaded.name}: expected a whole LightGBM model, found {found}; it may be truncated: copy or save it again",
        path=loaded.path,
        format=Format.LIGHTGBM.value,
    )
