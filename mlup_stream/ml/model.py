"""The load cycle.

    storage  ->  LoadedFile  ->  plan  ->  binarizer  ->  release  ->  report

`MLupModel.load` is this line, step by step; everything it calls does one of the steps.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

from mlup_stream.config import Config
from mlup_stream.delivery.artifact import Artifact, artifact_of
from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.delivery.terms import Built
from mlup_stream.errors import AmbiguousModelError, ConfigError, MLupError, ModelLoadError, ModelNotFoundError, PredictError
from mlup_stream.memory.gate import Weighed
from mlup_stream.memory.governor import MemoryGovernor
from mlup_stream.memory.holders import holders_of
from mlup_stream.memory.reclaim import ReclaimStep, give_back
from mlup_stream.memory.report import MemoryReport
from mlup_stream.ml.failure import nothing_left_behind
from mlup_stream.ml.plan import LoadPlan, choose_binarizer, plan_load, weigh_load
from mlup_stream.ml.report import LoadReport
from mlup_stream.registry import storage_class

__all__ = ["MLupModel"]

logger = logging.getLogger("mlup_stream")

_NOT_LOADED = object()


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
        self._model_obj: Any = _NOT_LOADED
        self._artifact: Artifact | None = None
        self._predict_method: Any = None
        self._lock = threading.RLock()

    @property
    def loaded(self) -> bool:
        return self._model_obj is not _NOT_LOADED

    @property
    def model_obj(self) -> Any:
        """The model object.

        Raises:
            ModelLoadError: Nothing is loaded.
        """
        if not self.loaded:
            raise ModelLoadError("the model is not loaded; call load() first")
        return self._model_obj

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
        """
        with self._lock:
            if self.loaded and not force_loading:
                raise ModelLoadError("the model is loaded already; load(force_loading=True) loads it anew")
            started = time.perf_counter()
            self.conf.validate()
            with nothing_left_behind() as releases:
                artifact, asked = self._find()
                releases.append(lambda: artifact.release())
                size_bytes = artifact.size_bytes
                if self.conf.snapshot:
                    artifact = artifact.snapshot()
                with self._governor() as governor:
                    binarizer = choose_binarizer(artifact, self.conf, governor)
                    plan = plan_load(artifact, asked, binarizer, self.conf, governor, freed_bytes=self._kept_bytes())
                    self._let_go()
                    built, memory = _build(plan, artifact, governor)
            self._hold(built.model, artifact)
            seconds = time.perf_counter() - started
            self.report = LoadReport.of(artifact.name, plan, memory, built.placement, size_bytes=size_bytes, seconds=seconds)
            logger.info("%s", self.report)
            return self

    def weigh(self, governor: MemoryGovernor) -> tuple[Weighed, ...]:
        """What each delivery of the configured model would take, against the governor's budget; loads nothing.

        Raises:
            ModelLoadError: As `load`, but for the budget.
        """
        with self._lock, nothing_left_behind() as releases:
            artifact, asked = self._find()
            releases.append(artifact.release)
            rows = weigh_load(artifact, asked, choose_binarizer(artifact, self.conf, governor), self.conf, governor)
            artifact.release()
            return rows

    def load_model_settings(self) -> None:
        """Looks up the model's `conf.predict_method_name`; `load` does it, and so must who changes the name later.

        A model without that method loads all the same (a `state_dict` has none); only predicting with it is an error.

        Raises:
            ModelLoadError: Nothing is loaded.
        """
        self._predict_method = getattr(self.model_obj, self.conf.predict_method_name, None)

    def predict(self, **predict_data: Any) -> Any:
        """Calls the model's `conf.predict_method_name` with `predict_data`.

        `X` is the first positional argument of a method that does not call it so: `predict(X=rows)` works for every model.

        Raises:
            ModelLoadError: Nothing is loaded.
            PredictError: The model has no such method, or raised; its exception is chained.
        """
        model = self.model_obj
        if self._predict_method is None:
            raise PredictError(
                f"{type(model).__name__} has no method {self.conf.predict_method_name!r}; set predict_method_name to one it has"
            )
        positional: tuple[Any, ...] = ()
        if "X" in predict_data and not _has_parameter(self._predict_method, "X"):
            positional = (predict_data.pop("X"),)
        try:
            return self._predict_method(*positional, **predict_data)
        except MLupError:
            raise
        except Exception as error:
            raise PredictError(
                f"{type(model).__name__}.{self.conf.predict_method_name} failed ({type(error).__name__}: {error})"
            ) from error

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

    def _hold(self, model: Any, artifact: Artifact) -> None:
        self._model_obj, self._artifact = model, artifact
        # One reference, this one: a second would keep the memory when this is let go.
        self._given_model = None
        self.conf.storage_kwargs.pop("model", None)
        self.load_model_settings()

    def _let_go(self) -> tuple[ReclaimStep, ...]:
        if not self.loaded:
            return ()
        alive = _weak_reference(self._model_obj)
        self._model_obj, self._predict_method = _NOT_LOADED, None
        steps = give_back()
        holders = self._artifact.held() if self._artifact is not None else ()
        if alive() is not None:
            holders = (*(holders_of(alive()) or (f"somebody's reference to the {type(alive()).__name__}",)), *holders)
        return (*steps, ReclaimStep("model let go", 0, holders))

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

    def _find(self) -> tuple[Artifact, Delivery | None]:
        """The one model that the storage has, pinned where it lies, and the delivery that the storage asks for."""
        storage_type = storage_class(self.conf.storage_type)
        gives_models = bool(getattr(storage_type, "gives_models", False))
        arguments = dict(self.conf.storage_kwargs)
        if gives_models and "model" not in arguments:
            arguments["model"] = self._model_obj if self.loaded else self._given_model
        try:
            found = storage_type(**arguments).load()
        except MLupError:
            raise
        except TypeError as error:
            raise ConfigError(f"storage_kwargs: {storage_type.__name__}: {error}", field="storage_kwargs") from error
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


def _build(plan: LoadPlan, artifact: Artifact, governor: MemoryGovernor) -> tuple[Built, MemoryReport]:
    """The model, and what building it took; the raw data is released by then.

    A function of its own, so that a model that fails the last check dies with its frame.
    """
    with governor.watching(plan.admission) as watch:
        built = plan.build(artifact, watch.window)
        if plan.prefaults:
            artifact.prefault(built.placement)
        artifact.check()
        return built, watch.settle(artifact.release)


def _weak_reference(model: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(model)
    except TypeError:  # a dict or another builtin, whose holders cannot be told without holding it
        return lambda: None


def _has_parameter(method: Any, name: str) -> bool:
    try:
        return name in inspect.signature(method).parameters
    except (TypeError, ValueError):  # a method of an extension that says nothing of itself
        return False
