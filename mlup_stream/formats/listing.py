"""How `inspect` tells things: lists are cut at `LISTED` entries, texts at `SHOWN_CHARACTERS`, with their length beside them."""

from __future__ import annotations

import array
import math
from collections.abc import Iterable
from typing import Any

__all__ = ["LISTED", "SHOWN_CHARACTERS", "listed", "plain"]

LISTED = 1000
SHOWN_CHARACTERS = 200
_SHOWN_ITEMS = 5


def listed(key: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """A list and its length, the list itself cut at `LISTED`."""
    return {key: entries[:LISTED], f"{key}_total": len(entries)}


def plain(value: Any) -> Any:
    """The value as JSON can hold it, and as a reader can take it in."""
    if isinstance(value, str):
        return value if len(value) <= SHOWN_CHARACTERS else f"{value[:SHOWN_CHARACTERS]}... ({len(value)} characters)"
    if isinstance(value, (list, tuple, array.array)):
        shown = [plain(each) for each in _first(value)]
        return shown if len(value) <= _SHOWN_ITEMS else {"first": shown, "length": len(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity, nor what is not a number
    return value


def _first(value: Iterable[Any]) -> list[Any]:
    return [each for each, _ in zip(value, range(_SHOWN_ITEMS), strict=False)]
