"""Memory limits for tests, by a pytest plugin (`plugin`), and suites that every storage and binarizer has to pass.

    from mlup_stream.testing import BinarizerConformance, StorageConformance

See docs/testing.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlup_stream.testing.binarizers import BinarizerConformance
    from mlup_stream.testing.storages import StorageConformance

__all__ = ["BinarizerConformance", "StorageConformance"]

_HOMES = {"BinarizerConformance": "binarizers", "StorageConformance": "storages"}


def __getattr__(name: str) -> Any:
    """Imported when asked for: pytest imports this package wherever it is installed."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
