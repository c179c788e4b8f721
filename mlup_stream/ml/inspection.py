"""What a model file is and what its headers say, without loading it: `inspect("model.onnx")`."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

from mlup_stream.delivery.artifact import artifact_of
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.errors import AmbiguousModelError, ModelNotFoundError
from mlup_stream.formats.recognition.inspect import inspect as inspect_in
from mlup_stream.ml.binarization.detection import detect, findings_of
from mlup_stream.ml.storage.local_disk import DiskStorage
from mlup_stream.registry import spec_of
from mlup_stream.trust.gate import audit
from mlup_stream.trust.policy import Policy, Trust

__all__ = ["inspect"]


def inspect(source: Any, *, trust: str | Trust | None = None, trusted_globals: Sequence[str] = ()) -> dict[str, Any]:
    """What the headers of a model say, as a dict that JSON can hold. Imports no framework and builds nothing.

    Args:
        source: A path (of a folder too, if there is one model in it), a buffer, a binary file object (left where it stood, if
            it can seek), or a `LoadedFile`.
        trust: A level of trust, `"listed"` above all: what the file would import and call is looked at, from its first byte to
            its last, and held against it.
        trusted_globals: What may be named beside the ready lists.

    Returns:
        `file`, `format`, `size_bytes` and `evidence` (what says that it is of this format), then what the format's headers say:
        types and shapes, versions, inputs and outputs; with `trust` also `trust`, `safe`, `refused` and `names`.

    Raises:
        ModelNotFoundError, ModelPermissionError, NotAModelFileError: It cannot be opened.
        FormatNotRecognizedError, AmbiguousFormatError: No format claims it, or several.
        AmbiguousModelError: It is a folder with several models.
        CorruptModelError: Its headers are damaged.

    Peak memory: the headers and what they list, tens of megabytes for the largest; no payload is read.
    """
    artifact = artifact_of(_found(source))
    try:
        spec = spec_of(detect(artifact))  # the typed errors come from here
        evidence = next((each.evidence for each in findings_of(artifact) if each.spec is spec), "")
        said = {"file": artifact.name, "format": spec.name, "size_bytes": artifact.size_bytes, "evidence": evidence}
        said |= artifact.header(functools.partial(inspect_in, spec))
        return said if trust is None else {**said, **audit(artifact, spec.name, Policy.of(trust, trusted_globals))}
    finally:
        artifact.release()


def _model_at(path: str) -> str:
    """The path itself, or of the one model in the folder there: the one that a load would take."""
    if not os.path.isdir(path):
        return path
    try:
        found = [str(each.path) for each in DiskStorage(path).load()]
    except ModelNotFoundError:
        return path  # detection says what the folder has in place of a model
    if len(found) > 1:
        raise AmbiguousModelError(
            f"{path}: expected one model, found {len(found)}: {', '.join(found[:10])}; give the path of one",
            path=path,
            candidates=tuple(found),
        )
    return found[0]


def _found(source: Any) -> Any:
    if isinstance(source, (str, os.PathLike)):
        return LoadedFile(path=_model_at(os.path.expanduser(os.fspath(source))))
    return source if hasattr(source, "raw_data") and hasattr(source, "path") else LoadedFile(source)
