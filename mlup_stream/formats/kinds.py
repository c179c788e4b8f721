"""The formats that are told apart, by the name that a report, an error and the command line use."""

from __future__ import annotations

from enum import Enum

__all__ = ["Format"]


class Format(str, Enum):
    PICKLE = "pickle"
    JOBLIB = "joblib"
    NPY = "npy"
    NPZ = "npz"
    ONNX = "onnx"
    LIGHTGBM = "lightgbm"
    XGBOOST = "xgboost"
    TORCH = "torch"
    TORCHSCRIPT = "torchscript"
    SAFETENSORS = "safetensors"
    KERAS = "keras"
    SAVED_MODEL = "savedmodel"
    GGUF = "gguf"
