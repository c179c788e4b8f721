"""Why Keras could not build a model: its own last words, and which layer they are about.

Keras says why at the very end, behind the configuration of every layer around the one that failed; and it raises a `ValueError`
of a file that is damaged as of one that is whole and of another version. Which it is tells where the error came from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import TracebackType

__all__ = ["is_unreadable", "reason_of"]

_COLOURS = re.compile(r"\x1b\[[\d;]*m")
_BEFORE_THE_REASON = re.compile(
    r"Exception encountered: (?:'')?|Exception encountered when calling [\w. ()]+\.\s+|Example error message for [^\n]*:\s+"
)
_LAYERS = (
    re.compile(r"calling (?P<kind>\w+)\.call\(\)"),
    re.compile(r"for object <(?P<kind>\w+) name=(?P<name>[^,>]+)"),
    re.compile(r"class '(?:[\w.]+\.)?(?P<kind>\w+)'[^{]*config=\{.*?'name': '(?P<name>[^']+)'", re.DOTALL),
)
_READERS = frozenset({"h5py", "json", "zipfile"})


def reason_of(error: BaseException) -> tuple[str, str]:
    """The layer that Keras complains of, as a message begins with it, or nothing; and what it says last."""
    text = _COLOURS.sub("", str(error)).strip()
    said, layer = text, ""
    for marker in _BEFORE_THE_REASON.finditer(text):
        # Each wraps the one before: the innermost comes last.
        before, said = text[: marker.end()], text[marker.end() :]
        layer = _layer_in(before) or layer
    return layer, said


def _layer_in(text: str) -> str:
    found = [list(pattern.finditer(text))[-1:] for pattern in _LAYERS]
    last = max((each[0] for each in found if each), key=lambda each: each.start(), default=None)
    if last is None:
        return ""
    name = last.groupdict().get("name")
    return f"{last['kind']} {name!r}: " if name else f"{last['kind']}: "


def is_unreadable(error: BaseException) -> bool:
    """Whether the error, or one that it came from, was raised where the file is read: in HDF5, the zip or its JSON."""
    return any(_READERS & set(_packages(each.__traceback__)) for each in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _packages(trace: TracebackType | None) -> Iterator[str]:
    while trace is not None:
        yield str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0]
        trace = trace.tb_next
