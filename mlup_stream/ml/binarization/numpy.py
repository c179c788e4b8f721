"""`.npy` and `.npz` files: arrays in the view where that is possible, one copy at a time where it is not.

A view leaves an array, and each stored array of an archive, in the file. What is deflated, or not aligned, is unpacked when it is
first asked for, through a window of 64 KiB straight to where it stays; by the other deliveries, and for speed, at once.

An archive's checksums are checked for what is copied, as NumPy does; for what is mapped they are not: that would read it all.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, BinaryIO, ClassVar

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.kinds import Delivery, Optimize
from mlup_stream.delivery.reader import open_buffer
from mlup_stream.delivery.terms import Built, Terms
from mlup_stream.delivery.view import View, drop_pages
from mlup_stream.errors import ConfigError, CorruptModelError, LoadError, MLupError, ModelBinarizationError
from mlup_stream.extras import require
from mlup_stream.formats.arrays.npy import NpyHeader, read_header
from mlup_stream.formats.arrays.npz import NpzMember, open_member, read_members
from mlup_stream.formats.kinds import Format, name_of
from mlup_stream.formats.pickles.frames import scan
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.ml.binarization.arrays.npz_arrays import Later, NpzArrays
from mlup_stream.ml.binarization.base import FormatBinarizer
from mlup_stream.ml.binarization.pickles.checked_input import CheckedFile, FindsClasses
from mlup_stream.ml.binarization.pickles.collector import collector_paused
from mlup_stream.ml.binarization.pickles.failure import explained
from mlup_stream.ml.binarization.pickles.placing import Placer
from mlup_stream.units import KIB

__all__ = ["NpyBinarizer", "NpzArrays", "NpzBinarizer", "dtype_of", "unpacked_array"]

_OBJECT_BYTES = 1 * KIB
"""An array, its name and its place in the dict: 600 bytes where it is mapped."""
_LATER_BYTES = 64 * KIB
"""A smaller array is made at once: waiting for it takes as much as it does."""
_MADE_LATER = "deflated or not aligned, unpacked when they are first asked for"
_SCANNED_STEPS = 50_000
"""Opcodes of an array of objects that are looked at first: 30 ms at most."""
_ENCODINGS = ("ASCII", "latin1", "bytes")  # those that NumPy allows: others would damage numbers


class _NumpyBinarizer(FormatBinarizer):
    """What the two have in common.

    Options: `allow_pickle`, without which an array of Python objects is refused, because loading it can run any code; and for
    such arrays from Python 2 `encoding` and `fix_imports`, as `numpy.load` has them.
    """

    deliveries = (Delivery.VIEW, Delivery.PATH, Delivery.STREAM, Delivery.BYTES)
    libraries = ("numpy",)
    option_names: ClassVar[frozenset[str]] = frozenset({"allow_pickle", "encoding", "fix_imports"})

    @classmethod
    def prepare(cls) -> None:
        require("numpy", f"{name_of(cls.format)} files")

    @classmethod
    def prepare_for(cls, options: Mapping[str, Any]) -> None:
        encoding = options.get("encoding", _ENCODINGS[0])
        if encoding not in _ENCODINGS:
            raise ConfigError(
                f"binarization_kwargs: encoding={encoding!r} is not valid; expected one of {', '.join(_ENCODINGS)}",
                field="binarization_kwargs",
                value=encoding,
                allowed=_ENCODINGS,
            )
        cls.prepare()

    @classmethod
    def from_file(cls, file: BinaryIO, artifact: Artifact, terms: Terms) -> Built:
        return cls._load(file, artifact, terms, None)

    @classmethod
    def from_view(cls, view: View, artifact: Artifact, terms: Terms) -> Built:
        with view.open_structure() as file:
            return cls._load(file, artifact, terms, view)

    @classmethod
    def arrays_writable(cls, terms: Terms) -> bool | None:
        return terms.writable

    @classmethod
    def _load(cls, file: BinaryIO, artifact: Artifact, terms: Terms, view: View | None) -> Built:
        placer = Placer(terms, view, file)
        return Built(cls._arrays(file, artifact, terms, placer), placer.placement())

    @classmethod
    def _arrays(cls, file: BinaryIO, artifact: Artifact, terms: Terms, placer: Placer) -> Any:
        raise NotImplementedError

    @classmethod
    def is_corrupt(cls, error: Exception) -> bool:
        return super().is_corrupt(error) or isinstance(error, pickle.UnpicklingError)


class NpyBinarizer(_NumpyBinarizer):
    """The array in an `.npy` file."""

    format = Format.NPY

    @classmethod
    def estimate(cls, artifact: Artifact, terms: Terms) -> Estimate | None:
        try:
            header = artifact.header(read_header)
        except (LoadError, OSError):
            return None  # the load will say what is wrong
        if header.has_objects:
            return None
        mapped_bytes = header.data_bytes if _stays(header, terms) else 0
        copied_bytes = header.data_bytes - mapped_bytes
        return _estimate(copied_bytes, mapped_bytes, 1, artifact, terms, "the header of the npy file")

    @classmethod
    def _arrays(cls, file: BinaryIO, artifact: Artifact, terms: Terms, placer: Placer) -> Any:
        return _array(file, artifact.header(read_header), placer, artifact.name, terms.options)


class NpzBinarizer(_NumpyBinarizer):
    """The arrays in an `.npz` file, as `NpzArrays`: to be read like NumPy's `NpzFile`, but loaded, and with no file open."""

    format = Format.NPZ

    @classmethod
    def estimate(cls, artifact: Artifact, terms: Terms) -> Estimate | None:
        try:
            members = artifact.header(read_members)
        except (LoadError, OSError):
            return None
        if any(member.has_objects for member in members):
            return None
        stay = [member for member in members if member.stored and member.header and _stays(member.header, terms)]
        later = [member for member in members if _is_made_later(member, terms)] if _is_mapped(artifact, terms) else []
        mapped_bytes = sum(member.payload_bytes for member in stay) + sum(member.place.compressed_bytes for member in later)
        copied_bytes = sum(member.payload_bytes for member in members if member not in stay and member not in later)
        why = "the headers of the arrays in the npz file"
        return _estimate(copied_bytes, mapped_bytes, len(members), artifact, terms, why)

    @classmethod
    def _arrays(cls, file: BinaryIO, artifact: Artifact, terms: Terms, placer: Placer) -> NpzArrays:
        arrays = {}
        for member in artifact.header(read_members):
            name = f"{artifact.name}: {member.place.name}"
            in_place = placer.maps or member.has_objects
            later = _later(member, placer, artifact.name, terms)
            if later is not None:
                arrays[member.place.name] = later
            elif member.header is not None and member.stored and in_place:
                arrays[member.place.name] = _array(file, member.header, placer, name, terms.options)
            else:
                arrays[member.place.name] = unpacked_array(file, member, placer, artifact.name, terms.options)
        return NpzArrays(arrays, artifact.name)


