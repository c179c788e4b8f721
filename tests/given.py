"""A model as a test gives it to a binarizer: the file or content, the terms, and where its payload went once it was built.

    given = Given(path=path, delivery=Delivery.VIEW, optimize=Optimize.SPEED)
    model = deserialize(PickleBinarizer, given)
    assert given.placement.mapped_bytes
"""

from __future__ import annotations

from typing import Any

from mlup_stream.delivery.artifact import Artifact, artifact_of
from mlup_stream.delivery.kinds import Delivery, MappingMode, Optimize
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.delivery.placement import Placement
from mlup_stream.delivery.terms import Terms
from mlup_stream.formats.kinds import Format
from mlup_stream.memory.estimate import Estimate
from mlup_stream.ml.binarization.detection import detect

__all__ = ["Given", "deserialize", "detected", "estimated"]


class Given(LoadedFile):
    """What a storage found and how it is to be taken.

    Attributes:
        placement: Where the payload went, once `deserialize` has built the model.
    """

    def __init__(
        self,
        raw_data: Any = b"",
        path: Any = None,
        *,
        delivery: Delivery | None = None,
        mapping: MappingMode = MappingMode.AUTO,
        optimize: Optimize = Optimize.MEMORY,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(raw_data, path, delivery=delivery)
        self.mapping = mapping
        self.optimize = optimize
        self.options = options or {}
        self.placement: Placement | None = None
        self._artifact: Artifact | None = None

    @property
    def artifact(self) -> Artifact:
        if self._artifact is None:
            self._artifact = artifact_of(self)
        return self._artifact

    def terms(self, delivery: Delivery | None = None, **options: Any) -> Terms:
        return Terms(delivery or self.delivery, self.mapping, self.optimize, {**self.options, **options})

    def release(self) -> tuple[str, ...]:
        """What still holds the bytes afterwards."""
        artifact, self._artifact = self._artifact, None
        return artifact.release() if artifact is not None else ()


def deserialize(binarizer: Any, given: Any, **options: Any) -> Any:
    """The model; nothing of the file stays open. What is no `Given` goes to the documented `deserialize`."""
    if not isinstance(given, Given):
        return binarizer.deserialize(given, **options)
    try:
        built = binarizer.build(given.artifact, given.terms(**options))
        given.placement = built.placement
        return built.model
    finally:
        given.release()


def detected(given: Any) -> Format:
    """The format that detection finds."""
    artifact = artifact_of(given)
    try:
        return detect(artifact)
    finally:
        artifact.release()


def estimated(binarizer: Any, given: Given, delivery: Delivery) -> Estimate | None:
    """What the binarizer expects a load by `delivery` to take."""
    try:
        found: Estimate | None = binarizer.estimate(given.artifact, given.terms(delivery))
        return found
    finally:
        given.release()
