"""TensorFlow Lite (LiteRT) models, as an interpreter whose tensors are allocated.

The interpreter maps a file by its pinned name and leaves the weights there. XNNPACK, which it uses by default, packs them into
memory of its own, as much as they are: with `optimize="memory"` it is left out, with `optimize="speed"` it is used. What that
costs says `profiling/tflite_speed.py`: 16 products with matrices of 1024 x 1024 took 4.1 ms without and 4.5 ms with XNNPACK for
one row, and 98 and 30 ms for 64 rows (LiteRT 2.3, 2 cores).
"""

from __future__ import annotations

from typing import Any, BinaryIO, ClassVar

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.kinds import Delivery, Optimize
from mlup_stream.delivery.placement import Placement
from mlup_stream.delivery.terms import Built, Terms
from mlup_stream.delivery.view import View
from mlup_stream.errors import LoadError
from mlup_stream.extras import require
from mlup_stream.formats.frameworks.tflite import read_model
from mlup_stream.formats.kinds import Format
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.ml.binarization.base import FormatBinarizer
from mlup_stream.units import MIB

__all__ = ["TfliteBinarizer"]

_FIRST_USE_BYTES = 2 * MIB
_NOT_DAMAGE = ("unresolved custom op", "Select TensorFlow op", "Regular TensorFlow ops")


class TfliteBinarizer(FormatBinarizer):
    """An `ai_edge_litert.interpreter.Interpreter`; `model.get_signature_runner()` gives what is called with arrays by name.

    Option: `num_threads`.
    """

    format = Format.TFLITE
    libraries = ("ai_edge_litert",)
    deliveries = (Delivery.VIEW, Delivery.PATH, Delivery.BYTES)
    option_names: ClassVar[frozenset[str]] = frozenset({"num_threads"})
    corrupt = (*FormatBinarizer.corrupt, RuntimeError)

    @classmethod
    def prepare(cls) -> None:
        require("ai_edge_litert.interpreter", "TensorFlow Lite models")

    @classmethod
    def estimate(cls, artifact: Artifact, terms: Terms) -> Estimate | None:
        try:
            model = artifact.header(read_model)
        except (LoadError, OSError):
            return None  # the load will say what is wrong
        private_bytes = model.working_bytes + _FIRST_USE_BYTES
        if terms.optimize is Optimize.SPEED:
            private_bytes += model.weights_bytes
        why = "the header of the TensorFlow Lite model"
        if artifact.has_content or terms.delivery is Delivery.BYTES:
            raw_bytes = artifact.size_bytes if artifact.has_content else 2 * artifact.size_bytes
            settled_bytes = private_bytes + artifact.size_bytes
            return Estimate.private(private_bytes + raw_bytes, settled_bytes, certainty=Certainty.CONSERVATIVE, why=why)
        size_bytes = artifact.size_bytes
        return Estimate.in_place(size_bytes, certainty=Certainty.CONSERVATIVE, why=why, private_bytes=private_bytes)

    @classmethod
    def from_path(cls, artifact: Artifact, terms: Terms) -> Built:
        with artifact.by_name() as path:
            model = _interpreter(terms, model_path=path)
        weights_bytes = artifact.header(read_model).weights_bytes
        if terms.optimize is Optimize.SPEED:
            return Built(model, Placement(0, weights_bytes, ("packed for XNNPACK",)))
        return Built(model, Placement(weights_bytes, 0))

    @classmethod
    def from_view(cls, view: View, artifact: Artifact, terms: Terms) -> Built:
        if view.file is None:
            return cls.from_buffer(view.buffer, artifact, terms)
        return cls.from_path(artifact, terms)

    @classmethod
    def from_file(cls, file: BinaryIO, artifact: Artifact, terms: Terms) -> Built:
        return cls.from_buffer(file.read(), artifact, terms)

    @classmethod
    def from_buffer(cls, buffer: bytes | bytearray | memoryview, artifact: Artifact, terms: Terms) -> Built:
        # The interpreter uses and keeps it.
        return Built(_interpreter(terms, model_content=buffer if isinstance(buffer, bytes) else bytes(buffer)))

    @classmethod
    def is_corrupt(cls, error: Exception) -> bool:
        return super().is_corrupt(error) and not any(each in str(error) for each in _NOT_DAMAGE)


def _interpreter(terms: Terms, **source: Any) -> Any:
    litert = require("ai_edge_litert.interpreter", "TensorFlow Lite models")
    kinds = litert.OpResolverType
    kind = kinds.AUTO if terms.optimize is Optimize.SPEED else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    model = litert.Interpreter(**source, num_threads=terms.options.get("num_threads"), experimental_op_resolver_type=kind)
    model.allocate_tensors()
    return model