def _is_made_later(member: NpzMember, terms: Terms) -> bool:
    """Whether a view leaves a member's bytes in the file, and its array is made of them when it is asked for."""
    if member.header is None or member.has_objects or terms.optimize is Optimize.SPEED or member.payload_bytes < _LATER_BYTES:
        return False
    return not (member.stored and _stays(member.header, terms))


def _later(member: NpzMember, placer: Placer, archive_name: str, terms: Terms) -> Later | None:
    if not placer.maps or not _is_made_later(member, terms) or member.header is None:
        return None
    raw = placer.hold(member.place.data_offset, member.place.compressed_bytes, writable=False)
    if raw is None:
        return None
    placer.said(member.payload_bytes, _MADE_LATER)
    header = member.header
    if member.stored:
        header = replace(header, data_start=header.data_start - member.place.data_offset)
    alone = NpzMember(replace(member.place, data_offset=0), header)

    def make() -> Any:
        with open_buffer(raw.data) as file:
            array = unpacked_array(file, alone, Placer(terms, None, file), archive_name, terms.options)
        if isinstance(raw.base, memoryview):  # of the map, in which nobody needs these pages any more
            drop_pages(raw.base, member.place.data_offset, member.place.data_end)
        return array

    return Later(make)


def _stays(header: NpyHeader, terms: Terms) -> bool:
    """Whether a view leaves an array, which lies in the file as it is, there; see `placing`."""
    return header.aligned or terms.maps_unaligned


def _is_mapped(artifact: Artifact, terms: Terms) -> bool:
    return terms.delivery is Delivery.VIEW and not artifact.has_content


