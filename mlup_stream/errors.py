"""Every error that this package raises.

One root, `MLupError`; each error also inherits the builtin that a caller would expect, so that `except FileNotFoundError`
and `except MemoryError` work without importing anything from here. A message is one line: which file, what was expected,
what was found, what to do. The values that went into it are attributes.

    raise ModelNotFoundError("models/: ...", path="models/") from cause
"""

from __future__ import annotations

import errno
import os
from typing import Any, ClassVar

__all__ = [
    "AmbiguousFormatError",
    "AmbiguousModelError",
    "ConfigError",
    "CorruptModelError",
    "FormatNotRecognizedError",
    "LoadError",
    "LoadTicketTimeout",
    "MLupError",
    "MemoryBudgetExceeded",
    "MissingClassError",
    "MissingDependencyError",
    "ModelBinarizationError",
    "ModelFileChanged",
    "ModelFileInUse",
    "ModelLoadError",
    "ModelNotFoundError",
    "ModelPermissionError",
    "ModelPoolFull",
    "NotAModelFileError",
    "PackError",
    "PredictError",
]


class MLupError(Exception):
    """The root of the package's errors.

    Args:
        message: One line.
        values: What the message was made of; each becomes an attribute of the error.
    """

    def __init__(self, message: object = "", /, **values: Any) -> None:
        super().__init__(message)
        # In __dict__, which BaseException.__reduce__ carries: the values survive a trip through pickle. And set, because the
        # builtins keep some names (`ImportError.name`, `OSError.errno`) elsewhere.
        self.__dict__.update(values)
        for name, value in values.items():
            setattr(self, name, value)


class ConfigError(MLupError, ValueError):
    """A setting is not valid: `field` names it, `value` is what was given, `allowed` what could have been."""

    field: str | None = None
    value: Any = None
    allowed: Any = None


class LoadError(MLupError):
    """Anything that went wrong between the storage and the model object."""

    path: str | None = None


class ModelLoadError(LoadError):
    """The model could not be loaded."""


class _SystemError(ModelLoadError):
    """What our errors that are an `OSError` share: `errno`, `strerror` and `filename`, which is `path`, filled as its own are."""

    code: ClassVar[int]
    errno: int | None
    strerror: str | None
    filename: Any

    def __init__(self, message: object = "", /, **values: Any) -> None:
        super().__init__(message, **values)
        self._fill()

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._fill()

    def _fill(self) -> None:
        self.errno, self.strerror, self.filename = self.code, os.strerror(self.code), self.path

    def __str__(self) -> str:
        return str(self.args[0])  # OSError's own would be "[Errno 2] ..." as soon as it has a file name


class ModelNotFoundError(_SystemError, FileNotFoundError):
    """No file where one was looked for, or none that matches."""

    code = errno.ENOENT


class ModelPermissionError(_SystemError, PermissionError):
    """The file is there and this user may not read it."""

    code = errno.EACCES


class NotAModelFileError(ModelLoadError, ValueError):
    """What lies there cannot be a model: a FIFO, a device, a socket, an empty file, a folder where a file was meant."""


class AmbiguousModelError(ModelLoadError, ValueError):
    """More than one file matches: `candidates` lists them."""

    candidates: tuple[str, ...] | None = None


class ModelFileChanged(_SystemError, OSError):
    """The file was changed, truncated or replaced in place while it was being loaded."""

    code = errno.ESTALE


class ModelFileInUse(_SystemError, OSError):
    """A file that a loaded model lives in was about to be written to, and its name could not be given a file of its own."""

    code = errno.EBUSY


class MemoryBudgetExceeded(ModelLoadError, MemoryError):
    """The load does not fit.

    Attributes:
        needed_bytes: What it takes.
        available_bytes: What there is.
        limit: What set the tightest bound, a `mlup_stream.memory.limit.Limit`.
        enough_bytes: What that limit would have to be.
        delivery: The delivery that needs least, of those that were asked for.
        would_fit: The deliveries that fit.
        considered: Every delivery and what it takes.
        passed_bytes: How much of the file had been read when it was given up.
        guessed: Whether `needed_bytes` is a guess, for which no load is refused: only a governor's `make_room` sees such a one.
    """

    needed_bytes: int | None = None
    available_bytes: int | None = None
    limit: Any = None
    enough_bytes: int | None = None
    delivery: str | None = None
    would_fit: tuple[str, ...] = ()
    considered: tuple[Any, ...] = ()
    passed_bytes: int | None = None
    guessed: bool = False


class ModelPoolFull(MemoryBudgetExceeded):
    """A pool has no room for the model, and can make none.

    Attributes:
        would_have_to_go: The models that would have to go first, with the bytes of each; empty where that is not enough.
        in_use: Those of them that somebody uses.
    """

    would_have_to_go: tuple[tuple[str, int], ...] = ()
    in_use: tuple[str, ...] = ()


class LoadTicketTimeout(_SystemError, TimeoutError):
    """This load's turn did not come in time: `holders` says who is loading, `timeout_seconds` how long it waited."""

    code = errno.ETIMEDOUT

    holders: tuple[str, ...] | None = None
    timeout_seconds: float | None = None


class ModelBinarizationError(ModelLoadError):
    """The file was found and the model could not be built from it."""

    format: str | None = None


class FormatNotRecognizedError(ModelBinarizationError, ValueError):
    """No known format begins and ends like this file."""


class AmbiguousFormatError(ModelBinarizationError, ValueError):
    """More than one format claims this file: `candidates` lists them."""

    candidates: tuple[str, ...] | None = None


class MissingDependencyError(ModelBinarizationError, ImportError):
    """The format was recognised; its library is not installed, or too old: `name`. The message has the line to paste."""

    extra: str | None = None
    name: str | None


class CorruptModelError(ModelBinarizationError, ValueError):
    """The file begins like its format and does not go on like it: truncated, garbled, or lengths that lie."""


class IntegrityError(ModelLoadError, ValueError):
    """The content is not the one that somebody has vouched for. Nothing was built of it.

    Attributes:
        expected: The SHA-256 that was given or lies beside it, in hexadecimal digits; None where there is none.
        found: That of the content.
    """

    expected: str | None = None
    found: str | None = None


class TrustError(ModelBinarizationError, ValueError):
    """The file wants what it is not trusted with; nothing of it was imported or called.

    Attributes:
        module: Of what it names.
        qualname: Its name there.
        position: The byte at which it is named; None where that is not known.
    """

    module: str | None = None
    qualname: str | None = None
    position: int | None = None


class MissingClassError(ModelBinarizationError, ImportError):
    """A pickle names a class or function that cannot be imported here: `module` and `qualname`."""

    module: str | None = None
    qualname: str | None = None


class PredictError(MLupError):
    """The model raised while predicting; the cause is chained."""


class PackError(MLupError, ValueError):
    """A file was not packed: it has nothing to gain, there is no room, or something else is at the destination."""

    path: str | None = None
