"""joblib files, plain and compressed by every compressor that joblib knows.

Read by an unpickler of ours rather than by `joblib.load`, with the same result. It is the one in C where joblib's is in Python:
300 000 small dicts load in 0.9 s instead of 23 s. All arrays lie in the one map of the view; joblib's own is one map and one file
descriptor for each array (a forest of 1000 trees has 2000), needs a path, and gives `memmap`s. And the memo does not keep what an
estimator has copied, so that a forest takes its size once, not twice.

A compressed file is unpacked through a bounded window and arrays are filled piece by piece: peak memory is the uncompressed size.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, BinaryIO, ClassVar

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.private_file import private_folder
from mlup_stream.delivery.terms import Built, Terms
from mlup_stream.delivery.view import View
from mlup_stream.errors import ConfigError, CorruptModelError, MLupError, ModelBinarizationError, TrustError
from mlup_stream.extras import require
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.pickles.frames import walk
from mlup_stream.formats.pickles.head import Writer, writer_of
from mlup_stream.formats.pickles.joblib import survey
from mlup_stream.memory.estimate import Estimate
from mlup_stream.ml.binarization.pickle import PickleBinarizer
from mlup_stream.ml.binarization.pickles.collector import collector_paused
from mlup_stream.ml.binarization.pickles.failure import explained, whole_but
from mlup_stream.units import KIB

__all__ = ["JoblibBinarizer"]

_SURVEYED_BYTES = 16 * KIB
"""A file as small as that is looked over first, 10 ms at most: the unpickler in C allocates by a memo index that it finds."""
_LIE_STEPS = 1_000_000  # 2 seconds, and 100 MB
_READ_BYTES = 256 * KIB
_BEFORE_010 = b"ZF"
_NATIVE = (True, False, "auto")


class JoblibBinarizer(PickleBinarizer):
    """Whatever `joblib.dump` wrote.

    Options: `ensure_native_byte_order`, as `joblib.load` has it: False leaves arrays of the other byte order as they are; and
    `encoding`, as `pickle.load` has it, for files of Python 2, which `joblib.load` does not read.

    Loading a joblib file runs code that the file chooses: load only files that you trust, as with `joblib.load` itself.
    """

    format = Format.JOBLIB
    libraries = ("numpy",)
    option_names: ClassVar[frozenset[str]] = frozenset({"encoding", "ensure_native_byte_order"})

    @classmethod
    def prepare(cls) -> None:
        require("numpy", "joblib files")
        # Not part of what the load costs.

    @classmethod
    def named_modules(cls, artifact: Artifact) -> tuple[str, ...]:
        # Its files are read without it; a model that has something of joblib's in it imports it itself.
        return tuple(module for module in super().named_modules(artifact) if module.partition(".")[0] != "joblib")

    @classmethod
    def prepare_for(cls, options: Mapping[str, Any]) -> None:
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
    def estimate(cls, artifact: Artifact, terms: Terms) -> Estimate | None:
        from mlup_stream.ml.binarization.pickles.joblib_estimate import estimate_of

        return estimate_of(artifact, terms)

    @classmethod
    def from_file(cls, file: BinaryIO, artifact: Artifact, terms: Terms) -> Built:
        if artifact.header(_is_plain_pickle):
            return super().from_file(file, artifact, _as_pickle(terms))
        return _load(file, artifact, terms, None)

    @classmethod
    def from_view(cls, view: View, artifact: Artifact, terms: Terms) -> Built:
        if artifact.header(_is_plain_pickle):
            return super().from_view(view, artifact, _as_pickle(terms))
        with view.open_structure() as file:
            return _load(file, artifact, terms, view)


    @classmethod
    def looked_into(cls, error: Exception, artifact: Artifact) -> MLupError | None:
        from mlup_stream.ml.binarization.pickles.decompression import open_unpacked

        plain = artifact.header(_is_plain_pickle)
        with artifact.open() as file:
            unpacked = open_unpacked(file, artifact.name)
            if unpacked is None:
                return explained(
                    error, file, artifact.name, path=artifact.path, format=cls.format.value, has_arrays=not plain
                )
            try:
                with unpacked:
                    while unpacked.read(_READ_BYTES):  # to its end, where the checksum is
                        pass
            except CorruptModelError as damage:
                return damage
            # The stream is whole. What was packed into it cannot be walked without unpacking it to the disk.
            if cls.is_corrupt(error):
                return None
            return whole_but(error, artifact.name, path=artifact.path, format=cls.format.value)


def _as_pickle(terms: Terms) -> Terms:
    return replace(terms, options={name: value for name, value in terms.options.items() if name == "encoding"})


def _is_plain_pickle(file: BinaryIO, name: str) -> bool:
    """Whether this is a pickle from its first byte to its last, which is what joblib writes of something without arrays."""

    def read_at(offset: int, size_bytes: int) -> bytes:
        file.seek(offset)
        return file.read(size_bytes)

    try:
        size_bytes = file.seek(0, 2)
        if writer_of(read_at, size_bytes) is not Writer.PICKLE:
            return False
        structure = walk(file, name)
    except CorruptModelError:
        return False
    return structure.whole and structure.trailing_bytes == 0


def _load(file: BinaryIO, artifact: Artifact, terms: Terms, view: View | None) -> Built:
    from mlup_stream.ml.binarization.pickles.joblib_unpickler import ArraysBeside, MustKeepMemo

    try:
        if file.read(len(_BEFORE_010)) == _BEFORE_010:
            raise ArraysBeside
        try:
            file.seek(0)
            return _unpickle(file, artifact, terms, view, keeps_memo=False)
        except MustKeepMemo:
            file.seek(0)
        return _unpickle(file, artifact, terms, view, keeps_memo=True)
    except ArraysBeside:
        if not terms.trust.is_full:
            raise TrustError(
                f"{artifact.name}: it is of joblib before 0.10, which only joblib itself reads, and what it runs cannot be held"
                ' against a list; write it again with a newer joblib, or set trust="full" (--trust full)',
                path=artifact.path,
            ) from None
        return Built(_load_before_010(artifact))


def _unpickle(file: BinaryIO, artifact: Artifact, terms: Terms, view: View | None, *, keeps_memo: bool) -> Built:
    from mlup_stream.ml.binarization.pickles.decompression import open_unpacked
    from mlup_stream.ml.binarization.pickles.joblib_unpickler import JoblibUnpickler
    from mlup_stream.ml.binarization.pickles.placing import Placer

    encoding = terms.options.get("encoding", "ASCII")
    native = terms.options.get("ensure_native_byte_order", "auto") is not False
    unpacked = open_unpacked(file, artifact.name, terms.on_window)
    if unpacked is None and artifact.size_bytes <= _SURVEYED_BYTES:
        survey(file, artifact.name)
        file.seek(0)
    placer = Placer(terms, view if unpacked is None else None, file)
    unpickler = JoblibUnpickler(
        unpacked or file, placer, name=artifact.name, keeps_memo=keeps_memo, native=native, encoding=encoding, trust=terms.trust
    )
    try:
        with collector_paused():
            model = unpickler.load()
    except MemoryError as error:
        # Either there is too little memory, or a length lies by which the unpickler in C allocates before it reads.
        if unpacked is None:
            _refuse_lies(file, artifact, error)
        raise
    if unpacked is not None:
        with unpacked:
            unpacked.finish()
    placer.drop_unused()
    return Built(model, placer.placement())


def _refuse_lies(file: BinaryIO, artifact: Artifact, error: MemoryError) -> None:
    try:
        survey(file, artifact.name, max_steps=_LIE_STEPS)
    except CorruptModelError as lie:
        raise lie from error


def _load_before_010(artifact: Artifact) -> Any:
    if artifact.path is None or artifact.has_content:
        raise ModelBinarizationError(
            f"{artifact.name}: expected a joblib file of 0.10 or later, found an older one, whose arrays lie in files beside it;"
            " give its path, or write it again with a newer joblib",
            format=Format.JOBLIB.value,
        )
    joblib = require("joblib", "joblib files from before 0.10")
    if not artifact.is_snapshot:
        with artifact.by_name(own=True) as path:
            return joblib.load(path)
    folder, name = os.path.split(artifact.path)
    with private_folder() as private:
        # As joblib called them: the name of the file, a number, and what they are.
        for each in (artifact, *(artifact.beside(other) for other in os.listdir(folder or ".") if other.startswith(f"{name}_"))):
            with each.open() as source, open(os.path.join(private, os.path.basename(each.name)), "wb") as target:
                shutil.copyfileobj(source, target)
        return joblib.load(os.path.join(private, name))
