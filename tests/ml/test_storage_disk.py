"""`DiskStorage`: what it finds, in which order, and what it says when it finds nothing. It reads no file."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest
from child import run_child

from mlup_stream.constants import Delivery
from mlup_stream.errors import ConfigError, ModelNotFoundError, ModelPermissionError, NotAModelFileError
from mlup_stream.ml.storage.local_disk import DiskStorage


def _names(storage: DiskStorage) -> list[str]:
    return [os.path.basename(str(each.path)) for each in storage.load()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.pckl", "a.pckl", "xpckl.txt", "model.onnx", "old_model.onnx.bak", "print_model.joblib", "notes.md"):
        (tmp_path / name).write_bytes(b"content")
    return tmp_path


def test_the_default_is_every_pckl_sorted(folder: Path) -> None:
    """The default mask means a name ending in .pckl, not one that merely contains it; the order is sorted."""
    assert _names(DiskStorage(folder)) == ["a.pckl", "b.pckl"]


def test_without_a_pckl_the_default_is_what_a_binarizer_knows(tmp_path: Path) -> None:
    """`DiskStorage("models/")` finds the one model.onnx there."""
    for name in ("model.onnx", "README.md", "model.onnx.bak"):
        (tmp_path / name).write_bytes(b"content")
    assert _names(DiskStorage(str(tmp_path))) == ["model.onnx"]


def test_an_index_stands_for_its_shards(tmp_path: Path) -> None:
    """Of a sharded safetensors model the default finds the index alone."""
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"):
        (tmp_path / name).write_bytes(b"content")
    assert _names(DiskStorage(tmp_path)) == ["model.safetensors.index.json"]


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        ("model.onnx", ["model.onnx"]),
        (r"model\.onnx", ["model.onnx", "old_model.onnx.bak"]),
        (r"(\w.-_)*.joblib", ["print_model.joblib"]),
        (re.compile("^[ab]"), ["a.pckl", "b.pckl"]),
        (r"\.onnx$", ["model.onnx"]),
    ],
)
def test_a_mask_is_an_exact_name_or_is_searched_in_names(folder: Path, mask: str, found: list[str]) -> None:
    """The exact name of a file means that file alone; anything else is searched in the names."""
    assert _names(DiskStorage(folder, mask)) == found


def test_a_mask_is_not_searched_in_the_folders_path(tmp_path: Path) -> None:
    """A folder called onnx does not make its files match `onnx`."""
    folder = tmp_path / "onnx"
    folder.mkdir()
    (folder / "model.pckl").write_bytes(b"content")
    with pytest.raises(ModelNotFoundError):
        DiskStorage(folder, "onnx").load()


@pytest.mark.parametrize("mask", ["*.onnx", "*model*"])
def test_a_glob_is_an_error_that_says_so(folder: Path, mask: str) -> None:
    """A glob is not a regular expression; the message says what it looks like and what to write."""
    with pytest.raises(ConfigError, match="glob"):
        DiskStorage(folder, mask).load()


def test_a_glob_that_is_a_regular_expression_too_is_pointed_out(tmp_path: Path) -> None:
    """`model?.onnx` is a valid expression that means something else; where only the glob would match, the message says so."""
    (tmp_path / "model1.onnx").write_bytes(b"content")
    with pytest.raises(ModelNotFoundError, match="glob"):
        DiskStorage(tmp_path, "^model?.onnx".removeprefix("^")).load()


def test_no_match_says_what_was_looked_for_and_what_is_there(folder: Path) -> None:
    """The message has the mask and the folder's names, and the error is a FileNotFoundError too."""
    with pytest.raises(FileNotFoundError, match=r"'nothing'.*a\.pckl") as failed:
        DiskStorage(folder, "nothing").load()
    assert failed.value.path == str(folder)


def test_a_file_needs_no_mask(folder: Path) -> None:
    """A file given directly is found whatever the default mask says; one that an explicit mask excludes is not."""
    assert _names(DiskStorage(folder / "notes.md")) == ["notes.md"]
    assert _names(DiskStorage(folder / "model.onnx", "model.onnx")) == ["model.onnx"]
    with pytest.raises(ModelNotFoundError, match="needs no mask"):
        DiskStorage(folder / "notes.md", r"\.onnx").load()


def test_the_home_folder_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is this user's home."""
    monkeypatch.setenv("HOME", str(folder))
    assert DiskStorage("~/a.pckl").load()[0].path == str(folder / "a.pckl")


