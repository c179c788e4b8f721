"""Load machine-learning models with as little memory as their format allows.

import mlup_stream as mlup

model = mlup.load("model.joblib")

up = mlup.UP(conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": "model.onnx"}))
up.ml.load()
up.predict(X=rows)
print(up.ml.report)
up.ml.unload()

Importing this package imports neither numpy nor any framework, configures no logging and touches no global state.
"""

from mlup_stream import constants, errors
from mlup_stream._version import __version__
from mlup_stream.config import Config
from mlup_stream.memory.governor import MemoryGovernor
from mlup_stream.ml.model import MLupModel
from mlup_stream.up import UP, load

__all__ = ["UP", "Config", "MLupModel", "MemoryGovernor", "__version__", "constants", "errors", "load"]
