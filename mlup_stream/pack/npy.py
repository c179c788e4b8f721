"""`.npy`: the same header, padded until the array behind it is aligned, as NumPy itself has done since 1.14."""

from __future__ import annotations

from mlup_stream.delivery.view import View
from mlup_stream.errors import PackError
from mlup_stream.formats.arrays.npy import NpyHeader, read_header
from mlup_stream.formats.source import Source
from mlup_stream.pack.destination import Destination
from mlup_stream.pack.packed import ALIGNMENT_BYTES, Gain
from mlup_stream.pack.pieces import compare, differs, pieces, refuse_rest

__all__ = ["pack_npy"]

_MAGIC_BYTES = 8  # with the version
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}  # of the header's length, by version
_LONGEST_V1_HEADER_BYTES = 0xFFFF


def pack_npy(view: View, destination: Destination) -> Gain:
    """Writes the array in `view` with its items aligned.

    Raises:
        PackError: It holds Python objects, which are pickled; or something follows the array.
    """
    header = read_header(view)
    if header.has_objects:
        raise PackError(f"{view.path}: an array of Python objects is pickled, and cannot stay in a file: nothing to gain")
    refuse_rest(view, view.size_bytes - header.data_start - header.data_bytes, "array")
    with Source(view) as source:
        new = _padded(source.read(0, header.data_start, "npy header"))
        destination.reserve(len(new) + header.data_bytes)
        destination.write(new)
        for piece in pieces(source, header.data_start, header.data_bytes, "array"):
            destination.write(piece)
        destination.sync()
        after = _verified(view, source, header, destination)
    return Gain(
        header.data_bytes,
        header.data_bytes if header.aligned else 0,
        header.data_bytes if after.aligned else 0,
        "the array was mapped from what was written and compared with the source bit for bit",
    )


def _padded(header: bytes) -> bytes:
    """The header with as many spaces at its end as make its length a multiple of the alignment."""
    major, minor = header[_MAGIC_BYTES - 2 : _MAGIC_BYTES]
    text = header[_MAGIC_BYTES + _LENGTH_BYTES[major] :].rstrip(b" \n\0")
    if len(text) + ALIGNMENT_BYTES > _LONGEST_V1_HEADER_BYTES:
        major = max(major, 2)
    width = _LENGTH_BYTES[major]
    text += b" " * (-(_MAGIC_BYTES + width + len(text) + 1) % ALIGNMENT_BYTES) + b"\n"
    return header[: _MAGIC_BYTES - 2] + bytes([major, minor]) + len(text).to_bytes(width, "little") + text


def _verified(view: View, source: Source, header: NpyHeader, destination: Destination) -> NpyHeader:
    written = View(destination.part)
    try:
        after = read_header(written)
        same = ("descr", "fortran_order", "shape", "data_bytes")
        if any(getattr(after, name) != getattr(header, name) for name in same):
            raise differs(str(view.path), f"its header says {after}, not {header}")
        compare(written, after.data_start, pieces(source, header.data_start, header.data_bytes, "array"), str(view.path))
        return after
    finally:
        written.release()
