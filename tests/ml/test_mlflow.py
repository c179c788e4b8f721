"""Folders that MLflow wrote: what `MLmodel` names is the model, for `load`, `plan` and `inspect`, whatever lies beside it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

import mlup_stream as mlup
from mlup_stream.errors import CorruptModelError, FormatNotRecognizedError, ModelNotFoundError
from mlup_stream.ml.inspection import inspect
from mlup_stream.ml.storage.local_disk import DiskStorage

MLMODEL = """\
flavors:
  python_function:
    {pyfunc}: {name}
    env:
      conda: conda.yaml
      virtualenv: python_env.yaml
    loader_module: mlflow.{flavor}
    python_version: 3.11.7
  {flavor}:
    code: null
    {key}: {name}
    skops_trusted_types:
    - sklearn.tree._tree.Tree
mlflow_version: 3.17.2
model_size_bytes: 9167
utc_time_created: '2026-11-26 20:09:21.796692'
"""
"""As MLflow 3.17 writes it."""


def write(folder: Path, flavor: str, key: str, name: str, *, pyfunc: str = "data") -> Path:
    """The folder without its model: with two files that look like one."""
    folder.mkdir(exist_ok=True)
    (folder / "MLmodel").write_text(MLMODEL.format(flavor=flavor, key=key, name=name, pyfunc=pyfunc))
    for beside in ("conda.yaml", "python_env.yaml", "requirements.txt"):
        (folder / beside).write_text("mlflow==3.17.2\n")
    (folder / "extra_files").mkdir(exist_ok=True)
    (folder / "other.pckl").write_bytes(pickle.dumps("not the model"))
    return folder


def found(folder: Path) -> str:
    (loaded,) = DiskStorage(folder).load()
    return os.path.relpath(str(loaded.path), folder)


@pytest.mark.parametrize(
    ("flavor", "key", "name"),
    [
        ("sklearn", "pickled_model", "model.pkl"),
        ("xgboost", "data", "model.ubj"),
        ("lightgbm", "data", "model.lgb"),
        ("catboost", "data", "model.cb"),
        ("onnx", "data", "model.onnx"),
    ],
)
def test_the_named_file_is_the_model(tmp_path: Path, flavor: str, key: str, name: str) -> None:
    """For each flavour, and all three ask the same file; its content says what it is."""
    folder = write(tmp_path / "model", flavor, key, name)
    (folder / name).write_bytes(pickle.dumps({"weights": [1, 2, 3]}))
    assert found(folder) == name
    assert mlup.load(folder) == {"weights": [1, 2, 3]}
    assert inspect(folder)["format"] == "pickle"
    of_folder, of_file = mlup.plan(folder).deliveries, mlup.plan(folder / name).deliveries
    assert [each.estimate for each in of_folder] == [each.estimate for each in of_file]


def test_a_folder_is_looked_into(tmp_path: Path) -> None:
    """torch's flavour names a folder, with notes beside the model; what is alone in it says itself what it is."""
    folder = write(tmp_path / "model", "pytorch", "model_data", "data")
    (folder / "data").mkdir()
    (folder / "data" / "model.pth").write_bytes(pickle.dumps([1]))
    (folder / "data" / "pickle_module_info.txt").write_text("mlflow.pytorch.pickle_module")
    assert found(folder) == os.path.join("data", "model.pth")
    assert mlup.load(folder) == [1]
    for each in (folder / "data").iterdir():
        each.unlink()
    (folder / "data" / "model.pt2").write_bytes(b"no model at all")
    with pytest.raises(FormatNotRecognizedError, match=r"model\.pt2"):
        mlup.load(folder)


def test_a_mask_still_chooses(tmp_path: Path) -> None:
    """Who names a file in the folder gets it."""
    folder = write(tmp_path / "model", "sklearn", "pickled_model", "model.pkl")
    (folder / "model.pkl").write_bytes(pickle.dumps(1))
    assert [each.path for each in DiskStorage(folder, file_mask="other.pckl").load()] == [str(folder / "other.pckl")]


def test_what_mlflow_says_of_trust_is_not_used(tmp_path: Path) -> None:
    """The list lies beside the file: options come from the configuration alone."""
    folder = write(tmp_path / "model", "sklearn", "pickled_model", "model.pkl")
    (folder / "model.pkl").write_bytes(pickle.dumps(1))
    up = mlup.UP(conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": str(folder)}))
    up.ml.load()
    assert up.conf.binarization_kwargs == {}


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("flavors: [", CorruptModelError, "no YAML"),
        ("flavors: " + "[" * 100_000, CorruptModelError, "no YAML"),
        ("flavors: !!python/object/apply:os.system ['true']", CorruptModelError, "no YAML"),
        ("x: 1", CorruptModelError, "found none"),
        ("flavors: {}", CorruptModelError, "found none"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nflavors: *b", CorruptModelError, "found none"),
        ("flavors: {sklearn: {pickled_model: ../secret.pkl}}", CorruptModelError, "leads out of its folder"),
        ("flavors: {sklearn: {pickled_model: a/../../secret.pkl}}", CorruptModelError, "leads out of its folder"),
        ("flavors: {sklearn: {pickled_model: /etc/passwd}}", CorruptModelError, "leads out of its folder"),
        ("flavors: {sklearn: {pickled_model: gone.pkl}}", ModelNotFoundError, "copy the whole folder"),
        ("flavors: {sklearn: {pickled_model: [1]}}", ModelNotFoundError, "expected one of sklearn"),
        ("flavors: {spark: {model_data: sparkml}}", ModelNotFoundError, "of the flavours spark"),
        ("#" * (2 << 20), CorruptModelError, "more than"),
    ],
)
def test_a_damaged_mlmodel_is_a_typed_error(tmp_path: Path, text: str, error: type[Any], says: str) -> None:
    """It names the file, and never leads to one elsewhere."""
    folder = write(tmp_path / "model", "sklearn", "pickled_model", "model.pkl")
    (tmp_path / "secret.pkl").write_bytes(pickle.dumps("secret"))
    (folder / "MLmodel").write_text(text)
    with pytest.raises(error, match=says) as caught:
        mlup.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
