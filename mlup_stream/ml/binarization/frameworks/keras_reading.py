"""Building a Keras model from a file object, with its weights read one at a time from where they lie in the file.

`keras.saving.load_model` takes paths only, looks at their suffix, and reads the whole HDF5 member of a `.keras` zip into memory
before it copies the weights out of it: 2.5 times the file at the peak against 1.05 times here. What it is made of does not need
that: the HDF5 member is stored, not deflated, and h5py reads from any file object. These parts have no public name, and their
signatures have changed; where one is not as expected, `parts` is None and the caller uses `load_model`.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import shutil
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from mlup_stream.delivery.reader import open_borrowed
from mlup_stream.errors import CorruptModelError
from mlup_stream.extras import require
from mlup_stream.formats.frameworks.keras import CONFIG_NAME, WEIGHTS_NAME, read_zip
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.zip import STORED, walk
from mlup_stream.units import MIB

__all__ = ["Datasets", "Parts", "datasets", "from_hdf5", "from_zip", "open_weights", "parts"]

_ASSETS_FOLDER = "assets/"
_CHUNK_BYTES = 1 * MIB


class Parts(NamedTuple):
    """The pieces of `load_model` that are used here."""

    saving_lib: Any
    load_hdf5: Callable[..., Any]
    takes_safe_mode: bool


def parts() -> Parts | None:
    """The pieces, if this Keras has all of them as expected (3.5 to 3.15 do)."""
    try:
        saving_lib = importlib.import_module("keras.src.saving.saving_lib")
        load_hdf5 = importlib.import_module("keras.src.legacy.saving.legacy_h5_format").load_model_from_hdf5
        for name in ("_model_from_config", "_raise_loading_failure", "H5IOStore", "DiskIOStore"):
            getattr(saving_lib, name)
        wanted = {"weights_store", "assets_store", "inner_path", "visited_saveables", "failed_saveables", "error_msgs"}
        if not wanted <= inspect.signature(saving_lib._load_state).parameters.keys():
            return None
        return Parts(saving_lib, load_hdf5, "safe_mode" in inspect.signature(load_hdf5).parameters)
    except (ImportError, AttributeError):
        return None


def from_hdf5(keras: Parts, file: BinaryIO, *, custom_objects: Any, compile: bool, safe_mode: bool) -> Any:
    """The model in a whole-model `.h5` file. Peak memory: the weights and those of the largest layer once more."""
    more = {"safe_mode": safe_mode} if keras.takes_safe_mode else {}
    with require("h5py", "Keras models").File(file, "r") as hdf5:
        return keras.load_hdf5(hdf5, custom_objects=custom_objects, compile=compile, **more)


def from_zip(keras: Parts, file: BinaryIO, name: str, *, custom_objects: Any, compile: bool, safe_mode: bool) -> Any:
    """The model in a `.keras` file. Peak memory: the weights, and three times the largest (Keras draws it at random first)."""
    with contextlib.ExitStack() as stack:
        # Before a model is built for them.
        weights = stack.enter_context(open_weights(file, name))
        _, members = read_zip(file, name)  # refuses a configuration that claims to be gigabytes
        with zipfile.ZipFile(file) as archive:
            config = archive.read(CONFIG_NAME)
        model = keras.saving_lib._model_from_config(config, custom_objects, compile, safe_mode)
        store = keras.saving_lib.H5IOStore(WEIGHTS_NAME, archive=_OneFile(weights), mode="r")
        stack.callback(store.close)
        assets = None
        if any(member.name.startswith(_ASSETS_FOLDER) for member in members):
            archive = stack.enter_context(_Assets(file))
            assets = keras.saving_lib.DiskIOStore(_ASSETS_FOLDER.rstrip("/"), archive=archive, mode="r")
            stack.callback(assets.close)
        failed: set[int] = set()
        errors: dict[int, Any] = {}
        keras.saving_lib._load_state(
            model,
            weights_store=store,
            assets_store=assets,
            inner_path="",
            visited_saveables=set(),
            failed_saveables=failed,
            error_msgs=errors,
        )
        if failed:
            try:
                keras.saving_lib._raise_loading_failure(errors)
            except ValueError as error:
                # It has the words of the first of them and nothing else.
                raise error from next(each for _, each in errors.values())
        return model


@contextlib.contextmanager
def open_weights(file: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """The HDF5 file inside a `.keras` zip, from where it lies; unpacked into memory if somebody has compressed it.

    Raises:
        CorruptModelError: The zip is damaged, or has no such member.
    """
    member = next((each for each in walk(file, name) if each.name == WEIGHTS_NAME), None)
    if member is None:
        raise CorruptModelError(
            f"{name}: expected the member {WEIGHTS_NAME} in the zip, found none; save the whole model again",
            path=name,
            format=Format.KERAS.value,
        )
    if member.method == STORED and not member.encrypted:
        file.seek(member.data_offset)
        with open_borrowed(file) as weights:
            yield weights
        return
    with zipfile.ZipFile(file) as archive, archive.open(WEIGHTS_NAME) as packed:
        unpacked = io.BytesIO()
        shutil.copyfileobj(packed, unpacked, _CHUNK_BYTES)
        unpacked.seek(0)
        yield unpacked


class Datasets(NamedTuple):
    """The arrays of an HDF5 file, without those of an optimizer."""

    total_bytes: int
    largest_bytes: int
    arrays: int


def datasets(file: BinaryIO) -> Datasets:
    """What arrays an HDF5 file of Keras holds, from its structure alone.

    Raises:
        OSError: It is damaged.
    """
    h5py = require("h5py", "Keras models")
    sizes: list[int] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer"):
            sizes.append(int(item.nbytes))

    with h5py.File(file, "r") as hdf5:
        hdf5.visititems(visit)
    return Datasets(sum(sizes), max(sizes, default=0), len(sizes))


class _OneFile:
    """What `H5IOStore` wants of a zip: something to open."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def open(self, name: str, mode: str = "r") -> BinaryIO:
        return self._file


class _Assets(zipfile.ZipFile):
    """A `.keras` zip of which only the assets are seen: Keras unpacks all it sees into a folder for temporary files."""

    def infolist(self) -> list[zipfile.ZipInfo]:
        return [each for each in super().infolist() if each.filename.startswith(_ASSETS_FOLDER)]

    def namelist(self) -> list[str]:
        return [each.filename for each in self.infolist()]

