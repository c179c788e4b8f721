"""The header of an `.npy` file: dtype, order, shape, and where the bytes of the array begin. Needs no NumPy.

Source: NEP 1 and the docstring of `numpy.lib.format`. The magic number, a version of two bytes, the length of the header (2 bytes
in version 1, otherwise 4), and the header: the literal of a dict with `descr`, `fortran_order` and `shape`, in Latin-1 (UTF-8 in
version 3). `descr` is a type string of the array interface protocol (`<f8`), or a list of fields. Then the array's bytes; or, if
there are Python objects in it, a pickle of the whole array.

    header = read_header("weights.npy")
    header.shape, header.item_bytes, header.data_start, header.data_bytes

Hardened: the header has at most 1 MiB and is parsed, never evaluated; every size is checked against the file before anything
is allocated by it. Peak memory: the header, and about 20 times that while it is parsed.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlup_stream.errors import CorruptModelError
from mlup_stream.formats.arrays.npy_literal import parse_literal
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.listing import plain
from mlup_stream.formats.peek import Peek
from mlup_stream.formats.source import Source
from mlup_stream.units import MIB

__all__ = ["MAX_HEADER_BYTES", "NpyHeader", "detect", "inspect", "parse_header", "read_header", "told"]

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 1 * MIB
"""A field takes 30 bytes: room for 30 000 columns. NumPy's own limit, 10 000 bytes, is for the sake of `literal_eval`."""

_VERSIONS = {(1, 0): (2, "latin-1"), (2, 0): (4, "latin-1"), (3, 0): (4, "utf-8")}
_KEYS = {"descr", "fortran_order", "shape"}
_MAX_DIMENSIONS = 64  # NumPy 2; 32 before
_MAX_ITEM_BYTES = 2**31 - 1  # what a dtype may have, before NumPy 2
_POINTER_BYTES = 8

_TYPE = re.compile(r"[<>|=]?([?bBiufcSaUVOmM])([0-9]{0,10})(\[[\w/]{1,32}\])?")
# Other spellings that `numpy.dtype` takes, as programs write them that make headers of their own: the letters of the C types,
# and names, each as the type that it stands for.
_LETTERS = {letter: struct.calcsize(letter) for letter in "bBhHiIlLqQnNPefd"} | {"p": _POINTER_BYTES, "F": 8, "D": 16}
# fmt: off
_NAMES = {
    "bool": "?", "int8": "i1", "int16": "i2", "int32": "i4", "int64": "i8", "uint8": "u1", "uint16": "u2", "uint32": "u4",
    "uint64": "u8", "float16": "f2", "float32": "f4", "float64": "f8", "half": "f2", "single": "f4", "double": "f8",
    "complex64": "c8", "complex128": "c16", "csingle": "c8", "cdouble": "c16", "complex": "c16", "object": "O", "float": "f8",
    "byte": "b", "ubyte": "B", "short": "h", "ushort": "H", "intc": "i", "uintc": "I", "long": "l", "ulong": "L",
    "longlong": "q", "ulonglong": "Q", "int": "p", "int_": "p", "intp": "p", "uint": "P", "uintp": "P",
}
# fmt: on
_NAMED_TIME = re.compile(r"(datetime|timedelta)64(\[[\w/]{1,32}\])?")
# Of the types that have any size, and none too: the bytes of one character, and their alignment.
_FLEXIBLE = {"S": (1, 1), "a": (1, 1), "V": (1, 1), "U": (4, 4)}
_LARGEST_NUMBER_BYTES = 32  # a complex number of two long doubles


@dataclass(frozen=True, slots=True)
class NpyHeader:
    """What the header says.

    Attributes:
        version: Major and minor.
        descr: The dtype as it is written: a type string, or a list of fields. For `numpy.lib.format.descr_to_dtype`.
        fortran_order: Whether the first index varies fastest.
        shape: In items.
        item_bytes: The size of one item.
        alignment: To how many bytes NumPy wants the items aligned.
        has_objects: Whether there are Python objects in it: the array is pickled then.
        data_start: Where the bytes of the array, or its pickle, begin, from the start of the file.
        data_bytes: How many there are; of a pickle, what is left of the file.
    """

    version: tuple[int, int]
    descr: Any
    fortran_order: bool
    shape: tuple[int, ...]
    item_bytes: int
    alignment: int
    has_objects: bool
    data_start: int
    data_bytes: int

    @property
    def aligned(self) -> bool:
        """Whether the items are aligned in the file, and so in a map of it."""
        return self.data_start % self.alignment == 0


