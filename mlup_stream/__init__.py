"""Load machine-learning models with as little memory as their format allows.

import mlup_stream as mlup

model = mlup.load("model.joblib")

up = mlup.UP(conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": "model.onnx"}))
up.ml.load()
up.predict(X=rows)
print(up.ml.report)
up.ml.unload()

Importing this package imports nothing else: each name below is fetched when it is first used (PEP 562). It configures no
logging and touches no global state.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mlup_stream._version import __version__

if TYPE_CHECKING:
    from mlup_stream import constants, errors
    from mlup_stream.config import Config
    from mlup_stream.memory.governor import MemoryGovernor
    from mlup_stream.ml.model import MLupModel
    from mlup_stream.up import UP, load

__all__ = ["UP", "Config", "MLupModel", "MemoryGovernor", "__version__", "constants", "errors", "load", "ml"]

_HOMES = {
    "Config": "mlup_stream.config",
    "MLupModel": "mlup_stream.ml.model",
    "MemoryGovernor": "mlup_stream.memory.governor",
    "UP": "mlup_stream.up",
    "load": "mlup_stream.up",
}
_MODULES = ("constants", "errors", "ml")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # the next look-up finds it without coming here
    return value


def __dir__() -> list[str]:
    return __all__
