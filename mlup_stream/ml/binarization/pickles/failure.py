"""Why a pickle was not built, and what can be done about it: told once an unpickler or a class of the model has raised.

A file is called damaged only where the walk proves it (`formats.pickles.damage`). Otherwise it is whole, and something of this
process does not fit to it: a class that is not there, a library of another version, the encoding of Python 2, buffers apart.
"""

from __future__ import annotations

import re
import sys
from typing import BinaryIO

from mlup_stream.errors import LoadError, ModelBinarizationError
from mlup_stream.formats.pickles.damage import damage_in
from mlup_stream.ml.binarization.base import one_line
from mlup_stream.units import MIB

__all__ = ["advice_for_class", "explained", "whole_but"]

_SEARCHED_BYTES = 64 * MIB
_PIECE_BYTES = 1 * MIB
_OVERLAP_BYTES = 100
# How scikit-learn's estimators say it in their state, by each protocol from 2 on: the key, its place in the memo, the value.
_SKLEARN_VERSION = re.compile(rb"_sklearn_version(?:\x94|q.|r.{4})?(?:\x8c.|X.\0\0\0)([0-9][\w.+]{0,30})", re.DOTALL)

_PYTHON_2 = (
    'it has text of Python 2, which is not ASCII: set binarization_kwargs={"encoding": "latin1"} (--option encoding=latin1), or'
    ' "bytes" for its text as bytes'
)
_SAYS = (
    ("out-of-band", 'its buffers were pickled apart from it: give them in their order, binarization_kwargs={"buffers": [...]}'),
    ("persistent", "it refers to objects outside of itself by persistent ids: read it with the program that wrote it"),
)


def explained(
    error: Exception, file: BinaryIO, name: str, *, path: str | None, format: str, start: int = 0, has_arrays: bool = False
) -> LoadError:
    """The typed error for what loading the pickle at `start` raised: damage, if that is proven."""
    damage = damage_in(file, name, start=start, has_arrays=has_arrays)
    if damage is None:
        return whole_but(error, name, path=path, format=format, wrote=_written_by(file))
    damage.path, damage.format = path, format
    return damage


def whole_but(error: Exception, name: str, *, path: str | None, format: str, wrote: str = "") -> ModelBinarizationError:
    """The typed error for what loading a pickle raised that is not damaged."""
    said = f"{type(error).__name__}: {one_line(str(error))}"
    return ModelBinarizationError(
        f"{name}: the {format} is whole, but the model could not be built here ({said}); {_advice(error, wrote)}",
        path=path,
        format=format,
    )


def _advice(error: Exception, wrote: str) -> str:
    if isinstance(error, UnicodeDecodeError):
        return _PYTHON_2
    for words, advice in _SAYS:
        if words in str(error):
            return advice
    return f"another version of its libraries or of Python may have written it: use {wrote or 'those that did'}"


def _written_by(file: BinaryIO) -> str:
    """The version that the file itself names, empty if it names none."""
    file.seek(0)
    before = b""
    for _ in range(_SEARCHED_BYTES // _PIECE_BYTES):
        piece = file.read(_PIECE_BYTES)
        found = _SKLEARN_VERSION.search(before + piece)
        if found is not None:
            return f"scikit-learn {found[1].decode('ascii', 'replace')}, which did"
        if not piece:
            break
        before = piece[-_OVERLAP_BYTES:]
    return ""


def advice_for_class(module: str, name: str) -> str:
    """What to do about a class or function that could not be imported."""
    package = module.partition(".")[0]
    if module in ("__main__", "__mp_main__"):
        return (
            f"it was defined in the script that wrote the file: define or import {name} in the main module before loading, or"
            " write the file again with it in a module of its own"
        )
    if package == "dill" or name.startswith("_dill"):
        return "the file was written by dill: install dill, and read with dill.load what needs more"
    if package == "pandas" and sys.modules.get(package) is not None:  # or it is pandas itself that is not there
        return "pandas has it elsewhere by now: pandas.read_pickle knows where, and reads the file"
    return "install or import its package, in the version that wrote the file"
