"""The view: what it maps, what it pins, what it gives back."""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import sys
from pathlib import Path

import pytest
from child import run_child

from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.delivery.view import View
from mlup_stream.errors import ModelFileChanged
from mlup_stream.units import MIB

CONTENT = bytes(range(256)) * 64

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux's /proc")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(CONTENT)
    return path


def test_the_buffer_is_read_only_and_the_writable_one_leaves_the_file_alone(path: Path) -> None:
    """What is written to the copy-on-write map is seen there, and neither in the other map nor in the file."""
    with View(path) as view:
        assert view.buffer == CONTENT
        assert view.buffer.readonly
        view.writable[0] = 99
        assert (view.writable[0], view.buffer[0], path.read_bytes()[0]) == (99, 0, 0)


def test_release_closes_the_descriptor_and_says_who_holds_the_map(path: Path) -> None:
    """A slice keeps its map alive and is named; when it dies nothing holds it; releasing twice is harmless."""
    view = View(path)
    part = view.buffer[3:6]
    assert view.release() == (f"exported buffers of the view of {path}",)
    assert bytes(part) == CONTENT[3:6]
    del part
    gc.collect()
    assert view.held() == ()
    assert view.release() == ()
    with pytest.raises(ValueError, match="released"):
        _ = view.buffer


def test_a_replacement_by_rename_is_harmless(path: Path, tmp_path: Path) -> None:
    """The view stays with the file that it opened, through its readers too."""
    with View(path) as view:
        (tmp_path / "new").write_bytes(b"new")
        os.replace(tmp_path / "new", path)
        view.check()
        assert view.buffer == CONTENT
        if os.path.isdir("/proc/self/fd"):
            with view.open() as file:
                assert file.read() == CONTENT


@pytest.mark.parametrize("change", ["write", "truncate", "touch"])
def test_a_change_in_place_is_noticed(path: Path, change: str) -> None:
    """Size and modification time are pinned when the view is made."""
    with View(path) as view:
        if change == "write":
            path.write_bytes(b"x" * len(CONTENT))
        elif change == "truncate":
            os.truncate(path, 10)
        os.utime(path, ns=(1, 1))
        with pytest.raises(ModelFileChanged, match="changed"):
            view.check()


@on_linux
def test_a_truncated_file_is_an_exception_and_not_a_signal(tmp_path: Path) -> None:
    """Touching ahead beyond the end that is no longer there raises; a plain touch would die of SIGBUS."""
    path = tmp_path / "model.bin"
    path.write_bytes(b"x" * 4 * MIB)
    code = """
        import subprocess
        from mlup_stream.delivery.view import View
        from mlup_stream.errors import ModelFileChanged
        view = View(path)
        view.buffer
        subprocess.run(["truncate", "--size=4096", path], check=True)
        try:
            view.prefault()
        except ModelFileChanged as error:
            answer(str(error))
    """
    assert "truncated" in run_child(code, path=str(path))


@on_linux
def test_touching_ahead_makes_file_pages_and_no_private_ones(tmp_path: Path) -> None:
    """file(after) - file(before) = size, for the copy-on-write map too; anon stays within 1 MiB; drop gives the pages back."""
    path = tmp_path / "model.bin"
    path.write_bytes(os.urandom(32 * MIB))
    code = """
        from mlup_stream.delivery.view import View
        from mlup_stream.memory.meter import snapshot
        view = View(path)
        buffer = view.writable if writable else view.buffer
        before = snapshot()
        view.prefault()
        touched = snapshot()
        view.drop(0, view.size_bytes, writable=writable)
        dropped = snapshot()
        answer([
            touched.file_bytes - before.file_bytes,
            touched.anon_bytes - before.anon_bytes,
            dropped.file_bytes - before.file_bytes,
        ])
    """
    for writable in (False, True):
        file_bytes, anon_bytes, left_bytes = run_child(code, path=str(path), writable=writable)
        assert file_bytes >= 32 * MIB
        assert anon_bytes <= 1 * MIB
        assert left_bytes <= 1 * MIB


