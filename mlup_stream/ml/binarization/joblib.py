"""joblib files, plain and compressed by every compressor that joblib knows.

Read by an unpickler of ours rather than by `joblib.load`, with the same result: joblib's own memory map is one map and one file
descriptor for each array (a forest of 1000 trees has 2000), is charged to the commit limit, needs a path, and gives `memmap`s.
Here all arrays lie in the one map of the view.

What the format allows for a compressed file: it is unpacked through a bounded window and arrays are filled piece by piece, so
peak memory is the uncompressed size. An estimator whose `__setstate__` copies (a forest) takes twice that, because nobody can
know, without unpacking the file twice, that what it was given will not be asked for again.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.delivery.placement import Placement
from mlup_stream.delivery.view import View
from mlup_stream.errors import CorruptModelError, ModelBinarizationError
from mlup_stream.extras import require
from mlup_stream.formats.joblib import survey
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.pickle import walk
from mlup_stream.ml.binarization.collector import collector_paused
from mlup_stream.ml.binarization.pickle import PickleBinarizer, innermost_module
from mlup_stream.ml.binarization.pickle_input import CheckedFile
from mlup_stream.units import MIB

__all__ = ["JoblibBinarizer", "decompressor_of"]

_WINDOW_BYTES = 1 * MIB
_BEFORE_010 = b"ZF"
# A survey takes about as long as the unpickler for the same opcodes. Past this the file is not mostly payload, and joblib's own
# time, which this is compared with, is long enough to lose the survey in.
_MAX_STEPS = 20_000
_UNPACKING_MODULES = ("joblib.", "lzma", "bz2", "gzip", "_compression", "compression.", "lz4.")


class JoblibBinarizer(PickleBinarizer):
    """Whatever `joblib.dump` wrote.

    Loading a joblib file runs code that the file chooses: load only files that you trust, as with `joblib.load` itself.
    """

    format = Format.JOBLIB
    options = frozenset()

    @classmethod
    def prepare(cls) -> None:
        require("numpy", "joblib files")
        require("joblib", "joblib files")
        import mlup_stream.ml.binarization.joblib_unpickler  # noqa: F401  # not part of what the load costs

    @classmethod
    def from_file(cls, file: BinaryIO, loaded: LoadedFile, **options: Any) -> Any:
        return _load(file, loaded, None)

    @classmethod
    def from_view(cls, view: View, loaded: LoadedFile, **options: Any) -> Any:
        with view.open() as file:
            return _load(file, loaded, view)

    @classmethod
    def is_corrupt(cls, error: Exception) -> bool:
        return super().is_corrupt(error) or innermost_module(error).startswith(_UNPACKING_MODULES)


def _load(file: BinaryIO, loaded: LoadedFile, view: View | None) -> Any:
    from mlup_stream.ml.binarization.joblib_unpickler import BeforeJoblib010, HasArrays, Unpacked

    try:
        decompressor = decompressor_of(file)
        if decompressor is not None:
            with io.BufferedReader(Unpacked(decompressor), _WINDOW_BYTES) as unpacked:
                return _load_arrays(unpacked, loaded, None, None)
        if _has_no_arrays(file, loaded):
            try:
                return _load_objects(file, loaded)
            except HasArrays:
                file.seek(0)
        structure = survey(file, loaded.name, max_steps=_MAX_STEPS)
        file.seek(0)
        return _load_arrays(file, loaded, view, structure.fetched if structure.whole else None)
    except BeforeJoblib010:
        return _load_before_010(loaded)


def decompressor_of(file: BinaryIO) -> Any:
    """A file that gives what `file` holds, None if that is not compressed. By joblib's own table, which its users extend.

    Raises:
        BeforeJoblib010: It is of the format before joblib 0.10.
    """
    from joblib.compressor import _COMPRESSORS

    from mlup_stream.ml.binarization.joblib_unpickler import BeforeJoblib010

    head = file.read(32)
    file.seek(0)
    if head.startswith(_BEFORE_010):
        raise BeforeJoblib010
    for name, compressor in _COMPRESSORS.items():
        if compressor.prefix and head.startswith(compressor.prefix):
            if name == "lz4":
                require("lz4", "joblib files compressed with lz4")
            return compressor.decompressor_file(file)
    return None


def _has_no_arrays(file: BinaryIO, loaded: LoadedFile) -> bool:
    """Whether this is a pickle from its first byte to its last: the bytes of an array are no opcodes."""
    try:
        structure = walk(file, loaded.name)
    except CorruptModelError:
        return False
    finally:
        file.seek(0)
    return structure.whole and structure.trailing_bytes == 0 and structure.payloads == 0


def _load_objects(file: BinaryIO, loaded: LoadedFile) -> Any:
    from mlup_stream.ml.binarization.joblib_unpickler import ObjectUnpickler

    class Unpickler(ObjectUnpickler):
        model_name = loaded.name

    loaded.placement = Placement(0, 0)
    with collector_paused():
        return Unpickler(CheckedFile(file)).load()


def _load_arrays(file: BinaryIO, loaded: LoadedFile, view: View | None, fetched: frozenset[int] | None) -> Any:
    from mlup_stream.ml.binarization.joblib_unpickler import JoblibUnpickler
    from mlup_stream.ml.binarization.placing import Placer

    class Unpickler(JoblibUnpickler):
        model_name = loaded.name

    placer = Placer(loaded, view, file)
    unpickler = Unpickler(file, placer, fetched=fetched)
    try:
        with collector_paused():
            model = unpickler.load()
    finally:
        unpickler.forget()
    placer.drop_unused()
    loaded.placement = placer.placement()
    return model


def _load_before_010(loaded: LoadedFile) -> Any:
    import joblib

    if loaded.path is None:
        raise ModelBinarizationError(
            f"{loaded.name}: expected a joblib file of 0.10 or later, found an older one, whose arrays lie in files beside it;"
            " give its path, or write it again with a newer joblib",
            format=Format.JOBLIB.value,
        )
    return joblib.load(loaded.path)
