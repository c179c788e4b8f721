"""Packing: what is refused, and that a destination is there whole or not at all."""

from __future__ import annotations

import os
import pickle
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from child import run_child
from pack_files import ARRAYS, assert_same, format_of, joblib, numpy, write

from mlup_stream.errors import CorruptModelError, ModelFileChanged, ModelNotFoundError, PackError
from mlup_stream.formats.kinds import Format
from mlup_stream.pack import pack
from mlup_stream.pack.destination import Destination
from mlup_stream.units import MIB


@pytest.mark.parametrize("kind", ["gguf", "keras", "lightgbm", "savedmodel", "torchscript", "xgboost"])
def test_formats_that_gain_nothing_say_so(tmp_path: Path, kind: str) -> None:
    """Each says why, and nothing is written."""
    source = tmp_path / "m"
    source.write_bytes(b"something")
    with pytest.raises(PackError, match=f"a {kind} model has nothing to gain: "):
        pack(source, tmp_path / "packed", format=Format(kind))
    assert os.listdir(tmp_path) == ["m"]


def test_files_without_arrays_say_so(tmp_path: Path) -> None:
    """A pickle of small objects, in each protocol, a joblib file of such, and a pickled array of objects have nothing to gain."""
    for protocol in range(6):
        (tmp_path / f"{protocol}.pkl").write_bytes(pickle.dumps([1], protocol))
    joblib.dump([1], tmp_path / "m.joblib", compress=1)
    numpy.save(tmp_path / "m.npy", numpy.array([None], object))
    for name in sorted(os.listdir(tmp_path)):
        with pytest.raises(PackError, match="nothing to gain"):
            pack(tmp_path / name, tmp_path / "packed", trust="full")
        assert not (tmp_path / "packed").exists()


def _two_arrays(path: Path) -> None:
    with open(path, "wb") as file:
        numpy.save(file, ARRAYS["matrix"])
        numpy.save(file, ARRAYS["short"])


def _two_streams(path: Path) -> None:
    joblib.dump(ARRAYS, path, compress=1)
    path.write_bytes(2 * path.read_bytes())


def _archive_behind_a_script(path: Path) -> None:
    numpy.savez(path, **ARRAYS)
    path.write_bytes(b"#!/bin/sh\nexit\n" + path.read_bytes())


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("m.npy", _two_arrays),
        ("m.joblib", _two_streams),
        ("m.npz", _archive_behind_a_script),
    ],
)
def test_what_would_be_lost_is_refused(tmp_path: Path, name: str, build: Any) -> None:
    """More behind the first array, pickle or stream, or before an archive: an error, and nothing is written."""
    build(tmp_path / name)
    with pytest.raises(PackError, match=rf"{name}: expected .*would be lost"):
        pack(tmp_path / name, tmp_path / "packed", trust="full", format={"m.npz": "npz"}.get(name))
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["pickle", "joblib", "packed joblib"])
def test_pickles_behind_the_first_are_kept(tmp_path: Path, kind: str, protocol: int) -> None:
    """Several in one file, read one after the other as they were written."""
    source, target = tmp_path / "m", tmp_path / "packed"
    with open(source, "wb") as file:
        for model in (ARRAYS, [1], {"again": ARRAYS["matrix"]}):
            if kind == "pickle":
                pickle.dump(model, file, protocol)
            else:
                joblib.dump(model, file, protocol=protocol)
    if kind == "packed joblib":
        source.write_bytes(zlib.compress(source.read_bytes()))
    pack(source, target, format="pickle" if kind == "pickle" else "joblib", trust="full")
    with open(target, "rb") as file:
        read = pickle.load if kind == "pickle" else joblib.load
        first, second, third = read(file), read(file), read(file)
    assert_same(first, ARRAYS)
    assert second == [1]
    assert_same(third["again"], ARRAYS["matrix"])


