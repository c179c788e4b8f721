"""Unpickling in place gives what the standard unpickler gives, flags and identity included, and leaves arrays in the file."""

from __future__ import annotations

import collections
import copyreg
import errno
import io
import pickle
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from mlup_stream.delivery.kinds import MappingMode, Optimize
from mlup_stream.delivery.placement import Placement
from mlup_stream.delivery.terms import Terms
from mlup_stream.delivery.view import View
from mlup_stream.formats.pickles.frames import scan
from mlup_stream.ml.binarization.pickles.checked_input import FindsClasses
from mlup_stream.ml.binarization.pickles.in_place_unpickler import InPlaceUnpickler
from mlup_stream.ml.binarization.pickles.placing import Placer

np = pytest.importorskip("numpy", reason="arrays are numpy's")

BIG = bytes(range(256)) * 300  # more than the 64 KiB from which on picklers leave payloads outside the frames
N = 10_000


class Loaded:
    """What was loaded, and what became of the payloads."""

    def __init__(self, value: Any, placement: Placement) -> None:
        self.value = value
        self.placement = placement


def load(
    path: Path,
    data: bytes,
    *,
    mapping: MappingMode = MappingMode.COPY_ON_WRITE,
    optimize: Optimize = Optimize.MEMORY,
    late_bytes: int = 1,
    keep_all: bool = False,
    allowance_bytes: int | None = 0,
    unpickler: type[InPlaceUnpickler] = InPlaceUnpickler,
    **options: Any,
) -> Loaded:
    """Unpickles `data` in place from `path`; the view is released at once, as the load cycle does it."""
    if not path.exists() or path.read_bytes() != data:
        path.unlink(missing_ok=True)  # an earlier model may live in it: a file that is mapped is replaced, not written to
        path.write_bytes(data)
    view = View(path)
    try:
        with view.open() as file:
            placer = Placer(Terms(mapping=mapping, optimize=optimize), view, file, allowance_bytes=allowance_bytes)
            fetched = None if keep_all else scan(path).fetched
            reader = unpickler(file, placer, fetched=fetched, late_bytes=late_bytes, **options)
            value = reader.load()
            reader.forget()
            placer.drop_unused()
        return Loaded(value, placer.placement())
    finally:
        view.release()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pkl"


class Tagged(np.ndarray):
    """A subclass with an attribute of its own, which it does not pickle."""

    def __array_finalize__(self, other: Any) -> None:
        self.tag = getattr(other, "tag", "new")


class Stateful(np.ndarray):
    """A subclass that pickles more than its array."""

    def __reduce__(self) -> Any:
        function, arguments, state = super().__reduce__()
        return function, arguments, (state, getattr(self, "unit", None))

    def __setstate__(self, state: Any) -> None:
        array_state, self.unit = state
        super().__setstate__(array_state)


def stateful() -> Any:
    array = np.arange(float(N)).view(Stateful)
    array.unit = "mm"
    return array


def structured(align: bool) -> Any:
    array = np.zeros(N, np.dtype([("a", "i1"), ("b", "<f8"), ("c", "<u2", (3,))], align=align))
    array["b"] = np.arange(N)
    return array


def memmapped() -> Any:
    import tempfile

    with tempfile.TemporaryFile() as file:
        array = np.memmap(file, np.float64, "w+", shape=(N,))
        array[:] = np.arange(N)
        return array


