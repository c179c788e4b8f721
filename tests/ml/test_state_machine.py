"""Any order of load, unload, reload, prediction and failure, also from several threads at once, for both storages.

What must hold after every step, whatever came before: a model that is loaded is the one that was last loaded, no more than that
one is alive, a prediction is answered by it or is the typed error, and no descriptor is left open.
"""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from tracked import Tracked

import mlup_stream as mlup
from mlup_stream import errors

FEW = settings(max_examples=15, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck))
"""A step takes 10 to 40 ms: what is given back includes a run of the collector."""


class Cycle(RuleBasedStateMachine):
    """What both storages share. `expected` is the value of the model that has to be loaded, None for none."""

    ml: mlup.MLupModel

    def __init__(self) -> None:
        super().__init__()
        self.expected: int | None = None

    def can_load(self) -> bool:
        """Whether a load finds a model that can be built."""
        raise NotImplementedError

    def next_value(self) -> int:
        """The value of the model that a load finds."""
        raise NotImplementedError

    @rule(force=st.booleans())
    def load(self, force: bool) -> None:
        if self.expected is not None and not force:
            with pytest.raises(errors.ModelLoadError, match="force_loading"):
                self.ml.load()
        elif self.can_load():
            value = self.next_value()
            assert self.ml.load(force_loading=force) is self.ml
            self.expected = value
        else:
            with pytest.raises(errors.MLupError):
                self.ml.load(force_loading=force)
            # A load that could not begin leaves the old model; one that failed while it built has let it go.
            self.expected = self.expected if self.ml.loaded else None

    @rule()
    def load_with_a_method_that_is_not_there(self) -> None:
        """Found once the model is built."""
        self.ml.conf.predict_method_name = "no_such_method"
        try:
            with pytest.raises(errors.MLupError):
                self.ml.load(force_loading=True)
        finally:
            self.ml.conf.predict_method_name = "predict"
        self.expected = self.expected if self.ml.loaded else None

    @rule()
    def load_without_room(self) -> None:
        """Importing, planning or building is refused, or a few bytes are enough: a model in memory takes none."""
        self.ml.conf.memory_budget = 101
        try:
            if self.can_load():
                value = self.next_value()
                self.ml.load(force_loading=True)
                self.expected = value
        except errors.MemoryBudgetExceeded:
            self.expected = self.expected if self.ml.loaded else None
        finally:
            self.ml.conf.memory_budget = "auto"

    @rule()
    def unload(self) -> None:
        self.ml.unload()
        self.ml.unload()
        self.expected = None

    @rule(X=st.integers(0, 9))
    def predict(self, X: int) -> None:
        if self.expected is None:
            with pytest.raises(errors.ModelLoadError, match="not loaded"):
                self.ml.predict(X=X)
        else:
            assert self.ml.predict(X=X) == (self.expected, X)

    @rule()
    def all_at_once(self) -> None:
        """Two threads load, one unloads, two predict: each does what it is for, or raises a typed error."""
        values = {self.expected, self.next_value() if self.can_load() else None}
        wrong: list[BaseException] = []
        start = threading.Barrier(5)

        def of(step: Callable[[], object]) -> threading.Thread:
            def run() -> None:
                start.wait()
                for _ in range(3):
                    try:
                        step()
                    except errors.MLupError as error:
                        if isinstance(error, errors.PredictError):
                            wrong.append(error)
                    except BaseException as error:
                        wrong.append(error)

            return threading.Thread(target=run)

        def ask() -> None:
            value, X = self.ml.predict(X=7)
            assert (value in values, X) == (True, 7)

        def reload() -> None:
            self.ml.load(force_loading=True)

        threads = [of(step) for step in (self.ml.load, reload, self.ml.unload, ask, ask)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert [repr(each) for each in wrong] == []
        if self.ml.loaded:
            assert self.ml.predict(X=0)[0] in values
        self.unload()  # what comes after this step may not hang on who came last

    @invariant()
    def is_what_it_should_be(self) -> None:
        if not hasattr(self, "ml"):
            return
        assert self.ml.loaded == (self.expected is not None)
        if self.expected is not None:
            assert self.ml.model_obj.value == self.expected


class OnDisk(Cycle):
    """The file is replaced, damaged and removed in between."""

    @initialize()
    def begin(self) -> None:
        Tracked.alive.clear()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "model.pckl"
        self.value: int | None = None
        self.damaged = False
        self.replace(value=0)
        self.ml = mlup.MLupModel(conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": str(self.path)}))
        self.ml.load()
        self.ml.unload()  # what is imported and opened once is there from here on
        self.descriptors = _descriptors()

    def can_load(self) -> bool:
        return self.value is not None and not self.damaged

    def next_value(self) -> int:
        assert self.value is not None
        return self.value

    @rule(value=st.integers(1, 9))
    def replace(self, value: int) -> None:
        new = self.folder / "new"
        new.write_bytes(pickle.dumps(Tracked(value)))
        new.replace(self.path)
        self.value, self.damaged = value, False

    @rule(kept=st.integers(3, 20))
    @precondition(lambda self: self.value is not None)
    def truncate(self, kept: int) -> None:
        new = self.folder / "new"
        new.write_bytes(pickle.dumps(Tracked(0))[:kept])
        new.replace(self.path)
        self.damaged = True

    @rule()
    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.value = None

    @rule(snapshot=st.booleans(), delivery=st.sampled_from(["auto", "path", "view", "stream", "bytes"]))
    def change_the_settings(self, snapshot: bool, delivery: str) -> None:
        self.ml.conf.snapshot = snapshot
        self.ml.conf.storage_kwargs["delivery"] = delivery

    @invariant()
    def nothing_is_left(self) -> None:
        if hasattr(self, "ml"):
            assert len(Tracked.alive) == (self.expected is not None)
            assert _descriptors() <= self.descriptors + 2 * (self.expected is not None)  # of a model that lives in its file

    def teardown(self) -> None:
        if hasattr(self, "ml"):
            self.ml.unload()
            shutil.rmtree(self.folder)


class InMemory(Cycle):
    """A model that was given; once it was unloaded nobody has it, until it is given again."""

    @initialize()
    def begin(self) -> None:
        Tracked.alive.clear()
        self.given: int | None = 0
        self.ml = mlup.MLupModel(ml_model=Tracked(0))

    def can_load(self) -> bool:
        return self._has() is not None

    def next_value(self) -> int:
        value = self._has()
        assert value is not None
        return value

    def _has(self) -> int | None:
        return self.expected if self.expected is not None else self.given

    @rule(value=st.integers(1, 9))
    @precondition(lambda self: self.expected is None)
    def give(self, value: int) -> None:
        self.ml = mlup.MLupModel(ml_model=Tracked(value))
        self.given = value

    @invariant()
    def is_given_or_loaded(self) -> None:
        """At most one model is alive: the one that is loaded, or that was given and is not loaded yet."""
        if hasattr(self, "ml"):
            assert len(Tracked.alive) <= 1
            self.given = next((each.value for each in Tracked.alive), None)
            assert self.expected in (None, self.given)

    def teardown(self) -> None:
        if hasattr(self, "ml"):
            self.ml.unload()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.mark.parametrize("machine", [OnDisk, InMemory])
def test_any_order_of_steps_from_any_thread_leaves_what_it_should(machine: type[Cycle]) -> None:
    """See the module's first lines; the steps that fail are printed as a program."""
    run_state_machine_as_test(machine, settings=FEW)
