"""Pickles and joblib files: the same opcodes, and every large payload at an aligned offset (see `transcript`).

A pickle stays a pickle and a joblib file a joblib file: `pickle.load` and `joblib.load` go on reading them, and this package
leaves the payloads of both in the map. No object is built and nothing of the model is imported, so packing needs neither the
model's libraries nor trust in it. What each source becomes:

| source | becomes | through |
|---|---|---|
| pickle of protocol 3 to 5 | the same, aligned | transcript |
| joblib, not compressed, any version from 0.10 on | the same, aligned | transcript |
| joblib, compressed | not compressed, aligned | transcript of the unpacked stream |
| pickle of protocol 0 to 2, whose arrays are text | pickle of protocol 5 | the model itself, which is loaded: its code runs |
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import tempfile
from typing import Any, BinaryIO

from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.delivery.reader import open_stream
from mlup_stream.delivery.view import View
from mlup_stream.errors import PackError
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.pickles.frames import PAYLOAD_BYTES, scan, walk
from mlup_stream.formats.source import Source
from mlup_stream.ml.binarization.pickle import PickleBinarizer
from mlup_stream.ml.binarization.pickles.decompression import open_unpacked
from mlup_stream.pack.destination import Destination
from mlup_stream.pack.in_place import Found, find_payloads
from mlup_stream.pack.packed import Gain
from mlup_stream.pack.pieces import PIECE_BYTES, differs, pieces, refuse_rest
from mlup_stream.pack.transcript import Transcript
from mlup_stream.units import MIB, format_bytes

__all__ = ["pack_joblib", "pack_pickle"]

logger = logging.getLogger("mlup_stream")

_BEFORE_010 = b"ZF"
_FIRST_BINARY_PROTOCOL = 3
"""The first that writes bytes as they are."""

_COMPARED = "opcodes and payloads were read back from what was written and compared with the source bit for bit"
_IN_PLACE = "the unpickler that will load it found the payloads in place"


def pack_pickle(view: View, destination: Destination) -> Gain:
    """Writes the pickle in `view` with its payloads aligned.

    Peak memory: what `Transcript` says; for protocols 0 to 2 the model as it is loaded.

    Raises:
        PackError: It has no payload that could stay in a file, or cannot be rewritten without running its code.
    """
    name = str(view.path)
    structure = walk(view, name)
    if structure.protocol < _FIRST_BINARY_PROTOCOL:
        if not destination.may_run_code:
            raise PackError(
                f"{name}: a pickle of protocol {structure.protocol} keeps its arrays as text, and only loading it, which runs its"
                " code, makes arrays of them; if you trust the file: trust='full' (--trust full)",
                path=name,
            )
        if not structure.whole:
            structure = scan(view, name)
        return _pickled_anew(view, destination, structure.trailing_bytes)
    if structure.whole and not structure.payloads:
        raise _nothing(name)
    destination.reserve(_copied_bytes(view.size_bytes))
    with view.open() as file:
        return _transcribed(name, file, destination, Format.PICKLE, _found(name, Format.PICKLE))


def pack_joblib(view: View, destination: Destination) -> Gain:
    """Writes the joblib file in `view` unpacked, its arrays aligned.

    Raises:
        PackError: It has no arrays, or is of the format before joblib 0.10.
        MissingDependencyError: It is compressed by something that takes a library which is not installed.
    """
    name = str(view.path)
    with view.open() as file:
        if file.read(len(_BEFORE_010)) == _BEFORE_010:
            what = "written by joblib before 0.10, its arrays in files beside it"
            raise PackError(f"{name}: {what}: load it with joblib and dump it anew", path=name)
        file.seek(0)
        unpacked = open_unpacked(file, name)
        if unpacked is None:
            destination.reserve(_copied_bytes(view.size_bytes))
            return _transcribed(name, file, destination, Format.JOBLIB, _found(name, Format.JOBLIB))
        with unpacked:
            gain = _transcribed(name, unpacked, destination, Format.JOBLIB, [])
            refuse_rest(view, unpacked.rest_bytes(), "compressed stream")
            return gain


def _transcribed(
    name: str, file: BinaryIO, destination: Destination, format: Format, before: list[Found] | None
) -> Gain:
    written = Transcript(file, name, destination.write, destination.reserve)
    written.run()
    if not written.payloads:
        raise _nothing(name)
    destination.sync()
    after = _verified(name, written, destination, format)
    if after is None:
        # Whatever it is that an unpickler over stand-ins cannot follow: the comparison has shown that it is the same program.
        notes = ("which of its payloads stay in the file could not be told without loading it",)
        return Gain(sum(each.size_bytes for each in written.payloads), 0, 0, _COMPARED, notes)
    payload_bytes = sum(each.size_bytes for each in after)
    if not payload_bytes:
        raise _nothing(name)
    return Gain(payload_bytes, _aligned_bytes(before or []), _aligned_bytes(after), f"{_COMPARED}; {_IN_PLACE}")


def _verified(name: str, written: Transcript, destination: Destination, format: Format) -> list[Found] | None:
    """The payloads that stay in what was written, after it was read back; None if they could not be told."""
    with open_stream(destination.part, drop_behind=False) as file:
        read = Transcript(file, destination.part)
        read.run()
    if (read.payloads, read.end) != (written.payloads, written.end):
        raise differs(name, "another program or other payloads")
    return _found(destination.part, format)


def _found(path: str, format: Format) -> list[Found] | None:
    try:
        return find_payloads(path, format)
    except MemoryError:
        raise
    except Exception as error:
        logger.info("%s: could not be followed by stand-ins (%s: %s)", path, type(error).__name__, error)
        return None


def _pickled_anew(view: View, destination: Destination, trailing_bytes: int) -> Gain:
    """Loads a pickle whose arrays are text, and writes the model with protocol 5; what follows the pickle stays as it is."""
    name = str(view.path)
    destination.reserve(2 * _copied_bytes(view.size_bytes))
    model = PickleBinarizer.deserialize(LoadedFile(path=name, delivery=Delivery.STREAM))
    # Without a name where the system can: nothing is left of it whatever happens.
    with tempfile.TemporaryFile(dir=os.path.dirname(destination.part)) as plain:
        with destination.explained():
            _dump(name, model, plain)
            with Source(view) as source:
                for piece in pieces(source, view.size_bytes - trailing_bytes, trailing_bytes, "what follows the pickle"):
                    plain.write(piece)
            plain.seek(0)
        gain = _transcribed(name, plain, destination, Format.PICKLE, [])
    written = LoadedFile(path=destination.part, delivery=Delivery.VIEW)
    _compare_buffers(name, model, PickleBinarizer.deserialize(written))
    notes = (f"pickle protocol {pickle.HIGHEST_PROTOCOL}, for which the model was loaded: its code has run", *gain.notes)
    verified = "the model was loaded in place from what was written, and its arrays compared with the source's bit for bit"
    return gain._replace(verified=verified, notes=notes)


def _dump(name: str, model: Any, file: BinaryIO) -> None:
    try:
        pickle.dump(model, file, pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise PackError(f"{name}: was loaded and cannot be pickled again ({error}); nothing was written", path=name) from error


class _Nowhere(io.RawIOBase):
    """Takes what is written to it, and forgets it."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


