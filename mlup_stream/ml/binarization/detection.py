"""Which binarizer a file asks for: the formats that claim it, or one of three different errors.

Nothing matches, several match, and (from the binarizer's `prepare`) one matches and its library is missing: each has its own
error, because each asks for something else to be done.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mlup_stream.delivery.artifact import Artifact, artifact_of
from mlup_stream.errors import AmbiguousFormatError, CorruptModelError, FormatNotRecognizedError, LoadError, NotAModelFileError
from mlup_stream.formats.peek import Peek
from mlup_stream.formats.recognition.detect import Finding
from mlup_stream.formats.recognition.detect import detect as detect_in
from mlup_stream.plugins import plugged_in
from mlup_stream.registry import ROWS

__all__ = ["detect", "findings_of", "formats_of"]

_SHOWN_BYTES = 16
_SHOWN_NAMES = 5


def formats_of(given: Any) -> tuple[str, ...]:
    """The formats that claim what a storage found; none when it cannot be read. A file object is left where it stood."""
    try:
        artifact = artifact_of(given)
    except LoadError:
        return ()
    try:
        return tuple(finding.format for finding in findings_of(artifact))
    finally:
        artifact.release()


def findings_of(artifact: Artifact) -> tuple[Finding, ...]:
    """The formats that claim it, each with what says so; none for a stream that cannot be rewound, which is not touched."""
    return artifact.header(_detected).found if artifact.is_rewindable else ()


def detect(artifact: Artifact) -> str:
    """The one format that claims the artifact: a `Format`, or the name of somebody else's.

    A stream that cannot be rewound is read whole: nothing could load it otherwise.

    Raises:
        NotAModelFileError: It is empty.
        FormatNotRecognizedError: No format claims it.
        CorruptModelError: It begins like a zip and its directory cannot be read, so that what is in it cannot be known.
        AmbiguousFormatError: Several claim it.
    """
    if not artifact.is_rewindable:
        artifact.content()
    looked = artifact.header(_detected)
    if len(looked.found) == 1:
        return looked.found[0].format
    if looked.found:
        raise _ambiguous(artifact, looked.found)
    if looked.entries is None and looked.size_bytes == 0:
        raise NotAModelFileError(f"{artifact.name}: expected a model, found 0 bytes; export it again", path=artifact.path)
    raise _not_recognized(artifact, looked)


class _Detected(NamedTuple):
    """What detection saw."""

    found: tuple[Finding, ...]
    entries: tuple[str, ...] | None
    size_bytes: int
    head: bytes
    remarks: tuple[str, ...]
    damage: str | None


def _detected(given: Any, name: str) -> _Detected:
    """To be given to `Artifact.header`, which hands over a file, or the path of a folder."""
    with Peek(given, name) as peek:
        found = detect_in(peek, ROWS, plugged_in)
        return _Detected(found, peek.entries, peek.size_bytes, peek.head, tuple(peek.remarks), peek.damage)


def _not_recognized(artifact: Artifact, peek: _Detected) -> LoadError:
    if peek.damage is not None:
        return CorruptModelError(peek.damage, path=artifact.path)
    known = ", ".join(row.name for row in (*ROWS, *plugged_in()))
    if peek.entries is not None:
        inside = ", ".join(peek.entries[:_SHOWN_NAMES]) or "nothing"
        seems = f" ({'; '.join(peek.remarks)})" if peek.remarks else ""
        return FormatNotRecognizedError(
            f"{artifact.name}: expected a model, found a folder with {inside}{seems}, and no saved_model.pb in it;"
            " give the model's file",
            path=artifact.path,
        )
    first = peek.head[:_SHOWN_BYTES]
    seems = f" ({'; '.join(peek.remarks)})" if peek.remarks else ""
    return FormatNotRecognizedError(
        f"{artifact.name}: its format is not recognised: {peek.size_bytes} bytes that begin with {first.hex(' ')} {first!r}"
        f"{seems}; known are {known}; if it is one of these all the same, name it in binarization_type",
        path=artifact.path,
        head=first,
    )


def _ambiguous(artifact: Artifact, found: tuple[Finding, ...]) -> AmbiguousFormatError:
    claims = "; ".join(f"{finding.spec.name} ({finding.evidence})" for finding in found)
    return AmbiguousFormatError(
        f"{artifact.name}: more than one format claims it: {claims}; name the right one in binarization_type",
        path=artifact.path,
        candidates=tuple(finding.spec.name for finding in found),
    )
