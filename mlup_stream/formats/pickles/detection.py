"""What tells pickles and joblib files, and what their beginnings say. See `head` for how the two are told apart."""

from __future__ import annotations

from typing import Any, cast

from mlup_stream.formats.peek import Peek
from mlup_stream.formats.pickles.head import Writer, is_bare_pickle, writer_of

__all__ = [
    "detect_bare_pickle",
    "detect_compressed",
    "detect_joblib",
    "detect_pickle",
    "inspect_joblib",
    "inspect_pickle",
    "writer_at",
]

_JOBLIB_SUFFIXES = (".joblib", ".jbl")


def writer_at(peek: Peek) -> Writer | None:
    """What wrote the pickle, found once: each of the formats that are pickles asks."""
    if "writer" not in peek.notes:
        peek.notes["writer"] = writer_of(peek.at, peek.size_bytes)
    return cast("Writer | None", peek.notes["writer"])


def detect_pickle(peek: Peek) -> str | None:
    writer = writer_at(peek)
    if writer is Writer.PICKLE or (writer is Writer.UNDECIDED and not _is_for_joblib(peek)):
        return f"a pickle of protocol {peek.head[1]}"
    return None


def detect_bare_pickle(peek: Peek) -> str | None:
    return "pickle opcodes of protocol 0 or 1" if is_bare_pickle(peek.head, peek.tail, peek.size_bytes) else None


def detect_joblib(peek: Peek) -> str | None:
    writer = writer_at(peek)
    if writer is Writer.JOBLIB:
        return "a pickle with joblib's array wrapper"
    if writer is Writer.UNDECIDED and _is_for_joblib(peek):
        return "a pickle whose beginning does not show whether joblib wrote arrays into it, which reads both"
    return None


def _is_for_joblib(peek: Peek) -> bool:
    """Whether what is undecided is for joblib, which reads what `pickle` writes as well: it has to be installed, or be named."""
    from importlib.util import find_spec

    return peek.is_named(*_JOBLIB_SUFFIXES) or find_spec("joblib") is not None


def detect_compressed(peek: Peek) -> str | None:
    from mlup_stream.formats.pickles.compressed_head import unpacked_head

    unpacked = unpacked_head(peek)
    if unpacked is None:
        return None
    data = unpacked.data
    if writer_of(lambda offset, size_bytes: data[offset : offset + size_bytes], None) is not None:
        return f"a pickle, compressed with {unpacked.compressor}"
    if data and is_bare_pickle(data[:512], b"", len(data)):
        return f"a pickle of protocol 0 or 1, compressed with {unpacked.compressor}"
    inside = f"something that begins with {data[:16]!r} and is not a pickle" if data else "a damaged stream"
    peek.remarks.append(f"compressed with {unpacked.compressor}, and inside is {inside}")
    return None


def inspect_pickle(given: Any, name: str) -> dict[str, Any]:
    from mlup_stream.formats.pickles.frames import walk
    from mlup_stream.formats.pickles.named_globals import first_globals

    found = walk(given, name)
    return {
        "protocol": found.protocol or None,  # 0 and 1 are not declared
        "payload_bytes": found.payload_bytes,
        "text_bytes": found.text_bytes,
        "structure_bytes": found.structure_bytes,
        "payloads": found.payloads,
        "largest_payload_bytes": found.largest_payload_bytes,
        "walked_whole": found.whole,
        "globals_in_head": first_globals(given, name),
    }


def inspect_joblib(given: Any, name: str) -> dict[str, Any]:
    from mlup_stream.formats.pickles.compressed_head import unpacked_head
    from mlup_stream.formats.pickles.joblib import survey
    from mlup_stream.formats.pickles.named_globals import first_globals

    with Peek(given, name) as peek:
        packed = unpacked_head(peek)
    if packed is not None:
        return {"compressor": packed.compressor, "globals_in_head": first_globals(packed.data, name)}
    found = survey(given, name)
    return {
        "compressor": None,
        "arrays": found.arrays,
        "payload_bytes": found.payload_bytes,
        "structure_bytes": found.structure_bytes,
        "largest_payload_bytes": found.largest_payload_bytes,
        "walked_whole": found.whole,
        "globals_in_head": first_globals(given, name),
    }