def test_the_comments_of_an_archive_are_kept(tmp_path: Path) -> None:
    """The archive's own, and its members'."""
    numpy.savez(tmp_path / "m.npz", **ARRAYS)
    with zipfile.ZipFile(tmp_path / "m.npz", "a") as archive:
        archive.comment = b"of the archive"
        info = zipfile.ZipInfo("note.txt")
        info.comment = b"of the member"
        archive.writestr(info, "text")
    pack(tmp_path / "m.npz", tmp_path / "packed.npz", format="npz")
    with zipfile.ZipFile(tmp_path / "packed.npz") as archive:
        assert archive.comment == b"of the archive"
        assert archive.getinfo("note.txt").comment == b"of the member"
        assert archive.read("note.txt") == b"text"


def test_what_is_there_is_not_replaced_without_force(tmp_path: Path) -> None:
    """An error before anything is read; with force it is replaced in one step, and keeps no other name."""
    source, target = write(tmp_path, "array.npy"), tmp_path / "packed.npy"
    target.write_bytes(b"precious")
    with pytest.raises(PackError, match=r"is there already.*--force"):
        pack(source, target)
    assert target.read_bytes() == b"precious"
    pack(source, target, force=True)
    assert_same(numpy.load(target), ARRAYS["columns"])
    assert len(os.listdir(tmp_path)) == 2


