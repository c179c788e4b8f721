"""The plan of a load: which binarizer builds the model, how the bytes travel to it, what that will take, and why so.

Made from what the storage handed over, a few hundred bytes of the file and its headers. Nothing is built.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass, replace
from typing import Any

from mlup_stream.config import Config
from mlup_stream.constants import BinarizationType, Delivery, MappingMode, Optimize
from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.map_trouble import map_trouble
from mlup_stream.delivery.reader import OnWindow
from mlup_stream.delivery.terms import Built, Terms
from mlup_stream.errors import ConfigError
from mlup_stream.formats.kinds import name_of
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.memory.gate import Weighed
from mlup_stream.memory.governor import Admission, MemoryGovernor
from mlup_stream.memory.watch import is_out_of_memory
from mlup_stream.ml.binarization.base import BaseBinarizer, FormatBinarizer
from mlup_stream.registry import AUTO, binarization_type_of, binarizer_class, spec_of

__all__ = ["LoadPlan", "choose_binarizer", "plan_load", "prepare_binarizer", "weigh_load"]

logger = logging.getLogger("mlup_stream")

_ACCEPTED_BY_OTHERS = (Delivery.PATH, Delivery.BYTES)
"""What a binarizer accepts that does not say: both have been there since the first `mlup`."""

_NOTHING_TO_TAKE = Estimate.private(0, certainty=Certainty.EXACT, why="the model is in memory already")


@dataclass(frozen=True)
class LoadPlan:
    """How a model will be loaded.

    Attributes:
        binarizer: The class that builds it.
        format: The name of its format, or the name of the class when another author's binarizer reads it.
        terms: How it is to be built; the delivery is never `auto`.
        reason: Why this delivery.
        admission: The governor's word that it fits, with the estimate.
        prefaults: Whether what stays in the mapped file is brought into memory before the model is handed out.
    """

    binarizer: type[Any]
    format: str
    terms: Terms
    reason: str
    admission: Admission
    prefaults: bool = False

    @property
    def delivery(self) -> Delivery:
        return Delivery(self.admission.delivery)

    def confirmed(self, governor: MemoryGovernor, held_by: tuple[str, ...]) -> LoadPlan:
        """The plan once the model that it replaces was let go of: with what really came back. Raises as `plan_load`.

        Args:
            governor: Admits or refuses.
            held_by: Who keeps that model.
        """
        admission = governor.confirm(self.admission, held_by=held_by)
        if admission.delivery == self.delivery:
            return replace(self, admission=admission)
        terms = replace(self.terms, delivery=Delivery(admission.delivery))
        return replace(self, admission=admission, terms=terms, reason=admission.reason)

    def build(self, artifact: Artifact, on_window: OnWindow) -> Built:
        """The model, and where its payload went; every window that is read passes by `on_window`."""
        terms = replace(self.terms, on_window=on_window)
        if issubclass(self.binarizer, BaseBinarizer):
            return self.binarizer.build(artifact, terms)
        # Somebody's class that has no more than `deserialize`.
        return Built(self.binarizer.deserialize(artifact.given(read=terms.delivery is Delivery.BYTES), **terms.options))


def choose_binarizer(artifact: Artifact, conf: Config) -> type[Any]:
    """The binarizer for `artifact`; what detection found is written to `conf.binarization_type`.

    Raises:
        FormatNotRecognizedError, AmbiguousFormatError: `binarization_type="auto"` and the content does not tell.
        ConfigError: `binarization_kwargs` has an option that the binarizer does not have.
    """
    if artifact.is_model:
        conf.note_detected(BinarizationType.MEMORY)
    elif conf.asked_binarization_type == AUTO:
        # Not imported before it is needed: who names the binarizer has no use for detection.
        from mlup_stream.ml.binarization.detection import detect

        format = detect(artifact)
        conf.note_detected(binarization_type_of(format))
        logger.debug("%s: recognised as %s", artifact.name, spec_of(format).name)
    binarizer = binarizer_class(conf.binarization_type)
    if issubclass(binarizer, FormatBinarizer):
        binarizer.check_options(conf.binarization_kwargs)  # before a framework is imported for nothing
    return binarizer


def check_trusted(binarizer: type[Any], artifact: Artifact, conf: Config) -> None:
    """Holds what the file names against `conf.trust`, before any of it is imported; see `mlup_stream.trust.gate`."""
    policy = conf.policy
    if policy.is_full:
        return
    from mlup_stream.trust.gate import check_trust

    format = getattr(binarizer, "format", None) if issubclass(binarizer, FormatBinarizer) else None
    check_trust(artifact, format, binarizer.__name__, conf.binarization_kwargs, policy)


def prepare_binarizer(binarizer: type[Any], artifact: Artifact, conf: Config, governor: MemoryGovernor) -> None:
    """Imports what the binarizer needs.

    The import comes before anything is measured: a framework's memory is not the model's. It has to fit all the same.

    Raises:
        MissingDependencyError: The format's library is not installed.
        MemoryBudgetExceeded: There is less memory than importing it takes.
    """
    if not issubclass(binarizer, BaseBinarizer):
        return
    options = conf.binarization_kwargs
    policy = conf.policy
    named = tuple(module for module in binarizer.named_modules(artifact) if policy.allows_module(module))
    with governor.importing((*binarizer.libraries_for(options), *named), name=artifact.name):
        for module in named:
            try:
                importlib.import_module(module)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                # The load will say what cannot be imported, if it is needed at all.
        binarizer.prepare_for(options)


def plan_load(
    artifact: Artifact,
    asked: Delivery | None,
    binarizer: type[Any],
    conf: Config,
    governor: MemoryGovernor,
    *,
    freed_bytes: int = 0,
) -> LoadPlan:
    """The plan: the first delivery that the binarizer accepts and that fits into the budget.

    Args:
        artifact: What the storage found.
        asked: The delivery that the storage asks for; None or `auto` leaves it to the plan.
        binarizer: What `choose_binarizer` found.
        conf: The settings.
        governor: Admits or refuses.
        freed_bytes: What will be let go of before the load begins: the model that it replaces.

    Raises:
        ConfigError: The binarizer does not accept the delivery that was asked for.
        MemoryBudgetExceeded: No delivery fits; nothing big has been allocated.
    """
    only, candidates, reason = _candidates(artifact, asked, binarizer)
    estimates, load = _weighable(artifact, binarizer, conf, candidates)
    only_name = None if only is None else only.value
    admission = governor.plan(
        estimates,
        name=artifact.name,
        asked=only_name,
        freed_bytes=freed_bytes,
        calls_what_it_names=getattr(binarizer, "calls_what_it_names", True),
        **load,
    )
    terms = _terms(conf, Delivery(admission.delivery))
    return LoadPlan(
        binarizer,
        load["format"],
        terms,
        admission.reason or reason,
        admission,
        prefaults=terms.optimize is Optimize.SPEED and _has_room(governor, artifact.size_bytes),
    )


def _terms(conf: Config, delivery: Delivery) -> Terms:
    mapping, optimize = MappingMode(conf.mapping), Optimize(conf.optimize)
    return Terms(delivery, mapping, optimize, conf.binarization_kwargs, trust=conf.policy, planned=True)


def _has_room(governor: MemoryGovernor, size_bytes: int) -> bool:
    """Whether touched pages would stay: with less room than the file has, each would push out another."""
    room_bytes = governor.available().bytes
    return room_bytes is None or size_bytes < room_bytes


def weigh_load(
    artifact: Artifact, asked: Delivery | None, binarizer: type[Any], conf: Config, governor: MemoryGovernor
) -> tuple[Weighed, ...]:
    """Each delivery that the binarizer accepts, against the governor's budget: the rows of `mlup-stream plan`."""
    _, candidates, _ = _candidates(artifact, asked, binarizer)
    estimates, load = _weighable(artifact, binarizer, conf, candidates)
    return governor.weigh(estimates, **load)


