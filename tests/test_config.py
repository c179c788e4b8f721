"""`Config`: one place that validates, messages that help, and the way to a file and back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import mlup_stream as mlup
from mlup_stream.constants import BinarizationType, Optimize, StorageType
from mlup_stream.errors import ConfigError
from mlup_stream.ml.binarization.pickle import PickleBinarizer
from mlup_stream.ml.storage.local_disk import DiskStorage


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("name", "", "a text"),
        ("predict_method_name", None, "a text"),
        ("storage_type", "dsik", "did you mean 'disk'"),
        ("storage_type", "no.such.Storage", "cannot be resolved"),
        ("storage_type", 3, "expected a class"),
        ("storage_kwargs", ["a"], "a dictionary"),
        ("binarization_type", "pikle", "did you mean 'pickle'"),
        ("binarization_type", int, "expected a class with a method 'deserialize'"),
        ("binarization_kwargs", {1: 2}, "a dictionary"),
        ("optimize", "size", "'memory', 'speed'"),
        ("mapping", "rw", "'read-only', 'copy-on-write'"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(field: str, value: Any, allowed: str) -> None:
    """Every field's message has the field, the value and what could have been."""
    with pytest.raises(ConfigError) as failed:
        mlup.Config(**{field: value})
    message = str(failed.value)
    assert field in message
    assert repr(value) in message
    assert allowed in message
    assert failed.value.field == field
    assert "\n" not in message


def test_an_unknown_setting_suggests_the_nearest() -> None:
    """A slip of the pen is answered with the name that was meant, as a ValueError too."""
    with pytest.raises(ValueError, match="did you mean 'storage_kwargs'"):
        mlup.Config(storage_kwarg={})


def test_a_field_that_is_changed_later_is_validated_by_the_next_load() -> None:
    """Settings are plain attributes; `load` checks them again."""
    up = mlup.UP(ml_model=object())
    up.conf.optimize = "sideways"
    with pytest.raises(ConfigError, match="optimize"):
        up.ml.load()


@pytest.mark.parametrize(
    "value",
    [
        "pickle",
        "PICKLE",
        BinarizationType.PICKLE,
        PickleBinarizer,
        "mlup_stream.ml.binarization.pickle.PickleBinarizer",
        "mlup.ml.binarization.pickle.PickleBinarizer",
    ],
)
def test_a_binarizer_goes_by_every_name(value: Any) -> None:
    """A short name, a member's name, the member, the class, its import path, and the old package's import path are one."""
    from mlup_stream.registry import binarizer_class

    assert binarizer_class(value) is PickleBinarizer


def test_every_row_of_the_table_can_be_imported_by_its_path() -> None:
    """No binarization type leads nowhere, and none needs its framework to be imported."""
    from mlup_stream.registry import BINARIZERS, ROWS, binarizer_class

    for row in ROWS:
        for binarizer in row.binarizers:
            assert binarizer_class(BinarizationType[binarizer.member]).format == row.format
    assert binarizer_class(BinarizationType.MEMORY)
    assert {member.name: member.value for member in BinarizationType} == BINARIZERS


@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_a_configuration_goes_to_a_file_and_back(tmp_path: Path, kind: str) -> None:
    """Enum members, classes, paths and patterns are written so that reading gives the same load."""
    conf = mlup.Config(
        name="Fraud",
        storage_type=DiskStorage,
        storage_kwargs={"path_to_files": tmp_path, "file_mask": re.compile(r"\.onnx$")},
        binarization_type=BinarizationType.ONNX_INFERENCE_SESSION_FULL_RETURN,
        binarization_kwargs={"providers": ("CPUExecutionProvider",)},
        optimize="speed",
    )
    path = tmp_path / f"conf.{kind}"
    getattr(mlup.UP(conf=conf), f"to_{kind}")(path)
    back = getattr(mlup.UP, f"load_from_{kind}")(path, load_model=False).conf
    assert back.name == "Fraud"
    assert back.storage_type == "mlup_stream.ml.storage.local_disk.DiskStorage"
    assert back.storage_kwargs == {"path_to_files": str(tmp_path), "file_mask": r"\.onnx$"}
    assert back.binarization_type == BinarizationType.ONNX_INFERENCE_SESSION_FULL_RETURN.value
    assert back.binarization_kwargs == {"providers": ["CPUExecutionProvider"]}
    assert back.optimize is Optimize.SPEED


def test_a_model_in_memory_is_left_out_of_the_file(tmp_path: Path) -> None:
    """What cannot be written is not: reading such a file gives the empty model, loaded."""
    mlup.UP(ml_model=object()).to_json(tmp_path / "conf.json")
    assert "storage_kwargs" not in json.loads((tmp_path / "conf.json").read_text())["ml"]
    assert mlup.UP.load_from_json(tmp_path / "conf.json").predict(X=1) is None


def test_a_file_may_have_the_fields_without_a_section(tmp_path: Path) -> None:
    """The short form, for who writes a file by hand."""
    path = tmp_path / "conf.yaml"
    path.write_text("storage_type: disk\nstorage_kwargs: {path_to_files: models/}\n")
    conf = mlup.UP.load_from_yaml(path, load_model=False).conf
    assert conf.storage_kwargs == {"path_to_files": "models/"}


def test_a_file_of_the_old_package_is_read(tmp_path: Path) -> None:
    """Sections, import paths and server settings of `mlup` are understood; what has no meaning here is named in a warning."""
    path = tmp_path / "conf.yaml"
    path.write_text(
        "version: '1'\nml:\n  storage_type: mlup.ml.storage.local_disk.DiskStorage\n  storage_kwargs: {path_to_files: m.onnx}\n"
        "  use_thread_loop: true\nweb:\n  port: 8009\n"
    )
    with pytest.warns(UserWarning, match="web, use_thread_loop"):
        conf = mlup.UP.load_from_yaml(path, load_model=False).conf
    assert conf.storage_kwargs == {"path_to_files": "m.onnx"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ml: {storage_tpe: disk}", "did you mean 'storage_type'"),
        ("mll: {}", "unknown setting 'mll'"),
        ("version: '7'\nml: {}", "expected '1'"),
        ("- a\n- b", "expected a mapping"),
        ("a: [", "not valid YAML"),
        ("ml: 3", "expected a mapping"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    """Each message begins with the file."""
    path = tmp_path / "conf.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as failed:
        mlup.UP.load_from_yaml(path)
    assert str(failed.value).startswith(str(path))


def test_a_missing_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    """The configuration file's own absence is told like a model's."""
    with pytest.raises(FileNotFoundError, match=r"conf\.json"):
        mlup.UP.load_from_json(tmp_path / "conf.json")


def test_what_a_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    """A storage argument that is an object is named, and no half-written file is left."""
    up = mlup.UP(conf=mlup.Config(storage_type=StorageType.disk, storage_kwargs={"path_to_files": object()}))
    with pytest.raises(ConfigError, match="storage_kwargs"):
        up.to_yaml(tmp_path / "conf.yaml")
    assert not (tmp_path / "conf.yaml").exists()
