"""What a test may take, as its markers say, and whether what it took was within that."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from mlup_stream.errors import ConfigError
from mlup_stream.units import format_bytes, parse_bytes

__all__ = ["LIMIT_LOAD", "MARKERS", "Limit", "Taken", "Verdict", "limits_of", "load_arguments"]

MARKERS = {"limit_rss": "rss", "limit_anon": "anon", "limit_pss": "pss"}
"""The markers of a whole test, and which figure each of them bounds."""
LIMIT_LOAD = "limit_load"
_LOAD_LIMITS = ("peak_rss", "peak_anon", "settled_rss", "settled_anon")


class Limit(NamedTuple):
    """One bound, in bytes above the baseline.

    Attributes:
        figure: `peak_rss`, `peak_anon` or `peak_pss`; `load peak_anon` and the like for the load that `limit_load` names.
        limit_bytes: What may be taken.
        said: How the marker said it.
    """

    figure: str
    limit_bytes: int
    said: str


class Taken(NamedTuple):
    """What was measured of one figure, in bytes above the baseline.

    Attributes:
        low_bytes: It was at least this: it was seen.
        high_bytes: It was at most this; None if nothing proves that.
        how: Where the figure comes from.
    """

    low_bytes: int
    high_bytes: int | None
    how: str


class Verdict(NamedTuple):
    """A limit beside what was measured; `taken` is None where that could not be measured."""

    limit: Limit
    taken: Taken | None

    @property
    def is_over(self) -> bool:
        return self.taken is not None and self.taken.low_bytes > self.limit.limit_bytes

    @property
    def over_bytes(self) -> int:
        return 0 if self.taken is None else self.taken.low_bytes - self.limit.limit_bytes

    def __str__(self) -> str:
        if self.taken is None:
            return f"{self.limit.figure}: limit {self.limit.said}, not measured here"
        sign = "over" if self.is_over else "under"
        measured = format_bytes(self.taken.low_bytes)
        if self.taken.high_bytes is not None and self.taken.high_bytes > self.taken.low_bytes:
            measured += f" (at most {format_bytes(self.taken.high_bytes)})"
        said = self.limit.said
        if not said.endswith(("B", "b")):  # a multiple, a number, or the growth since a record
            said = f"{format_bytes(self.limit.limit_bytes)} ({said})"
        return f"{self.limit.figure}: limit {said}, measured {measured}, {format_bytes(abs(self.over_bytes))} {sign}"


def limits_of(markers: dict[str, tuple[tuple[Any, ...], dict[str, Any]]]) -> list[Limit]:
    """The limits that the markers of a test set on all of it.

    Args:
        markers: The arguments of each, by its name.

    Raises:
        ConfigError: A marker does not say one size.
    """
    found = []
    for name, figure in MARKERS.items():
        if name not in markers:
            continue
        positional, named = markers[name]
        if len(positional) != 1 or named:
            raise ConfigError(f'{name}: expected one size, such as {name}("300 MiB"), found {positional} {named or ""}'.rstrip())
        found.append(Limit(f"peak_{figure}", _size(name, positional[0]), str(positional[0])))
    return found


def load_arguments(marker: tuple[tuple[Any, ...], dict[str, Any]], folders: list[str]) -> tuple[str, list[Limit], dict[str, Any]]:
    """The file that `limit_load` names, the limits that it sets on the load, and what else it says, for `Config`.

    Args:
        marker: Its arguments.
        folders: Where a relative path is looked for.

    Raises:
        ConfigError: It names no file, or a limit is none.
    """
    positional, named = marker
    if len(positional) != 1:
        raise ConfigError(f'limit_load: expected one path, limit_load("model.onnx", peak_anon=0.05), found {positional}')
    path = next((each for folder in folders if os.path.exists(each := os.path.join(folder, positional[0]))), None)
    if path is None:
        raise ConfigError(f"limit_load: {positional[0]}: no such file in {' or '.join(folders)}; give a path from one of them")
    size_bytes = _size_of(path)
    limits = []
    for figure in _LOAD_LIMITS:
        if figure in named:
            value = named.pop(figure)
            is_ratio = isinstance(value, float)
            limit_bytes = int(value * size_bytes) if is_ratio else _size(f"limit_load({figure}=...)", value)
            limits.append(Limit(f"load {figure}", limit_bytes, f"{value:g}x of the file" if is_ratio else str(value)))
    return path, limits, named


def _size(name: str, value: Any) -> int:
    try:
        return value if isinstance(value, int) and not isinstance(value, bool) else parse_bytes(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: expected a size, such as '300 MiB', found {value!r}") from error


def _size_of(path: str) -> int:
    if not os.path.isdir(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(root, each)) for root, _, names in os.walk(path) for each in names)
