"""A pool loads what is asked for, once, lets go of what is worth least when it needs the room, and never of what is in use."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from child import run_child
from onnx_models import build

import mlup_stream as mlup
from mlup_stream import errors
from mlup_stream.constants import LoadedFile
from mlup_stream.ml.storage.base import BaseStorage
from mlup_stream.units import MIB

# Each in a process of its own: a pool's budget counts all private memory of the process, and what earlier tests have left is let
# go of at any moment.
pytestmark = pytest.mark.limit_anon("1 GiB")

PRIVATE_BYTES = 8 * MIB
"""What a model of `write` keeps of private memory; while it is loaded it takes as much again."""


class Counting(BaseStorage):
    """Finds one file, counts how often it is asked, and may be slow."""

    asked: ClassVar[Counter[str]] = Counter()
    seconds: ClassVar[float] = 0.0

    def __init__(self, path: str) -> None:
        self.path = path

    def load_bytes_single_file(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def load(self) -> list[LoadedFile]:
        self.asked[self.path] += 1
        time.sleep(self.seconds)
        return [LoadedFile(path=self.path)]


@pytest.fixture(autouse=True)
def nobody_asked() -> Iterator[None]:
    Counting.asked.clear()
    yield
    Counting.seconds = 0.0


def write(path: Path, value: int, *, size_bytes: int = PRIVATE_BYTES) -> str:
    """A model that is private memory: bytes of a pickle. Another file, by rename, if there is one."""
    new = path.with_suffix(".new")
    new.write_bytes(pickle.dumps({"value": value, "weights": os.urandom(size_bytes)}))
    new.replace(path)
    return str(path)


def value_in(pool: mlup.ModelPool, name: str) -> int:
    with pool.use(name) as loaded:
        return int(loaded.model["value"])


def loaded_in(pool: mlup.ModelPool) -> set[str]:
    return {each.name for each in pool.report().models if each.loaded}


@pytest.fixture
def small(tmp_path: Path) -> dict[str, str]:
    return {name: write(tmp_path / f"{name}.pkl", index, size_bytes=2000) for index, name in enumerate("abc")}


@pytest.fixture
def big(tmp_path: Path) -> dict[str, str]:
    return {name: write(tmp_path / f"{name}.pkl", index) for index, name in enumerate("abcdef")}


def test_a_model_is_loaded_once_for_all_who_wait(tmp_path: Path) -> None:
    """Eight threads ask at once: one load, eight answers."""
    Counting.seconds = 0.2
    path = write(tmp_path / "m.pkl", 5, size_bytes=2000)
    answers = []
    with mlup.ModelPool({"m": mlup.Config(storage_type=Counting, storage_kwargs={"path": path})}) as pool:
        threads = [threading.Thread(target=lambda: answers.append(value_in(pool, "m"))) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert (answers, Counting.asked[path]) == ([5] * 8, 1)


def test_what_is_private_is_let_go_of_and_what_lies_in_its_file_stays(big: dict[str, str], tmp_path: Path) -> None:
    """Six models of 8 MiB in 32 MiB: some go. An array in its file, as large, stays: the kernel can take its pages back."""
    np.save(tmp_path / "array.npy", np.arange(PRIVATE_BYTES // 8))
    with mlup.ModelPool({**big, "array": tmp_path / "array.npy"}, memory_budget="32MiB") as pool:
        with pool.use("array") as loaded:
            assert loaded.model[7] == 7
        for _ in range(2):
            assert [value_in(pool, name) for name in big] == list(range(6))
        report = pool.report()
    by_name = {each.name: each for each in report.models}
    assert by_name["array"].loaded
    assert (by_name["array"].evictions, by_name["array"].loads) == (0, 1)
    assert 1 <= sum(each.loaded for each in report.models) - 1 < 6
    assert sum(each.evictions for each in report.models) >= 6
    assert report.private_bytes <= 32 * MIB


def test_what_is_held_is_measured_and_told_apart(tmp_path: Path) -> None:
    """Private bytes are those of the objects, within a tenth; of an array in its file, file bytes are what was touched of it."""
    array = tmp_path / "array.npy"
    np.save(array, np.arange(16 * MIB // 8))
    objects = write(tmp_path / "objects.pkl", 1, size_bytes=32 * MIB)
    array_in, objects_in = run_child(
        """
        import mlup_stream as mlup
        with mlup.ModelPool({"array": array, "objects": objects}) as pool:
            with pool.use("array") as loaded, pool.use("objects"):
                loaded.model[:(8 << 20) // 8].sum()
                answer([[each.private_bytes, each.file_bytes, each.pss_bytes] for each in pool.report().models])
        """,
        array=str(array),
        objects=objects,
    )
    touched_bytes = 8 * MIB
    around_bytes = 2 * MIB  # the kernel maps what lies around a page that was touched, as far as it is cached
    assert array_in[0] < MIB
    assert touched_bytes <= array_in[1] <= touched_bytes + around_bytes
    assert array_in[2] <= array_in[1]
    assert objects_in[0] == pytest.approx(32 * MIB, rel=0.1)
    assert objects_in[1:] == [0, 0]


def test_pinned_models_go_last_and_used_ones_never(big: dict[str, str]) -> None:
    """With room for two: the pinned one and the one in use stay while all others come and go."""
    with mlup.ModelPool(big, memory_budget="40MiB") as pool:
        pool.pin("a")
        assert value_in(pool, "a") == 0
        with pool.use("b") as held:
            model = held.model
            for name in "cdef":
                value_in(pool, name)
            assert {"a", "b"} <= loaded_in(pool)
            assert held.model is model
        pool.pin("a", pinned=False)
        for name in "cdefcdef":
            value_in(pool, name)
        assert "a" not in loaded_in(pool)


def test_what_cannot_fit_is_refused_with_what_would_have_to_go(big: dict[str, str], tmp_path: Path) -> None:
    """Three are in use and the fourth needs one of them to go; one of 200 MiB would not fit with all gone."""
    big["huge"] = write(tmp_path / "huge.pkl", 9, size_bytes=100 * MIB)
    with mlup.ModelPool(big, memory_budget="40MiB", timeout_seconds=0.0) as pool:
        held = [pool._take(name) for name in "abc"]
        with pytest.raises(errors.ModelPoolFull, match="would have to go") as refused:
            value_in(pool, "d")
        for each in held:
            each.release()
        assert set(refused.value.in_use) == set("abc")
        (name, size_bytes), *_ = refused.value.would_have_to_go
        assert name in "abc"
        assert size_bytes == pytest.approx(PRIVATE_BYTES, rel=0.2)
        assert isinstance(refused.value, MemoryError)
        with pytest.raises(errors.ModelPoolFull, match="raise memory_budget") as refused:
            value_in(pool, "huge")
        assert refused.value.would_have_to_go == ()
        assert refused.value.needed_bytes is not None
        assert refused.value.needed_bytes > 100 * MIB


def test_a_load_waits_for_what_is_in_use(big: dict[str, str]) -> None:
    """The room that it needs is that of a model which somebody gives back in a moment: no refusal."""
    with mlup.ModelPool(big, memory_budget="30MiB") as pool:
        held = [pool._take("a"), pool._take("b")]
        timer = threading.Timer(0.3, lambda: [each.release() for each in held])
        timer.start()
        assert value_in(pool, "c") == 2
        timer.join()
        assert not {"a", "b"} <= loaded_in(pool)


def test_a_load_that_failed_is_not_tried_in_a_storm(tmp_path: Path) -> None:
    """Fifty requests for a damaged file: one load, and the same typed error for each; a repaired file is loaded at once."""
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps({"value": 1, "weights": list(range(1000))})[:-100])
    conf = mlup.Config(storage_type=Counting, storage_kwargs={"path": str(path)})
    pool = mlup.ModelPool({"m": conf, "disk": path}, retry_seconds=60)
    with pool:
        for _ in range(50):
            with pytest.raises(errors.CorruptModelError):
                value_in(pool, "m")
            with pytest.raises(errors.CorruptModelError):
                value_in(pool, "disk")
        assert Counting.asked[str(path)] == 1
        with pytest.raises(errors.CorruptModelError, match=r"tried again in (59|60)\.\d s"):
            value_in(pool, "disk")
        assert [each.failures for each in pool.report().models] == [1, 1]
        write(path, 2, size_bytes=2000)
        assert value_in(pool, "disk") == 2


def test_it_is_tried_again_after_its_time_and_that_doubles(tmp_path: Path) -> None:
    """The second failure keeps the pool away for twice as long as the first."""
    path = tmp_path / "m.pkl"
    path.write_bytes(b"\x80\x04.")
    with mlup.ModelPool({"m": path}, retry_seconds=0.05) as pool:
        for times in (1, 2):
            with pytest.raises(errors.ModelLoadError):
                value_in(pool, "m")
            failure = pool._entries["m"].failure
            assert failure is not None
            assert failure.times == times
            left_seconds = failure.until - time.monotonic()
            assert 0.05 * times >= left_seconds > 0.05 * (times - 1)
            time.sleep(left_seconds)


def test_a_file_that_changed_is_loaded_anew_and_requests_in_flight_keep_the_old(small: dict[str, str]) -> None:
    """Whoever asks after the change gets the new model; who holds the old one has it to his end, and then it is gone."""
    with mlup.ModelPool(small) as pool, pool.use("a") as before:
        write(Path(small["a"]), 70, size_bytes=2000)
        assert value_in(pool, "a") == 70
        assert before.model["value"] == 0
        old = before._copy
        before.release()
        assert old is not None
        assert not old.ml.loaded
        assert value_in(pool, "a") == 70
        Path(small["a"]).unlink()
        assert value_in(pool, "a") == 70  # a file that is gone replaces nothing


def test_a_new_file_that_fails_leaves_the_old_model(small: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """Damaged when it was replaced: the old one answers, the report and the log say why, and it is not tried again and again."""
    with mlup.ModelPool(small, retry_seconds=60) as pool:
        assert value_in(pool, "a") == 0
        path = Path(small["a"])
        path.with_suffix(".new").write_bytes(path.read_bytes()[:-50])
        path.with_suffix(".new").replace(path)
        for _ in range(5):
            assert value_in(pool, "a") == 0
        (said,) = pool.report().models
        assert (said.failures, said.loads) == (1, 1)
        assert "a.pkl" in said.error
        assert "goes on" in caplog.text
        write(path, 71, size_bytes=2000)
        assert value_in(pool, "a") == 71


def test_with_asyncio_the_loop_goes_on_and_one_load_serves_all(tmp_path: Path) -> None:
    """While a load takes half a second the loop runs, and twenty tasks get the one that is loaded."""
    Counting.seconds = 0.5
    path = write(tmp_path / "m.pkl", 5, size_bytes=2000)
    turns = 0

    async def ask(pool: mlup.ModelPool) -> int:
        async with pool.use("m") as loaded:
            return int(loaded.model["value"])

    async def main() -> list[int]:
        nonlocal turns
        with mlup.ModelPool({"m": mlup.Config(storage_type=Counting, storage_kwargs={"path": path})}) as pool:
            tasks = [asyncio.create_task(ask(pool)) for _ in range(20)]
            while not all(each.done() for each in tasks):
                await asyncio.sleep(0.01)
                turns += 1
            handle = await pool.get("m")
            assert handle.model["value"] == 5
            handle.release()
            assert [each.users for each in pool.report().models] == [0]
            return [each.result() for each in tasks]

    assert asyncio.run(main()) == [5] * 20
    assert Counting.asked[path] == 1
    assert turns >= 10


def test_a_task_that_is_cancelled_while_it_loads_holds_nothing(tmp_path: Path) -> None:
    """The load goes on in its thread, and what it loaded is nobody's."""
    Counting.seconds = 0.2
    path = write(tmp_path / "m.pkl", 5, size_bytes=2000)

    async def main() -> None:
        with mlup.ModelPool({"m": mlup.Config(storage_type=Counting, storage_kwargs={"path": path})}) as pool:
            tasks = [asyncio.create_task(pool.get("m")) for _ in range(2)]
            await asyncio.sleep(0.05)
            for each in tasks:
                each.cancel()
            assert await asyncio.gather(*tasks, return_exceptions=True) != [None, None]
            while not loaded_in(pool) or pool.report().models[0].users:
                await asyncio.sleep(0.01)
            assert pool.evict() == ("m",)

    asyncio.run(main())


def test_an_error_of_a_load_reaches_every_task(tmp_path: Path) -> None:
    """The one that loads and those that wait get the typed error each, without traces of the other."""
    Counting.seconds = 0.2
    path = tmp_path / "m.pkl"
    path.write_bytes(b"\x80\x04.")

    async def main() -> list[Any]:
        with mlup.ModelPool({"m": mlup.Config(storage_type=Counting, storage_kwargs={"path": str(path)})}) as pool:
            return list(await asyncio.gather(*(pool.get("m") for _ in range(5)), return_exceptions=True))

    found = asyncio.run(main())
    assert all(isinstance(each, errors.ModelLoadError) for each in found)
    assert len(set(map(id, found))) == 5
    assert Counting.asked[str(path)] == 1


def test_the_names_of_a_folder_and_of_a_storage(small: dict[str, str], tmp_path: Path) -> None:
    """Names are those of the files; one that comes later is found; an unknown one is refused with the nearest."""
    write(tmp_path / "x.joblib", 3, size_bytes=2000)
    (tmp_path / "README.md").write_text("no model")
    (tmp_path / "folder").mkdir()
    with mlup.ModelPool(tmp_path) as pool:
        assert pool.names() == ("a.pkl", "b.pkl", "c.pkl", "x.joblib")
        write(tmp_path / "later.pkl", 4, size_bytes=2000)
        assert value_in(pool, "later.pkl") == 4
        with pytest.raises(errors.ModelNotFoundError, match=r"did you mean 'a\.pkl'"):
            value_in(pool, "a.pk")
        pool.warm()
        assert len(loaded_in(pool)) == 5
    storage = mlup.ml.storage.local_disk.DiskStorage(path_to_files=tmp_path, file_mask=r"[ab]\.pkl")
    with mlup.ModelPool(storage) as pool:
        assert pool.names() == ("a.pkl", "b.pkl")
        assert value_in(pool, "b.pkl") == 1
        write(tmp_path / "b.pkl", 81, size_bytes=2000)
        assert value_in(pool, "b.pkl") == 81


@pytest.mark.parametrize("models", [{"m": 3}, {"m": mlup.Config(storage_kwargs={"model": 3})}, 3, BaseStorage])
def test_what_is_no_source_of_models_is_refused(models: Any) -> None:
    """Neither path nor configuration; or a model that is given, which a pool could not load again."""
    with pytest.raises(errors.ConfigError, match="models"):
        mlup.ModelPool(models)


def test_a_closed_pool_lets_go_of_all_and_of_the_used_one_later(small: dict[str, str]) -> None:
    """Whoever uses a model at that moment keeps it to his end; nobody gets one afterwards."""
    pool = mlup.ModelPool(small)
    pool.warm("a", "b")
    copies = [pool._entries[name].copy for name in "ab"]
    with pool.use("a") as loaded:
        pool.close()
        assert [copy is not None and copy.ml.loaded for copy in copies] == [True, False]
        assert loaded.model["value"] == 0
        with pytest.raises(errors.ModelLoadError, match="closed"):
            value_in(pool, "b")
    assert [copy is not None and copy.ml.loaded for copy in copies] == [False, False]
    with pytest.raises(errors.ModelLoadError, match="released"):
        _ = loaded.model


def test_what_nobody_released_is_taken_back_with_a_warning(small: dict[str, str]) -> None:
    """A handle that was dropped holds its model no longer."""
    with mlup.ModelPool(small) as pool:
        with pytest.warns(ResourceWarning, match="not released"):
            pool._take("a")
        assert pool.evict("a") == ("a",)


def test_what_is_in_use_is_not_evicted_by_hand_either(small: dict[str, str]) -> None:
    """`evict` returns what went."""
    with mlup.ModelPool(small) as pool:
        pool.warm()
        with pool.use("b"):
            assert set(pool.evict()) == {"a", "c"}
            assert pool.evict("b") == ()
        assert pool.evict("b") == ("b",)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_starts_empty_and_may_finish_what_it_held(small: dict[str, str]) -> None:
    """Although a thread of the parent holds the lock: the child loads for itself, and the parent notices nothing."""
    assert run_child(
        """
        import os, threading, time, warnings
        import mlup_stream as mlup
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of a fork with threads: that is what is tried
        pool = mlup.ModelPool(models)
        pool.warm("a")
        with pool.use("a") as held:
            locked, go = threading.Event(), threading.Event()
            def hold():
                with pool._changed:
                    locked.set()
                    go.wait()
            thread = threading.Thread(target=hold)
            thread.start()
            locked.wait()
            child = os.fork()
            if child == 0:
                right = not any(each.loaded for each in pool.report().models) and held.model["value"] == 0
                held.release()
                with pool.use("a") as own, pool.use("b") as other:
                    right = right and own.model["value"] == 0 and other.model["value"] == 1
                os._exit(0 if right else 3)
            go.set()
            thread.join()
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            users = pool.report().models[0].users
        answer([code, users, pool.report().models[0].users])
        """,
        models=small,
    ) == [0, 1, 0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_does_not_wait_for_the_threads_of_a_session(tmp_path: Path) -> None:
    """onnxruntime joins its threads when a session ends, and a child has none of them: each of eight children ends by itself."""
    path = build(tmp_path / "model.onnx")
    assert run_child(
        """
        import os, signal
        import mlup_stream as mlup
        pool = mlup.ModelPool({"m": path})
        pool.warm()
        codes = []
        for _ in range(8):
            child = os.fork()
            if child == 0:
                os._exit(0)
            signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
            signal.alarm(5)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            signal.alarm(0)
        answer(codes)
        """,
        path=str(path),
    ) == [0] * 8


def test_a_pool_is_not_pickled(small: dict[str, str]) -> None:
    """Its models stay where they are loaded."""
    with mlup.ModelPool(small) as pool, pytest.raises(TypeError, match="each process"):
        pickle.dumps(pool)
