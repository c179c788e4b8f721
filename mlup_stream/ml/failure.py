"""What a failed load leaves behind: nothing, even while the caller holds the exception.

An exception keeps its traceback, the traceback its frames, and the frames their local variables: raw bytes, half of a model, a
view. A server that logs the error and keeps it would keep a gigabyte with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from types import TracebackType

from mlup_stream.memory.reclaim import give_back, promotions

__all__ = ["Release", "nothing_left_behind"]

Release = Callable[[], tuple[str, ...]]

# Where the standard library's errors keep the whole document that they complain of.
_DOCUMENT_ATTRIBUTES = ("object", "doc")
_KEPT_BYTES = 256


@contextlib.contextmanager
def nothing_left_behind(spared: Collection[str] = ()) -> Iterator[list[Release]]:
    """On an exception, empties the frames that it came through and runs the releases that were added to the list.

    The exception goes on to the caller with its message, chain and line numbers; only the frames' local variables are gone.

    Args:
        spared: Modules whose frames keep theirs, for a debugger: somebody else's storage, which has no model yet, and in
            Python's development mode (`-X dev`) his binarizer, whose variables may be gigabytes. It may grow until the
            exception comes.
    """
    releases: list[Release] = []
    before = promotions()
    try:
        yield releases
    except BaseException as error:
        _forget(error, spared)
        give_back(*releases, promotions_before=before)
        raise


def _forget(error: BaseException, spared: Collection[str]) -> None:
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        each = chain.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        chain += [each.__cause__, each.__context__]
        _clear_frames(each.__traceback__, spared)
        for name in _DOCUMENT_ATTRIBUTES:
            document = getattr(each, name, None)
            if isinstance(document, (bytes, bytearray, memoryview, str)) and len(document) > _KEPT_BYTES:
                with contextlib.suppress(AttributeError, TypeError):
                    setattr(each, name, document[:_KEPT_BYTES] if isinstance(document, str) else bytes(document[:_KEPT_BYTES]))


def _clear_frames(trace: TracebackType | None, spared: Collection[str]) -> None:
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") not in spared:
            with contextlib.suppress(RuntimeError):  # a frame that still runs: the caller's own
                trace.tb_frame.clear()
        trace = trace.tb_next