def test_a_saved_model_folder_is_itself_a_model(tmp_path: Path) -> None:
    """A folder with saved_model.pb is one model, given directly or found by a mask; other folders are not candidates."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "saved_model.pb").write_bytes(b"content")
    (tmp_path / "network_notes").mkdir()
    assert _names(DiskStorage(tmp_path / "net")) == ["net"]
    assert _names(DiskStorage(tmp_path, "net")) == ["net"]
    assert _names(DiskStorage(tmp_path, "^net")) == ["net"]


def test_symlinks_are_followed_and_a_broken_one_is_named(folder: Path) -> None:
    """A link to a file is the file; a link to nothing says where it leads."""
    (folder / "link.pckl").symlink_to(folder / "a.pckl")
    assert _names(DiskStorage(folder / "link.pckl")) == ["link.pckl"]
    (folder / "broken.pckl").symlink_to(folder / "gone")
    with pytest.raises(ModelNotFoundError, match=r"symlink leads to .*gone"):
        DiskStorage(folder / "broken.pckl").load()


def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    """A FIFO, which would block for ever, is refused by its kind, given directly and found by a mask."""
    os.mkfifo(tmp_path / "m.pckl")
    with pytest.raises(NotAModelFileError, match="FIFO"):
        DiskStorage(tmp_path / "m.pckl").load()
    with pytest.raises(NotAModelFileError, match="FIFO"):
        DiskStorage(tmp_path).load()


def test_devices_and_sockets_are_refused(tmp_path: Path) -> None:
    """What never ends, or is no file, is named for what it is."""
    with pytest.raises(NotAModelFileError, match="character device"):
        DiskStorage("/dev/zero").load()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(NotAModelFileError, match="socket"):
            DiskStorage(tmp_path / "s").load()


def test_an_empty_file_and_a_plain_folder_are_no_models(tmp_path: Path) -> None:
    """Zero bytes, and a folder where a file was meant, are told at once."""
    (tmp_path / "m.pckl").touch()
    with pytest.raises(NotAModelFileError, match="empty"):
        DiskStorage(tmp_path / "m.pckl").load()
    (tmp_path / "models.onnx").mkdir()
    with pytest.raises(NotAModelFileError, match="folder"):
        DiskStorage(tmp_path, "models.onnx").load()


def test_no_permission_is_told_for_a_user_without_it(tmp_path: Path) -> None:
    """A file that this user may not read is a PermissionError that names it. (Root may read anything: the child is nobody.)"""
    path = tmp_path / "m.pckl"
    path.write_bytes(b"content")
    path.chmod(0)
    for parent in [tmp_path, *tmp_path.parents][:-2]:
        parent.chmod(parent.stat().st_mode | 0o055)
    code = """
        import os
        from mlup_stream.ml.storage.local_disk import DiskStorage
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            DiskStorage(path).load()
        except PermissionError as error:
            answer([type(error).__name__, str(error)])
    """
    kind, message = run_child(code, path=str(path))
    assert kind == ModelPermissionError.__name__
    assert str(path) in message


@pytest.mark.parametrize("path", ["no\0where", "/nowhere/model.onnx", "/dev/null/model.onnx"])
def test_what_cannot_be_a_path_is_an_error_of_ours(path: str) -> None:
    """Any path that the system refuses ends in a typed error."""
    with pytest.raises((ModelNotFoundError, NotAModelFileError)):
        DiskStorage(path).load()


def test_the_old_mask_name_is_accepted_with_a_warning(folder: Path) -> None:
    """`files_mask` works and warns; both names at once are an error."""
    with pytest.warns(DeprecationWarning, match="file_mask"):
        storage = DiskStorage(folder, files_mask="model.onnx")
    assert _names(storage) == ["model.onnx"]
    with pytest.raises(ConfigError, match="files_mask"):
        DiskStorage(folder, "a", files_mask="b")


@pytest.mark.parametrize(
    ("arguments", "delivery"),
    [
        ({}, None),
        ({"need_load_file": False}, None),
        ({"need_load_file": True}, Delivery.BYTES),
        ({"delivery": "bytes"}, Delivery.BYTES),
        ({"need_load_file": True, "delivery": "bytes"}, Delivery.BYTES),
        ({"need_load_file": False, "delivery": "view"}, Delivery.VIEW),
        ({"need_load_file": True, "delivery": "auto"}, Delivery.BYTES),
    ],
)
def test_need_load_file_is_delivery_bytes(folder: Path, arguments: dict[str, object], delivery: Delivery | None) -> None:
    """The documented switch and the delivery say the same thing, and nothing is read before it is used."""
    loaded = DiskStorage(folder / "a.pckl", **arguments).load()[0]  # type: ignore[arg-type]
    assert loaded.delivery is delivery
    assert loaded._raw_data == b""
    assert loaded.raw_data == (b"content" if delivery is Delivery.BYTES else b"")


@pytest.mark.parametrize(
    "arguments",
    [
        {"need_load_file": True, "delivery": "view"},
        {"need_load_file": False, "delivery": "bytes"},
        {"delivery": "teleport"},
        {"need_load_file": "yes"},
        {"file_mask": 3},
    ],
)
def test_arguments_that_contradict_or_are_not_valid_are_refused(folder: Path, arguments: dict[str, object]) -> None:
    """Each wrong argument is a ConfigError that names it."""
    with pytest.raises(ConfigError, match="storage_kwargs: DiskStorage"):
        DiskStorage(folder, **arguments)  # type: ignore[arg-type]