@on_linux
def test_neither_map_charges_the_file_to_the_commit_limit(tmp_path: Path) -> None:
    """Of the read-only and the copy-on-write map, none is accountable."""
    path = tmp_path / "model.bin"
    with open(path, "wb") as file:
        file.truncate(2048 * MIB)  # sparse
    code = """
        from mlup_stream.delivery.view import View
        view = View(path)
        view.buffer, view.writable
        with open("/proc/self/smaps") as file:
            parts = file.read().split("VmFlags:")
        maps = [after.splitlines()[0].split() for before, after in zip(parts, parts[1:]) if path in before.split("Size:")[0]]
        answer(maps)
    """
    # A map that is charged has the flag `ac` (accountable) in /proc/self/smaps; see proc(5).
    maps = run_child(code, path=str(path))
    assert len(maps) == 2
    assert not any("ac" in flags for flags in maps)


def test_a_view_of_a_buffer_copies_nothing() -> None:
    """The view's memory is the buffer's; a writable one is a private copy."""
    data = bytearray(CONTENT)
    view = View(data=data)
    data[0] = 77
    assert view.buffer[0] == 77
    view.writable[0] = 1
    assert data[0] == 77
    assert view.release() == ()


def test_an_empty_file_has_an_empty_view(tmp_path: Path) -> None:
    """mmap refuses length 0; a view does not."""
    (tmp_path / "empty").touch()
    with View(tmp_path / "empty") as view:
        assert len(view.buffer) == 0


def test_a_handle_unpacks_like_the_named_tuple_that_it_was(path: Path) -> None:
    """Positional order, unpacking and indexing of the old LoadedFile."""
    raw_data, where = LoadedFile(b"abc", str(path))
    assert (raw_data, where) == (b"abc", str(path))
    assert LoadedFile(b"abc")[0] == b"abc"


@on_linux
def test_only_what_stays_is_touched_ahead(tmp_path: Path) -> None:
    """file(after) - file(before) = what arrays were left in the file, not what was copied out of it."""
    numpy = pytest.importorskip("numpy", reason="the arrays")
    path = tmp_path / "model.pckl"
    # Keys of different lengths move the arrays: some lie at a multiple of 8 bytes, some do not.
    arrays = [numpy.arange(2 * MIB, dtype="f8") + index for index in range(4)]
    path.write_bytes(pickle.dumps({"a" * (3 * index): array for index, array in enumerate(arrays)}, 5))
    mapped_bytes, copied_bytes, touched_bytes = run_child(
        """
        import numpy
        import mlup_stream as mlup
        from mlup_stream.memory.meter import snapshot
        up = mlup.UP(conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": path}, optimize="speed"))
        up.ml.load()
        up.ml.unload()
        before = snapshot()
        up.ml.load()
        placement = up.ml.report.placement
        answer([placement.mapped_bytes, placement.copied_bytes, snapshot().file_bytes - before.file_bytes])
        """,
        path=str(path),
    )
    assert mapped_bytes + copied_bytes == 64 * MIB
    assert min(mapped_bytes, copied_bytes) > 0
    assert mapped_bytes <= touched_bytes <= mapped_bytes + 2 * MIB


@on_linux
def test_drop_leaves_the_pages_alone_that_are_only_partly_in_its_range(tmp_path: Path) -> None:
    """What was written into the copy-on-write map beside the range stays, on the page that the range begins or ends in too."""
    page = mmap.PAGESIZE
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(4 * page))
    with View(path) as view:
        for index in range(4):
            view.writable[index * page] = view.writable[index * page + page - 1] = 9
        view.drop(page // 2, 3 * page + page // 2, writable=True)
        kept = [(view.writable[index * page], view.writable[index * page + page - 1]) for index in range(4)]
        assert kept == [(9, 9), (0, 0), (0, 0), (9, 9)]
