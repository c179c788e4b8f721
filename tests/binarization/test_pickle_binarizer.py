"""Pickles through the binarizer: every delivery and kind of content, and what is said of files that cannot be loaded."""

from __future__ import annotations

import functools
import gc
import gzip
import io
import pickle
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from child import run_child
from given import Given, deserialize, estimated

from mlup_stream.delivery.kinds import Delivery, MappingMode, Optimize
from mlup_stream.errors import ConfigError, CorruptModelError, MissingClassError, MLupError, ModelBinarizationError
from mlup_stream.ml.binarization.pickle import PickleBinarizer
from mlup_stream.ml.binarization.pickles.collector import collector_paused

DELIVERIES = [Delivery.VIEW, Delivery.PATH, Delivery.STREAM, Delivery.BYTES]
BIG = bytes(range(256)) * 1024
MODEL = {"name": "model", "raw": BIG, "changing": bytearray(BIG), "text": "é" * 70_000, "numbers": list(range(300))}


class Failing:
    """Does not like its state."""

    def __setstate__(self, state: Any) -> None:
        raise self.error

    error: Exception = ValueError("wrong state")


def load(path: Path, delivery: Delivery | None = None, **options: Any) -> Any:
    loaded = Given(path=path, delivery=delivery)
    return deserialize(PickleBinarizer, loaded, **options)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pkl"


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_loads_through_every_delivery(path: Path, protocol: int, delivery: Delivery) -> None:
    """What `pickle.load` gives, whichever way the bytes travel."""
    assert load(written(path, pickle.dumps(MODEL, protocol)), delivery) == MODEL


class Unseekable(io.RawIOBase):
    """Gives its bytes once, a few at a time."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._data.readinto(memoryview(buffer)[:1000])


CONTENT: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "a view of other items": lambda data: memoryview(data + bytes(-len(data) % 8)).cast("Q"),
    "BytesIO": io.BytesIO,
    "gzip": lambda data: gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(data, 1))),
    "unseekable": Unseekable,
}


@pytest.mark.parametrize("kind", CONTENT)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_content_without_a_path_loads(kind: str, protocol: int) -> None:
    """A custom storage may have bytes, any buffer, or a binary file, and no path."""
    assert deserialize(PickleBinarizer, Given(CONTENT[kind](pickle.dumps(MODEL, protocol)))) == MODEL


def test_a_file_is_read_from_where_it_stands_and_stays_open(path: Path) -> None:
    """A file object is the caller's: what stands before is not looked at, and it is not closed."""
    written(path, b"before" + pickle.dumps(MODEL) + pickle.dumps("next"))
    with path.open("rb") as file:
        file.seek(6)
        assert deserialize(PickleBinarizer, Given(file)) == MODEL
        assert not file.closed


@pytest.mark.parametrize("kind", CONTENT)
def test_an_estimate_does_not_use_the_content_up(kind: str) -> None:
    """What was looked at can still be loaded; what can be read once only is not looked at."""
    loaded = Given(CONTENT[kind](pickle.dumps(MODEL)))
    estimate = estimated(PickleBinarizer, loaded, Delivery.BYTES)
    assert (estimate is None) == (kind == "unseekable")
    assert deserialize(PickleBinarizer, loaded) == MODEL


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_estimates_say_how_sure_they_are(path: Path, delivery: Delivery) -> None:
    """Exact for payload, a guess for objects, nothing for what is no pickle; bytes has the raw data on top."""
    numpy = pytest.importorskip("numpy", reason="arrays are numpy's")
    array = numpy.arange(1e6)
    loaded = Given(path=written(path, pickle.dumps(array, 4)), mapping=MappingMode.COPY_ON_WRITE)
    estimate = estimated(PickleBinarizer, loaded, delivery)
    assert estimate is not None
    assert estimate.certainty.value == "exact"
    expected = {Delivery.VIEW: 0, Delivery.BYTES: 2 * array.nbytes}.get(delivery, array.nbytes)
    assert abs(estimate.peak_anon_bytes - expected) < 10_000
    # Whether it stays in the file without having been asked for depends on where it lies.
    aligned = {}
    for lead in range(8):
        loaded = Given(path=written(path, pickle.dumps(["x" * lead, array], 4)), delivery=delivery)
        estimate = estimated(PickleBinarizer, loaded, delivery)
        model = deserialize(PickleBinarizer, loaded)
        assert model[1].flags.aligned
        assert estimate is not None
        assert loaded.placement is not None
        aligned[lead] = loaded.placement.mapped_bytes > 0
        if delivery is Delivery.VIEW:
            assert abs(estimate.peak_anon_bytes - loaded.placement.copied_bytes) < 10_000
            assert estimate.certainty.value == ("exact" if aligned[lead] else "conservative")
        del model
    assert sum(aligned.values()) == (1 if delivery is Delivery.VIEW else 0)
    loaded = Given(path=written(path, pickle.dumps([{"a": index} for index in range(100_000)])))
    estimate = estimated(PickleBinarizer, loaded, delivery)
    assert estimate is not None
    assert estimate.certainty.value == "unknown"
    assert estimated(PickleBinarizer, Given(path=written(path, b"no pickle")), delivery) is None


