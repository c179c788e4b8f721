"""Keras models (`.keras`, `.h5`) and TensorFlow SavedModel folders.

Neither leaves its weights in the file: TensorFlow's variables are private memory. What can be saved is everything beside them.
Keras reads the weights one at a time here, from any content (see `keras_reading`); a SavedModel is restored by TensorFlow itself,
which takes 1.04 times its variables. Blocks that are freed on the way go back to the system at once (`memory.allocator`).
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, ClassVar

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.kinds import Delivery
from mlup_stream.delivery.private_file import private_file
from mlup_stream.delivery.terms import Built, Terms
from mlup_stream.errors import CorruptModelError, LoadError, MissingClassError, MLupError, ModelBinarizationError
from mlup_stream.extras import require
from mlup_stream.formats.frameworks.hdf5 import MAGIC as HDF5_MAGIC
from mlup_stream.formats.frameworks.keras import WEIGHTS_NAME, KerasConfig, read_folder, read_hdf5, read_zip
from mlup_stream.formats.frameworks.saved_model import read_folder as read_saved_model
from mlup_stream.formats.kinds import Format
from mlup_stream.memory.allocator import large_blocks_given_back
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.ml.binarization.base import FormatBinarizer, one_line
from mlup_stream.ml.binarization.frameworks.keras_reading import Datasets, datasets, from_hdf5, from_zip, open_weights, parts
from mlup_stream.ml.binarization.frameworks.keras_reason import is_unreadable, reason_of
from mlup_stream.units import KIB, MIB

__all__ = ["TensorFlowBinarizer", "TensorFlowSavedBinarizer"]

# Small, because h5py reads here and there; large reads go past the window.
_WINDOW_BYTES = 64 * KIB

# What a class that nobody registered is called, in the messages of the two formats.
_MISSING = re.compile(r"(?:Could not locate|Could not deserialize|Unknown) (\w+):? '([^']+)'")
_NO_OPERATOR = re.compile(r"Op type not registered '([^']+)'")
_STATUS_OF_DAMAGE = (3, 5, 11, 15)
"""INVALID_ARGUMENT, NOT_FOUND, OUT_OF_RANGE, DATA_LOSS. Source: `error_codes.proto`."""
_UNSAFE = re.compile(r"safe_mode=False")

_FIRST_USE_BYTES = 16 * MIB
"""What TensorFlow allocates once, when it first computes: thread pools, kernels. Measured: 11 MiB."""
_VARIABLE_BYTES = 64 * KIB
"""A variable and its share of a layer as Python objects."""
_DRAWN_COPIES = 3
"""Keras draws the first value of a variable at random, in three pieces beside it; only then are its weights read."""
_GRAPH_RATIO = 48
"""The functions of a SavedModel, in Python and in C++, over their size in the file. Measured: 27."""
_RESTORED_RATIO = 1.05


class TensorFlowBinarizer(FormatBinarizer):
    """A Keras model, ready to predict.

    Options: `custom_objects`, classes and functions of the model that are not Keras's own, by name; `safe_mode`, whether to
    refuse pickled Python functions (default True), `compile`, whether to restore loss, metrics and optimizer as well (default
    False: predicting needs none of them, and an optimizer's state is up to twice the weights).
    """

    format = Format.KERAS
    deliveries = (Delivery.PATH, Delivery.STREAM, Delivery.VIEW, Delivery.BYTES)
    option_names: ClassVar[frozenset[str]] = frozenset({"custom_objects", "compile", "safe_mode"})
    corrupt = (EOFError, UnicodeError, struct.error, zipfile.BadZipFile, zlib.error)

    @classmethod
    def prepare(cls) -> None:
        with _quiet_import():
            require("keras", "Keras models")
            require("h5py", "Keras models")

    @classmethod
    def libraries_for(cls, options: Mapping[str, Any]) -> tuple[str, ...]:
        return (os.environ.get("KERAS_BACKEND") or "tensorflow", "keras", "h5py")

    @classmethod
    def estimate(cls, artifact: Artifact, terms: Terms) -> Estimate | None:
        try:
            holder = artifact.beside(WEIGHTS_NAME) if artifact.is_folder else artifact
            found = holder.header(_datasets)
        except (LoadError, OSError, RuntimeError):  # RuntimeError: h5py, of a structure that contradicts itself
            return None  # the load will say what is wrong
        settled_bytes = found.total_bytes + _VARIABLE_BYTES * found.arrays + _FIRST_USE_BYTES
        estimate = Estimate.private(
            settled_bytes + _DRAWN_COPIES * found.largest_bytes,
            settled_bytes,
            certainty=Certainty.CONSERVATIVE,
            why="the arrays that the HDF5 file lists",
        )
        return estimate.with_raw(artifact.size_bytes) if terms.delivery is Delivery.BYTES else estimate

    @classmethod
    def from_path(cls, artifact: Artifact, terms: Terms) -> Built:
        if artifact.is_folder:
            options = {"compile": False, "safe_mode": True, **terms.options}
            with large_blocks_given_back(), artifact.by_name() as path:
                return Built(require("keras", "Keras models").saving.load_model(path, **options))
        with artifact.open(window_bytes=_WINDOW_BYTES, on_window=terms.on_window) as file:
            return cls.from_file(file, artifact, terms)

    @classmethod
    def from_file(cls, file: BinaryIO, artifact: Artifact, terms: Terms) -> Built:
        options = {"custom_objects": None, "compile": False, "safe_mode": True, **terms.options}
        is_hdf5 = _is_hdf5(file)
        keras = parts()
        with large_blocks_given_back():
            if keras is None:
                with private_file(file, suffix=".h5" if is_hdf5 else ".keras", named=is_hdf5) as path:
                    return Built(require("keras", "Keras models").saving.load_model(path, **options))
            if is_hdf5:
                return Built(from_hdf5(keras, file, **options))
            return Built(from_zip(keras, file, artifact.name, **options))

    @classmethod
    def is_corrupt(cls, error: Exception) -> bool:
        # What h5py says of a file's content has no errno; what the system says of the file has one.
        if isinstance(error, OSError):
            return error.errno is None
        return super().is_corrupt(error) or is_unreadable(error)

    @classmethod
    def said(cls, error: Exception) -> str:
        layer, words = reason_of(error)
        return layer + one_line(words)

    @classmethod
    def explain(cls, error: Exception, artifact: Artifact) -> MLupError:
        said = str(error)
        missing = _MISSING.search(said)
        if missing is not None:
            kind, name = missing.groups()
            return MissingClassError(
                f"{artifact.name}: the Keras model needs the {kind} {name!r}, which is not registered here; import the module"
                f' that registers it, or set binarization_kwargs={{"custom_objects": {{"{name}": ...}}}}',
                path=artifact.path,
                format=cls.format.value,
                qualname=name,
            )
        if _UNSAFE.search(said):
            return ModelBinarizationError(
                f"{artifact.name}: the Keras model has a Python function in it, and to unpack one may run anything; if you trust"
                ' who wrote the file, set binarization_kwargs={"safe_mode": False}',
                path=artifact.path,
                format=cls.format.value,
            )
        if cls.is_corrupt(error):
            return super().explain(error, artifact)
        return ModelBinarizationError(
            f"{artifact.name}: Keras could not build the model ({type(error).__name__}: {cls.said(error)}){_versions(artifact)}",
            path=artifact.path,
            format=cls.format.value,
        )


class TensorFlowSavedBinarizer(FormatBinarizer):
    """A SavedModel as `tf.saved_model.load` gives it: its signatures and the attributes that were exported.

    Options: `tags`, which of several graphs in the folder to load.
    """

    format = Format.SAVED_MODEL
    libraries = ("tensorflow",)
    deliveries = (Delivery.PATH,)
    option_names: ClassVar[frozenset[str]] = frozenset({"tags"})
    corrupt = ()  # by its type alone no error of TensorFlow's says that

    @classmethod
    def prepare(cls) -> None:
        with _quiet_import():
            require("tensorflow", "TensorFlow SavedModels")

    @classmethod
    def estimate(cls, artifact: Artifact, terms: Terms) -> Estimate | None:
        if not artifact.is_folder:
            return None
        try:
            folder = artifact.header(_folder)
        except (LoadError, OSError):
            return None  # the load will say what is wrong
        bytes_ = int(folder.variables_bytes * _RESTORED_RATIO) + folder.graph_bytes * _GRAPH_RATIO + _FIRST_USE_BYTES
        return Estimate.private(bytes_, certainty=Certainty.CONSERVATIVE, why="the sizes of the variables and of the graph")

    @classmethod
    def from_path(cls, artifact: Artifact, terms: Terms) -> Built:
        artifact.header(_folder)
        with large_blocks_given_back(), artifact.by_name() as path:
            tensorflow = require("tensorflow", "TensorFlow SavedModels")
            return Built(tensorflow.saved_model.load(path, tags=terms.options.get("tags")))

    @classmethod
    def from_buffer(cls, buffer: bytes | bytearray | memoryview, artifact: Artifact, terms: Terms) -> Built:
        raise ModelBinarizationError(
            f"{artifact.name}: a SavedModel is a folder, and its content came as bytes; give the folder's path",
            path=artifact.path,
            format=cls.format.value,
        )

    @classmethod
    def explain(cls, error: Exception, artifact: Artifact) -> MLupError:
        operator = _NO_OPERATOR.search(str(error))
        if operator is not None:
            return MissingClassError(
                f"{artifact.name}: the SavedModel needs the operator {operator[1]!r}, which is not registered here; install and"
                " import the package that has it, such as tensorflow_text, before the load",
                path=artifact.path,
                format=cls.format.value,
                qualname=operator[1],
            )
        # TensorFlow's own errors (DataLossError, ...) carry the code of the status; what the system says of a file has a number.
        code = getattr(error, "error_code", None)
        if code in _STATUS_OF_DAMAGE or (code is None and isinstance(error, OSError) and error.errno is None):
            return CorruptModelError(
                f"{artifact.name}: expected a whole SavedModel, found a folder that TensorFlow cannot restore"
                f" ({type(error).__name__}: {cls.said(error)});"
                " copy or export it again",
                path=artifact.path,
                format=cls.format.value,
            )
        return super().explain(error, artifact)


def _versions(artifact: Artifact) -> str:
    """Which Keras wrote the file and which one this is, for the end of a message."""
    with contextlib.suppress(LoadError, OSError):
        found = read_folder(artifact.name) if artifact.is_folder else artifact.header(_config)
        wrote = found.metadata.get("keras_version") if found is not None else None
        here = require("keras", "Keras models").__version__
        if wrote:
            other = "" if wrote == here else f", and this is Keras {here}: load it with that one, or save it again with this one"
            return f"; Keras {wrote} wrote the file{other}"
    return ""


def _config(file: BinaryIO, name: str) -> KerasConfig | None:
    return read_hdf5(file, name) if _is_hdf5(file) else read_zip(file, name)[0]


def _folder(given: Any, name: str) -> Any:
    return read_saved_model(given if isinstance(given, str) else name)  # of a file, which it refuses


def _is_hdf5(file: BinaryIO) -> bool:
    file.seek(0)
    head = file.read(len(HDF5_MAGIC))
    file.seek(0)
    return head == HDF5_MAGIC


def _datasets(file: BinaryIO, name: str) -> Datasets:
    """The arrays of the HDF5 file, or of the one in the zip."""
    with contextlib.ExitStack() as stack:
        return datasets(file if _is_hdf5(file) else stack.enter_context(open_weights(file, name)))


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Lets TensorFlow be imported without what it prints of processors, unless the user has said how much it is to print."""
    name = "TF_CPP_MIN_LOG_LEVEL"
    unset = name not in os.environ
    if unset:
        os.environ[name] = "2"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if unset:
            os.environ.pop(name, None)
