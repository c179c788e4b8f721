"""What an index that lies in its mapped file answers to whoever would change it."""

from __future__ import annotations

from typing import Any

from mlup_stream.errors import ModelBinarizationError
from mlup_stream.formats.kinds import Format

__all__ = ["refusal"]


def refusal(file_name: str, method: str, format: Format, because: str = "") -> Any:
    """A method in the place of `method`, which raises and says how the index may be changed.

    Args:
        file_name: The index's file.
        method: What is called.
        format: The index's.
        because: What more there is to say of it, from a comma on.
    """

    def refuse(*arguments: Any, **more: Any) -> Any:
        raise ModelBinarizationError(
            f"{file_name}: {method}() would change an index that lies in its file{because}; load it with delivery='path' to"
            " change it",
            path=file_name,
            format=format.value,
        )

    return refuse
