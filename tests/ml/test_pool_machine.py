"""Any order of requests, releases, replacements, damage, evictions and pins, also from several threads at once.

What must hold after every step: who holds a model has the object that he was given, a request is answered by the newest model
that could be loaded, an error is a typed one, and no model is alive but those that are loaded or held.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import shutil
import tempfile
import threading
import traceback
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from tracked import Tracked

import mlup_stream as mlup
from mlup_stream import errors
from mlup_stream.ml.pool_leases import PooledModel
from mlup_stream.units import MIB

FEW = settings(max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))
"""A step takes 10 to 60 ms: what is let go of is given back, which includes a run of the collector."""

NAMES = st.sampled_from("abcd")


class Heavy(Tracked):
    """With 8 MiB of private memory."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.weights = bytes([value % 256]) * (8 * MIB)

    def predict(self, X: int) -> tuple[int, int]:
        return self.value + self.weights[-1] - self.value % 256, X


class Pool(RuleBasedStateMachine):
    """`expected` is the value that each name answers with: of the newest file that could be loaded when somebody asked."""

    @initialize()
    def begin(self) -> None:
        Tracked.alive.clear()
        self.folder = Path(tempfile.mkdtemp())
        self.counter = 0
        self.on_disk: dict[str, int | None] = {}  # None: damaged
        self.answers: dict[str, int | None] = {}
        self.held: list[tuple[PooledModel, Heavy, int]] = []
        for name in "abcd":
            self.replace(name)
        self.pool = mlup.ModelPool(
            {name: self.folder / name for name in "abcd"}, memory_budget="40MiB", timeout_seconds=0.0, retry_seconds=1000.0
        )
        self.answers = dict.fromkeys("abcd")

    def _write(self, name: str, content: bytes) -> None:
        new = self.folder / "new"
        new.write_bytes(content)
        new.replace(self.folder / name)

    @rule(name=NAMES)
    def replace(self, name: str) -> None:
        self.counter += 1
        made = Heavy(self.counter)
        self._write(name, pickle.dumps(made))
        self.on_disk[name] = self.counter

    @rule(name=NAMES)
    def damage(self, name: str) -> None:
        self.counter += 1
        self._write(name, pickle.dumps({"value": list(range(self.counter + 100))})[:-20])
        self.on_disk[name] = None

    def _take(self, name: str) -> PooledModel | None:
        """The model, or None where that is right: the file is damaged and nothing is loaded, or there is no room."""
        loaded = any(each.loaded for each in self.pool.report().models if each.name == name)
        new, old = self.on_disk[name], self.answers[name] if loaded else None
        try:
            taken = self.pool._take(name)
        except errors.ModelPoolFull:
            # What else this process has allocated since the pool was made counts too; but whatever nobody uses has gone first.
            assert [each.name for each in self.pool.report().models if each.loaded and each.users == 0] == []
            return None
        except errors.CorruptModelError:
            assert (new, old) == (None, None)
            return None
        value = taken.model.value
        assert value in (new, old)
        assert value == new or new is None or self.held  # the old one for a new one only without room for both
        self.answers[name] = value
        return taken

    @rule(name=NAMES, X=st.integers(0, 9))
    def ask(self, name: str, X: int) -> None:
        taken = self._take(name)
        if taken is not None:
            with taken:
                assert taken.predict(X=X) == (self.answers[name], X)

    @rule(name=NAMES)
    def hold(self, name: str) -> None:
        taken = self._take(name) if len(self.held) < 3 else None
        if taken is not None:
            self.held.append((taken, taken.model, taken.model.value))

    @rule(which=st.integers(0, 2))
    def release(self, which: int) -> None:
        if which < len(self.held):
            self.held.pop(which)[0].release()

    @rule(name=NAMES)
    def evict(self, name: str) -> None:
        users = [each.users for each in self.pool.report().models if each.name == name and each.loaded]
        assert self.pool.evict(name) == ((name,) if users == [0] else ())

    @rule(name=NAMES, pinned=st.booleans())
    def pin(self, name: str, pinned: bool) -> None:
        self.pool.pin(name, pinned=pinned)

    @rule()
    def all_at_once(self) -> None:
        """Four threads ask for everything while a fifth evicts: each answer is of a file that was there, each error typed."""
        right = {name: {self.on_disk[name], self.answers[name]} for name in "abcd"}
        wrong: list[BaseException] = []
        start = threading.Barrier(5)

        def ask(first: int) -> None:
            start.wait()
            for name in ("abcd" * 2)[first : first + 4]:
                try:
                    with self.pool.use(name) as taken:
                        assert taken.predict(X=1)[0] in right[name]
                except (errors.ModelPoolFull, errors.CorruptModelError):
                    pass
                except BaseException as error:
                    wrong.append(error)

        def evict() -> None:
            start.wait()
            for name in "abcd":
                self.pool.evict(name)

        threads = [threading.Thread(target=ask, args=(first,)) for first in range(4)] + [threading.Thread(target=evict)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert [repr(each) for each in wrong] == []
        self.pool.evict()
        for name, entry in self.pool._entries.items():
            self.answers[name] = None if entry.copy is None else entry.copy.ml.model_obj.value

    @rule()
    @precondition(lambda self: hasattr(os, "fork") and threading.active_count() == 1)
    def fork(self) -> None:
        """A child finds nothing loaded, loads, and leaves the parent's models alone."""
        name = next((each for each in "abcd" if self.on_disk[each] is not None), None)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                assert not any(each.loaded for each in self.pool.report().models)
                assert all(model.value == value and lease.model is model for lease, model, value in self.held)
                if name is not None and not self.held:
                    # What this machine itself has allocated since it began counts too: there may be no room left for one.
                    with contextlib.suppress(errors.ModelPoolFull), self.pool.use(name) as taken:
                        assert taken.model.value == self.on_disk[name]
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    @invariant()
    def nobody_loses_what_he_holds(self) -> None:
        if not hasattr(self, "pool"):
            return
        for lease, model, value in self.held:
            assert lease.model is model
            assert (model.value, model.weights[0]) == (value, value % 256)

    @invariant()
    def nothing_else_is_alive(self) -> None:
        if not hasattr(self, "pool"):
            return
        loaded = {id(each.copy.ml.model_obj) for each in self.pool._entries.values() if each.copy is not None}
        held = {id(model) for _, model, _ in self.held}
        if {id(each) for each in Tracked.alive} != loaded | held:
            gc.collect()  # what a rule of the test dropped last
        assert {id(each) for each in Tracked.alive} == loaded | held
        for entry in self.pool._entries.values():
            mine = sum(lease._copy is entry.copy for lease, _, _ in self.held)
            assert entry.loading is None
            assert entry.copy is None or entry.copy.users == mine

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.close()
            for lease, _, _ in self.held:
                lease.release()
            self.held.clear()
            gc.collect()
            assert len(Tracked.alive) == 0
            shutil.rmtree(self.folder)


@pytest.mark.slow
@pytest.mark.limit_anon("1 GiB")  # in a process of its own, as the other tests of pools
def test_any_order_of_steps_from_any_thread_leaves_what_it_should() -> None:
    """See the module's first lines; the steps that fail are printed as a program."""
    run_state_machine_as_test(Pool, settings=FEW)


@pytest.mark.limit_anon("1 GiB")
def test_a_pool_with_no_room_says_so_in_the_machine_too(tmp_path: Path) -> None:
    """The machine's budget is one in which models are evicted, and refused when three are held: or it would show nothing."""
    for name in "abcd":
        (tmp_path / name).write_bytes(pickle.dumps(Heavy(1)))
    with mlup.ModelPool(tmp_path, memory_budget="40MiB", timeout_seconds=0.0) as pool:
        for name in "abcd":
            with pool.use(name):
                pass
        assert sum(each.evictions for each in pool.report().models) > 0
        held = []
        with pytest.raises(errors.ModelPoolFull):
            held.extend(pool._take(name) for name in "abcd")
        for each in held:
            each.release()
