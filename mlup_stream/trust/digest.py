"""Whether a file is the one that somebody has vouched for: its SHA-256 against a given one, or against a list beside it.

The file is read once, by windows that are dropped behind the reader. What matched is remembered by the file's pinned identity, so
that the second start and the other workers read nothing (`delivery.checked_once`).
Source: the lines of `sha256sum` (GNU coreutils): the digest, a space, a space or `*`, the name; `SHA256 (name) = digest` of BSD.
"""

from __future__ import annotations

import hashlib
import os
import re

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.checked_once import checked_once
from mlup_stream.errors import ConfigError, IntegrityError
from mlup_stream.units import MIB

__all__ = ["BESIDE", "check_digest", "parse_digest"]

BESIDE = "beside"
"""In place of a digest: what `NAME.sha256` or `SHA256SUMS` beside the file says."""
_LISTS = ("SHA256SUMS", "sha256sums.txt", "SHA256SUMS.txt")
_LIST_BYTES = 4 * MIB
_LINE = re.compile(
    r"(?P<gnu>[0-9a-fA-F]{64}) [ *](?P<name>.+)|SHA256 \((?P<other>.+)\) = (?P<bsd>[0-9a-fA-F]{64})|(?P<only>[0-9a-fA-F]{64})"
)
_WINDOW_BYTES = 4 * MIB


def parse_digest(text: str) -> str:
    """The digest that `text` says, in lower case, or `"beside"`.

    Raises:
        ConfigError: It is neither.
    """
    found = text.strip().removeprefix("sha256:").lower()
    if text == BESIDE or re.fullmatch("[0-9a-f]{64}", found):
        return text if text == BESIDE else found
    raise ConfigError(
        f"sha256={text!r} is not valid; expected 64 hexadecimal digits, or 'beside' for what NAME.sha256 or SHA256SUMS says",
        field="sha256",
        value=text,
    )


def check_digest(artifact: Artifact, sha256: str | None) -> None:
    """Makes sure that the content has the digest. Does nothing for None. Peak memory: a window of 4 MiB.

    Args:
        artifact: A file or content; what lies beside it, shards or external data, is not looked at.
        sha256: What `parse_digest` gave.

    Raises:
        IntegrityError: It has another one, or no list beside it names it.
        ConfigError: A folder has no digest.
    """
    if sha256 is None:
        return
    if artifact.is_folder or artifact.is_model:
        what = "a folder" if artifact.is_folder else "a model object"
        raise ConfigError(f"{artifact.name}: sha256 is of one file, found {what}; leave sha256 out", field="sha256", value=sha256)
    expected = _said_beside(artifact) if sha256 == BESIDE else sha256

    def run() -> None:
        found = _digest_of(artifact)
        if found != expected:
            raise IntegrityError(
                f"{artifact.name}: expected the content of sha256 {expected}, found {found}; copy the file again, or correct"
                " sha256",
                path=artifact.path,
                expected=expected,
                found=found,
            )

    checked_once(artifact, f"sha256 {expected}", run)


def _digest_of(artifact: Artifact) -> str:
    digest = hashlib.sha256()
    with artifact.open(drop_behind=False, window_bytes=_WINDOW_BYTES) as file:
        while piece := file.read(_WINDOW_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _said_beside(artifact: Artifact) -> str:
    if artifact.path is None:
        raise IntegrityError(f"{artifact.name}: sha256='beside' needs a file with a path; give the digest", path=None)
    folder, name = os.path.split(artifact.path)
    for list_name in (f"{name}.sha256", *_LISTS):
        found = _said_in(os.path.join(folder, list_name), name, only=list_name.startswith(name))
        if found is not None:
            return found
    raise IntegrityError(
        f"{artifact.path}: expected its digest in {name}.sha256 or {_LISTS[0]} beside it, found none; write one"
        f" (sha256sum {name} > {name}.sha256), or give sha256 the digest",
        path=artifact.path,
    )


def _said_in(path: str, name: str, *, only: bool) -> str | None:
    """The digest of `name` in a list; a list of one file alone need not name it."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(_LIST_BYTES).splitlines()
    except OSError:
        return None
    for line in lines:
        match = _LINE.fullmatch(line.strip().lstrip("\\"))
        if match is None:
            continue
        said = match["name"] or match["other"]
        if (said is None and only) or (said is not None and os.path.basename(said) == name):
            return str(match["gnu"] or match["bsd"] or match["only"]).lower()
    return None
