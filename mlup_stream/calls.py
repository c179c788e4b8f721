"""What the package does in one call: `load`, `open`, `plan`. (`inspect` is in `ml.inspection`, `pack` in `pack`.)

    model = mlup.load("model.safetensors", framework="torch")

    with mlup.open("model.onnx", memory_budget="512MiB") as loaded:
        loaded.model.run(...)
        print(loaded.report)
    # the memory is given back
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from mlup_stream.config import Config
from mlup_stream.constants import Delivery, StorageType
from mlup_stream.errors import ConfigError
from mlup_stream.memory.budget import Available
from mlup_stream.memory.gate import Weighed
from mlup_stream.memory.governor import MemoryGovernor
from mlup_stream.memory.reclaim import ReclaimStep
from mlup_stream.ml.model import MLupModel
from mlup_stream.ml.report import LoadReport
from mlup_stream.ml.storage.content import ContentStorage
from mlup_stream.settings import LoadSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Buffer, Unpack

    Source = str | os.PathLike[str] | Buffer | BinaryIO
    DeliveryChoice = Literal["auto", "path", "view", "stream", "bytes"] | Delivery

__all__ = ["Loaded", "Plan", "load", "open_model", "plan"]

_FIELDS = tuple(each.name for each in dataclasses.fields(Config))
_OPTIONS = tuple(sorted(LoadSettings.__annotations__.keys() - set(_FIELDS)))


def load(source: Source, *, delivery: DeliveryChoice = "auto", **settings: Unpack[LoadSettings]) -> Any:
    """The model in `source`: the model object itself, as `joblib.load` would give it.

    Its arrays may lie in the mapped file. To save it under its own name from this process is safe. A file to which another
    process, or a library without Python's knowledge, writes in place needs `snapshot=True`; or a new file is renamed over it.

    Args:
        source: A model file; a folder with one model in it, or that is a model; or the content: bytes, any buffer, or a binary
            file object, which is read from where it stands and left open.
        delivery: How the bytes of a file travel: `"auto"`, `"path"`, `"view"`, `"stream"` or `"bytes"`.
        settings: Any field of `Config`, such as `memory_budget="512MiB"`, and any option of the format's binarizer, such as
            `framework="torch"` for safetensors: the same as in `binarization_kwargs`, and before what is there.

    Raises:
        ModelLoadError: And its subclasses, each with what to do.
        ConfigError: A setting is not known or not valid.
    """
    return _loaded(source, delivery, settings).model_obj


def open_model(source: Source, *, delivery: DeliveryChoice = "auto", **settings: Unpack[LoadSettings]) -> Loaded:
    """As `load`, with the report, and with a way to give the memory back: `with mlup.open("model.onnx") as loaded: ...`.

    The model is loaded by this call. At the end of the block it is let go; whoever kept it, or arrays of it, keeps its memory.
    """
    return Loaded(_loaded(source, delivery, settings))


def plan(source: Source, *, delivery: DeliveryChoice = "auto", **settings: Unpack[LoadSettings]) -> Plan:
    """What loading `source` with these settings would take, by each delivery, and whether it fits. Loads no model.

    The format's library is imported, because what that takes is part of the answer.

    Args:
        source: As for `load`.
        delivery: The one that has to fit; `"auto"`: any.
        settings: As for `load`.

    Raises:
        ModelLoadError: As `load`; but where no delivery fits that is the answer.
    """
    conf, names = _conf_of(source, Delivery.AUTO.value, settings)
    asked = _checked_delivery(delivery)
    ml = MLupModel(conf=conf)
    with MemoryGovernor(conf.memory_budget, learned=conf.memory_learned) as governor:
        try:
            rows = ml.plan(governor)
        except ConfigError as error:
            raise _explained(error, names) from error
        return Plan(_name_of(source), asked.value, rows, governor.available())


class Loaded:
    """A model that is loaded.

    Attributes:
        report: What loading it did and took.
    """

    report: LoadReport

    def __init__(self, ml: MLupModel) -> None:
        assert ml.report is not None  # a load that returned has one
        self._ml = ml
        self.report = ml.report

    @property
    def model(self) -> Any:
        """The model object.

        Raises:
            ModelLoadError: It was unloaded.
        """
        return self._ml.model_obj

    def predict(self, **predict_data: Any) -> Any:
        """See `MLupModel.predict`."""
        return self._ml.predict(**predict_data)

    def unload(self) -> tuple[ReclaimStep, ...]:
        """Lets go of the model and gives its memory back; what still holds some is in the answer. Idempotent."""
        return self._ml.unload()

    def __enter__(self) -> Loaded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.unload()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What each delivery of a model would take.

    Attributes:
        file: The path, or what kind of content there was instead of one.
        asked: The delivery that was asked for, or `"auto"`.
        deliveries: One row for each that the binarizer accepts, best first.
        available: What may be taken, by each limit.
    """

    file: str
    asked: str
    deliveries: tuple[Weighed, ...]
    available: Available

    @property
    def fits(self) -> bool:
        """Whether the delivery that was asked for fits; with `"auto"`, any."""
        return any(row.fits for row in self.deliveries if self.asked in (Delivery.AUTO.value, row.delivery))

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values, sizes in bytes."""
        rows = [row.to_dict() for row in self.deliveries]
        return {"file": self.file, **self.available.to_dict(), "deliveries": rows}


def _loaded(source: Source, delivery: DeliveryChoice, settings: Mapping[str, Any]) -> MLupModel:
    conf, names = _conf_of(source, delivery, settings)
    try:
        return MLupModel(conf=conf).load()
    except ConfigError as error:
        if error.field == "binarization_kwargs" and error.value in names:
            raise _explained(error, names) from error
        raise


def _conf_of(source: Source, delivery: DeliveryChoice, settings: Mapping[str, Any]) -> tuple[Config, tuple[str, ...]]:
    """The configuration, and the keywords that are taken for options of a binarizer."""
    names = tuple(name for name in settings if name not in _FIELDS)
    for name in names:
        _refuse_slip(name, settings[name])
    fields = {name: value for name, value in settings.items() if name in _FIELDS}
    options = {**fields.pop("binarization_kwargs", {}), **{name: settings[name] for name in names}}
    arguments = fields.pop("storage_kwargs", {})
    if isinstance(source, (str, os.PathLike)):
        arguments = {"path_to_files": source, "delivery": delivery, **arguments}
        fields = {"storage_type": StorageType.disk, **fields}
    else:
        _checked_delivery(delivery)
        if arguments or "storage_type" in fields:
            raise ConfigError(
                f"{_name_of(source)}: storage_type and storage_kwargs say where to find a model, and this is its content;"
                " leave them out",
                field="storage_type",
            )
        arguments, fields = {"content": source}, {**fields, "storage_type": ContentStorage}
    return Config(**fields, storage_kwargs=arguments, binarization_kwargs=options), names


def _refuse_slip(name: str, value: Any) -> None:
    """Raises for a keyword that is nearly a setting or an option; another may be an option of somebody else's binarizer."""
    if name in _OPTIONS:
        return
    near = difflib.get_close_matches(name, (*_FIELDS, *_OPTIONS), n=1, cutoff=0.75)
    if near:
        raise ConfigError(
            f"unknown setting {name!r}; did you mean {near[0]!r}?", field=name, value=value, allowed=(*_FIELDS, *_OPTIONS)
        )


def _explained(error: ConfigError, names: tuple[str, ...]) -> ConfigError:
    """The answer to a keyword that is neither a setting nor an option of the binarizer that the content asks for."""
    if error.field != "binarization_kwargs" or error.value not in names:
        return error
    return ConfigError(
        f"{error}; settings: {', '.join(_FIELDS)}", field=str(error.value), value=error.value, allowed=(*_FIELDS, *error.allowed)
    )


def _checked_delivery(delivery: DeliveryChoice) -> Delivery:
    try:
        return Delivery(delivery)
    except ValueError as error:
        allowed = tuple(kind.value for kind in Delivery)
        raise ConfigError(
            f"delivery={delivery!r} is not valid; expected {', '.join(map(repr, allowed))}",
            field="delivery",
            value=delivery,
            allowed=allowed,
        ) from error


def _name_of(source: Source) -> str:
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"<{type(source).__name__} without a path>"
