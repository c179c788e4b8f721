"""The load cycle.

    storage  ->  LoadedFile  ->  plan  ->  binarizer  ->  release  ->  report

`MLupModel.load` is this line, step by step; everything it calls does one of the steps.
"""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

from mlup_stream.config import Config
from mlup_stream.delivery.artifact import Artifact, artifact_of
from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.delivery.terms import Built
from mlup_stream.errors import (
    AmbiguousModelError,
    ConfigError,
    MemoryBudgetExceeded,
    MLupError,
    ModelLoadError,
    ModelNotFoundError,
    PredictError,
)
from mlup_stream.memory.gate import Weighed
from mlup_stream.memory.governor import MemoryGovernor
from mlup_stream.memory.holders import holders_of
from mlup_stream.memory.meter import rss_bytes
from mlup_stream.memory.reclaim import ReclaimStep, fallen_bytes, give_back
from mlup_stream.memory.report import MemoryReport
from mlup_stream.ml.failure import nothing_left_behind
from mlup_stream.ml.held import Held
from mlup_stream.ml.plan import LoadPlan, check_trusted, choose_binarizer, plan_load, prepare_binarizer, weigh_load
from mlup_stream.ml.report import LoadReport, Stopwatch
from mlup_stream.registry import storage_class
from mlup_stream.trust.digest import check_digest

__all__ = ["MLupModel"]

logger = logging.getLogger("mlup_stream")