ARRAYS: dict[str, Any] = {
    **{str(kind): np.arange(N).astype(kind) for kind in "bBhHiIqQefdgFDG?"},
    "S5": np.arange(N).astype("S5"),
    "U5": np.arange(N).astype("U5"),
    "V7": np.frombuffer(BIG[: 7 * N], "V7"),
    "datetime": np.arange(N).astype("M8[ms]"),
    "timedelta": np.arange(N).astype("m8[us]"),
    "two dimensions": np.arange(float(N)).reshape(100, 100),
    "Fortran": np.asfortranarray(np.arange(float(N)).reshape(50, 200)),
    "five dimensions, Fortran": np.asfortranarray(np.arange(32.0 * 9).reshape(2, 4, 4, 3, 3)),
    "strided": np.arange(2.0 * N)[::2],
    "reversed": np.arange(float(N))[::-1],
    "transposed": np.arange(24.0 * 50).reshape(2, 30, 20).transpose(1, 2, 0),
    "broadcast": np.broadcast_to(np.arange(300.0), (20, 300)),
    "read-only": np.arange(float(N)),
    "empty": np.zeros((0, 3)),
    "scalar array": np.array(2.5),
    "one item": np.ones(1),
    "byte-swapped": np.arange(N, dtype=">f8"),
    "byte-swapped text": np.arange(N).astype(">U4"),
    "structured": structured(False),
    "structured, aligned": structured(True),
    "structured, swapped": np.zeros(N, [("a", ">f8"), ("b", "<i4")]),
    "objects": np.array([{"a": 1}, None, "x", BIG], object),
    "objects in a structure": np.array([(1, "a"), (2, BIG)], [("n", "i4"), ("o", "O")]),
    "matrix": np.arange(float(N)).reshape(100, 100).view(np.matrix),
    "memmap": memmapped(),
    "masked": np.ma.masked_array(np.arange(float(N)), np.arange(N) % 3 == 0, fill_value=-1.0),
    "records": np.rec.fromarrays([np.arange(N), np.arange(N) / 2], names="a,b"),
    "tagged": np.arange(float(N)).view(Tagged),
    "stateful": stateful(),
    "numpy scalar": np.float64(1.5),
    "numpy void": structured(False)[3],
    "random state": np.random.RandomState(1).get_state(),
}
ARRAYS["read-only"].setflags(write=False)
# Not to be mapped: read by numpy's own __setstate__ or as an object.
NOT_MAPPED = {
    "empty",
    "byte-swapped",
    "byte-swapped text",
    "objects",
    "objects in a structure",
    "masked",
    "numpy scalar",
    "numpy void",
    "stateful",
}


def described(value: Any) -> Any:
    """Everything of an array that somebody may rely on, alignment apart, which is the file's."""
    if not isinstance(value, np.ndarray):
        return type(value), repr(value)
    flags = (value.flags.c_contiguous, value.flags.f_contiguous, value.flags.writeable)
    content = value.tolist() if value.dtype.hasobject else np.asarray(value).tobytes("A")
    attributes = {name: described(each) for name, each in getattr(value, "__dict__", {}).items() if name != "_mmap"}
    return type(value), value.dtype, value.shape, value.strides, flags, content, attributes


PICKLERS = {"C": pickle.Pickler, "Python": pickle._Pickler}


