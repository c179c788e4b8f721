"""What our unpicklers, the one in C and the one in Python, read from and look classes up with."""

from __future__ import annotations

import io
import pickle
from typing import Any, BinaryIO

from mlup_stream.errors import MissingClassError
from mlup_stream.ml.binarization.pickles.failure import advice_for_class
from mlup_stream.trust.policy import FULL, Policy, in_python_3, refused
from mlup_stream.units import MIB

__all__ = ["CheckedFile", "FindsClasses"]

_UNCHECKED_BYTES = 1 * MIB


class CheckedFile:
    """A binary file that refuses to read more than it has, before anybody allocates for it, and a line that does not end.

    Args:
        file: Read from where it stands. One that cannot seek is passed through unchecked.

    Attributes:
        size_bytes: Where the file ends; None if it cannot seek.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size_bytes: int | None = None
        if hasattr(file, "seekable") and file.seekable():
            position = file.tell()
            self.size_bytes = file.seek(0, io.SEEK_END)
            file.seek(position)
        # Only what the file has: its absence tells an unpickler to do without.
        for name in ("readinto", "peek"):
            if hasattr(file, name):
                setattr(self, name, getattr(file, name))

    def read(self, size: int = -1) -> bytes:
        if size > _UNCHECKED_BYTES and self.size_bytes is not None and size > self.size_bytes - self._file.tell():
            raise EOFError(f"expected {size} bytes, found {self.size_bytes - self._file.tell()}")
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline()
        if not line.endswith(b"\n"):
            # The unpickler in C says so itself; the one in Python takes half a module's name for a whole one.
            raise pickle.UnpicklingError("pickle data was truncated: a line ends without its newline")
        return line


class FindsClasses:
    """Says which class a pickle needs and cannot get. To be mixed into an unpickler, in front of it.

    Attributes:
        model_name: The file, for the message.
        format_name: What it is, for the message.
        trust: What the pickle may name. It was followed before (`trust.gate`); this is the second time that it is asked.
    """

    model_name: str = "<pickle>"
    format_name: str = "pickle"
    trust: Policy = FULL

    def find_class(self, module: str, name: str, /) -> Any:
        if not self.trust.is_full:
            module, name = in_python_3(module, name)
            if not self.trust.allows(module, name):
                raise refused(self.model_name, module, name)
        find = super().find_class  # type: ignore[misc]  # the unpickler's
        try:
            return find(module, name)
        except (ImportError, AttributeError) as error:
            found = _before_numpy_2(find, module, name)
            if found is not None:
                return found
            raise MissingClassError(
                f"{self.model_name}: the {self.format_name} needs {module}.{name}, which cannot be imported here ({error});"
                f" {advice_for_class(module, name)}",
                path=self.model_name,
                format=self.format_name,
                module=module,
                qualname=name,
            ) from error


def _before_numpy_2(find: Any, module: str, name: str) -> Any:
    """What NumPy 2 calls `numpy._core` where an older NumPy is installed; None if that is not the reason."""
    if not module.startswith("numpy._core"):
        return None
    try:
        return find(module.replace("numpy._core", "numpy.core", 1), name)
    except (ImportError, AttributeError):
        return None
