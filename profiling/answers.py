"""What a loaded object answers, whatever it is, so that two loads of one file can be compared.

A model that can be asked without knowing its data is asked once, about one row of zeros and ones; of anything that holds arrays
(a state_dict, an npz, a torch module) every byte of every array goes into a checksum, which touches all of it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

_MAX_DEPTH = 6
_CHUNK_BYTES = 1 << 20


def answer(model: Any, expression: str | None = None) -> list[float]:
    """Numbers that depend on the whole model.

    Args:
        model: What was loaded.
        expression: Python, with the model as `model`, for one that cannot be asked without knowing its data.
    """
    if expression is not None:
        return _numbers(eval(expression, {"model": model}))  # what whoever runs the script typed
    for ask in (_ask_onnx, _ask_sklearn, _ask_lightgbm, _ask_xgboost, _ask_keras, _ask_saved_model):
        found = ask(model)
        if found is not None:
            return _numbers(found)
    return [number for array in _arrays(model) for number in (float(array.nbytes), float(_checksum(array)))]


def difference(found: list[float], expected: list[float]) -> float:
    """The largest difference of two answers over the largest number of the expected one; 0.0 is the same bit for bit."""
    if found == expected:
        return 0.0
    if len(found) != len(expected):
        return math.inf
    scale = max(map(abs, expected)) or 1.0
    largest = max(abs(a - b) for a, b in zip(found, expected, strict=True)) / scale
    return largest if largest == largest else math.inf


def _row(columns: int) -> Any:
    import numpy

    return (numpy.arange(columns) % 2).astype(numpy.float32).reshape(1, -1)


def _ask_onnx(model: Any) -> Any:
    if not (hasattr(model, "get_inputs") and hasattr(model, "run")):
        return None
    import numpy
    import onnx

    feed = {}
    for each in model.get_inputs():
        shape = [size if isinstance(size, int) and size > 0 else 1 for size in each.shape]
        name = each.type.removeprefix("tensor(").removesuffix(")").upper()
        kind = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(name))
        feed[each.name] = numpy.ones(shape, kind)
    return model.run(None, feed)


def _ask_sklearn(model: Any) -> Any:
    columns = getattr(model, "n_features_in_", None)
    if columns is None:
        return None
    ask = getattr(model, "predict_proba", None) or getattr(model, "predict", None)
    return None if ask is None else ask(_row(columns))


def _ask_lightgbm(model: Any) -> Any:
    return model.predict(_row(model.num_feature())) if hasattr(model, "num_feature") else None


def _ask_xgboost(model: Any) -> Any:
    return model.inplace_predict(_row(model.num_features())) if hasattr(model, "inplace_predict") else None


def _ask_keras(model: Any) -> Any:
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or not callable(model):
        return None
    import numpy

    return numpy.asarray(model(numpy.ones([size or 1 for size in shape], numpy.float32)))


def _ask_saved_model(model: Any) -> Any:
    signatures = getattr(model, "signatures", None)
    if not signatures:
        return None
    import tensorflow

    signature = signatures.get("serving_default") or next(iter(signatures.values()))
    _, inputs = signature.structured_input_signature
    feed = {name: tensorflow.ones([size or 1 for size in spec.shape], spec.dtype) for name, spec in inputs.items()}
    return [value.numpy() for _, value in sorted(signature(**feed).items())]


def _numbers(found: Any) -> list[float]:
    import numpy

    parts = found if isinstance(found, (list, tuple)) else [found]
    return [float(number) for part in parts for number in numpy.asarray(part).ravel()]


def _arrays(model: Any, depth: int = 0) -> Iterator[Any]:
    """Every array in a structure, each as a NumPy array over the same memory."""
    if hasattr(model, "state_dict"):
        model = model.state_dict()
    if hasattr(model, "detach"):  # a torch tensor; bytes, because NumPy lacks some of torch's types
        import torch

        yield model.detach().contiguous().view(-1).view(torch.uint8).numpy()
    elif hasattr(model, "__array_interface__"):
        yield model
    elif hasattr(model, "tensors"):  # a GGUF reader
        for tensor in model.tensors:
            yield tensor.data
    elif depth < _MAX_DEPTH:
        for value in _parts(model):
            yield from _arrays(value, depth + 1)


def _parts(model: Any) -> Iterable[Any]:
    if hasattr(model, "keys"):
        return (model[key] for key in sorted(model.keys(), key=str))
    if isinstance(model, (list, tuple)):
        return model
    return vars(model).values() if hasattr(model, "__dict__") else ()


def _checksum(array: Any) -> int:
    """Chunk by chunk: `crc32` of an array that does not start at a multiple of its item size needs bytes, not items."""
    import numpy

    flat = numpy.ascontiguousarray(array).reshape(-1).view(numpy.uint8)
    sum_ = 0
    for start in range(0, flat.size, _CHUNK_BYTES):
        sum_ = zlib.crc32(flat[start : start + _CHUNK_BYTES].data, sum_)
    return sum_
