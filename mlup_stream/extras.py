"""The one place that knows how to import what is optional, what is too old, and which line installs it.

    onnxruntime = require("onnxruntime", "ONNX models")

Nothing here is imported before somebody needs it: `import mlup_stream` costs neither numpy nor a framework. Which versions will
do, and which extra has them, the rows of the formats say; here are the libraries that no format is made of.
"""

from __future__ import annotations

import importlib
import re
import sys
from types import ModuleType

from mlup_stream.errors import MissingDependencyError
from mlup_stream.formats.kinds import Library
from mlup_stream.plugins import plugged_in
from mlup_stream.registry import ROWS

__all__ = ["LIBRARIES", "is_too_old", "library", "require"]

_OF_NO_FORMAT = (
    Library("sklearn", (1, 3), extra="sklearn", distribution="scikit-learn"),
    Library("memray", (1, 10), extra="profiling"),
    Library("pytest", (8, 0), extra="testing"),
    Library("click", (8, 1), extra="cli"),
    Library("rich", (13, 0), extra="cli"),
)

LIBRARIES = {each.module: each for each in (*_OF_NO_FORMAT, *(each for row in ROWS for each in row.libraries))}
"""Every optional library of this package, by what is imported."""


def library(module: str) -> Library:
    """What is known of the library that `module` is of: ours, one of somebody else's format, or its name alone."""
    root = module.partition(".")[0]
    if root in LIBRARIES:
        return LIBRARIES[root]
    return next((each for row in plugged_in() for each in row.libraries if each.module == root), Library(root))


def require(module: str, needed_for: str) -> ModuleType:
    """Imports `module` (a dotted name may lead into it) and checks its version.

    Args:
        module: The import name, such as `"onnxruntime"` or `"safetensors.numpy"`.
        needed_for: What needs it, for the message: `"ONNX models"`.

    Raises:
        MissingDependencyError: It is not installed, cannot be imported, or is too old; the message has the line to paste.
    """
    known = library(module)
    root, minimum = known.module, known.minimum
    wanted = f"{root} {'.'.join(map(str, minimum))} or newer" if minimum else root
    is_frozen = getattr(sys, "frozen", False)  # by PyInstaller, into which nothing can be installed
    paste = f"build the program with --hidden-import {root}" if is_frozen else f"run: pip install {known.to_install}"
    try:
        imported = importlib.import_module(module)
        found = _version_of(importlib.import_module(root))
    except MemoryError:
        raise
    except Exception as error:  # whatever it is: a shared library that is missing is an OSError
        why = f"is installed and cannot be imported ({type(error).__name__}: {error})"
        if isinstance(error, ImportError) and _is_absent(error, root):
            why = "is not installed"
        raise MissingDependencyError(f"{needed_for} need {wanted}, which {why}; {paste}", extra=known.extra, name=root) from error
    if is_too_old(found, minimum):
        raise MissingDependencyError(f"{needed_for} need {wanted}, found {found}; {paste}", extra=known.extra, name=root)
    return imported


def is_too_old(version: str, minimum: tuple[int, ...]) -> bool:
    """Whether `version` is before `minimum`; a pre-release counts as its release, and a version without a number is not."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[: len(minimum)])
    return bool(numbers) and numbers < minimum


def _version_of(module: ModuleType) -> str:
    """Its own word, or else its distribution's: click has deprecated the attribute, and asking for it warns."""
    said = vars(module).get("__version__")
    if said is None:
        import importlib.metadata  # of several megabytes, for a library in ten

        try:
            said = importlib.metadata.version(module.__name__)
        except importlib.metadata.PackageNotFoundError:
            said = getattr(module, "__version__", "")
    return str(said)


def _is_absent(error: ImportError, root: str) -> bool:
    return isinstance(error, ModuleNotFoundError) and error.name == root
