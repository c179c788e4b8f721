"""Who holds an object: the names that a person can act on, for a report that says why memory did not come back.

    >>> holders_of(model)
    ("local variable 'model' of predict (app.py:31), kept by the traceback of KeyError", "attribute 'cache' of a Server")

Asked of the collector, which looks through every container once (0.01 s per 100000 objects), and of the running threads' frames,
whose variables it does not see. What it does not track, such as a C extension's own reference, is not found.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from inspect import CO_OPTIMIZED
from types import CellType, FrameType, ModuleType, TracebackType
from typing import Any

__all__ = ["holders_of"]

_MOST = 5
_OWN = __name__.partition(".")[0] + "."


def holders_of(target: Any) -> tuple[str, ...]:
    """What refers to `target`, this package's own running calls apart; at most five, each once."""
    found: dict[str, None] = {}
    running = _running_frames()
    try:
        for index in range(len(running)):  # without a variable for the frame: it would be one more cycle
            for text in _variables(running[index], target):
                found[text] = None
        ignored = {id(running), *map(id, running)}
        for holder in gc.get_referrers(target):
            if id(holder) not in ignored:
                for text in _described(holder, target):
                    found[text] = None
                del holder
    finally:
        # The frames of this search are in the list, and it in them: they would keep `target` until the collector runs.
        running.clear()
    return tuple(found)[:_MOST]


def _running_frames() -> list[FrameType]:
    found = []
    tops = list(sys._current_frames().values())
    while tops:
        frame: FrameType | None = tops.pop()
        while frame is not None:
            found.append(frame)
            frame = frame.f_back
    return found


def _variables(frame: FrameType, target: Any) -> list[str]:
    """The frame's variables that are `target`; none of this package's own calls."""
    if str(frame.f_globals.get("__name__", "")).startswith(_OWN):
        return []
    if frame.f_trace is not None and sys.version_info < (3, 13):
        # The dict is written back to the variables after each call of the trace function: to read it may undo an assignment,
        # and to clear it takes the running call's variables away.
        return []
    variables = frame.f_locals
    names = [name for name, value in variables.items() if value is target]
    if frame.f_code.co_flags & CO_OPTIMIZED and isinstance(variables, dict):
        # Before Python 3.13 this is a copy that the frame keeps, and with it `target`, after its own variable has been deleted.
        variables.clear()
    return [_named(frame, name) for name in names]


def _named(frame: FrameType, name: str) -> str:
    code = frame.f_code
    if code.co_name == "<module>":
        return f"variable {name!r} of {frame.f_globals.get('__name__', 'a module')}"
    return f"local variable {name!r} of {code.co_name} ({code.co_filename.rpartition('/')[2]}:{frame.f_lineno})"


def _described(holder: Any, target: Any) -> Iterator[str]:
    if isinstance(holder, FrameType):
        variables = _variables(holder, target)
        kept = _kept_by(holder) if variables else ""
        yield from (variable + kept for variable in variables)
    elif isinstance(holder, dict):
        names = [key for key, value in holder.items() if value is target and isinstance(key, str)]
        owner = next((each for each in gc.get_referrers(holder) if getattr(each, "__dict__", None) is holder), None)
        if isinstance(owner, ModuleType):
            yield from (f"variable {name!r} of {owner.__name__}" for name in names)
        elif owner is not None:
            yield from (f"attribute {name!r} of a {type(owner).__name__}" for name in names)
        else:
            yield f"a dict of {len(holder)}" + (f", under {names[0]!r}" if names else "")
    elif isinstance(holder, CellType):
        yield "a variable of a closure"
    elif isinstance(holder, (list, tuple, set, frozenset)):
        yield f"a {type(holder).__name__} of {len(holder)}"
    elif isinstance(holder, BaseException):
        yield f"the {type(holder).__name__} itself"
    else:
        # Since Python 3.11 an object's attributes lie in it, not in a dict of theirs.
        attributes = [name for name, value in getattr(holder, "__dict__", {}).items() if value is target]
        kind = type(holder).__name__
        yield f"attribute {attributes[0]!r} of a {kind}" if attributes else f"a {kind}"


def _kept_by(frame: FrameType) -> str:
    """The exception whose traceback keeps a call that has ended."""
    trace: list[Any] = [each for each in gc.get_referrers(frame) if isinstance(each, TracebackType)]
    while trace:
        each = trace.pop()
        for holder in gc.get_referrers(each):
            if isinstance(holder, BaseException):
                return f", kept by the traceback of {type(holder).__name__}"
            if isinstance(holder, TracebackType):
                trace.append(holder)
    return ""
