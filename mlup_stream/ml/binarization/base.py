"""What a binarizer is, and the part that every one of ours shares.

A custom binarizer subclasses `BaseBinarizer` and needs no more than `deserialize`. Ours subclass `FormatBinarizer`, which turns
the delivery into a call of one hook and whatever a library raises into a typed error; each of them only says how its library
takes a path, a file object, a view or a buffer.
"""

from __future__ import annotations

import abc
import contextlib
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, ClassVar

from mlup_stream.delivery.artifact import Artifact, artifact_of
from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.delivery.reader import open_buffer
from mlup_stream.delivery.terms import Built, Terms
from mlup_stream.delivery.view import View
from mlup_stream.errors import ConfigError, CorruptModelError, MLupError, ModelBinarizationError, ModelFileChanged
from mlup_stream.formats.kinds import name_of
from mlup_stream.memory.estimate import Estimate

__all__ = ["BaseBinarizer", "FormatBinarizer", "one_line"]

_MAX_CHARACTERS = 2000


class BaseBinarizer(metaclass=abc.ABCMeta):
    """Builds a model object from a `LoadedFile`."""

    deliveries: ClassVar[tuple[Delivery, ...]] = (Delivery.PATH, Delivery.BYTES)
    """The deliveries that it accepts, the cheapest in memory first."""
    calls_what_it_names: ClassVar[bool] = True
    """Whether building calls what the file names, which may take memory that no header tells of."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """The modules that `prepare` imports, so that what their import takes can be weighed before."""

    @classmethod
    @abc.abstractmethod
    def deserialize(cls, data: LoadedFile) -> Any:
        """The model that `data` holds."""

    @classmethod
    def is_this_type(cls, loaded_file: LoadedFile) -> float:
        """How surely `loaded_file` is of this binarizer's format: 0.0 not at all, 1.0 without doubt. Imports no framework."""
        return 0.0

    @classmethod
    def estimate(cls, artifact: Artifact, terms: Terms) -> Estimate | None:
        """What building the model on these terms will take, from headers alone; None if that cannot be said."""
        return None

    @classmethod
    def build(cls, artifact: Artifact, terms: Terms) -> Built:
        """The model on these terms; without an implementation, whatever `deserialize` makes of a `LoadedFile`."""
        given = artifact.given(read=terms.delivery is Delivery.BYTES)
        try:
            return Built(cls.deserialize(given, **terms.options))
        finally:
            given.raw_data = b""  # whoever holds the exception holds its frames

    @classmethod
    def prepare(cls) -> None:
        """Imports what `deserialize` will need, so that imports are not measured as part of the model.

        Raises:
            MissingDependencyError: It is not installed.
        """

    @classmethod
    def prepare_for(cls, options: Mapping[str, Any]) -> None:
        """The same for a load with these `binarization_kwargs`, which may ask for more than the default."""
        cls.prepare()

    @classmethod
    def libraries_for(cls, options: Mapping[str, Any]) -> tuple[str, ...]:
        """What `prepare_for` imports with these `binarization_kwargs`."""
        return cls.libraries

    @classmethod
    def named_modules(cls, artifact: Artifact) -> tuple[str, ...]:
        """The modules of well-known libraries that the file itself asks for, beside those; a pickle names its classes'."""
        return ()


