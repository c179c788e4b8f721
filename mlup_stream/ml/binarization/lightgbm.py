"""LightGBM text models.

The text is checked before LightGBM sees it, because a damaged one would end the process (`formats.lightgbm`). LightGBM itself
holds the text and, growing beside it, the model: from a path 1.7 to 1.9 times the file at the peak and 0.6 settled. Of a view it
parses the mapped text, so that there is the model alone.

With `optimize="memory"` it builds the trees in the calling thread (`one_thread`), with `"speed"` in as many as it likes.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable
from typing import Any, BinaryIO

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.checked_once import checked_once
from mlup_stream.delivery.kinds import Delivery, Optimize
from mlup_stream.delivery.reader import open_buffer
from mlup_stream.delivery.terms import Built, Terms
from mlup_stream.delivery.view import View
from mlup_stream.extras import require
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.trees.lightgbm import WALK_VERSION, walk
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.ml.binarization.base import FormatBinarizer
from mlup_stream.ml.binarization.trees.one_thread import lightgbm_alone
from mlup_stream.units import KIB, MIB

__all__ = ["LightGBMBinarizer"]

# Over the size of the text, on trees of 31 to 4000 leaves: measured 1.66 to 1.88 and 0.58 to 0.66.
_PEAK, _SETTLED = 2.0, 0.75
# LightGBM reads a path through two buffers of this size, the second for what the first does not hold, beside the text: files of
# 1 to 32 MiB took their size and 16 to 33 MiB.
_READ_BUFFER_BYTES = 16 * MIB
_CHECK_BYTES = 5 * MIB  # see `lightgbm_checks`: given back before LightGBM begins
_FIRST_USE_BYTES = 1 * MIB
_LAST_LINE = b"\npandas_categorical:"
_TAIL_BYTES = 64 * KIB
"""In which its last line is looked for first."""


class LightGBMBinarizer(FormatBinarizer):
    """A `lightgbm.Booster`."""

    format = Format.LIGHTGBM
    libraries = ("lightgbm",)
    deliveries = (Delivery.VIEW, Delivery.PATH, Delivery.BYTES)

    @classmethod
    def prepare(cls) -> None:
        require("lightgbm", "LightGBM models")
        from mlup_stream.ml.binarization.trees import lightgbm_checks  # which imports NumPy, as LightGBM does

        del lightgbm_checks

    @classmethod
    def estimate(cls, artifact: Artifact, terms: Terms) -> Estimate | None:
        size_bytes = artifact.size_bytes
        peak_bytes, settled_bytes = int(_PEAK * size_bytes), int(_SETTLED * size_bytes)
        why = "the size of the text"
        if not artifact.has_content:
            if terms.delivery is Delivery.VIEW and _ends_with_zero(size_bytes):
                peak_bytes = max(settled_bytes, _CHECK_BYTES) + _FIRST_USE_BYTES
                settled_bytes += _FIRST_USE_BYTES
                return Estimate(peak_bytes, size_bytes, settled_bytes, 0, Certainty.CONSERVATIVE, why, size_bytes)
            # The copy of `bytes` is the text that LightGBM reads: no second one is made.
            peak_bytes = max(peak_bytes, size_bytes + _CHECK_BYTES)
            if terms.delivery is Delivery.PATH:
                buffers = 1 if size_bytes <= _READ_BUFFER_BYTES else 2
                peak_bytes = max(peak_bytes, size_bytes + buffers * _READ_BUFFER_BYTES)
        return Estimate.private(
            peak_bytes + _FIRST_USE_BYTES, settled_bytes + _FIRST_USE_BYTES, certainty=Certainty.CONSERVATIVE, why=why
        )

    @classmethod
    def from_path(cls, artifact: Artifact, terms: Terms) -> Built:
        _check(artifact, lambda: artifact.open(on_window=terms.on_window))
        with artifact.by_name() as path:
            return _booster(terms, model_file=path)

    @classmethod
    def from_view(cls, view: View, artifact: Artifact, terms: Terms) -> Built:
        _check(artifact, view.open)
        in_place = view.file is not None and _ends_with_zero(view.size_bytes)
        return _booster(terms, model_str=_Encoded(view.buffer if in_place else bytes(view.buffer)))

    @classmethod
    def from_file(cls, file: BinaryIO, artifact: Artifact, terms: Terms) -> Built:
        return cls.from_buffer(file.read(), artifact, terms)

    @classmethod
    def from_buffer(cls, buffer: bytes | bytearray | memoryview, artifact: Artifact, terms: Terms) -> Built:
        _check(artifact, lambda: open_buffer(buffer))
        return _booster(terms, model_str=_Encoded(bytes(buffer) if isinstance(buffer, memoryview) else buffer))


def _ends_with_zero(size_bytes: int) -> bool:
    """Whether a map of a file of this size has a zero behind the text: what is left of its last page (mmap(2))."""
    return size_bytes % mmap.PAGESIZE != 0 and os.name != "nt"


def _check(artifact: Artifact, open_file: Callable[[], BinaryIO]) -> None:
    def run() -> None:
        from mlup_stream.ml.binarization.trees.lightgbm_checks import ArrayChecks

        with open_file() as file:
            walk(file, artifact.name, ArrayChecks())

    checked_once(artifact, f"lightgbm {WALK_VERSION}", run)


def _booster(terms: Terms, **source: Any) -> Built:
    lightgbm = require("lightgbm", "LightGBM models")
    with contextlib.nullcontext() if terms.optimize is Optimize.SPEED else lightgbm_alone(lightgbm):
        return Built(lightgbm.Booster(**source))


class _Encoded(str):
    """The text of a model as LightGBM asks for it: encoded, which it is already, and its last line.

    As an ordinary `str` it would be there three times: as it came, decoded, and encoded again. LightGBM parses it where it lies,
    up to the zero behind it, and keeps nothing of it.
    """

    _text: bytes | bytearray | memoryview

    def __new__(cls, text: bytes | bytearray | memoryview) -> _Encoded:
        tail = bytes(text[-_TAIL_BYTES:])
        if _LAST_LINE not in tail:
            tail = bytes(text)
        found = tail.rfind(_LAST_LINE)
        encoded = super().__new__(cls, tail[found if found >= 0 else len(tail) - 1 :].decode(errors="replace"))
        encoded._text = text
        return encoded

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        if isinstance(self._text, bytes):
            return self._text
        # An address, which `ctypes.c_char_p` takes as well. A bytearray has a zero behind it, as `bytes` have.
        numpy = require("numpy", "LightGBM models")
        return int(numpy.frombuffer(self._text, "u1").ctypes.data)  # type: ignore[return-value]
