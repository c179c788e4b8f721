"""What the headers of a file say, in plain values that JSON can hold, building nothing, importing no framework.

The inspector that the format's row names walks the format's own structure with the parser that the loader uses, so what it says
is what a load would find; it reads headers and directories, never a payload.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

from mlup_stream.errors import MLupError
from mlup_stream.formats.kinds import FormatSpec, function_at

__all__ = ["inspect"]


def inspect(spec: FormatSpec, given: Any, name: str) -> dict[str, Any]:
    """What the headers say; nothing where the row of somebody else's format names no inspector, or one that fails.

    Args:
        spec: The row of what the file was detected as.
        given: The path of the file or folder, a buffer, or a seekable binary file, whose cursor may move.
        name: What to call it in a message.

    Raises:
        CorruptModelError: The headers are damaged.
        OSError: The path cannot be opened.
    """
    if not spec.inspector:
        return {}
    if isinstance(given, (bytearray, bytes, memoryview)):
        given = io.BytesIO(given)  # which copies nothing of `bytes`
    try:
        said: dict[str, Any] = function_at(spec.inspector)(given, name)
    except (MLupError, OSError):
        raise
    except Exception as error:
        if not spec.origin:
            raise
        warnings.warn(
            f"mlup_stream: {spec.inspector} of {spec.origin} failed on {name}, left out ({type(error).__name__}: {error})",
            RuntimeWarning,
            stacklevel=2,
        )
        return {}
    return said
