"""Callers that `mypy --strict` must accept. Never run: `tests/test_typing.py` and `make lint` check it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import mlup_stream as mlup
from mlup_stream.constants import Delivery, Mapping, MappingMode, Optimize, StorageType

mlup.load("m.pckl")
mlup.load(Path("m.pckl"), delivery="view", optimize="speed", memory_budget=0.8)
mlup.load(b"content", framework="torch")
mlup.load(memoryview(b"content"), delivery=Delivery.BYTES, optimize=Optimize.SPEED)
mlup.load(io.BytesIO(b"content"), mapping=MappingMode.READ_ONLY, binarization_kwargs={"framework": "numpy"})

with mlup.open("m.onnx", snapshot=True) as loaded:
    model: Any = loaded.model
    seconds: float = loaded.report.seconds + loaded.report.stage_seconds.importing
    loaded.predict(X=1)

fits: bool = mlup.plan("m.onnx", memory_limit="hard").fits
said: dict[str, Any] = mlup.inspect("m.onnx")
written: int = mlup.pack("a.joblib", "b.joblib", force=True).destination_bytes

conf = mlup.Config(storage_type=StorageType.disk, storage_kwargs={"path_to_files": "m"}, mapping="copy-on-write")
conf.optimize = "speed"
up = mlup.UP(conf=conf)
with up.ml.load(force_loading=True) as ml:
    ml.predict(X=1)
mlup.ml.model.MLupModel(conf=conf)
old: type[MappingMode] = Mapping

with mlup.ModelPool({"a": "a.onnx", "b": conf}, memory_budget="512MiB") as pool, pool.use("a") as pooled:
    pooled.predict(X=1)
    evicted: tuple[str, ...] = pool.evict("b")
    left_bytes: int | None = pool.report().left_bytes
    text: str = pool.metrics()


async def ask(pool: mlup.ModelPool) -> float:
    async with pool.use("a") as model:
        model.predict(X=1)
    taken = await pool.get("b")
    taken.release()
    return taken.report.seconds


try:
    mlup.load("m")
except mlup.errors.MemoryBudgetExceeded as error:
    would_fit: tuple[str, ...] = error.would_fit
    numbers: list[int | None] = [error.needed_bytes, error.available_bytes, error.enough_bytes, error.passed_bytes]
except mlup.errors.ModelNotFoundError as error:
    code: int | None = error.errno
    path: str | None = error.path
except mlup.errors.MissingDependencyError as error:
    names: tuple[str | None, str | None] = (error.name, error.extra)
