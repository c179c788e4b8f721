"""What every binarizer has to do, as a class of tests for pytest: a subclass says how to write a model and what it answers.

    class TestMyBinarizer(BinarizerConformance):
        binarizer = MyBinarizer

        def write(self, path):
            my_library.save(my_library.Model(weights=[1.0, 2.0]), path)

        def answer(self, model):
            return model.weights
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mlup_stream.config import Config
from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.errors import CorruptModelError, MLupError
from mlup_stream.up import UP

__all__ = ["BinarizerConformance"]


class BinarizerConformance:
    """The contract of a binarizer: by every delivery that it accepts the same model, and of a damaged file a typed error."""

    binarizer: Any
    """The class, or its import path."""
    suffix = ".bin"
    """Of a model's file name."""
    is_told_damage = True
    """Whether every file that was cut is an error; False for a format that cannot tell."""
    errors: tuple[type[Exception], ...] = (MLupError,)
    """What its load raises for a file that is none of its format's. Ours are one line, which names the file."""
    options: dict[str, Any] = {}  # noqa: RUF012  # a subclass sets its own, nobody changes it
    """`binarization_kwargs`."""

    def write(self, path: Path) -> None:
        """Writes a small model."""
        raise NotImplementedError(f"{type(self).__name__}: define write(self, path)")

    def answer(self, model: Any) -> Any:
        """Something of the model that depends on its whole content, and compares by `==`."""
        raise NotImplementedError(f"{type(self).__name__}: define answer(self, model)")

    @property
    def kind(self) -> type[Any]:
        """The class."""
        if not isinstance(self.binarizer, str):
            return self.binarizer  # type: ignore[no-any-return]
        from mlup_stream.registry import binarizer_class

        return binarizer_class(self.binarizer)

    def model_file(self, folder: Path) -> Path:
        path = folder / f"model{self.suffix}"
        self.write(path)
        return path

    def load(self, path: Path, delivery: str = "auto") -> UP:
        """The model, loaded through the whole cycle."""
        where = {"path_to_files": str(path.parent), "file_mask": path.name, "delivery": delivery}
        name = self.binarizer if isinstance(self.binarizer, str) else f"{self.kind.__module__}.{self.kind.__qualname__}"
        up = UP(
            conf=Config(
                storage_type="disk",
                storage_kwargs=where,
                binarization_type=name,
                binarization_kwargs=self.options,
            )
        )
        up.ml.load()
        return up

    def answered(self, path: Path, delivery: str = "auto") -> Any:
        up = self.load(path, delivery)
        try:
            return self.answer(up.ml.model_obj)
        finally:
            up.ml.unload()

    def error_of(self, path: Path) -> Exception | None:
        """The error that loading raises; None if it loads."""
        try:
            up = self.load(path)
        except self.errors as error:
            is_told = not isinstance(error, MLupError) or (path.name in str(error) and "\n" not in str(error).strip())
            if not is_told:
                raise AssertionError(f"expected one line that names {path.name}, found: {error}") from error
            return error
        up.ml.unload()
        return None

    def test_every_delivery_builds_the_same_model(self, tmp_path: Path) -> None:
        """Those that it states, `auto`, and the bytes that `need_load_file=True` reads."""
        path = self.model_file(tmp_path)
        expected = self.answered(path, delivery="bytes")
        for delivery in ("auto", *(Delivery(each).value for each in getattr(self.kind, "deliveries", ("path",)))):
            assert self.answered(path, delivery=delivery) == expected, delivery

    def test_called_directly_it_builds_the_model(self, tmp_path: Path) -> None:
        """`deserialize(LoadedFile)`, as the old framework calls it: from a path, and from bytes."""
        path = self.model_file(tmp_path)
        expected = self.answered(path)
        for given in (LoadedFile(path=str(path)), LoadedFile(path.read_bytes(), str(path))):
            assert self.answer(self.kind.deserialize(given, **self.options)) == expected

    def test_the_file_stays_as_it_was(self, tmp_path: Path) -> None:
        """Loading, using and unloading write nothing, and leave nothing beside it."""
        path = self.model_file(tmp_path)
        before = {each.name: each.read_bytes() for each in tmp_path.iterdir() if each.is_file()}
        self.answered(path)
        assert {each.name: each.read_bytes() for each in tmp_path.iterdir() if each.is_file()} == before

    def test_a_cut_file_is_a_typed_error(self, tmp_path: Path) -> None:
        """At any tenth of its length it is one of `errors`, whatever the library raises or does."""
        path = self.model_file(tmp_path)
        content = path.read_bytes()
        for tenth in range(10):
            path.write_bytes(content[: len(content) * tenth // 10])
            error = self.error_of(path)
            assert error is not None or not self.is_told_damage, f"cut at {tenth} tenths it loads"

    def test_what_is_no_model_is_a_typed_error(self, tmp_path: Path) -> None:
        """Text of somebody else's."""
        path = tmp_path / f"model{self.suffix}"
        path.write_bytes(b"<!DOCTYPE html><title>404</title>" * 40)
        assert self.error_of(path) is not None

    def test_a_good_file_is_not_called_damaged(self, tmp_path: Path) -> None:
        """Under another name, and read-only."""
        path = self.model_file(tmp_path)
        other = path.rename(tmp_path / "renamed")
        other.chmod(0o444)
        try:
            self.answered(other)
        except CorruptModelError as error:  # pragma: no cover  # what a subclass finds
            pytest.fail(f"a whole file is called damaged: {error}")

    def test_what_it_states_is_of_the_known_kinds(self) -> None:
        """Deliveries that exist, and libraries by their import names."""
        for each in getattr(self.kind, "deliveries", ()):
            Delivery(each)
        assert all(isinstance(each, str) for each in getattr(self.kind, "libraries", ()))

    def test_loading_keeps_no_descriptor(self, tmp_path: Path) -> None:
        """Twenty times loaded and unloaded: as many files are open as after the first time."""
        if not os.path.isdir("/proc/self/fd"):
            pytest.skip("this system does not say which files are open")
        path = self.model_file(tmp_path)

        def open_after_a_load() -> int:
            self.answered(path)
            return len(os.listdir("/proc/self/fd"))

        first = open_after_a_load()
        assert [open_after_a_load() for _ in range(20)][-1] <= first
