"""Load machine-learning models with as little memory as their format allows.

import mlup_stream as mlup

model = mlup.load("model.joblib")

with mlup.open("model.onnx") as loaded:
    loaded.model, loaded.report

up = mlup.UP(conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": "model.onnx"}))
up.ml.load()
up.predict(X=rows)
print(up.ml.report)
up.ml.unload()

mlup.inspect("model.onnx"), mlup.plan("model.onnx"), mlup.pack("model.joblib", "packed.joblib")

Importing this package imports nothing else: each name below is fetched when it is first used (PEP 562). It configures no
logging and touches no global state.
"""

from typing import TYPE_CHECKING

from mlup_stream._version import __version__

__all__ = [
    "UP",
    "Config",
    "LoadReport",
    "Loaded",
    "MLupModel",
    "MemoryGovernor",
    "ModelPool",
    "Plan",
    "__version__",
    "constants",
    "errors",
    "inspect",
    "load",
    "ml",
    "open",
    "pack",
    "plan",
]

if TYPE_CHECKING:
    from mlup_stream import constants, errors, ml
    from mlup_stream.calls import Loaded, Plan, load, plan
    from mlup_stream.calls import open_model as open
    from mlup_stream.config import Config
    from mlup_stream.memory.governor import MemoryGovernor
    from mlup_stream.ml.inspection import inspect
    from mlup_stream.ml.model import MLupModel
    from mlup_stream.ml.pool import ModelPool
    from mlup_stream.ml.report import LoadReport
    from mlup_stream.pack import pack
    from mlup_stream.up import UP
else:  # a checker that saw this would take every misspelling for a name
    _HOMES = {
        "Config": "mlup_stream.config:Config",
        "LoadReport": "mlup_stream.ml.report:LoadReport",
        "Loaded": "mlup_stream.calls:Loaded",
        "MLupModel": "mlup_stream.ml.model:MLupModel",
        "MemoryGovernor": "mlup_stream.memory.governor:MemoryGovernor",
        "ModelPool": "mlup_stream.ml.pool:ModelPool",
        "Plan": "mlup_stream.calls:Plan",
        "UP": "mlup_stream.up:UP",
        "constants": "mlup_stream.constants",
        "errors": "mlup_stream.errors",
        "inspect": "mlup_stream.ml.inspection:inspect",
        "load": "mlup_stream.calls:load",
        "ml": "mlup_stream.ml",
        "open": "mlup_stream.calls:open_model",
        "pack": "mlup_stream.pack",
        "plan": "mlup_stream.calls:plan",
    }

    def __getattr__(name):
        import importlib

        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home, _, inside = _HOMES[name].partition(":")
        module = importlib.import_module(home)
        value = getattr(module, inside) if inside else module
        globals()[name] = value  # the next look-up finds it without coming here
        return value


def __dir__() -> list[str]:
    return __all__
