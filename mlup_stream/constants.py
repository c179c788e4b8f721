"""The names that configurations are written in: storages, binarizers, deliveries, and the `LoadedFile` that travels between.

The values of `StorageType` and `BinarizationType` are import paths, as in `mlup`, so that a configuration file may hold
either the short name, the member's name or the path of somebody's own class.
"""

from __future__ import annotations

from enum import Enum

from mlup_stream.delivery.kinds import Delivery, MappingMode, Optimize
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.registry import BINARIZERS, STORAGES, spec_of

__all__ = [
    "BinarizationType",
    "Delivery",
    "LoadedFile",
    "Mapping",
    "MappingMode",
    "Optimize",
    "StorageType",
    "binarization_type_of",
]

Mapping = MappingMode
"""The old name of `MappingMode`."""


class StorageType(Enum):
    """Where the model lies."""

    memory = STORAGES["memory"]
    disk = STORAGES["disk"]


class BinarizationType(Enum):
    """What builds the model object from the file; the registry has the classes."""

    MEMORY = BINARIZERS["MEMORY"]
    PICKLE = BINARIZERS["PICKLE"]
    JOBLIB = BINARIZERS["JOBLIB"]
    NPY = BINARIZERS["NPY"]
    NPZ = BINARIZERS["NPZ"]
    ONNX_INFERENCE_SESSION = BINARIZERS["ONNX_INFERENCE_SESSION"]
    ONNX_INFERENCE_SESSION_FULL_RETURN = BINARIZERS["ONNX_INFERENCE_SESSION_FULL_RETURN"]
    LIGHTGBM = BINARIZERS["LIGHTGBM"]
    XGBOOST = BINARIZERS["XGBOOST"]
    TORCH = BINARIZERS["TORCH"]
    TORCH_JIT = BINARIZERS["TORCH_JIT"]
    SAFETENSORS = BINARIZERS["SAFETENSORS"]
    TENSORFLOW = BINARIZERS["TENSORFLOW"]
    TENSORFLOW_ZIP = BINARIZERS["TENSORFLOW_ZIP"]
    GGUF = BINARIZERS["GGUF"]


def binarization_type_of(format: str) -> BinarizationType | str:
    """What detection writes into the configuration for `format`: a member, or the import path of somebody else's binarizer."""
    path = spec_of(format).binarizers[0].import_path
    return BinarizationType(path) if path in BINARIZERS.values() else path
