"""LightGBM text models.

The text is checked before LightGBM sees it, because a damaged one would end the process (`formats.lightgbm`). LightGBM itself
holds the text and, growing beside it, the model: from a path 1.7 to 1.9 times the file at the peak and 0.6 settled.
With `optimize="memory"` it builds the trees in the calling thread (`one_thread`), with `"speed"` in as many as it likes.
"""

from __future__ import annotations

import contextlib
import ctypes
from types import ModuleType
from typing import BinaryIO

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.kinds import Delivery, Optimize
from mlup_stream.delivery.reader import open_buffer
from mlup_stream.delivery.terms import Built, Terms
from mlup_stream.extras import require
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.trees.lightgbm import Checks, walk
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.ml.binarization.base import FormatBinarizer
from mlup_stream.ml.binarization.trees.one_thread import lightgbm_alone
from mlup_stream.units import MIB

__all__ = ["LightGBMBinarizer"]

# Over the size of the text, on trees of 31 to 4000 leaves: measured 1.66 to 1.88 and 0.58 to 0.66.
_PEAK, _SETTLED = 2.0, 0.75
# LightGBM reads a path through two buffers of this size, the second for what the first does not hold, beside the text: files of
# 1 to 32 MiB took their size and 16 to 33 MiB.
_READ_BUFFER_BYTES = 16 * MIB
_CHECK_BYTES = 5 * MIB  # see `lightgbm_checks`: given back before LightGBM begins
_FIRST_USE_BYTES = 1 * MIB
_LAST_LINE = b"\npandas_categorical:"


class LightGBMBinarizer(FormatBinarizer):
    """A `lightgbm.Booster`."""

    format = Format.LIGHTGBM
    libraries = ("lightgbm",)
    deliveries = (Delivery.PATH, Delivery.BYTES)

    @classmethod
    def prepare(cls) -> None:
        require("lightgbm", "LightGBM models")
        from mlup_stream.ml.binarization.trees import lightgbm_checks  # which imports NumPy, as LightGBM does

        del lightgbm_checks

    @classmethod
    def estimate(cls, artifact: Artifact, terms: Terms) -> Estimate | None:
        size_bytes = artifact.size_bytes
        peak_bytes, settled_bytes = int(_PEAK * size_bytes), int(_SETTLED * size_bytes)
        raw_bytes = size_bytes if terms.delivery is Delivery.BYTES and not artifact.has_content else 0
        peak_bytes = max(peak_bytes, raw_bytes + _CHECK_BYTES)
        if terms.delivery is Delivery.PATH and not artifact.has_content:
            buffers = 1 if size_bytes <= _READ_BUFFER_BYTES else 2
            peak_bytes = max(peak_bytes, size_bytes + buffers * _READ_BUFFER_BYTES)
        # Otherwise the copy of `bytes` is the text that LightGBM reads: no second one is made.
        return Estimate.private(
            peak_bytes + _FIRST_USE_BYTES,
            settled_bytes + _FIRST_USE_BYTES,
            certainty=Certainty.CONSERVATIVE,
            why="the size of the text",
        )

    @classmethod
    def from_path(cls, artifact: Artifact, terms: Terms) -> Built:
        lightgbm = require("lightgbm", "LightGBM models")
        with artifact.open(on_window=terms.on_window) as file:
            walk(file, artifact.name, _checks())
        with _workers(lightgbm, terms), artifact.by_name() as path:
            return Built(lightgbm.Booster(model_file=path))

    @classmethod
    def from_file(cls, file: BinaryIO, artifact: Artifact, terms: Terms) -> Built:
        return cls.from_buffer(file.read(), artifact, terms)

    @classmethod
    def from_buffer(cls, buffer: bytes | bytearray | memoryview, artifact: Artifact, terms: Terms) -> Built:
        lightgbm = require("lightgbm", "LightGBM models")
        with open_buffer(buffer) as file:
            walk(file, artifact.name, _checks())
        with _workers(lightgbm, terms):
            return Built(lightgbm.Booster(model_str=_Encoded(buffer)))


def _checks() -> Checks:
    from mlup_stream.ml.binarization.trees.lightgbm_checks import ArrayChecks

    return ArrayChecks()


def _workers(lightgbm: ModuleType, terms: Terms) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if terms.optimize is Optimize.SPEED else lightgbm_alone(lightgbm)


class _Encoded(str):
    """The text of a model as LightGBM asks for it: encoded, which it is already, and its last line.

    As an ordinary `str` it would be there three times: as it came, decoded, and encoded again.
    """

    _text: bytes | bytearray

    def __new__(cls, text: bytes | bytearray | memoryview) -> _Encoded:
        text = bytes(text) if isinstance(text, memoryview) else text
        found = text.rfind(_LAST_LINE)
        encoded = super().__new__(cls, text[found if found >= 0 else len(text) - 1 :].decode(errors="replace"))
        encoded._text = text
        return encoded

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        if isinstance(self._text, bytes):
            return self._text
        # What `ctypes.c_char_p` takes of a bytearray, which has a NUL behind it as `bytes` has.
        return ctypes.addressof(ctypes.c_char.from_buffer(self._text))  # type: ignore[return-value]