class FormatBinarizer(BaseBinarizer):
    """A binarizer of one format. Subclasses set `format` and implement `from_file`, `from_path`, or both.

    Each hook gets the `Artifact` and the `Terms`, changes neither, and returns the model and where its payload went.
    """

    format: ClassVar[str]
    """A `Format`, or the name of somebody else's."""
    calls_what_it_names = False
    option_names: ClassVar[frozenset[str]] = frozenset()
    """The names that `binarization_kwargs` may have."""
    corrupt: ClassVar[tuple[type[Exception], ...]] = (EOFError, ValueError, struct.error, zlib.error, OverflowError)
    """What the library raises when the file's content is wrong, rather than something else."""

    @classmethod
    def is_this_type(cls, loaded_file: LoadedFile) -> float:
        from mlup_stream.ml.binarization.detection import formats_of

        return 1.0 if formats_of(loaded_file) == (cls.format,) else 0.0

    @classmethod
    def deserialize(cls, data: LoadedFile, **options: Any) -> Any:
        """The model in `data`, taken by `data.delivery`; without one, by what came: its content, or else the cheapest way.

        Args:
            data: A `LoadedFile`, or anything that has `raw_data` and `path`.
            options: What `binarization_kwargs` holds; `cls.option_names` names what is allowed.

        Raises:
            MissingDependencyError: The format's library is not installed.
            CorruptModelError: The content is not what the format says.
            ModelBinarizationError: The library could not build the model for another reason; it is chained.
        """
        loaded = LoadedFile.of(data)
        artifact = artifact_of(loaded)
        try:
            return cls.build(artifact, Terms(loaded.delivery, options=options)).model
        finally:
            artifact.release()  # nobody else knows of this handle; a model that lives in the file keeps its map

    @classmethod
    def build(cls, artifact: Artifact, terms: Terms) -> Built:
        """The model in the artifact on these terms. Raises as `deserialize`; `ModelFileChanged` where the file has changed."""
        cls.check_options(terms.options)
        cls.prepare_for(terms.options)
        with cls.explained(artifact):
            built = cls._dispatch(artifact, terms)
            artifact.check()
            return built if built.arrays_writable is not None else built._replace(arrays_writable=cls.arrays_writable(terms))

    @classmethod
    def _dispatch(cls, artifact: Artifact, terms: Terms) -> Built:
        delivery = terms.delivery or cls.deliveries[0]
        if artifact.has_content and terms.delivery is not Delivery.VIEW:
            # Whoever hands over content wants it used, whatever the plan says of paths.
            delivery = Delivery.STREAM if artifact.is_file_object else Delivery.BYTES
        if artifact.is_folder or delivery is Delivery.PATH:
            return cls.from_path(artifact, terms)
        if delivery is Delivery.VIEW:
            return cls.from_view(artifact.view(terms.on_window), artifact, terms)
        if delivery is Delivery.BYTES:
            return cls.from_buffer(artifact.content(), artifact, terms)
        with artifact.open(drop_behind=terms.drops_behind, on_window=terms.on_window) as file:
            return cls.from_file(file, artifact, terms)

    @classmethod
    def from_path(cls, artifact: Artifact, terms: Terms) -> Built:
        """The model in the file as the format's own library opens it, by a name that `artifact.by_name` gives."""
        with artifact.open(on_window=terms.on_window) as file:
            return cls.from_file(file, artifact, terms)

    @classmethod
    def from_file(cls, file: BinaryIO, artifact: Artifact, terms: Terms) -> Built:
        """The model in a seekable binary file. Without an implementation the file is read whole."""
        return cls.from_buffer(file.read(), artifact, terms)

    @classmethod
    def from_view(cls, view: View, artifact: Artifact, terms: Terms) -> Built:
        """The model in a view; a format that cannot leave its payload there reads it through a bounded window."""
        with view.open() as file:
            return cls.from_file(file, artifact, terms)

    @classmethod
    def from_buffer(cls, buffer: bytes | bytearray | memoryview, artifact: Artifact, terms: Terms) -> Built:
        """The model in a buffer."""
        with open_buffer(buffer) as file:
            return cls.from_file(file, artifact, terms)

    @classmethod
    def arrays_writable(cls, terms: Terms) -> bool | None:
        """Whether the model's arrays may be written to, by whatever delivery it comes; None if it has none."""
        return None

    @classmethod
    @contextlib.contextmanager
    def explained(cls, artifact: Artifact) -> Iterator[None]:
        """Turns what a library raises into a typed error that names the file. `MemoryError` goes through as it is."""
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:
            try:
                artifact.check()
            except ModelFileChanged as changed:
                raise changed from error  # whatever it looked like, this is why
            if isinstance(error, MLupError):
                raise
            raise cls.explain(error, artifact) from error

    @classmethod
    def is_corrupt(cls, error: Exception) -> bool:
        """Whether what the library raised means that the content is damaged."""
        return isinstance(error, cls.corrupt)

    @classmethod
    def said(cls, error: Exception) -> str:
        """What the library says of it, in one line."""
        return one_line(str(error))

    @classmethod
    def explain(cls, error: Exception, artifact: Artifact) -> MLupError:
        """The typed error for what the library raised."""
        said = f"{type(error).__name__}: {cls.said(error)}"
        if cls.is_corrupt(error):
            return CorruptModelError(
                f"{artifact.name}: expected a whole {name_of(cls.format)} file, found damaged content ({said});"
                " it may be truncated: copy or export it again",
                path=artifact.path,
                format=name_of(cls.format),
            )
        return ModelBinarizationError(
            f"{artifact.name}: the {name_of(cls.format)} model could not be built ({said})",
            path=artifact.path,
            format=name_of(cls.format),
        )

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        unknown = sorted(options.keys() - cls.option_names)
        if unknown:
            allowed = ", ".join(sorted(cls.option_names)) or "none"
            raise ConfigError(
                f"binarization_kwargs: {cls.__name__} has no option {unknown[0]!r}; allowed: {allowed}",
                field="binarization_kwargs",
                value=unknown[0],
                allowed=tuple(sorted(cls.option_names)),
            )


def one_line(text: str) -> str:
    """The first paragraph of a message in one line; what follows it is about the library's own code."""
    return " ".join(text.strip().partition("\n\n")[0].split())[:_MAX_CHARACTERS] or "no message"
