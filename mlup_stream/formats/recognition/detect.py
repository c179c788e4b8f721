"""Which format a file has, from a few hundred bytes at each end, a zip's directory, and no library imported.

The rows that are handed in name the detectors. Each looks at a `Peek` and says in words what it saw, or None; one whose first
bytes are not there is not asked, and its module not imported. Formats that begin with an unmistakable mark are asked first, then
the marks of somebody else's formats, and the rest only when none of these claims the file: protobuf, and pickles of protocol 0
and 1, begin with nothing that could not begin something else. A file that two formats claim is decided by its name if that fits
one of them best; the name decides nothing else, because names lie.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mlup_stream.formats.kinds import Detector, FormatSpec, function_at
from mlup_stream.formats.peek import Peek
from mlup_stream.formats.recognition.known_non_models import known_non_model

__all__ = ["Finding", "detect"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A format that claims the file, and what says so."""

    spec: FormatSpec
    evidence: str

    @property
    def format(self) -> str:
        """A `Format`, or the name of somebody else's."""
        return self.spec.format


def detect(peek: Peek, rows: Iterable[FormatSpec], others: Callable[[], Iterable[FormatSpec]] = tuple) -> tuple[Finding, ...]:
    """The formats that claim what is peeked at: one if it was recognised, none if not, several if it is ambiguous.

    When none does, `peek.remarks` and `peek.damage` say what was noticed. Nothing is allocated by a number found in the file.

    Args:
        peek: The file, folder or buffer.
        rows: The formats of this package.
        others: Gives those of other distributions; called if no mark of ours is there.
    """
    rows = tuple(rows)
    found = _claims(peek, rows, marked=True)
    if not found:
        foreign = tuple(others())
        found = _claims(peek, foreign, marked=True) or _claims(peek, (*rows, *foreign), marked=False)
    if not found and (what := known_non_model(peek)):
        peek.remarks.append(what)
    return _break_tie(peek, found)


def _claims(peek: Peek, rows: Iterable[FormatSpec], *, marked: bool) -> list[Finding]:
    found: dict[str, Finding] = {}
    for spec in rows:
        for detector in spec.detectors:
            if detector.marked is marked and spec.name not in found:
                evidence = _evidence(spec, detector, peek)
                if evidence is not None:
                    found[spec.name] = Finding(spec, evidence)
    return list(found.values())


def _is_to_ask(detector: Detector, peek: Peek) -> bool:
    if detector.is_folder is not (peek.entries is not None):
        return False
    return not detector.begins or peek.head.startswith(detector.begins, detector.offset)


def _evidence(spec: FormatSpec, detector: Detector, peek: Peek) -> str | None:
    try:
        evidence: str | None = function_at(detector.at)(peek) if _is_to_ask(detector, peek) else None
    except Exception as error:
        if not spec.origin:
            raise
        warnings.warn(
            f"mlup_stream: {detector.at} of {spec.origin} failed on {peek.name}, left out ({type(error).__name__}: {error})",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return evidence


def _break_tie(peek: Peek, found: list[Finding]) -> tuple[Finding, ...]:
    if len(found) > 1:
        fits = [max((len(suffix) for suffix in each.spec.suffixes if peek.is_named(suffix)), default=0) for each in found]
        if max(fits) and fits.count(max(fits)) == 1:
            named = found[fits.index(max(fits))]
            return (Finding(named.spec, f"{named.evidence}; also others, which its name does not fit"),)
    return tuple(found)