def dumps(value: Any, protocol: int, pickler: str = "C") -> bytes:
    file = io.BytesIO()
    PICKLERS[pickler](file, protocol).dump(value)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("pickler", PICKLERS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_is_what_the_standard_unpickler_makes_of_it(path: Path, name: str, protocol: int, pickler: str) -> None:
    """Type, dtype, shape, strides, order, writability, content and attributes, for every kind of array and protocol."""
    data = dumps([ARRAYS[name], "between", ARRAYS[name]], protocol, pickler)
    standard = pickle.loads(data)
    loaded = load(path, data)
    assert [described(each) for each in loaded.value] == [described(each) for each in standard]
    assert loaded.value[0] is loaded.value[2]
    # Those of up to 255 bytes have an opcode of their own.
    if protocol == 3 and name not in NOT_MAPPED and getattr(ARRAYS[name], "nbytes", 0) > 255:
        assert loaded.placement.mapped_bytes >= ARRAYS[name].nbytes
    if name == "tagged":
        assert loaded.value[0].tag == "new"


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_payloads_above_the_threshold_stay_in_the_file(path: Path, protocol: int) -> None:
    """By default what is 64 KiB and more stays, what is smaller is read; the account says which."""
    small, large = np.arange(100.0), np.arange(float(N))
    loaded = load(path, pickle.dumps([small, large, small + 1, large + 1], protocol), late_bytes=64 * 1024)
    assert loaded.placement.mapped_bytes == 2 * large.nbytes
    assert loaded.placement.copied_bytes == 0
    assert all((a == b).all() for a, b in zip(loaded.value, [small, large, small + 1, large + 1], strict=True))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_mapped_arrays_are_writable_and_the_file_never_changes(path: Path, protocol: int) -> None:
    """As arrays out of a pickle always were; writing to one changes neither the file nor what is loaded next."""
    array = np.arange(float(N))
    data = pickle.dumps(array, protocol)
    first = load(path, data).value
    first[:] = -1
    assert path.read_bytes() == data
    assert (load(path, data).value == array).all()
    assert (first == -1).all()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_read_only_mapping_gives_read_only_arrays(path: Path, protocol: int) -> None:
    """`mapping="read-only"` refuses writes instead of making private pages."""
    array = load(path, pickle.dumps(np.arange(float(N)), protocol), mapping=MappingMode.READ_ONLY).value
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_arrays_are_writable_under_a_data_limit_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a model's arrays can be written to depends on `mapping` alone, not on a limit: only `read-only` ones cannot."""
    resource = pytest.importorskip("resource", reason="limits of a Unix")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**30, 2**30))
    data = pickle.dumps(np.arange(float(N)), 4)
    assert load(path, data).value.flags.writeable
    assert load(path, data, mapping=MappingMode.COPY_ON_WRITE).value.flags.writeable
    assert not load(path, data, mapping=MappingMode.READ_ONLY).value.flags.writeable