def _weighable(
    artifact: Artifact, binarizer: type[Any], conf: Config, deliveries: tuple[Delivery, ...]
) -> tuple[dict[str, Estimate | None], dict[str, Any]]:
    """What each delivery will take, in their order, None where the binarizer cannot say; and what the governor learns it by."""
    ours = issubclass(binarizer, BaseBinarizer)
    estimates: dict[str, Estimate | None] = {
        each.value: binarizer.estimate(artifact, _terms(conf, each)) if ours else None for each in deliveries
    }
    if artifact.is_model:
        estimates = {Delivery.BYTES.value: _NOTHING_TO_TAKE}
    load = {
        "size_bytes": artifact.size_bytes,
        "path": None if artifact.has_content else artifact.path,
        "format": _format_name(binarizer),
        "variant": f"{Optimize(conf.optimize).value} {MappingMode(conf.mapping).value}",
    }
    return estimates, load


def _format_name(binarizer: type[Any]) -> str:
    """The name of the binarizer's format for reports, or its own where it has none."""
    format = getattr(binarizer, "format", None)
    return name_of(format) if isinstance(format, str) else binarizer.__name__


def _candidates(
    artifact: Artifact, asked: Delivery | None, binarizer: type[Any]
) -> tuple[Delivery | None, tuple[Delivery, ...], str]:
    """The delivery that was asked for, those to choose from, best first, and why the first of them is."""
    accepted = tuple(getattr(binarizer, "deliveries", _ACCEPTED_BY_OTHERS))
    if artifact.has_content:
        return None, (Delivery.BYTES,), "the storage gave the content itself"
    if asked is not None and asked is not Delivery.AUTO:
        if asked not in accepted:
            allowed = ", ".join(["auto", *(kind.value for kind in accepted)])
            raise ConfigError(
                f"{artifact.name}: delivery={asked.value!r} is not accepted by {binarizer.__name__}; expected one of {allowed}",
                field="delivery",
                value=asked.value,
                allowed=accepted,
            )
        return asked, accepted, "asked for"
    if artifact.is_folder:
        return None, (Delivery.PATH,), "the model is a folder"
    assert artifact.path is not None
    trouble = map_trouble(artifact.path) if accepted[0] is Delivery.VIEW else None
    if trouble is not None:
        accepted = (*accepted[1:], Delivery.VIEW)
    order = ", ".join(kind.value for kind in accepted)
    return None, accepted, trouble or f"the first that {binarizer.__name__} prefers ({order})"