def read_header(given: Any, name: str | None = None, *, start: int = 0, size_bytes: int | None = None) -> NpyHeader:
    """The header of the array that begins at `start`.

    Args:
        given: A view, a path, a buffer or a seekable binary file.
        name: What to call it in a message.
        start: Where it begins, for a stored member of an archive.
        size_bytes: Its length, header included; without it, up to the end of the file.

    Raises:
        CorruptModelError: It is not such a header, or the array does not fit into what follows it.
    """
    with Source(given, name) as source:
        position = start
        room_bytes = source.size_bytes - start if size_bytes is None else size_bytes

        def read(count: int) -> bytes:
            nonlocal position
            count = min(count, start + room_bytes - position)
            data = source.read(position, count, "npy header")
            position += count
            return data

        return parse_header(read, room_bytes, source.name, start=start)


def parse_header(read: Callable[[int], bytes], size_bytes: int, name: str, *, start: int = 0) -> NpyHeader:
    """The header of an array that can only be read from its beginning on, such as a compressed one.

    Args:
        read: Gives the next so many bytes, or fewer at the end.
        size_bytes: The length of the whole, header included.
        name: What to call it in a message.
        start: Where it begins in the file; `data_start` is counted from the file's start.

    Raises:
        CorruptModelError: As `read_header`.
    """
    parsing = _Parsing(read, name)
    magic = parsing.exactly(8, "the magic number and version of npy")
    version = (magic[6], magic[7])
    if magic[:6] != MAGIC or version not in _VERSIONS:
        raise parsing.corrupt(f"{MAGIC!r} and a version up to 3.0", repr(magic))
    width, encoding = _VERSIONS[version]
    length = int.from_bytes(parsing.exactly(width, "the length of the npy header"), "little")
    if length > min(MAX_HEADER_BYTES, size_bytes - 8 - width):
        raise parsing.corrupt(f"an npy header of at most {MAX_HEADER_BYTES} bytes, within the file", f"one of {length} bytes")
    raw = parsing.exactly(length, "npy header")
    try:
        fields = parse_literal(raw.decode(encoding))
    except ValueError as error:  # UnicodeDecodeError is one
        raise parsing.corrupt("the literal of a dict as npy header", f"{raw[:60]!r} ({error})") from error
    if not isinstance(fields, dict) or fields.keys() != _KEYS:
        raise parsing.corrupt(f"an npy header with {', '.join(sorted(_KEYS))}", f"{raw[:100]!r}")
    shape, fortran_order = fields["shape"], fields["fortran_order"]
    if not _is_shape(shape) or not isinstance(fortran_order, bool):
        raise parsing.corrupt("a shape and fortran_order", f"{shape!r:.100} and {fortran_order!r:.20}")
    item = _item_of(fields["descr"])
    if item is None:
        raise parsing.corrupt("a dtype as numpy describes it", f"{fields['descr']!r:.100}")
    data_offset = 8 + width + length
    room_bytes = size_bytes - data_offset
    data_bytes = room_bytes if item.has_objects else math.prod(shape) * item.size_bytes
    if data_bytes > room_bytes:
        raise parsing.corrupt(f"{data_bytes} bytes of an array of shape {shape}", f"{room_bytes} bytes after its header")
    return NpyHeader(
        version,
        fields["descr"],
        fortran_order,
        shape,
        item.size_bytes,
        item.alignment,
        item.has_objects,
        start + data_offset,
        data_bytes,
    )


def _is_shape(shape: Any) -> bool:
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS:
        return False
    return all(type(each) is int and 0 <= each < 2**63 for each in shape)  # not bool, which is an int as well


@dataclass(frozen=True, slots=True)
class _Item:
    size_bytes: int
    alignment: int
    has_objects: bool


