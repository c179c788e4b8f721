"""The other files that an ONNX model keeps its weights in, checked before a runtime maps them.

A runtime that maps a file which is shorter than the model says dies of SIGBUS at the first prediction, and one that follows any
name that a model gives would read files that are none of the model's business.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import PurePath

from mlup_stream.delivery.artifact import Artifact, artifact_of
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.errors import CorruptModelError, ModelBinarizationError, ModelNotFoundError
from mlup_stream.formats.onnx.layout import Layout
from mlup_stream.formats.onnx.tensor import Tensor

__all__ = ["check_external_files", "external_files", "prepacked_pieces"]


def external_files(
    layout: Layout, folder: str, artifact: Artifact, missing: list[ModelNotFoundError] | None = None
) -> dict[str, Artifact]:
    """The files by the names that the model gives them, each of them there and long enough; open from now on.

    Args:
        layout: The walk of the model.
        folder: Where the model lies.
        artifact: The model.
        missing: Takes the errors of files that are not there, where the runtime may have been given others instead of them;
            without it they are raised.

    Raises:
        ModelNotFoundError: A file is missing.
        CorruptModelError: It is shorter than the model says, or what the model says is not a number.
        ModelBinarizationError: The name leads out of the model's folder.
    """
    name = artifact.name
    files: dict[str, Artifact] = {}
    for tensor in layout.tensors:
        if not tensor.external:
            continue
        location = tensor.external.get("location", "")
        if location not in files:
            try:
                files[location] = _opened(location, folder, artifact)
            except ModelNotFoundError as error:
                if missing is None:
                    raise
                missing.append(error)
                continue
        offset = _number(tensor.external.get("offset"), 0, tensor.name, name)
        length = _number(tensor.external.get("length"), tensor.size_bytes, tensor.name, name)
        for start, size_bytes in ((offset, length), *prepacked_pieces(tensor, name)):
            if start + size_bytes > files[location].size_bytes:
                raise CorruptModelError(
                    f"{name}: expected {size_bytes} bytes of {tensor.name!r} at {start} in {location!r}, found a file of"
                    f" {files[location].size_bytes} bytes; copy it again",
                    path=name,
                    format="onnx",
                )
    return files


def check_external_files(layout: Layout, folder: str, path: str) -> None:
    """The same for the model at `path`, whose files are closed again."""
    artifact = artifact_of(LoadedFile(path=path))
    try:
        external_files(layout, folder, artifact)
    finally:
        artifact.release()


def _opened(location: str, folder: str, artifact: Artifact) -> Artifact:
    # `x/../w.bin` is `w.bin` if `x` is a folder there, and if it is a link it may be anything.
    name, inside = artifact.name, os.path.normpath(location)
    leads_out = os.path.isabs(location) or inside.split(os.sep)[0] == os.pardir
    if not location or "\0" in location or leads_out or not _are_folders(folder, location):
        raise ModelBinarizationError(
            f"{name}: expected its weights in files beside it, found the name {location!r}; save the model anew, with external"
            " data in its own folder",
            path=name,
            format="onnx",
        )
    try:
        return artifact.beside(os.path.join(folder, inside))
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"{name}: its weights lie in {location!r}, which is not there ({error}); copy it beside the model", path=name
        ) from error


def _are_folders(folder: str, location: str) -> bool:
    """Whether the name steps out of folders alone, so that without these steps it is the same file's."""
    parts = PurePath(location).parts
    last = max((index for index, part in enumerate(parts) if part == os.pardir), default=0)
    into = [os.path.join(folder, *parts[:index]) for index in range(1, last + 1)]
    return all(os.path.isdir(each) and not os.path.islink(each) for each in into)


def prepacked_pieces(tensor: Tensor, name: str) -> Iterator[tuple[int, int]]:
    """From where, and how many bytes, of each piece. Source: onnxruntime's `tensor_external_data_info.cc`.

    An entry is a key and the pieces, `OPERATOR+HASH|OFFSET;LENGTH;CHECKSUM|...`.
    """
    for _, value in tensor.prepacked:
        for piece in value.split("|")[1:]:
            start, _, rest = piece.partition(";")
            yield _number(start, 0, tensor.name, name), _number(rest.partition(";")[0], 0, tensor.name, name)


def _number(text: str | None, missing: int, tensor: str, name: str) -> int:
    if text is None:
        return missing
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise CorruptModelError(
            f"{name}: expected a number of bytes for the external data of {tensor!r}, found {text[:40]!r}; export it again",
            path=name,
            format="onnx",
        )
    return int(text)
