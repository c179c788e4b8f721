"""The plan of a load: which binarizer builds the model, how the bytes travel to it, and why so.

Made from what the storage handed over and from a few hundred bytes of the file; nothing is built and no framework imported.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from mlup_stream.config import Config
from mlup_stream.constants import BinarizationType, Delivery
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.errors import ConfigError
from mlup_stream.ml.binarization.registry import AUTO, binarization_type_of, binarizer_class

__all__ = ["LoadPlan", "plan_load"]

logger = logging.getLogger("mlup_stream")

_ACCEPTED_BY_OTHERS = (Delivery.PATH, Delivery.BYTES)
"""What a binarizer accepts that does not say: both have been there since the first `mlup`."""


@dataclass(frozen=True)
class LoadPlan:
    """How a model will be loaded.

    Attributes:
        binarizer: The class that builds it.
        format: The name of its format, or the name of the class when another author's binarizer reads it.
        delivery: How the bytes travel; never `auto`.
        reason: Why this delivery.
        options: The binarizer's options.
    """

    binarizer: type[Any]
    format: str
    delivery: Delivery
    reason: str
    options: dict[str, Any]

    def prepare(self) -> None:
        """Imports the framework, so that it is neither measured as part of the model nor missed half-way."""
        prepare = getattr(self.binarizer, "prepare", None)
        if prepare is not None:
            prepare()

    def build(self, loaded: LoadedFile) -> Any:
        """The model object."""
        return self.binarizer.deserialize(loaded, **self.options)


def plan_load(loaded: LoadedFile, conf: Config, *, gives_models: bool = False) -> LoadPlan:
    """The plan for `loaded`; what detection found is written to `conf.binarization_type`.

    Raises:
        FormatNotRecognizedError, AmbiguousFormatError: `binarization_type="auto"` and the content does not tell.
        ConfigError: The binarizer does not accept the delivery that was asked for.
    """
    if gives_models:
        conf.binarization_type = BinarizationType.MEMORY
    elif conf.binarization_type == AUTO:
        # Not imported before it is needed: who names the binarizer has no use for detection.
        from mlup_stream.ml.binarization.detection import detect

        conf.binarization_type = binarization_type_of(detect(loaded))
        logger.debug("%s: recognised as %s", loaded.name, conf.binarization_type.name)
    binarizer = binarizer_class(conf.binarization_type)
    loaded.mapping = conf.mapping  # type: ignore[assignment]  # validated: an enum member by now
    loaded.optimize = conf.optimize  # type: ignore[assignment]
    loaded.delivery, reason = _choose_delivery(loaded, binarizer)
    format_name = getattr(getattr(binarizer, "format", None), "value", binarizer.__name__)
    return LoadPlan(binarizer, format_name, loaded.delivery, reason, conf.binarization_kwargs)


def _choose_delivery(loaded: LoadedFile, binarizer: type[Any]) -> tuple[Delivery, str]:
    accepted = tuple(getattr(binarizer, "deliveries", _ACCEPTED_BY_OTHERS))
    asked = loaded.delivery
    if loaded.has_content or loaded.path is None:
        return Delivery.BYTES, "the storage gave the content itself"
    if asked is not None and asked is not Delivery.AUTO:
        if asked not in accepted:
            allowed = ", ".join(["auto", *(kind.value for kind in accepted)])
            raise ConfigError(
                f"{loaded.name}: delivery={asked.value!r} is not accepted by {binarizer.__name__}; expected one of {allowed}",
                field="delivery",
                value=asked.value,
                allowed=accepted,
            )
        return asked, "asked for"
    if loaded.is_folder:
        return Delivery.PATH, "the model is a folder"
    return accepted[0], f"the first that {binarizer.__name__} prefers ({', '.join(kind.value for kind in accepted)})"
