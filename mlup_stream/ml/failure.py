"""What a failed load leaves behind: nothing, even while the caller holds the exception.

An exception keeps its traceback, the traceback its frames, and the frames their local variables: raw bytes, half of a model, a
view. A server that logs the error and keeps it would keep a gigabyte with it.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator

from mlup_stream.memory.reclaim import give_back

__all__ = ["Release", "nothing_left_behind"]

Release = Callable[[], tuple[str, ...]]

# Where the standard library's errors keep the whole document that they complain of.
_DOCUMENT_ATTRIBUTES = ("object", "doc")
_KEPT_BYTES = 256


@contextlib.contextmanager
def nothing_left_behind() -> Iterator[list[Release]]:
    """On an exception, empties the frames that it came through and runs the releases that were added to the list.

    The exception goes on to the caller with its message, chain and line numbers; only the frames' local variables are gone.
    """
    releases: list[Release] = []
    try:
        yield releases
    except BaseException as error:
        _forget(error)
        give_back(*releases)
        raise


def _forget(error: BaseException) -> None:
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        each = chain.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        chain += [each.__cause__, each.__context__]
        traceback.clear_frames(each.__traceback__)
        for name in _DOCUMENT_ATTRIBUTES:
            document = getattr(each, name, None)
            if isinstance(document, (bytes, bytearray, memoryview, str)) and len(document) > _KEPT_BYTES:
                with contextlib.suppress(AttributeError, TypeError):
                    setattr(each, name, document[:_KEPT_BYTES] if isinstance(document, str) else bytes(document[:_KEPT_BYTES]))
