"""Who holds what should have gone: by a name that a person can look for."""

from __future__ import annotations

import sys
import threading
import weakref
from typing import Any

import pytest

from mlup_stream.memory.holders import holders_of


class Model:
    """Something that can be held."""


class Server:
    def __init__(self, model: Model) -> None:
        self.cache = model


def fail_with(model: Model) -> None:
    raise KeyError("not there")


def test_nothing_holds_what_only_the_asker_has() -> None:
    """What was made for the question has no holder."""
    found = holders_of(Model())  # not in the assert, which keeps what it looks at
    assert found == ()


def test_a_live_exception_is_named() -> None:
    """A server that keeps the last error keeps the variables of every call that the error went through."""
    model = Model()
    with pytest.raises(KeyError) as last_error:
        fail_with(model)
    found = [each for each in holders_of(model) if "fail_with" in each]
    assert len(found) == 1
    assert found[0].startswith("local variable 'model' of fail_with (test_holders.py:")
    assert found[0].endswith("kept by the traceback of KeyError")
    assert last_error.value.args == ("not there",)


def test_asking_holds_nothing() -> None:
    """A variable that is deleted afterwards lets its object go, though the frame it was in was looked through."""
    model = Model()
    alive = weakref.ref(model)
    found = holders_of(model)
    del model
    is_alive = alive() is not None
    assert not is_alive
    assert [each.partition(" (")[0] for each in found] == ["local variable 'model' of test_asking_holds_nothing"]


def test_an_attribute_is_named_with_its_class() -> None:
    """Whether the attributes lie in a dict of their own or in the object."""
    model = Model()
    server = Server(model)
    assert "attribute 'cache' of a Server" in holders_of(model)
    assert vars(server)["cache"] is model
    assert "attribute 'cache' of a Server" in holders_of(model)


def test_a_modules_variable_is_named_with_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """The most usual holder of a model."""
    model = Model()
    monkeypatch.setattr(sys.modules[__name__], "the_model", model, raising=False)
    assert f"variable 'the_model' of {__name__}" in holders_of(model)


def test_containers_and_closures_are_named_by_kind() -> None:
    """A list, a dict with its key, a closure."""
    model = Model()
    held: list[Any] = [[model, 1], {"best": model}, lambda: model]
    found = holders_of(model)
    assert "a list of 2" in found
    assert "a dict of 1, under 'best'" in found
    assert "a variable of a closure" in found
    assert len(held) == 3


def test_another_threads_variable_is_found() -> None:
    """The collector does not see the variables of running calls."""
    ready, done = threading.Event(), threading.Event()
    models = [Model()]

    def serve(served: Model) -> None:
        ready.set()
        done.wait(10)

    thread = threading.Thread(target=serve, args=(models[0],))
    thread.start()
    ready.wait(10)
    try:
        assert any("local variable 'served' of serve" in each for each in holders_of(models[0]))
    finally:
        done.set()
        thread.join()


def test_there_are_never_more_than_five() -> None:
    """A report is read by people."""
    model = Model()
    held = [[model] * size for size in range(1, 20)]
    assert len(holders_of(model)) == 5
    assert len(held) == 19


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="f_locals is a view of the frame, which nothing writes back")
def test_a_traced_call_keeps_its_variables() -> None:
    """A debugger's or a coverage tool's trace function: looking for holders takes no variable from the call that it follows."""
    model = Model()

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if event == "line" and frame.f_code is traced.__code__:
            holders_of(model)
        return trace

    def traced() -> int:
        first = 1
        second = first + 1
        return first + second

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        total = traced()
    finally:
        sys.settrace(before)
    assert total == 3
