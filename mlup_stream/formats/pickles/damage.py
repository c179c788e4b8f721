"""Whether a pickle is damaged, or whole and only not to be built here: asked when an unpickler has failed.

An unpickler raises the same errors for both. So the file is followed once more without it, over stand-ins that do nothing: where
an opcode finds on the stack what it cannot work with, a length leads past the end, or text is no text, the file is damaged. What
only a class or function of the model can have raised is none.
"""

from __future__ import annotations

import copyreg
from typing import Any

from mlup_stream.errors import CorruptModelError
from mlup_stream.formats.pickles.dry_unpickler import CannotFollow
from mlup_stream.formats.pickles.frames import scan
from mlup_stream.formats.pickles.joblib import SteppedFile, Survey
from mlup_stream.formats.source import Source

__all__ = ["damage_in"]

_SCANNED_STEPS = 5_000_000  # 3 s
_FOLLOWED_STEPS = 500_000
"""Of the second look, which keeps what it steps over: 1 s, and 50 MB."""


def damage_in(
    given: Any, name: str, *, start: int = 0, has_arrays: bool = False, followed_steps: int = _FOLLOWED_STEPS
) -> CorruptModelError | None:
    """What is wrong with the pickle at `start`; None where nothing was found, as far as so many steps lead.

    Args:
        given: A view, a path, a buffer or a seekable binary file that is not compressed.
        name: What to call it in a message.
        start: Where the pickle begins.
        has_arrays: Whether the bytes of arrays lie between the opcodes, as joblib writes them.
        followed_steps: After how many reads to give up following it.
    """
    with Source(given, name) as source:
        try:
            if not has_arrays:
                scan(given, name, max_steps=_SCANNED_STEPS, start=start)
            _Followed(SteppedFile(given, source, followed_steps, start)).load()
        except CorruptModelError as damage:
            return damage
        except (CannotFollow, MemoryError):
            return None
        except Exception as error:
            return source.corrupt("opcodes that fit together", f"{type(error).__name__}: {error}")
    return None


class _Followed(Survey):
    def get_extension(self, code: int) -> None:
        if code not in copyreg._inverted_registry:  # type: ignore[attr-defined]  # private, and what an unpickler asks
            raise ValueError(f"extension code {code}, which nobody has registered")
        super().get_extension(code)
