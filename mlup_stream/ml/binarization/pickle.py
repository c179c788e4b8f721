"""Pickles, protocols 0 to 5."""

from __future__ import annotations

import pickle
from typing import Any, BinaryIO, ClassVar

from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.errors import MissingClassError, MLupError
from mlup_stream.formats.kinds import Format
from mlup_stream.ml.binarization.base import FormatBinarizer

__all__ = ["PickleBinarizer"]


class PickleBinarizer(FormatBinarizer):
    """Whatever `pickle.dump` wrote.

    Loading a pickle runs code that the file chooses: load only files that you trust, as with `pickle.load` itself.
    """

    format = Format.PICKLE
    deliveries = (Delivery.PATH, Delivery.STREAM, Delivery.VIEW, Delivery.BYTES)
    options: ClassVar[frozenset[str]] = frozenset({"encoding", "errors", "fix_imports", "buffers"})
    corrupt = (*FormatBinarizer.corrupt, pickle.UnpicklingError, IndexError, KeyError)

    @classmethod
    def from_file(cls, file: BinaryIO, loaded: LoadedFile, **options: Any) -> Any:
        return pickle.load(file, **options)

    @classmethod
    def explain(cls, error: Exception, loaded: LoadedFile) -> MLupError:
        if isinstance(error, (ImportError, AttributeError)):
            return MissingClassError(
                f"{loaded.name}: the {cls.format.value} needs a class that cannot be imported here ({error});"
                " install or import its package, in the version that wrote the file",
                path=loaded.path,
                format=cls.format.value,
                module=getattr(error, "name", None),
            )
        return super().explain(error, loaded)
