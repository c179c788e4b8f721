"""The other files that an ONNX model keeps its weights in, checked before a runtime maps them.

A runtime that maps a file which is shorter than the model says dies of SIGBUS at the first prediction, and one that follows any
name that a model gives would read files that are none of the model's business.
"""

from __future__ import annotations

import os
from pathlib import PurePath

from mlup_stream.delivery.files import checked_stat
from mlup_stream.errors import CorruptModelError, ModelBinarizationError, ModelNotFoundError
from mlup_stream.formats.onnx.layout import Layout

__all__ = ["check_external_files"]


def check_external_files(layout: Layout, folder: str, name: str) -> None:
    """Makes sure that each file is there and long enough.

    Args:
        layout: The walk of the model.
        folder: Where the model lies.
        name: What messages call it.

    Raises:
        ModelNotFoundError: A file is missing.
        CorruptModelError: It is shorter than the model says, or what the model says is not a number.
        ModelBinarizationError: The name leads out of the model's folder, or only the model's own file was copied.
    """
    if folder.startswith("/proc/"):
        raise ModelBinarizationError(
            f"{name}: a snapshot of the model does not have the other files that its weights lie in; load it with snapshot=False",
            path=name,
            format="onnx",
        )
    sizes: dict[str, int] = {}
    for tensor in layout.tensors:
        if not tensor.external:
            continue
        location = tensor.external.get("location", "")
        if location not in sizes:
            sizes[location] = _size_bytes(location, folder, name)
        offset = _number(tensor.external.get("offset"), 0, tensor.name, name)
        length = _number(tensor.external.get("length"), tensor.size_bytes, tensor.name, name)
        if offset + length > sizes[location]:
            raise CorruptModelError(
                f"{name}: expected {length} bytes of {tensor.name!r} at {offset} in {location!r}, found a file of"
                f" {sizes[location]} bytes; copy it again",
                path=name,
                format="onnx",
            )


def _size_bytes(location: str, folder: str, name: str) -> int:
    pure = PurePath(location)
    if not location or "\0" in location or pure.is_absolute() or ".." in pure.parts:
        raise ModelBinarizationError(
            f"{name}: expected its weights in files beside it, found the name {location!r}; save the model anew, with external"
            " data in its own folder",
            path=name,
            format="onnx",
        )
    try:
        return checked_stat(os.path.join(folder, location)).st_size
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"{name}: its weights lie in {location!r}, which is not there ({error}); copy it beside the model", path=name
        ) from error


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
