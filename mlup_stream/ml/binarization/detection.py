"""Which binarizer a file asks for: the formats that claim it, or one of three different errors.

Nothing matches, several match, and (from the binarizer's `prepare`) one matches and its library is missing: each has its own
error, because each asks for something else to be done.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from mlup_stream.delivery.files import checked_stat, explain_os_error
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.errors import AmbiguousFormatError, CorruptModelError, FormatNotRecognizedError, LoadError, NotAModelFileError
from mlup_stream.formats.peek import Peek
from mlup_stream.formats.recognition.detect import Finding
from mlup_stream.formats.recognition.detect import detect as detect_in
from mlup_stream.plugins import plugged_in
from mlup_stream.registry import ROWS

__all__ = ["detect", "findings_of", "formats_of"]

_SHOWN_BYTES = 16
_SHOWN_NAMES = 5


def formats_of(loaded: LoadedFile) -> tuple[str, ...]:
    """The formats that claim the file; none when it cannot be read. A file object is left where it stood."""
    try:
        return tuple(finding.format for finding in findings_of(loaded))
    except LoadError:
        return ()


def findings_of(loaded: LoadedFile) -> tuple[Finding, ...]:
    """The formats that claim the file, each with what says so; none for a stream that cannot be rewound, which is not touched.

    Raises:
        ModelNotFoundError, ModelPermissionError, NotAModelFileError: It cannot be opened.
    """
    if _is_unseekable(_content(loaded)):
        return ()
    with _peeked(loaded) as peek:
        return detect_in(peek, ROWS, plugged_in)


def detect(loaded: LoadedFile) -> str:
    """The one format that claims the file: a `Format`, or the name of somebody else's.

    A stream that cannot be rewound is read whole, and its content put in its place: nothing could load it otherwise.

    Raises:
        ModelNotFoundError, ModelPermissionError: It is not there, or may not be read.
        NotAModelFileError: It is empty, or neither a file, a folder, bytes, text nor a file object.
        FormatNotRecognizedError: No format claims it.
        CorruptModelError: It begins like a zip and its directory cannot be read, so that what is in it cannot be known.
        AmbiguousFormatError: Several claim it.
    """
    if _is_unseekable(_content(loaded)):
        loaded.raw_data = loaded.content()
    with _peeked(loaded) as peek:
        found = detect_in(peek, ROWS, plugged_in)
        if len(found) == 1:
            return found[0].format
        if found:
            raise _ambiguous(loaded, found)
        if peek.entries is None and peek.size_bytes == 0:
            raise NotAModelFileError(f"{loaded.name}: expected a model, found 0 bytes; export it again", path=loaded.path)
        raise _not_recognized(loaded, peek)


@contextlib.contextmanager
def _peeked(loaded: LoadedFile) -> Iterator[Peek]:
    data = _content(loaded)
    position = data.tell() if hasattr(data, "read") else None
    try:
        with contextlib.ExitStack() as stack:
            yield stack.enter_context(_peek_at(loaded, data, stack))
    finally:
        if position is not None:
            data.seek(position)


def _peek_at(loaded: LoadedFile, data: Any, stack: contextlib.ExitStack) -> Peek:
    # Where there is no path the name says what kind of content it is, which breaks no tie.
    name = loaded.name
    if isinstance(data, str):
        return Peek(name=name, text=data)
    if isinstance(data, io.TextIOBase):
        return Peek(name=name, text=data.read())
    if hasattr(data, "read"):
        return Peek(stack.enter_context(loaded.open()), name)
    if data is not None:
        return Peek(loaded.content(), name)
    if loaded.path is None:
        return Peek(b"", name)
    checked_stat(loaded.path)
    try:
        return Peek(loaded.path)
    except OSError as error:
        raise explain_os_error(error, loaded.path) from error


def _content(loaded: LoadedFile) -> Any:
    """What came with the handle, or None. Not `raw_data`, which reads the file when the delivery is `bytes`."""
    return loaded.raw_data if loaded.has_content else None


def _is_unseekable(data: Any) -> bool:
    if not hasattr(data, "read"):
        return False
    seekable = getattr(data, "seekable", None)
    return not (callable(seekable) and seekable())


def _not_recognized(loaded: LoadedFile, peek: Peek) -> LoadError:
    if peek.damage is not None:
        return CorruptModelError(peek.damage, path=loaded.path)
    known = ", ".join(row.name for row in (*ROWS, *plugged_in()))
    if peek.entries is not None:
        inside = ", ".join(peek.entries[:_SHOWN_NAMES]) or "nothing"
        seems = f" ({'; '.join(peek.remarks)})" if peek.remarks else ""
        return FormatNotRecognizedError(
            f"{loaded.name}: expected a model, found a folder with {inside}{seems}, and no saved_model.pb in it;"
            " give the model's file",
            path=loaded.path,
        )
    first = peek.head[:_SHOWN_BYTES]
    seems = f" ({'; '.join(peek.remarks)})" if peek.remarks else ""
    return FormatNotRecognizedError(
        f"{loaded.name}: its format is not recognised: {peek.size_bytes} bytes that begin with {first.hex(' ')} {first!r}{seems};"
        f" known are {known}; if it is one of these all the same, name it in binarization_type",
        path=loaded.path,
        head=first,
    )


def _ambiguous(loaded: LoadedFile, found: tuple[Finding, ...]) -> AmbiguousFormatError:
    claims = "; ".join(f"{finding.spec.name} ({finding.evidence})" for finding in found)
    return AmbiguousFormatError(
        f"{loaded.name}: more than one format claims it: {claims}; name the right one in binarization_type",
        path=loaded.path,
        candidates=tuple(finding.spec.name for finding in found),
    )
