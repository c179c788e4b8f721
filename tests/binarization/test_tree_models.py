"""LightGBM and XGBoost: real models, by every delivery, as content without a path, and damaged."""

from __future__ import annotations

import gc
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from given import Given, deserialize

import mlup_stream as mlup
from mlup_stream.errors import ConfigError, CorruptModelError, ModelLoadError
from mlup_stream.ml.binarization.lightgbm import LightGBMBinarizer
from mlup_stream.ml.binarization.xgboost import XGBoostBinarizer

numpy = pytest.importorskip("numpy", reason="the extra `numpy` is not installed")
lightgbm = pytest.importorskip("lightgbm", reason="the extra `lightgbm` is not installed")
xgboost = pytest.importorskip("xgboost", reason="the extra `xgboost` is not installed")

ROWS = numpy.random.default_rng(0).standard_normal((300, 6))
CLASSES = (ROWS.sum(axis=1) > 0).astype(int)
BINARIZERS: dict[str, Any] = {"model.txt": LightGBMBinarizer, "model.ubj": XGBoostBinarizer, "model.json": XGBoostBinarizer}


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    """Every load runs the collector, which would walk all that pytest holds hundreds of times; it passes over frozen objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("trees")
    boosted = lightgbm.train({"objective": "binary", "verbose": -1, "num_threads": 1}, lightgbm.Dataset(ROWS, CLASSES), 5)
    boosted.save_model(folder / "model.txt")
    trained = xgboost.train({"objective": "binary:logistic", "nthread": 1}, xgboost.DMatrix(ROWS, label=CLASSES), 5)
    trained.save_model(folder / "model.ubj")
    trained.save_model(folder / "model.json")
    return {name: folder / name for name in BINARIZERS}


def _answer(model: Any) -> Any:
    return model.predict(xgboost.DMatrix(ROWS) if isinstance(model, xgboost.Booster) else ROWS)


def _expected(path: Path) -> Any:
    if path.suffix == ".txt":
        return _answer(lightgbm.Booster(model_file=path))
    booster = xgboost.Booster()
    booster.load_model(path)
    return _answer(booster)


@pytest.mark.parametrize("name", sorted(BINARIZERS))
@pytest.mark.parametrize("delivery", ["auto", "path", "bytes"])
def test_predictions_equal_the_librarys_own(files: dict[str, Path], name: str, delivery: str) -> None:
    """Found by content, and equal to the last bit."""
    assert numpy.array_equal(_answer(mlup.load(files[name], delivery=delivery)), _expected(files[name]))


@pytest.mark.parametrize("name", sorted(BINARIZERS))
def test_content_without_a_path(files: dict[str, Path], name: str) -> None:
    """Bytes, a memoryview, a file object, and for text a string."""
    content = files[name].read_bytes()
    given: list[Any] = [content, memoryview(content), bytearray(content), io.BytesIO(content)]
    if name != "model.ubj":
        given.append(content.decode())
    for data in given:
        assert numpy.array_equal(_answer(deserialize(BINARIZERS[name], Given(data))), _expected(files[name]))


@pytest.mark.parametrize("name", sorted(BINARIZERS))
def test_any_name_will_do(files: dict[str, Path], name: str, tmp_path: Path) -> None:
    """The content decides, also where the library would go by the name; no link is left behind."""
    for other in ("model.bin", "model.json", "model.ubj", "model"):
        path = tmp_path / other
        path.write_bytes(files[name].read_bytes())
        assert numpy.array_equal(_answer(mlup.load(path)), _expected(files[name]))
        path.unlink()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(BINARIZERS))
@pytest.mark.parametrize("delivery", ["path", "bytes"])
def test_truncated_files_are_told(files: dict[str, Path], name: str, delivery: str, tmp_path: Path) -> None:
    """Cut anywhere before the last section, a model is damaged, and never one of fewer trees."""
    whole = files[name].read_bytes()
    last = whole.index(b"end of parameters") if name == "model.txt" else len(whole) - 1
    path = tmp_path / name
    for length in sorted({*range(4, 40), *range(40, last, max(1, last // 40)), last - 1, last}):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptModelError) as failed:
            mlup.load(path, delivery=delivery, binarization_type=BINARIZERS[name])
        assert str(path) in str(failed.value)


@pytest.mark.parametrize("name", sorted(BINARIZERS))
def test_garbage_and_options(files: dict[str, Path], name: str, tmp_path: Path) -> None:
    """Garbage is a typed error; an option that is not known is named."""
    path = tmp_path / name
    path.write_bytes(b"\x00\x01\x02" * 1000)
    with pytest.raises(ModelLoadError):
        mlup.load(path, binarization_type=BINARIZERS[name])
    with pytest.raises(ConfigError, match="nonsense"):
        mlup.load(files[name], binarization_kwargs={"nonsense": 1})
