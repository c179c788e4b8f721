"""A model that does nothing, for trying a configuration without one."""

from __future__ import annotations

from typing import Any

__all__ = ["EmptyModel"]


class EmptyModel:
    """Predicts None, whatever it is asked."""

    def predict(self, *args: Any, **kwargs: Any) -> None:
        pass