class MLupModel:
    """One model: loads it, holds it, asks it, and gives it back.

    Args:
        ml_model: The model itself, for `StorageType.memory`.
        conf: The settings; they are validated again by every `load`.

    Attributes:
        conf: The settings. `load` writes what detection found to `conf.binarization_type`.
        report: What the last load did and what it took; None before the first.
    """

    def __init__(self, ml_model: Any = None, conf: Config | None = None) -> None:
        self.conf = conf if conf is not None else Config()
        self.report: LoadReport | None = None
        self._given_model = ml_model
        self._held: Held | None = None
        self._artifact: Artifact | None = None
        self._lock = threading.RLock()

    @property
    def loaded(self) -> bool:
        return self._held is not None

    @property
    def model_obj(self) -> Any:
        """The model object.

        Raises:
            ModelLoadError: Nothing is loaded.
        """
        return self._loaded_now().model

    def _loaded_now(self) -> Held:
        held = self._held
        if held is None:
            raise ModelLoadError("the model is not loaded; call load() first")
        return held

    def load(self, force_loading: bool = False) -> MLupModel:
        """Loads the model that the configuration describes.

        A reload (`force_loading`) lets the old model go before the new one is built, so that the two are never held together,
        but not before everything that can be known without building has been checked: a file that is missing, not recognised or
        not admitted leaves the old model in place. A load that fails leaves memory, descriptors and disk as they were, and may
        be tried again.

        Args:
            force_loading: Load although a model is loaded.

        Returns:
            This object, for `with up.ml.load(): ...`, which unloads at the end.

        Raises:
            ModelLoadError: And its subclasses in `mlup_stream.errors`, each with what to do.
            ConfigError: A setting is not valid, or `predict_method_name` names a method that the model does not have.
        """
        with self._lock:
            if self.loaded and not force_loading:
                raise ModelLoadError("the model is loaded already; load(force_loading=True) loads it anew")
            clock = Stopwatch()
            self.conf.validate()
            others: set[str] = set()
            with nothing_left_behind(others) as releases, self._governor() as governor:
                artifact, asked = self._find(others)
                releases.append(lambda: artifact.release())
                size_bytes = artifact.size_bytes
                if self.conf.snapshot:
                    artifact = artifact.snapshot()
                check_digest(artifact, self.conf.sha256)
                clock.ended("finding")
                binarizer = choose_binarizer(artifact, self.conf)
                _spare_in_dev_mode(binarizer, others)
                check_trusted(binarizer, artifact, self.conf)
                clock.ended("detecting")
                prepare_binarizer(binarizer, artifact, self.conf, governor)
                clock.ended("importing")
                plan = plan_load(artifact, asked, binarizer, self.conf, governor, freed_bytes=self._kept_bytes())
                clock.ended("planning")
                plan = self._make_way(plan, governor)
                clock.ended("giving_back")
                held, built, memory = self._build(plan, artifact, governor, clock)
                clock.ended("giving_back")
            self._hold(held, artifact)
            self.report = LoadReport.of(
                artifact.name, plan, memory, built, size_bytes=size_bytes, stages=clock.stages
            )
            logger.info("%s", self.report)
            return self

    def plan(self, governor: MemoryGovernor) -> tuple[Weighed, ...]:
        """What each delivery of the configured model would take, against the governor's budget; loads nothing.

        Raises:
            ModelLoadError: As `load`, but for the budget.
        """
        others: set[str] = set()
        with self._lock, nothing_left_behind(others) as releases:
            artifact, asked = self._find(others)
            releases.append(artifact.release)
            binarizer = choose_binarizer(artifact, self.conf)
            check_trusted(binarizer, artifact, self.conf)
            _spare_in_dev_mode(binarizer, others)
            prepare_binarizer(binarizer, artifact, self.conf, governor)
            rows = weigh_load(artifact, asked, binarizer, self.conf, governor)
            artifact.release()
            return rows

    def load_model_settings(self) -> None:
        """Looks up the model's `conf.predict_method_name`; `load` does it, and so must who changes the name later.

        A model without it keeps what it has; only predicting with it is an error then. `load` refuses a name that somebody set,
        and not the default: a `state_dict` has no `predict`.

        Raises:
            ModelLoadError: Nothing is loaded.
        """
        with self._lock:
            self._held = Held.of(self.model_obj, self.conf.predict_method_name)

    def predict(self, **predict_data: Any) -> Any:
        """Calls the model's `conf.predict_method_name` with `predict_data`.

        `X` is the first positional argument of a method that does not call it so, or the one keyword that it takes:
        `predict(X=rows)` works for every model. A model that another thread unloads meanwhile answers the predictions that have
        begun.

        Raises:
            ModelLoadError: Nothing is loaded.
            PredictError: The model has no such method, or raised; its exception is chained.
        """
        held = self._loaded_now()
        if held.method is None:
            raise PredictError(f"{held.has_no_method}; set predict_method_name to one it has{held.listed()}")
        positional: tuple[Any, ...] = ()
        if "X" in predict_data:
            x = predict_data.pop("X")
            if held.x_name is None:
                positional = (x,)
            else:
                predict_data = {held.x_name: x, **predict_data}
        try:
            return held.method(*positional, **predict_data)
        except MLupError:
            raise
        except Exception as error:
            raise PredictError(f"{type(held.model).__name__}.{held.name} failed ({type(error).__name__}: {error})") from error

    def unload(self) -> tuple[ReclaimStep, ...]:
        """Lets go of the model and gives its memory back. Does nothing when nothing is loaded.

        Returns:
            What each step of giving back returned, and what still holds memory: whoever kept the model, or arrays of it.
        """
        with self._lock:
            return self._let_go()

    def __enter__(self) -> MLupModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.unload()

    def __getstate__(self) -> dict[str, Any]:
        if self.loaded:
            raise TypeError("a loaded model is not pickled with its MLupModel; unload() it first, and load() it where it arrives")
        state = {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_artifact")}
        return {**state, "report": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _artifact=None, _lock=threading.RLock())

    def _hold(self, held: Held, artifact: Artifact) -> None:
        self._held, self._artifact = held, artifact
        # One reference, this one: a second would keep the memory when this is let go.
        self._given_model = None
        if "model" in self.conf.storage_kwargs:
            self.conf.storage_kwargs = {name: each for name, each in self.conf.storage_kwargs.items() if name != "model"}

    def _make_way(self, plan: LoadPlan, governor: MemoryGovernor) -> LoadPlan:
        """Lets the old model go, and holds the plan against what that gave back: a request may still hold the model.

        Where the new one does not fit beside it then, the old one stays loaded.
        """
        if self._held is None:
            return plan
        name, alive = self._held.name, _weak_reference(self._held.model)
        held_by = self._let_go()[-1].held_by
        try:
            return plan.confirmed(governor, held_by)
        except MemoryBudgetExceeded:
            if alive() is not None:
                self._held = Held.of(alive(), name)
            raise

    def _let_go(self) -> tuple[ReclaimStep, ...]:
        if self._held is None:
            return ()
        alive = _weak_reference(self._held.model)
        before_bytes = rss_bytes()
        self._held = None
        let_go_bytes = fallen_bytes(before_bytes, rss_bytes())
        steps = give_back()
        holders = self._artifact.held() if self._artifact is not None else ()
        if alive() is not None:
            holders = (*(holders_of(alive()) or (f"somebody's reference to the {type(alive()).__name__}",)), *holders)
        return (*steps, ReclaimStep("model let go", let_go_bytes, holders))

    def _governor(self) -> MemoryGovernor:
        conf = self.conf
        return MemoryGovernor(
            conf.memory_budget, limit=conf.memory_limit, ticket=conf.memory_ticket, learned=conf.memory_learned
        )

    def _kept_bytes(self) -> int:
        """The private memory of the model that is loaded now, as its load measured it."""
        if not self.loaded or self.report is None:
            return 0
        memory = self.report.memory
        return max(0, (memory.settled.anon_bytes or 0) - (memory.baseline.anon_bytes or 0))

    def _find(self, others: set[str]) -> tuple[Artifact, Delivery | None]:
        """The one model that the storage has, pinned where it lies, and the delivery that the storage asks for."""
        storage_type = storage_class(self.conf.storage_type)
        _spare(storage_type, others)
        gives_models = bool(getattr(storage_type, "gives_models", False))
        arguments = dict(self.conf.storage_kwargs)
        if gives_models and "model" not in arguments:
            if self._held is not None:
                self._given_model = self._held.model  # a reload that fails has it still
            if self._given_model is None:
                raise ModelNotFoundError(
                    f"{storage_type.__name__}: expected the model itself, found none: nobody gave one, or it was unloaded;"
                    " give it (again): UP(ml_model=...)"
                )
            arguments["model"] = self._given_model
        try:
            storage = storage_type(**arguments)
        except MLupError:
            raise
        except TypeError as error:
            raise ConfigError(f"storage_kwargs: {storage_type.__name__}: {error}", field="storage_kwargs") from error
        except Exception as error:
            raise ModelLoadError(f"{storage_type.__name__}: cannot be made ({type(error).__name__}: {error})") from error
        try:
            found = storage.load()
        except MLupError:
            raise
        except Exception as error:
            raise ModelLoadError(
                f"{storage_type.__name__}: failed to find the model ({type(error).__name__}: {error})"
            ) from error
        if not found:
            raise ModelNotFoundError(f"{storage_type.__name__}: expected one model, found none; see its storage_kwargs")
        if len(found) > 1:
            candidates = tuple(LoadedFile.of(each).name for each in found)
            raise AmbiguousModelError(
                f"{storage_type.__name__}: expected one model, found {len(found)}: {', '.join(candidates[:10])};"
                " set file_mask to the name of one",
                candidates=candidates,
            )
        loaded = LoadedFile.of(found[0])
        return artifact_of(loaded, is_model=gives_models), loaded.delivery

    def _build(
        self, plan: LoadPlan, artifact: Artifact, governor: MemoryGovernor, clock: Stopwatch
    ) -> tuple[Held, Built, MemoryReport]:
        """The model, what became of its payload, and what building it took; the raw data is released by then.

        A function of its own, so that a model that fails the last check dies with its frame.
        """
        with governor.watching(plan.admission) as watch:
            built = plan.build(artifact, watch.window)
            if plan.prefaults:
                artifact.prefault(built.placement)
            artifact.check()
            held = Held.of(built.model, self.conf.predict_method_name)
            held.check(artifact.name)
            clock.ended("building")
            # Without the model: a second reference would keep it when the first is let go.
            return held, built._replace(model=None), watch.settle(artifact.release)


def _spare_in_dev_mode(binarizer: type[Any], others: set[str]) -> None:
    if sys.flags.dev_mode:
        _spare(binarizer, others)


def _spare(kind: type[Any], others: set[str]) -> None:
    """Adds the module of somebody else's class to those whose frames a failure leaves alone."""
    if kind.__module__.partition(".")[0] != __name__.partition(".")[0]:
        others.add(kind.__module__)


def _weak_reference(model: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(model)
    except TypeError:  # a dict or another builtin, whose holders cannot be told without holding it
        return lambda: None