def _compare_buffers(name: str, first: Any, second: Any) -> None:
    """Makes sure that two models have the same arrays: the buffers that a pickle of each would hand over."""
    buffers: tuple[list[pickle.PickleBuffer], ...] = ([], [])
    for model, found in zip((first, second), buffers, strict=True):
        pickle.Pickler(_Nowhere(), 5, buffer_callback=found.append).dump(model)
    sizes = [[each.raw().nbytes for each in found] for found in buffers]
    if sizes[0] != sizes[1]:
        raise differs(name, "other arrays")
    for one, other in zip(*buffers, strict=True):
        left, right = one.raw(), other.raw()
        for at in range(0, left.nbytes, PIECE_BYTES):
            if bytes(left[at : at + PIECE_BYTES]) != bytes(right[at : at + PIECE_BYTES]):
                raise differs(name, "an array with other bytes")


def _copied_bytes(size_bytes: int) -> int:
    """How long a copy may be: a pad for every payload of 64 KiB, and frames."""
    return size_bytes + size_bytes // 256 + MIB


def _aligned_bytes(found: list[Found]) -> int:
    return sum(each.size_bytes for each in found if each.aligned)


def _nothing(name: str) -> PackError:
    return PackError(
        f"{name}: expected arrays of {format_bytes(PAYLOAD_BYTES)} and more in a pickle, or any in a joblib file, found none:"
        " nothing to gain",
        path=name,
    )
