"""ONNX models through onnxruntime, with the weights left in the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.delivery.view import View
from mlup_stream.errors import CorruptModelError, LoadError, MLupError, ModelBinarizationError
from mlup_stream.extras import require
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.onnx.layout import Layout, walk
from mlup_stream.formats.source import Source
from mlup_stream.memory.estimate import Estimate
from mlup_stream.ml.binarization.base import FormatBinarizer
from mlup_stream.ml.binarization.onnx_runtime.abilities import installed_abilities
from mlup_stream.ml.binarization.onnx_runtime.estimate import estimate
from mlup_stream.ml.binarization.onnx_runtime.messages import plain_words

if TYPE_CHECKING:
    from mlup_stream.ml.binarization.onnx_runtime.opener import Opener
    from mlup_stream.ml.binarization.onnx_runtime.session import PredictSession

__all__ = ["InferenceSessionBinarizer", "InferenceSessionFullReturnBinarizer"]


class InferenceSessionBinarizer(FormatBinarizer):
    """An `onnxruntime.InferenceSession` whose `predict(input_data)` leaves out the last output where there are several.

    By `view` the weights stay in the file, and onnxruntime reads them from its own map of it; by `stream` and `bytes` they are
    copied once into private memory; by `path` onnxruntime does as it always does. All deliveries give the same predictions, bit
    for bit. `onnx_policy` says what `optimize` changes.

    A model that keeps its weights in other files finds them beside itself. Content without a path has no place to look.
    """

    format = Format.ONNX
    libraries = ("onnxruntime",)
    deliveries = (Delivery.VIEW, Delivery.STREAM, Delivery.PATH, Delivery.BYTES)
    options: ClassVar[frozenset[str]] = frozenset(
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
    def estimate(cls, loaded_file: LoadedFile, delivery: Delivery) -> Estimate | None:
        try:
            layout = loaded_file.look(_layout)
        except (LoadError, OSError):
            return None  # the load will say what is wrong
        if delivery is Delivery.VIEW and loaded_file.has_content:
            delivery = Delivery.BYTES
        return estimate(layout, delivery, loaded_file.optimize, installed_abilities())

    @classmethod
    def from_path(cls, path: str, loaded: LoadedFile, **options: Any) -> PredictSession:
        with Source(path, loaded.name) as source:
            return cls._opener(source, loaded, options).by_path(path)

    @classmethod
    def from_view(cls, view: View, loaded: LoadedFile, **options: Any) -> Any:
        if view.path is None:
            return cls.from_buffer(view.buffer, loaded, **options)
        with Source(view, loaded.name) as source:
            return cls._opener(source, loaded, options).in_place(view)

    @classmethod
    def from_file(cls, file: BinaryIO, loaded: LoadedFile, **options: Any) -> PredictSession:
        with Source(file, loaded.name) as source:
            return cls._opener(source, loaded, options).copied(file)

    @classmethod
    def explain(cls, error: Exception, loaded: LoadedFile) -> MLupError:
        said = plain_words(error)
        if type(error).__name__ == "InvalidProtobuf":
            return CorruptModelError(
                f"{loaded.name}: expected an ONNX model, found damaged content ({said}); copy or export it again",
                path=loaded.path,
                format=cls.format.value,
            )
        return ModelBinarizationError(
            f"{loaded.name}: onnxruntime could not build the model ({type(error).__name__}: {said})",
            path=loaded.path,
            format=cls.format.value,
        )

    @classmethod
    def _opener(cls, source: Source, loaded: LoadedFile, options: dict[str, Any]) -> Opener:
        from mlup_stream.ml.binarization.onnx_runtime.opener import Opener
        from mlup_stream.ml.binarization.onnx_runtime.session import PredictSession, PredictSessionFullReturn

        return Opener(PredictSessionFullReturn if cls.full_return else PredictSession, source, loaded, options)


class InferenceSessionFullReturnBinarizer(InferenceSessionBinarizer):
    """The same with a `predict` that returns all outputs."""

    full_return = True


def _layout(file: BinaryIO, name: str) -> Layout:
    with Source(file, name) as source:
        return walk(source)
