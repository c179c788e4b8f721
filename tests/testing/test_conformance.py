"""Our own storages and binarizers are instances of the suites that others run on theirs, and a wrong one fails them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy
import pytest

from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.errors import ModelNotFoundError
from mlup_stream.ml.binarization.base import BaseBinarizer
from mlup_stream.ml.storage.base import BaseStorage
from mlup_stream.ml.storage.local_disk import DiskStorage
from mlup_stream.ml.storage.memory import MemoryStorage
from mlup_stream.testing import BinarizerConformance, StorageConformance

MODEL = object()


class TestDiskStorage(StorageConformance):
    def storage(self, folder: Path) -> BaseStorage:
        (folder / "model.bin").write_bytes(self.content)
        return DiskStorage(path_to_files=str(folder), file_mask=r"model\.bin")

    def empty_storage(self, folder: Path) -> BaseStorage:
        return DiskStorage(path_to_files=str(folder), file_mask="none")


class TestDiskStorageThatReads(TestDiskStorage):
    def storage(self, folder: Path) -> BaseStorage:
        (folder / "model.bin").write_bytes(self.content)
        return DiskStorage(path_to_files=str(folder), file_mask=r"model\.bin", need_load_file=True)


class TestMemoryStorage(StorageConformance):
    content = MODEL
    gives_once = True

    def storage(self, folder: Path) -> BaseStorage:
        return MemoryStorage(model=MODEL)

    def empty_storage(self, folder: Path) -> BaseStorage:
        class Empty(MemoryStorage):
            def load(self) -> list[LoadedFile]:
                raise ModelNotFoundError("Empty: nobody gave a model")

        return Empty(model=None)


class _OfArrays(BinarizerConformance):
    def answer(self, model: Any) -> Any:
        return {name: each.tolist() for name, each in dict(model).items()}

    @property
    def arrays(self) -> dict[str, Any]:
        return {"a": numpy.arange(1000.0), "b": numpy.ones((3, 4), "f4")}


class TestPickle(_OfArrays):
    binarizer, suffix = "pickle", ".pkl"

    def write(self, path: Path) -> None:
        path.write_bytes(pickle.dumps(self.arrays, protocol=5))


class TestJoblib(_OfArrays):
    binarizer, suffix = "joblib", ".joblib"

    def write(self, path: Path) -> None:
        import joblib

        joblib.dump(self.arrays, path)


class TestNpz(_OfArrays):
    binarizer, suffix = "npz", ".npz"

    def write(self, path: Path) -> None:
        numpy.savez(path, **self.arrays)


class TestSafetensors(_OfArrays):
    binarizer, suffix = "safetensors", ".safetensors"

    def write(self, path: Path) -> None:
        from safetensors.numpy import save_file

        save_file(self.arrays, path)


class TestNpy(BinarizerConformance):
    binarizer, suffix = "npy", ".npy"

    def write(self, path: Path) -> None:
        numpy.save(path, numpy.arange(1000.0))

    def answer(self, model: Any) -> Any:
        return model.tolist()


class LinesBinarizer(BaseBinarizer):
    """Somebody's own: the least that a binarizer needs, a `deserialize`."""

    @classmethod
    def deserialize(cls, data: LoadedFile) -> Any:
        content = data.raw_data or Path(str(data.path)).read_bytes()
        if not content.endswith(b"end\n"):
            raise ValueError("no end")
        return content.splitlines()


class TestLines(BinarizerConformance):
    binarizer = LinesBinarizer
    errors = (ValueError,)

    def write(self, path: Path) -> None:
        path.write_bytes(b"1\n2\n3\n" * 20 + b"end\n")

    def answer(self, model: Any) -> Any:
        return model


def test_a_wrong_storage_fails(pytester: pytest.Pytester) -> None:
    """One that finds others' bytes, nothing, or another thing each time is told by the test that says so."""
    pytester.makepyfile("""
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.ml.storage.base import BaseStorage
from mlup_stream.testing import StorageConformance

class Wrong(BaseStorage):
    count = 0
    def load_bytes_single_file(self):
        return b"something else"
    def load(self):
        self.count += 1
        return [LoadedFile(self.load_bytes_single_file(), f"model-{self.count}")]

class TestWrong(StorageConformance):
    def storage(self, folder):
        return Wrong()
""")
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=2, skipped=1)
    result.stdout.fnmatch_lines(["FAILED *test_what_it_finds_is_the_model*", "FAILED *test_asked_twice_it_finds_the_same*"])


def test_a_wrong_binarizer_fails(pytester: pytest.Pytester) -> None:
    """One whose deliveries differ, that writes beside the file, and that takes a cut file for whole."""
    pytester.makepyfile(wrong="""
from pathlib import Path
from mlup_stream.ml.binarization.base import BaseBinarizer

class WrongBinarizer(BaseBinarizer):
    @classmethod
    def deserialize(cls, data):
        if data.raw_data:
            return [1]
        Path(data.path + ".lock").write_bytes(b"")
        return [2]
""")
    pytester.makepyfile("""
from mlup_stream.testing import BinarizerConformance
from wrong import WrongBinarizer

class TestWrong(BinarizerConformance):
    binarizer = WrongBinarizer
    def write(self, path):
        path.write_bytes(b"model")
    def answer(self, model):
        return model
""")
    pytester.syspathinsert()
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=3, failed=5)
    result.stdout.fnmatch_lines(
        [
            "FAILED *test_every_delivery_builds_the_same_model*",
            "FAILED *test_called_directly_it_builds_the_model*",
            "FAILED *test_the_file_stays_as_it_was*",
            "FAILED *test_a_cut_file_is_a_typed_error*",
            "FAILED *test_what_is_no_model_is_a_typed_error*",
        ]
    )
