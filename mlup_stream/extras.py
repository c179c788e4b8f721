"""The one place that knows how to import what is optional, what is too old, and which line installs it.

    onnxruntime = require("onnxruntime", "ONNX models")

Nothing here is imported before somebody needs it: `import mlup_stream` costs neither numpy nor a framework.
"""

from __future__ import annotations

import importlib
import re
from types import ModuleType
from typing import NamedTuple

from mlup_stream.errors import MissingDependencyError

__all__ = ["EXTRA_OF", "require"]


class _Optional(NamedTuple):
    extra: str
    minimum: tuple[int, ...]


# The minimum is the oldest version that has what we call, not the newest that we have seen.
EXTRA_OF: dict[str, _Optional] = {
    "numpy": _Optional("numpy", (1, 24)),
    "joblib": _Optional("joblib", (1, 3)),
    "lz4": _Optional("joblib", (4, 0)),
    "sklearn": _Optional("sklearn", (1, 3)),
    "onnx": _Optional("onnx", (1, 15)),
    "onnxruntime": _Optional("onnx", (1, 17)),
    "lightgbm": _Optional("lightgbm", (4, 0)),
    "xgboost": _Optional("xgboost", (2, 0)),
    "torch": _Optional("torch", (2, 1)),
    "safetensors": _Optional("safetensors", (0, 4)),
    "tensorflow": _Optional("tensorflow", (2, 16)),
    "keras": _Optional("tensorflow", (3, 0)),
    "h5py": _Optional("tensorflow", (3, 8)),
    "gguf": _Optional("gguf", (0, 10)),
    "memray": _Optional("profiling", (1, 10)),
    "click": _Optional("cli", (8, 1)),
    "rich": _Optional("cli", (13, 0)),
}
"""The extra that installs each optional module, and the oldest version that will do."""


def require(module: str, needed_for: str) -> ModuleType:
    """Imports `module` (a dotted name may lead into it) and checks its version.

    Args:
        module: The import name, such as `"onnxruntime"` or `"safetensors.numpy"`.
        needed_for: What needs it, for the message: `"ONNX models"`.

    Raises:
        MissingDependencyError: It is not installed, cannot be imported, or is too old; the message has the line to paste.
    """
    root = module.partition(".")[0]
    extra, minimum = EXTRA_OF[root]
    wanted = ".".join(map(str, minimum))
    paste = f'run: pip install "mlup-stream[{extra}]"'
    try:
        imported = importlib.import_module(module)
        found = str(getattr(importlib.import_module(root), "__version__", ""))
    except ImportError as error:
        why = "is not installed" if _is_absent(error, root) else f"is installed and cannot be imported ({error})"
        raise MissingDependencyError(f"{needed_for} need {root} {wanted} or newer, which {why}; {paste}", extra=extra) from error
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[: len(minimum)])
    if numbers and numbers < minimum:
        raise MissingDependencyError(f"{needed_for} need {root} {wanted} or newer, found {found}; {paste}", extra=extra)
    return imported


def _is_absent(error: ImportError, root: str) -> bool:
    return isinstance(error, ModuleNotFoundError) and error.name == root
