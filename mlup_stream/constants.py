"""The names that configurations are written in: storages, binarizers, deliveries, and the `LoadedFile` that travels between.

The values of `StorageType` and `BinarizationType` are import paths, as in `mlup`, so that a configuration file may hold
either the short name, the member's name or the path of somebody's own class.
"""

from __future__ import annotations

from enum import Enum

from mlup_stream.delivery.kinds import Delivery, Mapping, Optimize
from mlup_stream.delivery.loaded_file import LoadedFile

__all__ = ["BinarizationType", "Delivery", "LoadedFile", "Mapping", "Optimize", "StorageType"]


class StorageType(Enum):
    """Where the model lies."""

    memory = "mlup_stream.ml.storage.memory.MemoryStorage"
    disk = "mlup_stream.ml.storage.local_disk.DiskStorage"


class BinarizationType(Enum):
    """What builds the model object from the file."""

    MEMORY = "mlup_stream.ml.binarization.memory.MemoryBinarizer"
    PICKLE = "mlup_stream.ml.binarization.pickle.PickleBinarizer"
    JOBLIB = "mlup_stream.ml.binarization.joblib.JoblibBinarizer"
    NPY = "mlup_stream.ml.binarization.numpy.NpyBinarizer"
    NPZ = "mlup_stream.ml.binarization.numpy.NpzBinarizer"
    ONNX_INFERENCE_SESSION = "mlup_stream.ml.binarization.onnx.InferenceSessionBinarizer"
    ONNX_INFERENCE_SESSION_FULL_RETURN = "mlup_stream.ml.binarization.onnx.InferenceSessionFullReturnBinarizer"
    LIGHTGBM = "mlup_stream.ml.binarization.lightgbm.LightGBMBinarizer"
    XGBOOST = "mlup_stream.ml.binarization.xgboost.XGBoostBinarizer"
    TORCH = "mlup_stream.ml.binarization.torch.TorchBinarizer"
    TORCH_JIT = "mlup_stream.ml.binarization.torch.TorchJITBinarizer"
    SAFETENSORS = "mlup_stream.ml.binarization.safetensors.SafetensorsBinarizer"
    TENSORFLOW = "mlup_stream.ml.binarization.tensorflow.TensorFlowBinarizer"
    TENSORFLOW_ZIP = "mlup_stream.ml.binarization.tensorflow.TensorFlowSavedBinarizer"
    GGUF = "mlup_stream.ml.binarization.gguf.GgufBinarizer"