def test_what_the_old_package_hands_over_loads(path: Path) -> None:
    """Anything that has `raw_data` and `path`."""

    class Old:
        raw_data = b""

    Old.path = written(path, pickle.dumps(MODEL))  # type: ignore[attr-defined]
    assert PickleBinarizer.deserialize(Old()) == MODEL  # type: ignore[arg-type]


def test_options_are_those_of_pickle(path: Path) -> None:
    """`encoding` reads what Python 2 wrote; an unknown option is an error that lists the known ones."""
    written(path, b"\x80\x02U\x03\xe9abq\x00.")
    assert load(path, encoding="latin-1") == "éab"
    assert load(path, encoding="bytes") == b"\xe9ab"
    with pytest.raises(ConfigError, match="encoding"):
        load(path, coding="latin-1")


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("payload", [b"", BIG * 4], ids=["objects", "payload"])
@pytest.mark.parametrize(
    ("module", "qualname"), [("no_such_package.models", "Model"), ("collections", "NoSuchClass"), ("os", "path.Absent")]
)
def test_a_class_that_is_not_there_is_named(
    path: Path, module: str, qualname: str, payload: bytes, delivery: Delivery
) -> None:
    """The error names the class and the file, in either unpickler, and is an `ImportError`."""
    frame = b"\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(qualname)]) + qualname.encode() + b"\x93"
    large = b"\x8e" + struct.pack("<Q", len(payload)) + payload if payload else b"N"
    written(path, b"\x80\x04" + large + frame + b"\x86.")
    with pytest.raises(MissingClassError, match=f"{module}.{qualname}") as failed:
        load(path, delivery)
    assert (failed.value.module, failed.value.qualname) == (module, qualname)
    assert str(path) in str(failed.value)
    assert isinstance(failed.value, ImportError)
    assert failed.value.__cause__ is not None


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("protocol", range(6))
def test_a_truncated_pickle_is_corrupt(path: Path, protocol: int, delivery: Delivery) -> None:
    """Cut anywhere, it is a `CorruptModelError` that names the file, never a model and never another error."""
    numpy = pytest.importorskip("numpy", reason="arrays are numpy's")
    data = pickle.dumps({"a": numpy.arange(20_000.0), "b": MODEL["numbers"], "c": Failing, "d": 2**80, "e": -1.5}, protocol)
    size = len(data)
    for length in sorted({*range(1, 300, 7), *range(size - 200, size, 3), *range(300, size, size // 9)}):
        with pytest.raises(CorruptModelError, match=r"model\.pkl"):
            load(written(path, data[:length]), delivery)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04.",
        b"\x80\x04K\x01K\x02R.",
        b"\x80\x04NK\x01b.",
        b"\x80\x04K\x01a.",
        b"\x80\x04]K\x01R.",
        b"\x80\x04h\x07.",
        b"\x80\x04\x82\xf1.",
        b"\x80\x063.",
        b"(t.extra",
        b"ibuiltins\nint\n.",
        b"\x80\x04}K\x01u.",
        b"\x80\x04\x8c\x02\xff\xfe.",
        # Within a frame, so that only reading the frame shows it: the unpickler in C allocates first.
        b"\x80\x04\x95" + struct.pack("<Q", 12) + b"\x8e" + struct.pack("<Q", 2**62) + b"xx.",
        b"\x80\x04\x95" + struct.pack("<Q", 12) + b"\x96" + struct.pack("<Q", 2**46) + b"xx.",
        b"\x80\x04]r\xff\xff\xff\x7f.",
    ],
)
def test_opcodes_that_make_no_sense_are_corrupt(data: bytes) -> None:
    """What the unpickler raises because the opcodes do not fit together is a damage of the file."""
    if data == b"(t.extra":
        assert deserialize(PickleBinarizer, Given(data)) == ()
        return
    with pytest.raises(MLupError) as failed:
        deserialize(PickleBinarizer, Given(io.BytesIO(data)))
    assert isinstance(failed.value, CorruptModelError)


def test_a_length_within_a_frame_that_lies_is_corrupt_although_memory_ran_out(path: Path) -> None:
    """A large file with a length of 2^62 in a frame: the unpickler in C has no memory, and the reason is the file."""
    lie = b"\x8e" + struct.pack("<Q", 2**62) + b"xx."
    frame = b"]" + b"K\x01a" * 20_000 + lie
    written(path, b"\x80\x04\x95" + struct.pack("<Q", len(frame)) + frame)
    with pytest.raises(CorruptModelError, match=str(2**62)):
        load(path)


@pytest.mark.parametrize("payload", [b"", BIG * 4], ids=["objects", "payload"])
@pytest.mark.parametrize("error", [ValueError("wrong state"), TypeError("wrong"), KeyError("nodes"), AttributeError("gone")])
def test_a_class_that_refuses_its_state_is_no_damage(path: Path, error: Exception, payload: bytes, monkeypatch: Any) -> None:
    """What a class of the model raises is told as such, with its own error chained, and not as a damaged file."""
    monkeypatch.setattr(Failing, "error", error)
    failing = Failing()
    failing.state = 1  # type: ignore[attr-defined]
    written(path, pickle.dumps([payload, failing]))
    with pytest.raises(ModelBinarizationError, match=str(error.args[0])) as failed:
        load(path)
    assert not isinstance(failed.value, CorruptModelError)
    assert failed.value.__cause__ is error


def test_memory_that_is_short_is_said_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `MemoryError` of a whole pickle goes through."""
    monkeypatch.setattr(Failing, "error", MemoryError())
    failing = Failing()
    failing.state = 1  # type: ignore[attr-defined]
    with pytest.raises(MemoryError):
        load(written(path, pickle.dumps(failing)))


def test_a_small_pickle_needs_no_numpy(path: Path) -> None:
    """Neither the binarizer nor a pickle without arrays imports numpy, joblib or the unpickler for arrays."""
    written(path, pickle.dumps({"a": [1, 2, 3]}))
    found = run_child(
        """
        import sys
        from mlup_stream.delivery.loaded_file import LoadedFile
        from mlup_stream.ml.binarization.pickle import PickleBinarizer
        PickleBinarizer.prepare()
        model = PickleBinarizer.deserialize(LoadedFile(path=path))
        answer([model, [each for each in sys.modules if each.partition(".")[0] in ("numpy", "joblib", "pickletools")]])
        """,
        path=str(path),
    )
    assert found == [{"a": [1, 2, 3]}, []]


def seen_collector() -> bool:
    return gc.isenabled()


class Watching:
    """Sees whether the collector runs while it is unpickled."""

    def __reduce__(self) -> Any:
        return seen_collector, ()


@pytest.mark.parametrize("payload", [b"", BIG * 4], ids=["objects", "payload"])
def test_the_collector_rests_meanwhile(path: Path, payload: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is paused while objects are built and as it was afterwards, also after a failure, also where it was off before."""
    written(path, pickle.dumps([payload, Watching()]))
    assert gc.isenabled()
    assert load(path)[1] is False
    assert gc.isenabled()
    failing = Failing()
    failing.state = 1  # type: ignore[attr-defined]
    with pytest.raises(ModelBinarizationError):
        load(written(path, pickle.dumps([payload, failing])))
    assert gc.isenabled()
    gc.disable()
    try:
        load(written(path, pickle.dumps([payload, Watching()])))
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_collector_rests_until_the_last_of_several_threads_is_done() -> None:
    """Loads in threads that overlap in any way leave the collector on; while one of them runs it is off."""
    inside, leave = threading.Barrier(4), threading.Event()

    def one() -> None:
        with collector_paused():
            inside.wait()
            leave.wait()

    threads = [threading.Thread(target=one) for _ in range(3)]
    for each in threads:
        each.start()
    inside.wait()
    with collector_paused():
        assert not gc.isenabled()
    assert not gc.isenabled()
    leave.set()
    for each in threads:
        each.join()
    assert gc.isenabled()


@pytest.mark.parametrize(("optimize", "in_place"), [(Optimize.MEMORY, True), (Optimize.SPEED, False)])
def test_what_the_file_is_made_of_decides(path: Path, optimize: Optimize, in_place: bool) -> None:
    """With 500 bytes of payload for each of structure the arrays stay in the file for memory's sake, and not for speed's."""
    numpy = pytest.importorskip("numpy", reason="arrays are numpy's")
    arrays = [numpy.arange(100_000.0) + index for index in range(4)]
    data = pickle.dumps([arrays, "x" * 6000], 4)
    loaded = Given(path=written(path, data), delivery=Delivery.VIEW, optimize=optimize)
    found = deserialize(PickleBinarizer, loaded)[0]
    loaded.release()
    assert all((a == b).all() for a, b in zip(found, arrays, strict=True))
    assert loaded.placement is not None
    assert bool(loaded.placement.mapped_bytes) is in_place
    assert loaded.placement.mapped_bytes + loaded.placement.copied_bytes == 4 * 800_000


def test_mapping_says_whether_arrays_are_writable(path: Path) -> None:
    """As the configuration has it; without a word of it they are, as arrays out of a pickle always were."""
    numpy = pytest.importorskip("numpy", reason="arrays are numpy's")
    written(path, pickle.dumps(numpy.arange(1e6), 4))
    for mapping, writable in ((MappingMode.AUTO, True), (MappingMode.READ_ONLY, False), (MappingMode.COPY_ON_WRITE, True)):
        loaded = Given(path=path, delivery=Delivery.VIEW, mapping=mapping)
        array = deserialize(PickleBinarizer, loaded)
        loaded.release()
        assert array.flags.writeable is writable


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a truncated map kills with SIGBUS on Linux")
def test_a_file_that_shrinks_meanwhile_is_an_error_and_not_a_signal(path: Path) -> None:
    """A model whose class copies arrays, from a file that is cut short while it is loaded: `ModelFileChanged`."""
    pytest.importorskip("numpy", reason="arrays are numpy's")
    found = run_child(
        """
        import pickle, subprocess, sys
        import numpy
        from mlup_stream import errors
        from mlup_stream.delivery.kinds import Delivery
        from mlup_stream.delivery.loaded_file import LoadedFile
        from mlup_stream.ml.binarization.pickle import PickleBinarizer

        class Copying:
            def __init__(self):
                self.array = numpy.arange(4e6)
            def __setstate__(self, state):
                self.array = state["array"].copy()

        class Cutting(Copying):
            def __setstate__(self, state):
                subprocess.run(["truncate", "--size=4096", path], check=True)

        with open(path, "wb") as file:
            pickle.dump([Copying(), Cutting(), Copying()], file)
        try:
            PickleBinarizer.deserialize(LoadedFile(path=path, delivery=Delivery.VIEW))
        except errors.ModelFileChanged as error:
            answer(str(error))
        """,
        path=str(path),
    )
    assert str(path) in found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("delivery", ["view", "path", "bytes"])
def test_a_failed_load_keeps_nothing_even_while_its_error_is_held(path: Path, delivery: str) -> None:
    """private memory after the failure = before + slack, and no descriptor is left, with the exception in hand."""
    pytest.importorskip("numpy", reason="arrays are numpy's")
    grown_bytes, descriptors = run_child(
        """
        import os, pickle
        import numpy
        import mlup_stream as mlup
        from mlup_stream.memory.meter import snapshot

        class Failing:
            def __init__(self):
                self.array = numpy.ones(4_000_000)
            def __setstate__(self, state):
                self.array = state["array"] + 1
                raise ValueError("no")

        with open(path, "wb") as file:
            pickle.dump([numpy.ones(4_000_000), b"x" * 30_000_000, Failing()], file)

        def fail():
            try:
                mlup.load(path, delivery=delivery)
            except mlup.errors.ModelBinarizationError as error:
                return error

        fail()
        before, descriptors = snapshot().anon_bytes, len(os.listdir("/proc/self/fd"))
        errors = [fail() for _ in range(3)]
        answer([snapshot().anon_bytes - before, len(os.listdir("/proc/self/fd")) - descriptors])
        """,
        path=str(path),
        delivery=delivery,
    )
    slack_bytes = 8_000_000
    assert grown_bytes <= slack_bytes
    assert descriptors == 0


def test_partial_functions_and_methods_unpickle(path: Path) -> None:
    """A callable with a payload bound to it is what it was."""
    bound = load(written(path, pickle.dumps(functools.partial(len, BIG * 4))))
    assert bound() == len(BIG) * 4
