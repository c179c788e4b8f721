"""ONNX models through onnxruntime, with the weights left in the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, ClassVar

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.terms import Built, Terms
from mlup_stream.delivery.view import View
from mlup_stream.errors import CorruptModelError, LoadError, MLupError, ModelBinarizationError
from mlup_stream.extras import require
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.onnx.layout import MIN_PAYLOAD_BYTES, Layout, walk
from mlup_stream.formats.onnx.ort import OrtModel, is_ort, read_ort
from mlup_stream.formats.source import Source
from mlup_stream.memory.estimate import Estimate
from mlup_stream.ml.binarization.base import FormatBinarizer
from mlup_stream.ml.binarization.onnx_runtime.abilities import installed_abilities
from mlup_stream.ml.binarization.onnx_runtime.estimate import estimate, estimate_ort
from mlup_stream.ml.binarization.onnx_runtime.messages import plain_words

if TYPE_CHECKING:
    from mlup_stream.ml.binarization.onnx_runtime.opener import Opener

__all__ = ["InferenceSessionBinarizer", "InferenceSessionFullReturnBinarizer"]

_MIN_PAYLOAD_BYTES = MIN_PAYLOAD_BYTES
_NOT_A_FLATBUFFER = "ORT model verification failed"


class InferenceSessionBinarizer(FormatBinarizer):
    """An `onnxruntime.InferenceSession` whose `predict(input_data)` leaves out the last output where there are several.

    By `view` the weights stay in the file, and onnxruntime reads them from its own map of it; by `stream` and `bytes` they are
    copied once into private memory; by `path` onnxruntime does as it always does. All deliveries give the same predictions, bit
    for bit. `onnx_policy` says what `optimize` changes. Models in onnxruntime's own format (`.ort`) stay in the file by `view`
    from onnxruntime 1.26 on; any other delivery is a read by onnxruntime itself.

    A model that keeps its weights in other files finds them beside itself. Content without a path has no place to look.
    """

    format = Format.ONNX
    libraries = ("onnxruntime",)
    deliveries = (Delivery.VIEW, Delivery.STREAM, Delivery.PATH, Delivery.BYTES)
    option_names: ClassVar[frozenset[str]] = frozenset(
        {"disabled_optimizers", "enable_fallback", "provider_options", "providers", "read_config_from_model", "sess_options"}
    )
    corrupt = ()
    full_return: ClassVar[bool] = False

    @classmethod
    def prepare(cls) -> None:
        require("onnxruntime", "ONNX models")
        # These import onnxruntime themselves, which is why nobody imports them earlier.
        from mlup_stream.ml.binarization.onnx_runtime import opener as onnx_opener
        from mlup_stream.ml.binarization.onnx_runtime import session as onnx_session

        del onnx_opener
        onnx_session.start_runtime()

    @classmethod
    def estimate(cls, artifact: Artifact, terms: Terms) -> Estimate | None:
        try:
            layout = artifact.header(_layout)
        except (LoadError, OSError):
            return None  # the load will say what is wrong
        delivery = terms.delivery or cls.deliveries[0]
        if delivery is Delivery.VIEW and artifact.has_content:
            delivery = Delivery.BYTES
        if isinstance(layout, OrtModel):
            return estimate_ort(layout, delivery, terms.optimize, installed_abilities())
        return estimate(layout, delivery, terms.optimize, installed_abilities())

    @classmethod
    def from_path(cls, artifact: Artifact, terms: Terms) -> Built:
        with artifact.open() as file, cls._opener(file, artifact, terms) as opener:
            return opener.by_path()

    @classmethod
    def from_view(cls, view: View, artifact: Artifact, terms: Terms) -> Built:
        if artifact.file is None:
            return cls.from_buffer(view.buffer, artifact, terms)
        with view.open_structure() as file, cls._opener(file, artifact, terms) as opener:
            return opener.in_place()

    @classmethod
    def from_file(cls, file: BinaryIO, artifact: Artifact, terms: Terms) -> Built:
        with cls._opener(file, artifact, terms) as opener:
            return opener.copied(file)

    @classmethod
    def explain(cls, error: Exception, artifact: Artifact) -> MLupError:
        said = plain_words(error)
        if type(error).__name__ == "InvalidProtobuf" or _NOT_A_FLATBUFFER in said:
            return CorruptModelError(
                f"{artifact.name}: expected an ONNX model, found damaged content ({said}); copy or export it again",
                path=artifact.path,
                format=cls.format.value,
            )
        return ModelBinarizationError(
            f"{artifact.name}: onnxruntime could not build the model ({type(error).__name__}: {said})",
            path=artifact.path,
            format=cls.format.value,
        )

    @classmethod
    @contextlib.contextmanager
    def _opener(cls, file: BinaryIO, artifact: Artifact, terms: Terms) -> Iterator[Opener]:
        from mlup_stream.ml.binarization.onnx_runtime.opener import Opener
        from mlup_stream.ml.binarization.onnx_runtime.session import PredictSession, PredictSessionFullReturn

        kind = PredictSessionFullReturn if cls.full_return else PredictSession
        with Source(file, artifact.name) as source:
            yield Opener(kind, artifact.header(_layout), source, artifact, terms)


class InferenceSessionFullReturnBinarizer(InferenceSessionBinarizer):
    """The same with a `predict` that returns all outputs."""

    full_return = True


def _layout(file: BinaryIO, name: str) -> Layout | OrtModel:
    """The walk of the model, or what one in onnxruntime's own format says of itself."""
    with Source(file, name) as source:
        return read_ort(file, name) if is_ort(source) else walk(source, min_payload_bytes=_MIN_PAYLOAD_BYTES)