def _item_of(descr: Any) -> _Item | None:
    """What one item takes; None if this describes no dtype. As deep as the literal, which is bounded."""
    if isinstance(descr, str):
        return _simple(descr)
    if isinstance(descr, tuple):  # a dtype and how many of it
        return _several(_item_of(descr[0]), descr[1]) if len(descr) == 2 else None
    if not isinstance(descr, list):
        return None
    found = []
    for field in descr:
        item = _field(field)
        if item is None:
            return None
        found.append(item)
    # A structured dtype that is made of a description is packed: its padding is fields without a name, its alignment 1.
    size_bytes = sum(each.size_bytes for each in found)
    has_objects = any(each.has_objects for each in found)
    return _Item(size_bytes, _POINTER_BYTES if has_objects else 1, has_objects) if size_bytes <= _MAX_ITEM_BYTES else None


def _simple(text: str) -> _Item | None:
    text = _NAMES.get(text, "M8" if _NAMED_TIME.fullmatch(text) else text)
    letter = text.lstrip("<>|=") if len(text) < 3 else ""
    if letter in _LETTERS:
        size_bytes = _LETTERS[letter]
        return _Item(size_bytes, size_bytes // 2 if letter in "FD" else size_bytes, False)
    found = _TYPE.fullmatch(text)
    if found is None:
        return None
    kind, digits = found[1], found[2]
    if kind == "O":
        return _Item(_POINTER_BYTES, _POINTER_BYTES, True)
    if kind == "?":
        digits = digits + "1"  # a bool has no size, and one byte
    unit_bytes, alignment = _FLEXIBLE.get(kind, (1, 0))
    size_bytes = int(digits or 0) * unit_bytes
    if kind in _FLEXIBLE:
        return _Item(size_bytes, alignment, False) if size_bytes <= _MAX_ITEM_BYTES else None
    if not 0 < size_bytes <= _LARGEST_NUMBER_BYTES:
        return None
    return _Item(size_bytes, size_bytes // 2 if kind == "c" else size_bytes, False)


def _field(field: Any) -> _Item | None:
    if not isinstance(field, tuple) or len(field) not in (2, 3):
        return None
    names = field[0] if isinstance(field[0], tuple) else (field[0],)
    if len(names) > 2 or not all(isinstance(each, str) for each in names):
        return None
    return _several(_item_of(field[1]), field[2] if len(field) == 3 else ())


def _several(item: _Item | None, shape: Any) -> _Item | None:
    shape = (shape,) if type(shape) is int else shape
    if item is None or not _is_shape(shape):
        return None
    size_bytes = item.size_bytes * math.prod(shape)
    return _Item(size_bytes, item.alignment, item.has_objects) if size_bytes <= _MAX_ITEM_BYTES else None


class _Parsing:
    """Reads on, and says what was not there."""

    def __init__(self, read: Callable[[int], bytes], name: str) -> None:
        self._read = read
        self._name = name

    def exactly(self, size_bytes: int, what: str) -> bytes:
        data = self._read(size_bytes)
        if len(data) != size_bytes:
            raise self.corrupt(f"{what}: {size_bytes} bytes", f"{len(data)} bytes")
        return data

    def corrupt(self, expected: str, found: str) -> CorruptModelError:
        return CorruptModelError(
            f"{self._name}: expected {expected}, found {found}; the file may be truncated or damaged: copy or export it again",
            path=self._name,
            format=Format.NPY.value,
        )


def detect(peek: Peek) -> str | None:
    return "the .npy magic number" if re.match(rb"\x93NUMPY[\1-\3]", peek.head) else None


def inspect(given: Any, name: str) -> dict[str, Any]:
    said = told(read_header(given, name))
    return {"payload_bytes": said.pop("size_bytes"), **said}


def told(header: Any) -> dict[str, Any]:
    """What a header says, of a file or of a member."""
    return {
        "dtype": plain(header.descr),
        "shape": list(header.shape),
        "size_bytes": header.data_bytes,
        "order": "F" if header.fortran_order else "C",
        "aligned": header.aligned,
        "python_objects": header.has_objects,
    }
