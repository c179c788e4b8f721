"""Moving over from `mlup`: the old package calls our binarizers, and ours accept what was written for it."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from child import run_child

import mlup_stream as mlup

pytest.importorskip("mlup", reason="the old package (pymlup) is not installed")


class Doubler:
    def predict(self, X: list[int]) -> list[int]:
        return [2 * x for x in X]


# In a child, because importing `mlup` reconfigures logging.
LOAD_WITH_THE_OLD_PACKAGE = """
    import sys, warnings
    warnings.simplefilter("ignore")
    sys.path[:0] = tests
    import mlup, mlup.ml.empty
    up = mlup.UP(ml_model=mlup.ml.empty.EmptyModel(), conf=mlup.Config(
        storage_type=mlup.constants.StorageType.disk,
        storage_kwargs={"path_to_files": path, "files_mask": ".*", "need_load_file": need_load_file},
        binarization_type=binarizer,
        data_transformer_for_predict=mlup.constants.ModelDataTransformerType.SRC_TYPES,
        data_transformer_for_predicted=mlup.constants.ModelDataTransformerType.SRC_TYPES,
    ))
    up.ml.load()
    answer(type(up.ml.model_obj).__name__ + " " + str(up.predict(X=[1, 2])))
"""


@pytest.mark.parametrize("need_load_file", [False, True])
@pytest.mark.parametrize("binarizer", ["pickle.PickleBinarizer", "joblib.JoblibBinarizer"])
def test_the_old_package_loads_through_our_binarizer(tmp_path: Path, binarizer: str, need_load_file: bool) -> None:
    """`binarization_type="mlup_stream.ml.binarization..."` in an `mlup` configuration hands us its own named tuple."""
    path = tmp_path / "m.pckl"
    path.write_bytes(pickle.dumps(Doubler()))
    found = run_child(
        LOAD_WITH_THE_OLD_PACKAGE,
        tests=[str(folder) for folder in Path(__file__).parents[:2]],
        path=str(path),
        binarizer=f"mlup_stream.ml.binarization.{binarizer}",
        need_load_file=need_load_file,
    )
    assert found == "Doubler [2, 4]"


def test_the_public_names_of_the_old_package_are_here() -> None:
    """Moving over is a change of prefix: each documented name exists, and the members of the enums with it."""
    code = """
        import mlup.constants, mlup.errors
        answer([
            [member.name for member in mlup.constants.StorageType],
            [member.name for member in mlup.constants.BinarizationType],
            [member.value for kind in (mlup.constants.BinarizationType, mlup.constants.StorageType) for member in kind],
        ])
    """
    storages, binarizers, paths = run_child(code)
    assert set(storages) <= {member.name for member in mlup.constants.StorageType}
    assert set(binarizers) <= {member.name for member in mlup.constants.BinarizationType}
    ours = {member.value for member in [*mlup.constants.BinarizationType, *mlup.constants.StorageType]}
    assert {path.replace("mlup.", "mlup_stream.", 1) for path in paths} <= ours
    for name in ("MLupError", "LoadError", "ModelLoadError", "ModelBinarizationError", "PredictError"):
        assert issubclass(getattr(mlup.errors, name), mlup.errors.MLupError)
