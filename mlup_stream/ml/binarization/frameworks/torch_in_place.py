"""A torch zip whose tensors stay in the mapped file.

`torch.load(path, mmap=True)` does that too, but it maps the file in the way that charges all of it to the commit limit (a model
larger than memory is refused), from a path that may lead elsewhere by the time that it is opened, and it maps a deflated
member as if it were stored. Here the storages are slices of our own view, which reserves nothing and is pinned to one
file; the unpickling itself is torch's. What it needs of torch (`serialization._load` with `overall_storage`, as it has been
since `mmap` came with torch 2.1) is not public: where it is missing, torch's own way is taken.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import zipfile
import zlib
from types import ModuleType
from typing import Any, NamedTuple

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.view import View
from mlup_stream.delivery.writers import announced
from mlup_stream.errors import CorruptModelError, LoadError
from mlup_stream.formats.pickles.damage import damage_in
from mlup_stream.formats.zip import STORED, ZipEntry, read_directory, walk

__all__ = ["TorchZip", "can_map", "directory_of", "is_whole", "load_in_place"]


class TorchZip(NamedTuple):
    """The members of a torch zip, by what they are."""

    storages: tuple[ZipEntry, ...]
    structure: tuple[ZipEntry, ...]
    is_script: bool

    @property
    def payload_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.storages)

    @property
    def structure_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.structure)

    @property
    def is_stored(self) -> bool:
        return all(entry.method == STORED and not entry.encrypted for entry in self.storages)


def directory_of(given: Any, name: str) -> TorchZip | None:
    """The members of a torch zip or TorchScript archive; None for a file that is no zip, or a damaged one."""
    try:
        entries = read_directory(given, name)
    except CorruptModelError:
        return None
    below_top = [(entry.name.partition("/")[2], entry) for entry in entries]
    # What tensors are made of lies in data/ and, of a script's constants, in constants/.
    is_storage = [name.startswith(("data/", "constants/")) for name, _ in below_top]
    return TorchZip(
        tuple(entry for entry, is_one in zip(entries, is_storage, strict=True) if is_one),
        tuple(entry for entry, is_one in zip(entries, is_storage, strict=True) if not is_one),
        any(name == "constants.pkl" for name, _ in below_top),
    )


def is_whole(artifact: Artifact) -> bool:
    """Whether it is a zip of `torch.save` that is whole, and the pickle in it too: damage is not why a load failed then."""
    with contextlib.suppress(LoadError, OSError, zipfile.BadZipFile, zlib.error), artifact.open() as file:
        name = next((member.name for member in walk(file, artifact.name) if member.name.endswith("/data.pkl")), None)
        if name is not None:
            with zipfile.ZipFile(file) as archive:
                return damage_in(io.BytesIO(archive.read(name)), artifact.name) is None
    return False


def can_map(torch: ModuleType) -> bool:
    """Whether this torch has what is needed."""
    load = getattr(torch.serialization, "_load", None)
    return (
        load is not None
        and hasattr(torch.serialization, "_open_zipfile_reader")
        and "overall_storage" in inspect.signature(load).parameters
    )


def load_in_place(
    torch: ModuleType, view: View, *, map_location: Any, weights_only: bool, pickle_module: Any, encoding: str
) -> Any:
    """The object in the zip, its tensors copy-on-write over the view."""
    import numpy

    announced(torch.serialization._open_zipfile_writer_file, "__init__", 1, truncates=True)
    # Through numpy, whose arrays keep the view's buffer exported for as long as a storage lives.
    storage = torch.from_numpy(numpy.frombuffer(view.writable, numpy.uint8)).untyped_storage()
    unpickler = torch._weights_only_unpickler if weights_only else pickle_module
    # Not by path: the reader and the view are to see the same file.
    with view.open_structure() as file, torch.serialization._open_zipfile_reader(file) as reader:
        return torch.serialization._load(reader, map_location, unpickler, overall_storage=storage, encoding=encoding)
