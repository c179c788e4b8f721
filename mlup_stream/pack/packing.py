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

from mlup_stream.delivery.files import checked_stat
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.delivery.view import View
from mlup_stream.errors import PackError
from mlup_stream.formats.kinds import Format
from mlup_stream.ml.binarization.detection import detect
from mlup_stream.pack.destination import Destination
from mlup_stream.pack.npy import pack_npy
from mlup_stream.pack.onnx import pack_onnx
from mlup_stream.pack.packed import Gain, Packed
from mlup_stream.pack.pickles import pack_joblib, pack_pickle
from mlup_stream.pack.safetensors import pack_safetensors
from mlup_stream.pack.zips import pack_npz, pack_torch

__all__ = ["pack"]

_PACKERS: dict[Format, Callable[[View, Destination], Gain]] = {
    Format.PICKLE: pack_pickle,
    Format.JOBLIB: pack_joblib,
    Format.NPY: pack_npy,
    Format.NPZ: pack_npz,
    Format.ONNX: pack_onnx,
    Format.SAFETENSORS: pack_safetensors,
    Format.TORCH: pack_torch,
}

_NOTHING_TO_GAIN = {
    Format.GGUF: "its tensors are aligned by the format itself",
    Format.KERAS: "Keras copies the weights out of it into memory of its own",
    Format.LIGHTGBM: "it is text, which LightGBM makes trees of",
    Format.SAVED_MODEL: "TensorFlow reads the variables into memory of its own",
    Format.TORCHSCRIPT: "torch reads its tensors into memory of its own",
    Format.XGBOOST: "XGBoost makes trees of it",
}


def pack(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], *, force: bool = False, format: Format | None = None
) -> Packed:
    """Writes the model in `source` to `destination`, its arrays aligned, in the format that it has.

    The destination appears whole, compared with the source, and on the disk, or not at all.

    Args:
        source: A model file, or the index of a sharded safetensors model.
        destination: Where to write. External data of an ONNX model goes beside it.
        force: Replace what is there.
        format: What the source is; None finds out.

    Raises:
        PackError: There is nothing to gain, no room, something at the destination, or what was written differs.
        ModelNotFoundError, ModelPermissionError, FormatNotRecognizedError, ...: As for a load.
        CorruptModelError: The source is damaged.
        ModelFileChanged: The source was written to meanwhile.
    """
    started = time.perf_counter()
    path, target = os.fspath(source), os.fspath(destination)
    status = checked_stat(path)
    format = format or detect(LoadedFile(path=path))
    packer = _packer_of(path, format)
    view = View(path)
    try:
        with Destination(target, force=force, mode=status.st_mode) as written:
            written.refuse_same((path,))
            gain = packer(view, written)
            view.check()
            written.commit()
    finally:
        view.release()
    files = (written.path, *written.beside)
    return Packed(
        source=path,
        destination=target,
        format=format.value,
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


def _packer_of(path: str, format: Format) -> Callable[[View, Destination], Gain]:
    packer = _PACKERS.get(format)
    if packer is None:
        raise PackError(f"{path}: a {format.value} model has nothing to gain: {_NOTHING_TO_GAIN[format]}", path=path)
    return packer