def test_what_takes_the_name_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that appears at the destination while the source is packed stays."""
    source, target = write(tmp_path, "array.npy"), tmp_path / "packed.npy"
    sync = Destination.sync

    def and_then_somebody_comes(self: Destination) -> None:
        sync(self)
        target.write_bytes(b"precious")

    monkeypatch.setattr(Destination, "sync", and_then_somebody_comes)
    with pytest.raises(PackError, match="is there already"):
        pack(source, target)
    assert target.read_bytes() == b"precious"
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("link", [os.link, os.symlink, None])
def test_a_file_is_not_packed_onto_itself(tmp_path: Path, link: Any) -> None:
    """Under whatever name the source is reached, also with force."""
    source = write(tmp_path, "array.npy")
    target = source if link is None else tmp_path / "other.npy"
    if link is not None:
        link(source, target)
    before = source.read_bytes()
    with pytest.raises(PackError, match="is the source"):
        pack(source, target, force=True)
    assert source.read_bytes() == before


def test_a_destination_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    """A folder, a FIFO, a folder that is missing, and a name that is none."""
    source = write(tmp_path, "array.npy")
    os.mkfifo(tmp_path / "fifo")
    impossible = ((tmp_path, "a folder"), (tmp_path / "fifo", "no file"), (tmp_path / "no" / "x", "No such"), ("a\0b", "null"))
    for target, says in impossible:
        with pytest.raises(PackError, match=says):
            pack(source, target, force=True)
    with pytest.raises(ModelNotFoundError):
        pack(tmp_path / "absent", tmp_path / "packed")


def test_a_symlink_at_the_destination_is_followed(tmp_path: Path) -> None:
    """What it leads to is replaced; the link stays."""
    (tmp_path / "store").mkdir()
    (tmp_path / "current.npy").symlink_to("store/model.npy")
    pack(write(tmp_path, "array.npy"), tmp_path / "current.npy")
    assert (tmp_path / "current.npy").is_symlink()
    assert_same(numpy.load(tmp_path / "store" / "model.npy"), ARRAYS["columns"])


def test_permissions_are_the_source_s(tmp_path: Path) -> None:
    """Who may read the model may read the packed one."""
    source = write(tmp_path, "array.npy")
    source.chmod(0o640)
    pack(source, tmp_path / "packed.npy")
    assert stat.S_IMODE((tmp_path / "packed.npy").stat().st_mode) == 0o640


# Whole or not at all


@pytest.mark.parametrize("name", ["protocol5.pkl", "plain.joblib", "zlib.joblib", "xz.joblib", "deflated.npz", "odd.safetensors"])
def test_a_truncated_source_is_an_error_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    """Cut off at many places: a typed error that names the source, and the destination's folder is as it was."""
    source = write(tmp_path, name)
    whole = source.read_bytes()
    folder = tmp_path / "packed"
    folder.mkdir()
    for end in [*range(0, len(whole), max(1, len(whole) // 25)), len(whole) - 1]:
        source.write_bytes(whole[:end])
        with pytest.raises((CorruptModelError, PackError), match=name):
            pack(source, folder / "m", format=format_of(name))
        assert os.listdir(folder) == []


def test_what_was_written_wrongly_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit that flips on its way to the disk is found by the comparison, in every format, and nothing is kept."""
    names = ("protocol5.pkl", "zlib.joblib", "array.npy", "stored.npz", "deflated.npz", "odd.safetensors")
    sources = [write(tmp_path, name) for name in names]
    folder = tmp_path / "packed"
    folder.mkdir()
    sync = Destination.sync

    def flip_a_bit_first(self: Destination) -> None:
        sync(self)
        with open(self.part, "r+b") as file:
            file.seek(-70_000, 2)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 0x10]))

    monkeypatch.setattr(Destination, "sync", flip_a_bit_first)
    for source in sources:
        with pytest.raises((PackError, CorruptModelError)):
            pack(source, folder / "m")
        assert os.listdir(folder) == [], source


@pytest.mark.parametrize("name", ["protocol5.pkl", "protocol2.pkl", "zlib.joblib", "stored.npz", "odd.safetensors"])
def test_an_interrupt_leaves_nothing(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while it is written, and while it is read back."""
    source = write(tmp_path, name)
    folder = tmp_path / "packed"
    folder.mkdir()
    for moment in ("reserve", "sync"):
        with monkeypatch.context() as patch:
            patch.setattr(Destination, moment, _interrupted)
            with pytest.raises(KeyboardInterrupt):
                pack(source, folder / "m", trust="full")
        assert os.listdir(folder) == []


def _interrupted(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_too_little_disk_space_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free is looked at first: what was compressed takes more than the source."""
    usage = type("Usage", (), {"free": 17 * MIB})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    numpy.savez_compressed(tmp_path / "m.npz", a=numpy.zeros(4 * MIB))
    with pytest.raises(PackError, match=r"expected 48\.0 MiB of free disk space, found 17\.0 MiB"):
        pack(tmp_path / "m.npz", tmp_path / "packed.npz")
    joblib.dump(numpy.zeros(4 * MIB), tmp_path / "m.joblib", compress=1)
    with pytest.raises(PackError, match=r"expected 48\.0 MiB"):
        pack(tmp_path / "m.joblib", tmp_path / "packed.joblib")
    assert sorted(os.listdir(tmp_path)) == ["m.joblib", "m.npz"]


def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    """A write that fails in the middle is a typed error, and what was written until then is gone."""
    write(tmp_path, "deflated.npz")
    write(tmp_path, "zlib.joblib")
    code = """
        import os, resource, signal
        from mlup_stream.errors import PackError
        from mlup_stream.pack import pack
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        said = []
        for name in ("deflated.npz", "zlib.joblib"):
            try:
                pack(os.path.join(folder, name), os.path.join(folder, "packed"))
            except PackError as error:
                said.append(str(error))
        answer(said)
    """
    said = run_child(code, folder=str(tmp_path))
    assert len(said) == 2
    assert all("packed: cannot be written: File too large" in each for each in said)
    assert sorted(os.listdir(tmp_path)) == ["deflated.npz", "zlib.joblib"]


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody writes to it after it was copied."""
    source = write(tmp_path, "array.npy")
    sync = Destination.sync
    monkeypatch.setattr(Destination, "sync", lambda self: (sync(self), os.utime(source, ns=(1, 1)))[0])
    with pytest.raises(ModelFileChanged):
        pack(source, tmp_path / "packed.npy")
    assert os.listdir(tmp_path) == ["array.npy"]


