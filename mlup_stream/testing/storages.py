"""What every storage has to do, as a class of tests for pytest: a subclass says how to make one.

    class TestMyStorage(StorageConformance):
        def storage(self, folder):
            (folder / "model.bin").write_bytes(self.content)
            return MyStorage(folder)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mlup_stream.delivery.artifact import artifact_of
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.errors import MLupError
from mlup_stream.ml.storage.base import BaseStorage

__all__ = ["StorageConformance"]


class StorageConformance:
    """The contract of a storage: it finds the model and says where it is, and reads nothing that nobody asked for."""

    content: Any = bytes(range(256)) * 64
    """What the model that the storage is to find consists of: bytes, or the model object for a storage that gives objects."""

    gives_once = False
    """Whether the storage gives what it has away, as one of objects does, so that nothing else keeps it."""

    def storage(self, folder: Path) -> BaseStorage:
        """A new storage that finds one model of `content`; `folder` is the test's own."""
        raise NotImplementedError(f"{type(self).__name__}: define storage(self, folder)")

    def empty_storage(self, folder: Path) -> BaseStorage:
        """A storage of the same kind that finds nothing; left out, that is not tested."""
        pytest.skip(f"{type(self).__name__} does not say what an empty storage is (empty_storage)")

    def found(self, folder: Path) -> Any:
        """The one thing that the storage finds."""
        found = self.storage(folder).load()
        assert len(found) == 1, f"expected one model, found {len(found)}"
        return found[0]

    def test_finds_one_model_in_a_list(self, tmp_path: Path) -> None:
        """`load` returns a list of one `LoadedFile`, or of what has its `raw_data` and `path`."""
        found = self.storage(tmp_path).load()
        assert isinstance(found, list)
        assert len(found) == 1
        LoadedFile.of(found[0])

    def test_what_it_finds_is_the_model(self, tmp_path: Path) -> None:
        """Byte by byte, whether it gives a path, the content or a file object; or the object itself."""
        loaded = LoadedFile.of(self.found(tmp_path))
        if not isinstance(self.content, bytes):
            assert loaded.raw_data is self.content
            return
        artifact = artifact_of(loaded)
        try:
            assert bytes(artifact.content()) == self.content
        finally:
            artifact.release()

    def test_asked_twice_it_finds_the_same(self, tmp_path: Path) -> None:
        """Finding leaves the model as it was."""
        if self.gives_once:
            pytest.skip(f"{type(self).__name__} gives what it has away (gives_once)")
        storage = self.storage(tmp_path)
        paths = [LoadedFile.of(storage.load()[0]).path for _ in range(2)]
        assert paths[0] == paths[1]

    def test_finding_keeps_no_descriptor(self, tmp_path: Path) -> None:
        """Twenty times found, and released: as many files are open as after the first time."""
        if not os.path.isdir("/proc/self/fd"):
            pytest.skip("this system does not say which files are open")

        def open_after_a_load() -> int:
            artifact_of(self.found(tmp_path), is_model=not isinstance(self.content, bytes)).release()
            return len(os.listdir("/proc/self/fd"))

        first = open_after_a_load()
        assert [open_after_a_load() for _ in range(20)][-1] <= first

    def test_nothing_found_is_told(self, tmp_path: Path) -> None:
        """An empty list, or a typed error in one line: no exception of another library, and no crash later."""
        storage = self.empty_storage(tmp_path)
        try:
            found = [LoadedFile.of(each).name for each in storage.load()]
        except MLupError as error:
            found = str(error).strip().splitlines()[1:]  # of which there are to be none
        assert found == []