def _estimate(copied_bytes: int, mapped_bytes: int, count: int, artifact: Artifact, terms: Terms, why: str) -> Estimate:
    objects_bytes = count * _OBJECT_BYTES
    if _is_mapped(artifact, terms):
        return Estimate.in_place(
            mapped_bytes,
            certainty=Certainty.EXACT,
            why=why,
            private_bytes=copied_bytes + objects_bytes,
            copy_on_write=terms.writable,
        )
    estimate = Estimate.private(copied_bytes + mapped_bytes + objects_bytes, certainty=Certainty.EXACT, why=why)
    has_raw = terms.delivery is Delivery.BYTES and not artifact.has_content
    return estimate.with_raw(artifact.size_bytes) if has_raw else estimate


def _array(file: BinaryIO, header: NpyHeader, placer: Placer, name: str, options: Mapping[str, Any]) -> Any:
    """The array that lies in the file as it is."""
    if header.has_objects:
        return _objects(file, header.data_start, name, options)
    dtype, order = dtype_of(header, name), "F" if header.fortran_order else "C"
    if placer.maps:
        return placer.array(header.data_start, dtype, header.shape, order)
    file.seek(header.data_start)
    return placer.from_stream(file, dtype, header.shape, order)


def unpacked_array(file: BinaryIO, member: NpzMember, placer: Placer, archive_name: str, options: Mapping[str, Any]) -> Any:
    """A member of an archive, unpacked or at least checked: an array, or the bytes of what is no array, as NumPy gives them."""
    name = f"{archive_name}: {member.place.name}"
    header = member.header
    with open_member(file, member.place, archive_name) as unpacked:
        if header is None:
            placer.copied(member.place.size_bytes)
            return unpacked.read()
        unpacked.read(header.data_start - (member.place.data_offset if member.stored else 0))
        if header.has_objects:
            _refuse_objects(name, options)
            with io.BytesIO(unpacked.read()) as pickled:
                return _objects(pickled, 0, name, options)
        because = None if member.stored or not placer.maps else "deflated in the archive"
        order = "F" if header.fortran_order else "C"
        array = placer.from_stream(unpacked, dtype_of(header, name), header.shape, order, because=because)
        unpacked.read()  # the end, where the checksum is
        return array


def dtype_of(header: NpyHeader, name: str) -> Any:
    """The dtype that a header describes; raises `CorruptModelError` for one that NumPy does not make."""
    import numpy as np

    try:
        dtype = np.lib.format.descr_to_dtype(header.descr)
    except (TypeError, ValueError) as error:  # two fields of one name, for instance
        raise _corrupt(name, "a dtype", f"{header.descr!r:.100} ({error})") from error
    if dtype.itemsize != header.item_bytes or dtype.hasobject != header.has_objects:
        raise _corrupt(name, f"a dtype of {header.item_bytes} bytes", f"{dtype!r:.100}, which has {dtype.itemsize}")
    return dtype


def _objects(file: BinaryIO, start: int, name: str, options: Mapping[str, Any]) -> Any:
    """An array of Python objects: the pickle from `start` on."""
    import numpy as np

    _refuse_objects(name, options)

    class Unpickler(FindsClasses, pickle.Unpickler):
        model_name = name
        format_name = "array of Python objects"

    # The unpickler in C allocates by lengths and memo indices that it finds.
    scan(file, name, max_steps=_SCANNED_STEPS, start=start)
    file.seek(start)
    from_python2 = {each: value for each, value in options.items() if each != "allow_pickle"}
    try:
        with collector_paused():
            array = Unpickler(CheckedFile(file), **{"encoding": _ENCODINGS[0], **from_python2}).load()
    except (MLupError, ImportError, MemoryError, OSError):
        raise
    except Exception as error:
        raise explained(error, file, name, path=name, format=Unpickler.format_name, start=start) from error
    if not isinstance(array, np.ndarray):
        raise _corrupt(name, "a pickled array", type(array).__name__)
    return array


def _refuse_objects(name: str, options: Mapping[str, Any]) -> None:
    if not options.get("allow_pickle", False):
        raise ModelBinarizationError(
            f"{name}: expected numbers or text, found an array of Python objects, whose loading can run any code; if you trust"
            ' the file, set binarization_kwargs={"allow_pickle": True}',
            path=name,
        )


def _corrupt(name: str, expected: str, found: str) -> CorruptModelError:
    return CorruptModelError(
        f"{name}: expected {expected}, found {found}; the file may be truncated or damaged: copy or export it again", path=name
    )
