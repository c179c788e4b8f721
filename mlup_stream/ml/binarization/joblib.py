"""joblib files, plain and compressed by every compressor that joblib knows.

Read by an unpickler of ours rather than by `joblib.load`, with the same result. It is the one in C where joblib's is in Python:
300 000 small dicts load in 0.9 s instead of 23 s. All arrays lie in the one map of the view; joblib's own is one map and one file
descriptor for each array (a forest of 1000 trees has 2000), needs a path, and gives `memmap`s. And the memo does not keep what an
estimator has copied, so that a forest takes its size once, not twice.

A compressed file is unpacked through a bounded window and arrays are filled piece by piece: peak memory is the uncompressed size.
"""

from __future__ import annotations

from typing import Any, BinaryIO, ClassVar

from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.delivery.view import View
from mlup_stream.errors import ConfigError, CorruptModelError, ModelBinarizationError
from mlup_stream.extras import require
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.pickles.frames import walk
from mlup_stream.formats.pickles.head import Writer, writer_of
from mlup_stream.formats.pickles.joblib import survey
from mlup_stream.memory.estimate import Estimate
from mlup_stream.ml.binarization.pickle import PickleBinarizer
from mlup_stream.ml.binarization.pickles.collector import collector_paused
from mlup_stream.units import KIB

__all__ = ["JoblibBinarizer"]

_SURVEYED_BYTES = 16 * KIB
"""A file as small as that is looked over first, 10 ms at most: the unpickler in C allocates by a memo index that it finds."""
_LIE_STEPS = 1_000_000  # 2 seconds, and 100 MB
_BEFORE_010 = b"ZF"
_NATIVE = (True, False, "auto")


class JoblibBinarizer(PickleBinarizer):
    """Whatever `joblib.dump` wrote.

    Options: `ensure_native_byte_order`, as `joblib.load` has it: False leaves arrays of the other byte order as they are.

    Loading a joblib file runs code that the file chooses: load only files that you trust, as with `joblib.load` itself.
    """

    format = Format.JOBLIB
    libraries = ("numpy",)
    options: ClassVar[frozenset[str]] = frozenset({"ensure_native_byte_order"})

    @classmethod
    def prepare(cls) -> None:
        require("numpy", "joblib files")
        # Not part of what the load costs.

    @classmethod
    def named_modules(cls, loaded_file: LoadedFile) -> tuple[str, ...]:
        # Its files are read without it; a model that has something of joblib's in it imports it itself.
        return tuple(module for module in super().named_modules(loaded_file) if module.partition(".")[0] != "joblib")

    @classmethod
    def prepare_for(cls, options: dict[str, Any]) -> None:
        native = options.get("ensure_native_byte_order", "auto")
        if native not in _NATIVE:
            raise ConfigError(
                f"binarization_kwargs: ensure_native_byte_order={native!r} is not valid; expected one of True, False, 'auto'",
                field="binarization_kwargs",
                value=native,
                allowed=_NATIVE,
            )
        cls.prepare()

    @classmethod
    def estimate(cls, loaded_file: LoadedFile, delivery: Delivery) -> Estimate | None:
        from mlup_stream.ml.binarization.pickles.joblib_estimate import estimate_of

        return estimate_of(loaded_file, delivery)

    @classmethod
    def from_file(cls, file: BinaryIO, loaded: LoadedFile, **options: Any) -> Any:
        if _is_plain_pickle(file, loaded):
            return super().from_file(file, loaded)
        return _load(file, loaded, None, options)

    @classmethod
    def from_view(cls, view: View, loaded: LoadedFile, **options: Any) -> Any:
        with view.open_structure() as file:
            if not _is_plain_pickle(file, loaded):
                return _load(file, loaded, view, options)
        return super().from_view(view, loaded)


def _is_plain_pickle(file: BinaryIO, loaded: LoadedFile) -> bool:
    """Whether this is a pickle from its first byte to its last, which is what joblib writes of something without arrays."""

    def read_at(offset: int, size_bytes: int) -> bytes:
        file.seek(offset)
        return file.read(size_bytes)

    try:
        size_bytes = file.seek(0, 2)
        if writer_of(read_at, size_bytes) is not Writer.PICKLE:
            return False
        structure = walk(file, loaded.name)
    except CorruptModelError:
        return False
    finally:
        file.seek(0)
    return structure.whole and structure.trailing_bytes == 0


def _load(file: BinaryIO, loaded: LoadedFile, view: View | None, options: dict[str, Any]) -> Any:
    from mlup_stream.ml.binarization.pickles.joblib_unpickler import ArraysBeside, MustKeepMemo

    native = options.get("ensure_native_byte_order", "auto") is not False
    try:
        if file.read(len(_BEFORE_010)) == _BEFORE_010:
            raise ArraysBeside
        try:
            file.seek(0)
            return _unpickle(file, loaded, view, native, keeps_memo=False)
        except MustKeepMemo:
            file.seek(0)
        return _unpickle(file, loaded, view, native, keeps_memo=True)
    except ArraysBeside:
        return _load_before_010(loaded)


def _unpickle(file: BinaryIO, loaded: LoadedFile, view: View | None, native: bool, *, keeps_memo: bool) -> Any:
    from mlup_stream.ml.binarization.pickles.decompression import open_unpacked
    from mlup_stream.ml.binarization.pickles.joblib_unpickler import JoblibUnpickler
    from mlup_stream.ml.binarization.pickles.placing import Placer

    unpacked = open_unpacked(file, loaded.name, loaded.on_window)
    if unpacked is None and loaded.size_bytes <= _SURVEYED_BYTES:
        survey(file, loaded.name)
        file.seek(0)
    placer = Placer(loaded, view if unpacked is None else None, file)
    unpickler = JoblibUnpickler(unpacked or file, placer, name=loaded.name, keeps_memo=keeps_memo, native=native)
    try:
        with collector_paused():
            model = unpickler.load()
    except MemoryError as error:
        # Either there is too little memory, or a length lies by which the unpickler in C allocates before it reads.
        if unpacked is None:
            _refuse_lies(file, loaded, error)
        raise
    if unpacked is not None:
        with unpacked:
            unpacked.finish()
    placer.drop_unused()
    loaded.placement = placer.placement()
    return model


def _refuse_lies(file: BinaryIO, loaded: LoadedFile, error: MemoryError) -> None:
    try:
        survey(file, loaded.name, max_steps=_LIE_STEPS)
    except CorruptModelError as lie:
        raise lie from error


def _load_before_010(loaded: LoadedFile) -> Any:
    if loaded.path is None or loaded.has_content:
        raise ModelBinarizationError(
            f"{loaded.name}: expected a joblib file of 0.10 or later, found an older one, whose arrays lie in files beside it;"
            " give its path, or write it again with a newer joblib",
            format=Format.JOBLIB.value,
        )
    return require("joblib", "joblib files from before 0.10").load(loaded.path)
