"""The exit codes of `mlup-stream`, and the one place that turns an error into one.

| code | meaning |
|---|---|
| 0 | done |
| 1 | the model could not be loaded for a reason that has no code of its own |
| 2 | the command line is not valid (click's own) |
| 3 | no such file, or no permission |
| 4 | the format was not recognised, or is ambiguous |
| 5 | the format's library is not installed |
| 6 | the file is damaged |
| 7 | it does not fit into the memory budget |
| 8 | the file wants what it is not trusted with, or is not the one that was vouched for |
| 9 | `doctor` found something wrong |
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from mlup_stream import errors

__all__ = ["BUDGET_EXCEEDED", "NOT_TRUSTED", "SOMETHING_WRONG", "exit_on_error"]

BUDGET_EXCEEDED, NOT_TRUSTED, SOMETHING_WRONG = 7, 8, 9

_CODES: tuple[tuple[type[errors.MLupError], int], ...] = (
    (errors.ModelNotFoundError, 3),
    (errors.ModelPermissionError, 3),
    (errors.FormatNotRecognizedError, 4),
    (errors.AmbiguousFormatError, 4),
    (errors.AmbiguousModelError, 4),
    (errors.MissingDependencyError, 5),
    (errors.CorruptModelError, 6),
    (errors.NotAModelFileError, 6),
    (errors.MemoryBudgetExceeded, BUDGET_EXCEEDED),
    (errors.TrustError, NOT_TRUSTED),
    (errors.IntegrityError, NOT_TRUSTED),
)


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """Prints an error of the package as one line on standard error and exits with its code; other errors are bugs and pass."""
    try:
        yield
    except errors.MLupError as error:
        print(f"mlup-stream: {error}", file=sys.stderr)
        sys.exit(next((code for kind, code in _CODES if isinstance(error, kind)), 1))
