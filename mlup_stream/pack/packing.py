"""Packing: a model file rewritten once, so that its arrays are aligned and stay in the file when it is loaded.

    packed = pack("model.joblib", "packed.joblib")

source  ->  detect  ->  copy, array by array  ->  read back and compare  ->  rename

Peak memory: a few MiB of pieces and the structure of the file, whatever the arrays take; for the one exception, pickles of
protocol 0 to 2, see `pack.pickles`. Both files pass through the page cache.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Literal

from mlup_stream.delivery.artifact import artifact_of
from mlup_stream.delivery.files import checked_stat
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.delivery.view import View
from mlup_stream.errors import ConfigError, PackError
from mlup_stream.formats.kinds import FormatSpec, function_at
from mlup_stream.ml.binarization.detection import detect
from mlup_stream.pack.destination import Destination
from mlup_stream.pack.packed import Gain, Packed
from mlup_stream.registry import spec_of

__all__ = ["pack"]


def pack(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    force: bool = False,
    format: str | None = None,
    trust: Literal["none", "full"] = "none",
) -> Packed:
    """Writes the model in `source` to `destination`, its arrays aligned, in the format that it has.

    The destination appears whole, compared with the source, and on the disk, or not at all.

    Args:
        source: A model file, or the index of a sharded safetensors model.
        destination: Where to write. External data of an ONNX model goes beside it.
        force: Replace what is there.
        format: What the source is, a `Format` or the name of one; None finds out.
        trust: `"none"` runs nothing that the source names, and refuses what cannot be rewritten so. `"full"` loads it where it
            takes that: pickles of protocols 0 to 2, whose arrays are text, run their code.

    Raises:
        ConfigError: `format` is not known.
        PackError: There is nothing to gain, no room, something at the destination, or what was written differs.
        ModelNotFoundError, ModelPermissionError, FormatNotRecognizedError, ...: As for a load.
        CorruptModelError: The source is damaged.
        ModelFileChanged: The source was written to meanwhile.
    """
    started = time.perf_counter()
    if trust not in ("none", "full"):
        raise ConfigError(
            f"trust={trust!r} is not valid; expected 'none' or 'full'", field="trust", value=trust, allowed=("none", "full")
        )
    path, target = os.fspath(source), os.fspath(destination)
    status = checked_stat(path)
    artifact = artifact_of(LoadedFile(path=path))
    try:
        spec = spec_of(format or detect(artifact))
        packer = _packer_of(path, spec)
        view = artifact.view()
        with Destination(target, force=force, mode=status.st_mode, may_run_code=trust == "full") as written:
            written.refuse_same((path,))
            gain = packer(view, written)
            artifact.check()
            written.commit()
    finally:
        artifact.release()
    files = (written.path, *written.beside)
    return Packed(
        source=path,
        destination=target,
        format=spec.name,
        files=files,
        source_bytes=sum(map(os.path.getsize, (path, *gain.also_read))),
        destination_bytes=sum(map(os.path.getsize, files)),
        payload_bytes=gain.payload_bytes,
        mappable_before_bytes=gain.before_bytes,
        mappable_after_bytes=gain.after_bytes,
        verified=gain.verified,
        seconds=time.perf_counter() - started,
        notes=gain.notes,
    )


def _packer_of(path: str, spec: FormatSpec) -> Callable[[View, Destination], Gain]:
    if not spec.packer:
        reason = spec.nothing_to_gain or f"{spec.origin or 'its row'} names no packer"
        raise PackError(f"{path}: a {spec.name} model has nothing to gain: {reason}", path=path)
    packer: Callable[[View, Destination], Gain] = function_at(spec.packer)
    return packer