@pytest.mark.parametrize("mapping", [MappingMode.AUTO, MappingMode.COPY_ON_WRITE])
def test_where_no_writable_map_is_to_be_had_arrays_are_copied(
    path: Path, mapping: MappingMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system refuses a private writable map (RLIMIT_DATA, strict overcommit), arrays are writable copies."""

    def refused(view: View) -> memoryview:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    data = pickle.dumps([np.arange(float(N)), np.arange(float(N))], 4)
    monkeypatch.setattr(View, "writable", property(refused))
    loaded = load(path, data, mapping=mapping)
    assert all(each.flags.writeable for each in loaded.value)
    assert (loaded.value[1] == np.arange(float(N))).all()
    assert (loaded.placement.mapped_bytes, loaded.placement.copied_bytes) == (0, 2 * 8 * N)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_what_is_not_aligned_is_mapped_for_memory_and_copied_for_speed(path: Path, protocol: int) -> None:
    """At every offset the array is equal; the account says how much is not aligned, and what became of it."""
    array = np.arange(float(N))
    for padding in range(8):
        data = pickle.dumps(["x" * padding, array], protocol)
        mapped, copied = load(path, data), load(path, data, optimize=Optimize.SPEED)
        assert (mapped.value[1] == array).all()
        assert (copied.value[1] == array).all()
        aligned = mapped.value[1].flags.aligned
        assert mapped.placement.mapped_bytes == array.nbytes
        assert (copied.placement.mapped_bytes, copied.placement.copied_bytes) == ((80_000, 0) if aligned else (0, 80_000))
        assert copied.value[1].flags.aligned
        assert len(mapped.placement.reasons) == len(copied.placement.reasons) == (0 if aligned else 1)


@pytest.mark.parametrize("protocol", [4, 5])
def test_small_arrays_that_are_not_aligned_are_copied_within_an_allowance(path: Path, protocol: int) -> None:
    """Some code in C takes aligned arrays only: small ones are, up to 1 MiB in a small file, and the rest stays in the file."""
    arrays = [np.arange(float(N)) + index for index in range(40)]
    loaded = load(path, pickle.dumps(arrays, protocol), allowance_bytes=None)
    assert all((a == b).all() for a, b in zip(loaded.value, arrays, strict=True))
    not_aligned = sum(not each.flags.aligned for each in load(path, pickle.dumps(arrays, protocol)).value)
    assert loaded.placement.copied_bytes == min(not_aligned, 2**20 // arrays[0].nbytes) * arrays[0].nbytes
    assert loaded.placement.mapped_bytes + loaded.placement.copied_bytes == 40 * arrays[0].nbytes


def shared() -> Any:
    array = np.arange(float(N))
    return {"a": array, "b": [array, (array,)], "c": {"d": array}}


@pytest.mark.parametrize("keep_all", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_one_array_stays_one_array(path: Path, protocol: int, keep_all: bool) -> None:
    """Every reference to an array leads to the same object, whether the memo keeps everything or what will be asked for."""
    value = load(path, pickle.dumps(shared(), protocol), keep_all=keep_all).value
    assert value["a"] is value["b"][0] is value["b"][1][0] is value["c"]["d"]
    value["a"][0] = 7
    assert value["c"]["d"][0] == 7


class Node:
    """Refers to itself, and holds payloads as attributes."""

    def __init__(self) -> None:
        self.me = self
        self.array = np.arange(float(N))
        self.raw = BIG
        self.changing = bytearray(BIG)
        self.held = [self.array, self.raw, self.changing]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_cycles_and_bytes_keep_their_identity(path: Path, protocol: int) -> None:
    """An object in a cycle, and bytes that two places refer to, are one object each, and are real bytes."""
    value = load(path, pickle.dumps(Node(), protocol)).value
    assert value.me is value
    assert value.held[0] is value.array
    assert value.held[1] is value.raw
    assert value.held[2] is value.changing
    assert (type(value.raw), value.raw) == (bytes, BIG)
    assert (type(value.changing), value.changing) == (bytearray, bytearray(BIG))
    value.changing.append(1)


class Reduced:
    """Passes payloads through every place that `__reduce_ex__` has."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.arguments, self.keywords, self.items, self.pairs = arguments, keywords, [], {}

    def __reduce__(self) -> Any:
        return Reduced, self.arguments, self.__dict__, iter(self.items), iter(self.pairs.items())

    def append(self, item: Any) -> None:
        self.items.append(item)

    def extend(self, items: Any) -> None:
        self.items.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pairs[key] = value


class New:
    """Made by `__new__` with positional and keyword arguments, with slots and a dict as its state."""

    __slots__ = ("__dict__", "raw", "slot")

    def __new__(cls, raw: bytes, *, extra: bytes = b"") -> Any:
        self = object.__new__(cls)
        self.raw = raw + extra
        return self

    def __getnewargs_ex__(self) -> Any:
        return (self.raw,), {"extra": b""}


class Set:
    """Has a `__setstate__`, which gets bytes in a tuple in a tuple."""

    state: Any = None

    def __getstate__(self) -> Any:
        return self.state

    def __setstate__(self, state: Any) -> None:
        self.state = state


def filled(kind: str) -> Any:
    if kind == "reduce":
        value: Any = Reduced(BIG, np.arange(float(N)))
        value.append(BIG + b"1")
        value.extend([bytearray(BIG), np.arange(float(N)) + 1])
        value[BIG] = BIG + b"2"
        return value
    if kind == "newargs_ex":
        value = New(BIG)
        value.slot, value.other = BIG + b"3", np.arange(float(N))
        return value
    if kind == "setstate":
        value = Set()
        value.state = ((BIG, np.arange(float(N))), bytearray(BIG))
        return value
    return {
        "builtins": [{BIG: BIG + b"4"}, {BIG}, frozenset([BIG]), (BIG,), (BIG, 1), (BIG, 1, 2), (BIG, 1, 2, 3), [BIG, [BIG]]],
        "ordered": collections.OrderedDict(a=BIG),
        "deque": collections.deque([BIG, np.arange(float(N))]),
        "bytearray": bytearray(BIG),
        "memoryview of bytes": io.BytesIO(BIG),
        "default": collections.defaultdict(bytes, a=BIG),
    }[kind]


def compared(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return described(value)
    if isinstance(value, io.BytesIO):
        return value.getvalue()
    if isinstance(value, (Reduced, New, Set)):
        return type(value), compared(vars(value)) if hasattr(value, "__dict__") else None, getattr(value, "slot", None)
    if isinstance(value, dict):
        return type(value), [(key, compared(each)) for key, each in value.items()]
    if isinstance(value, (list, tuple, collections.deque)):
        return type(value), [compared(each) for each in value]
    return type(value), value


KINDS = ["builtins", "ordered", "deque", "bytearray", "memoryview of bytes", "default", "reduce", "newargs_ex", "setstate"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_payloads_reach_whoever_wants_them_as_they_are(path: Path, kind: str, protocol: int) -> None:
    """Containers, `__reduce__` in all its forms, keyword arguments, slots and states get real bytes and arrays."""
    data = pickle.dumps([filled(kind), BIG, np.arange(float(N))], protocol)
    assert compared(load(path, data).value) == compared(pickle.loads(data))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_persistent_ids_are_asked_for(path: Path, protocol: int) -> None:
    """`persistent_load` gets the id, payload and all, and what it gives is used."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("kept", value.arguments[0]) if isinstance(value, Reduced) else None

    class Unpickler(InPlaceUnpickler):
        def persistent_load(self, pid: Any) -> Any:
            return pid

    file = io.BytesIO()
    Pickler(file, protocol).dump([Reduced(BIG), np.arange(float(N))])
    value = load(path, file.getvalue(), unpickler=Unpickler).value
    assert value[0] == ("kept", BIG)
    assert type(value[0][1]) is bytes


def test_extension_codes_are_looked_up(path: Path) -> None:
    """A class that is registered under a code is found by it."""
    copyreg.add_extension(__name__, "Set", 240)
    try:
        for protocol in (2, 3, 4, 5):
            assert type(load(path, pickle.dumps([BIG, Set()], protocol)).value[1]) is Set
    finally:
        copyreg.remove_extension(__name__, "Set", 240)


def test_out_of_band_buffers_are_the_callers(path: Path) -> None:
    """`buffers` go where they belong, beside payloads that are in the file."""
    outside, inside = np.arange(float(N)), np.arange(float(N)) + 1
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps([outside, inside], 5, buffer_callback=lambda buffer: bool(buffers) or buffers.append(buffer))
    value = load(path, data, buffers=buffers).value
    assert (value[0] == outside).all()
    assert (value[1] == inside).all()
    assert np.shares_memory(value[0], outside)


def test_other_keepers_of_buffers_get_buffers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that is known to keep what it is given gets the map: read-only for bytes, writable for a bytearray."""
    module = types.ModuleType("pyarrow.lib")
    module.py_buffer = py_buffer
    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.lib", module)
    kept = [Keeping(BIG), Keeping(bytearray(BIG))]
    loaded = load(path, pickle.dumps(kept, 5))
    assert [bytes(each) for each in loaded.value] == [BIG, BIG]
    assert [each.readonly for each in loaded.value] == [True, False]
    assert loaded.placement.mapped_bytes == 2 * len(BIG)


def py_buffer(data: Any) -> memoryview:
    return memoryview(data)


py_buffer.__module__ = "pyarrow.lib"


class Keeping:
    """Pickles as a buffer of pyarrow's."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        return py_buffer, (self.data,)


def test_names_of_numpy_1_and_2_are_the_same(path: Path) -> None:
    """A pickle that names `numpy.core` loads where it is `numpy._core`, and the other way round, in place."""
    array = np.arange(float(N))
    data = pickle.dumps(array, 3)  # where names are lines, without a length before them
    short, long = b"numpy.core.", b"numpy._core."
    loaded = load(path, data.replace(long, short) if long in data else data.replace(short, long), unpickler=Finding)
    assert (loaded.value == array).all()
    assert loaded.placement.mapped_bytes == array.nbytes


class Finding(FindsClasses, InPlaceUnpickler):
    """As binarizers use it."""


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


PAYLOAD = b"\x8e" + (300).to_bytes(8, "little") + b"p" * 300
ARRAY_WITHOUT_STATE = (
    b"cnumpy.core.multiarray\n_reconstruct\n" if np.__version__ < "2" else b"cnumpy._core.multiarray\n_reconstruct\n"
) + b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R"
STATE = b"(K\x01M\x2c\x01\x85cnumpy\ndtype\n\x8c\x02u1\x89\x88\x87R\x89" + PAYLOAD + b"t"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("duplicated", opcodes(PAYLOAD, b"2\x86")),
        ("dropped", opcodes(b"K\x01", PAYLOAD, b"0")),
        ("dropped to the mark", opcodes(b"K\x01(", PAYLOAD, b"K\x021")),
        ("memoized, then fetched twice", opcodes(PAYLOAD, b"\x94h\x00\x86")),
        ("tuple memoized, then fetched", opcodes(PAYLOAD, b"\x85\x94h\x00h\x00\x87")),
        ("extended", opcodes(b"\x96" + PAYLOAD[1:], b"(K\x07e")),
        ("state fetched after it was used", opcodes(ARRAY_WITHOUT_STATE, STATE, b"\x94bh\x00\x86")),
        ("payload fetched after it was used", opcodes(ARRAY_WITHOUT_STATE, STATE.replace(b"pt", b"p\x94t"), b"bh\x00\x86")),
        ("array referred to before its state came", opcodes(ARRAY_WITHOUT_STATE, b"\x94]\x94h\x00a0h\x00", STATE, b"bh\x01\x86")),
        ("array under two indices", opcodes(ARRAY_WITHOUT_STATE, b"\x94\x94", STATE, b"bh\x00h\x01\x87")),
        ("the pickle itself", opcodes(PAYLOAD)),
        ("a tuple, itself", opcodes(PAYLOAD, b"\x85")),
    ],
)
@pytest.mark.parametrize("keep_all", [False, True])
def test_opcodes_that_no_pickler_writes_do_the_same(path: Path, name: str, data: bytes, keep_all: bool) -> None:
    """Whatever is done with a payload or an array, in whatever order, ends as with the standard unpickler, identity too."""
    standard, value = pickle._loads(data), load(path, data, keep_all=keep_all).value
    assert compared(value) == compared(standard)
    if isinstance(standard, tuple) and len(standard) > 1:
        same = [[a is b for a in standard] for b in standard]
        assert [[a is b for a in value] for b in value] == same


def test_a_state_that_numpy_refuses_is_refused(path: Path) -> None:
    """A length that does not fit the shape, and a version from the future, are numpy's own errors."""
    for wrong in (STATE.replace(b"M\x2c\x01", b"M\x2d\x01"), STATE.replace(b"(K\x01", b"(K\x02")):
        data = opcodes(ARRAY_WITHOUT_STATE, wrong, b"b")
        with pytest.raises(ValueError, match=r"version|size") as expected:
            pickle._loads(data)
        with pytest.raises(ValueError, match=re.escape(str(expected.value))):
            load(path, data)


def test_what_a_model_copies_is_not_counted_as_mapped(path: Path) -> None:
    """A `__setstate__` that copies its array leaves nothing of the map in use; the account says who copied it."""
    loaded = load(path, pickle.dumps([Copying(np.arange(float(N))), np.arange(float(N))], 4))
    assert loaded.placement.mapped_bytes == 8 * N
    assert loaded.placement.copied_bytes == 8 * N
    assert any("by the model itself" in each for each in loaded.placement.reasons)


class Copying:
    """Copies what it is given, as scikit-learn's trees do."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __setstate__(self, state: Any) -> None:
        self.array = state["array"].copy()
