"""CPython's own unpickling tests, run against our unpickler: how the standard one behaves is described there, not here.

Twice: as it reads a stream, and in place with every payload of a byte and more left unread, so that each test that has bytes in
it settles them somewhere.
"""

from __future__ import annotations

import io
import pickle
import struct
import unittest
from typing import Any

import pytest

from mlup_stream.delivery.kinds import MappingMode
from mlup_stream.delivery.terms import Terms
from mlup_stream.delivery.view import View
from mlup_stream.errors import CorruptModelError
from mlup_stream.formats.pickles.frames import scan
from mlup_stream.ml.binarization.pickles.in_place_unpickler import InPlaceUnpickler
from mlup_stream.ml.binarization.pickles.placing import Placer

pickletester: Any = pytest.importorskip("test.pickletester", reason="this interpreter has no test package")

# Theirs to decide: the tests call what is deprecated on purpose.
pytestmark = pytest.mark.filterwarnings("ignore")


class StreamUnpickler(InPlaceUnpickler):
    """Reads every payload; keeps what the pickle asks for."""

    def __init__(self, file: Any, **options: Any) -> None:
        super().__init__(file, fetched=fetched_of(file), **options)


class ViewUnpickler(InPlaceUnpickler):
    """Leaves every payload unread; keeps what the pickle asks for."""

    def __init__(self, file: Any, **options: Any) -> None:
        super().__init__(file, placer_of(file), fetched=fetched_of(file), late_bytes=1, **options)


class ReusedUnpickler(InPlaceUnpickler):
    """Leaves every payload unread and keeps everything: what it is asked for next may be in a later pickle of the same file."""

    def __init__(self, file: Any, **options: Any) -> None:
        super().__init__(file, placer_of(file), late_bytes=1, **options)


def fetched_of(file: Any) -> frozenset[int] | None:
    if type(file) is not io.BytesIO:
        return None
    try:
        return scan(file.getvalue()).fetched
    except CorruptModelError:
        return None  # the tests of damaged pickles want the unpickler's own error


def placer_of(file: Any) -> Placer | None:
    if type(file) is not io.BytesIO:
        return None
    view = View(data=file.getvalue())
    return Placer(Terms(mapping=MappingMode.READ_ONLY), view, file)


class _Loads:
    unpickler: Any
    bad_stack_errors = (IndexError,)
    truncated_errors = (
        pickle.UnpicklingError,
        EOFError,
        AttributeError,
        ValueError,
        struct.error,
        IndexError,
        ImportError,
    )

    def loads(self, data: bytes, **options: Any) -> Any:
        return self.unpickler(io.BytesIO(data), **options).load()

    def dumps(self, value: Any, protocol: int | None = None, **options: Any) -> bytes:
        file = io.BytesIO()
        self.pickler(file, protocol, **options).dump(value)  # type: ignore[attr-defined]  # of the subclasses
        return file.getvalue()


class TestUnpickleFromStream(_Loads, pickletester.AbstractUnpickleTests, unittest.TestCase):
    unpickler = StreamUnpickler


class TestUnpickleInPlace(_Loads, pickletester.AbstractUnpickleTests, unittest.TestCase):
    unpickler = ViewUnpickler


class TestFromPicklerInC(_Loads, pickletester.AbstractPickleTests, unittest.TestCase):
    pickler = pickle.Pickler
    unpickler = ViewUnpickler


class TestFromPicklerInPython(_Loads, pickletester.AbstractPickleTests, unittest.TestCase):
    pickler = pickle._Pickler  # type: ignore[attr-defined]
    unpickler = ViewUnpickler


class TestFromStreamOfPicklerInC(_Loads, pickletester.AbstractPickleTests, unittest.TestCase):
    pickler = pickle.Pickler
    unpickler = StreamUnpickler


class _Persistent:
    pickler = pickle.Pickler
    unpickler = ViewUnpickler
    persistent_load_error = pickle.UnpicklingError

    def dumps(self, value: Any, protocol: int | None = None) -> bytes:
        outer = self

        class PersistentPickler(pickle.Pickler):
            def persistent_id(self, obj: Any) -> Any:
                return outer.persistent_id(obj)  # type: ignore[attr-defined]  # of the test

        file = io.BytesIO()
        PersistentPickler(file, protocol).dump(value)
        return file.getvalue()

    def loads(self, data: bytes, **options: Any) -> Any:
        outer = self

        class PersistentUnpickler(ViewUnpickler):
            def persistent_load(self, pid: Any) -> Any:
                return outer.persistent_load(pid)  # type: ignore[attr-defined]  # of the test

        return PersistentUnpickler(io.BytesIO(data), **options).load()


class TestPersistentIds(_Persistent, pickletester.AbstractPersistentPicklerTests, unittest.TestCase):
    pass


class TestPersistentObjects(_Persistent, pickletester.AbstractIdentityPersistentPicklerTests, unittest.TestCase):
    pass


class TestUnpicklerObjects(pickletester.AbstractPicklerUnpicklerObjectTests, unittest.TestCase):
    pickler_class = pickle._Pickler  # type: ignore[attr-defined]
    unpickler_class = ReusedUnpickler
