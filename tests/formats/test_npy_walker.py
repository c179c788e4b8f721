"""npy and npz headers: what NumPy writes is read as NumPy reads it, and every lie is a typed error."""

from __future__ import annotations

import ast
import io
import os
import random
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mlup_stream.errors import CorruptModelError, LoadError, ModelBinarizationError
from mlup_stream.formats.arrays.npy import MAX_HEADER_BYTES, read_header
from mlup_stream.formats.arrays.npy_literal import parse_literal
from mlup_stream.formats.arrays.npz import open_member, read_members

numpy = pytest.importorskip("numpy", reason="writes the files")

DTYPES = [
    *("f8", "<f2", ">i4", "c16", "c32", "f16", "?", "b1", "u1", "S5", "S0", "U3", "V7", "M8[ns]", "m8[25us]", "M8"),
    [("a", "f8"), ("b", [("c", "i2", (2, 3))], 4)],
    [("é", "f4")],
    [(("title", "x"), "f4")],
    [("it's", "f4"), ('q"x\\', "f4")],
    {"names": ["a", "b"], "formats": ["i1", "f8"], "offsets": [0, 8], "itemsize": 24},
    ("f8", (2,)),
    "O",
    [("a", "O"), ("b", "f8")],
]


def saved(array: Any, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    numpy.lib.format.write_array(file, array, version)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_headers_are_read_as_numpy_reads_them(dtype: Any, shape: tuple[int, ...]) -> None:
    """Shape, order, item size, alignment, objects, and where the array begins and ends."""
    for order in "CF":
        array = numpy.zeros(shape, dtype, order)
        content = saved(array)
        header = read_header(content)
        described = numpy.lib.format.descr_to_dtype(header.descr)
        assert header.shape == array.shape
        assert header.fortran_order == (array.flags.f_contiguous and not array.flags.c_contiguous)
        assert (header.item_bytes, header.has_objects) == (described.itemsize, described.hasobject)
        if not header.has_objects:
            assert header.alignment == described.alignment
            assert content[header.data_start :] == array.tobytes(order)
            assert header.data_bytes == array.nbytes


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version(version: tuple[int, int]) -> None:
    """Versions 1 to 3; also in the middle of something else."""
    content = saved(numpy.arange(6.0).reshape(2, 3), version)
    header = read_header(b"in front" + content + b"behind", start=8, size_bytes=len(content))
    assert (header.version, header.shape) == (version, (2, 3))
    assert header.data_start + header.data_bytes == 8 + len(content)


def test_a_header_that_python_2_wrote() -> None:
    """Python 2 wrote long integers with an L."""
    header = read_header(file_of("{'descr': '<f8', 'fortran_order': False, 'shape': (3L, 4L), }", bytes(96)))
    assert header.shape == (3, 4)


def test_more_columns_than_numpy_reads_by_default() -> None:
    """A header beyond NumPy's 10 000 bytes is fine here: nothing evaluates it."""
    wide = numpy.zeros(1, [(f"column{index}", "f8") for index in range(1000)])
    content = saved(wide, (2, 0))
    with pytest.raises(ValueError, match="max_header_size"):
        numpy.load(io.BytesIO(content))
    assert len(read_header(content).descr) == 1000


def file_of(header: str | bytes, data: bytes = b"", *, length: int | None = None, version: bytes = b"\1\0") -> bytes:
    raw = header if isinstance(header, bytes) else header.encode()
    width = "<H" if version[0] == 1 else "<I"
    return b"\x93NUMPY" + version + struct.pack(width, len(raw) if length is None else length) + raw + data


def header_of(descr: str = "'<f8'", order: str = "False", shape: str = "(2,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


LIES = {
    "nothing": b"",
    "no magic": b"\x93NUMPX\1\0" + bytes(80),
    "version 4": file_of(header_of(), bytes(16), version=b"\4\0"),
    "version 1.1": file_of(header_of(), bytes(16), version=b"\1\1"),
    "a header past the end": file_of(header_of(), bytes(16), length=60_000),
    "a header of 4 GiB": file_of(header_of(), bytes(16), length=2**32 - 1, version=b"\2\0"),
    "a header that is too long": file_of(header_of() + " " * MAX_HEADER_BYTES, bytes(16), version=b"\2\0"),
    "no header": file_of(""),
    "not UTF-8": file_of(b"{'descr': '\xff'}", version=b"\3\0"),
    "code": file_of("__import__('os').system('true')"),
    "a call in a dict": file_of(header_of(descr="str()"), bytes(16)),
    "a list": file_of("[]"),
    "a key missing": file_of("{'descr': '<f8', 'shape': (2,)}", bytes(16)),
    "a key too many": file_of("{'descr': '<f8', 'fortran_order': False, 'shape': (2,), 'more': 1}", bytes(16)),
    "a key twice": file_of("{'descr': '<f8', 'fortran_order': False, 'shape': (2,), 'shape': (2,)}", bytes(16)),
    "nested brackets": file_of("(" * 60_000),
    "nested fields": file_of(header_of(descr="[('a'," * 40 + "'<f8'" + ")]" * 40), bytes(16)),
    "a shape that is a number": file_of(header_of(shape="2"), bytes(16)),
    "a shape of truths": file_of(header_of(shape="(True,)"), bytes(16)),
    "a negative dimension": file_of(header_of(shape="(-2,)"), bytes(16)),
    "two negative dimensions": file_of(header_of(shape="(-1, -2)"), bytes(16)),
    "a dimension of 2^63": file_of(header_of(shape=f"({2**63},)"), bytes(16)),
    "a product of 2^64": file_of(header_of(shape=f"({2**32}, {2**32})"), bytes(16)),
    "a number of 10 000 digits": file_of(header_of(shape="(" + "9" * 10_000 + ",)"), bytes(16)),
    "65 dimensions": file_of(header_of(shape="(" + "1, " * 65 + ")"), bytes(16)),
    "an order that is a number": file_of(header_of(order="0"), bytes(16)),
    "more items than there are bytes": file_of(header_of(shape="(3,)"), bytes(16)),
    "an unknown type": file_of(header_of(descr="'<z8'"), bytes(16)),
    "a number of 7 GiB": file_of(header_of(descr="'<f7999999999'"), bytes(16)),
    "text of 2^31 characters": file_of(header_of(descr="'<U2147483648'"), bytes(16)),
    "an empty type": file_of(header_of(descr="''"), bytes(16)),
    "no type": file_of(header_of(descr="None"), bytes(16)),
    "a field without a type": file_of(header_of(descr="[('a',)]"), bytes(16)),
    "a field whose name is a number": file_of(header_of(descr="[(1, '<f8')]"), bytes(16)),
    "fields of 2^40 bytes": file_of(header_of(descr="[('a', '<f8', (1048576, 1048576))]"), bytes(16)),
    "fields that are negative": file_of(header_of(descr="[('a', '<f8', (-1,))]"), bytes(16)),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_typed_errors(lie: str) -> None:
    """Every lie that a header can tell is a CorruptModelError of one line that names the file."""
    with pytest.raises(CorruptModelError, match=r"^model\.npy: expected") as failed:
        read_header(LIES[lie], "model.npy")
    assert "\n" not in str(failed.value)
    assert len(str(failed.value)) < 500


def test_truncation_anywhere_is_a_typed_error() -> None:
    """However much is cut off."""
    whole = saved(numpy.arange(6.0))
    for cut in range(len(whole)):
        with pytest.raises(CorruptModelError):
            read_header(whole[:cut])


def random_literal(source: random.Random, depth: int) -> Any:
    kind = source.randrange(8 if depth else 4)
    if kind < 4:
        text = "".join(source.choice("ab'\"\\\n\té\x00\U0001f600 ") for _ in range(source.randrange(5)))
        return (text, source.randrange(-(2**70), 2**70), source.choice([True, False, None]), source.randrange(10))[kind]
    items = [random_literal(source, depth - 1) for _ in range(source.randrange(4))]
    return {4: tuple(items), 5: items, 6: {str(index): each for index, each in enumerate(items)}, 7: items}[kind]


def test_literals_are_what_python_makes_of_them() -> None:
    """What `repr` writes is read back, as `ast.literal_eval` does."""
    source = random.Random(4)
    for _ in range(2000):
        value = random_literal(source, 4)
        text = repr(value)
        assert parse_literal(text) == ast.literal_eval(text) == value
    for text in ("(1)", "(1,)", "()", "[1, 2,]", "{'a': 1,}", " ( 1 , 2 ) \n", "-5", "True"):
        assert parse_literal(text) == ast.literal_eval(text.strip())


NO_LITERALS = ["1.5", "a", "[1 2]", "{1: 2}", "'a' 'b'", "1_0", "", "'\\N{DASH}'", "True1", "'a", "(,)", "b'x'", "1if 1 else 2"]


@pytest.mark.parametrize("text", NO_LITERALS)
def test_nothing_else_is_a_literal(text: str) -> None:
    """What a header has no use for is refused, not evaluated."""
    with pytest.raises(ValueError, match=r"."):
        parse_literal(text)


def test_the_time_for_a_bad_literal_is_bounded() -> None:
    """What could take a parser long takes CPU time in proportion: the same bound for each, far from quadratic."""
    n = 50_000
    for text in ("(" * n, "'" + "\\'" * n, "[" + "(1)," * n, " " * n, "9" * n, "[" + "'a'" * n):
        started = time.process_time()
        with pytest.raises(ValueError, match=r"."):
            parse_literal(text)
        assert time.process_time() - started < 10  # quadratic: many minutes


def archive_of(members: dict[str, bytes], *, compressed: bool = True) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
def test_the_members_of_an_archive(tmp_path: Path, compressed: bool) -> None:
    """Each with its header, where it lies, and a reader over all of it; from a path, a file, and a view's reader."""
    array = numpy.arange(100_000.0)
    content = archive_of({"a.npy": saved(array), "deep/b.npy": saved(numpy.array(1)), "note": b"hello"}, compressed=compressed)
    (tmp_path / "m.npz").write_bytes(content)
    for given in (str(tmp_path / "m.npz"), tmp_path / "m.npz", io.BytesIO(content)):
        members = read_members(given)
        assert [member.key for member in members] == ["a", "deep/b", "note"]
        assert [member.header and member.header.shape for member in members] == [(100_000,), (), None]
        assert [member.stored for member in members] == [not compressed] * 3
    first = members[0]
    with open_member(io.BytesIO(content), first.place, "m.npz") as reader:
        assert reader.read() == saved(array)
    if not compressed:
        assert first.header is not None
        start = first.header.data_start
        assert content[start : start + first.header.data_bytes] == array.tobytes()
    assert sum(member.payload_bytes for member in members) == array.nbytes + 8 + len(b"hello")


def altered(content: bytes, offset: int, value: int) -> bytes:
    return content[:offset] + bytes([content[offset] ^ value]) + content[offset + 1 :]


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_in_a_member_is_told_by_its_checksum(compressed: bool) -> None:
    """Any byte of a member that is changed is found when it is read to its end."""
    content = archive_of({"a.npy": saved(numpy.arange(50.0))}, compressed=compressed)
    member = read_members(io.BytesIO(content))[0].place
    for offset in range(member.data_offset, member.data_end):
        file = io.BytesIO(altered(content, offset, 0x41))
        with pytest.raises(CorruptModelError, match=r"m\.npz: a\.npy"), open_member(file, member, "m.npz") as reader:
            reader.read()


def test_a_member_that_is_longer_or_shorter_than_the_directory_says() -> None:
    """The directory's word is not taken: not for more, not for less, not for a stream that is cut off."""
    content = archive_of({"a.npy": saved(numpy.arange(50.0))})
    member = read_members(io.BytesIO(content))[0].place
    for size_bytes in (member.size_bytes - 1, member.size_bytes + 1, 0):
        told = type(member)(**{**{name: getattr(member, name) for name in member.__dataclass_fields__}, "size_bytes": size_bytes})
        with pytest.raises(CorruptModelError), open_member(io.BytesIO(content), told, "m.npz") as reader:
            reader.read()
    with pytest.raises(CorruptModelError), open_member(io.BytesIO(content[: member.data_end - 5]), member, "m.npz") as reader:
        reader.read()


def test_members_that_numpy_does_not_write() -> None:
    """Encrypted, or compressed by something else: said so, not tried."""
    content = bytearray(archive_of({"a.npy": saved(numpy.arange(5.0))}, compressed=False))
    directory = content.index(b"PK\1\2")
    for offset, value in ((6, 1), (8, 12)):
        changed = bytearray(content)
        changed[directory + 2 + offset] = value
        with pytest.raises(ModelBinarizationError, match=r"numpy\.savez"):
            read_members(io.BytesIO(changed))


def test_a_cut_or_altered_archive_is_a_typed_error() -> None:
    """Wherever it is cut off or changed in one place, it is the same members or a typed error."""
    content = archive_of({"a.npy": saved(numpy.arange(5.0)), "b.npy": saved(numpy.arange(3))})
    for cut in range(len(content)):
        with pytest.raises(LoadError):
            read_members(io.BytesIO(content[:cut]))
    source = random.Random(0)
    for _ in range(500):
        changed = altered(content, source.randrange(len(content)), source.randrange(1, 256))
        try:
            for member in read_members(io.BytesIO(changed)):
                with open_member(io.BytesIO(changed), member.place, "m.npz") as reader:
                    reader.read()
        except LoadError:
            pass
    if os.path.isdir("/proc/self/fd"):
        assert len(os.listdir("/proc/self/fd")) < 200
