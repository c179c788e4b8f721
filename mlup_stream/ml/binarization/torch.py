"""torch: what `torch.save` wrote, and TorchScript.

A zip of `torch.save` (1.6 and later) leaves its tensors in the mapped file. The older formats are read once into memory.
TorchScript is read by path: given a file object, `torch.jit.load` takes four times the file; content without a path goes through
a private file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import re
from types import ModuleType, SimpleNamespace
from typing import Any, BinaryIO, ClassVar

from mlup_stream.delivery.artifact import Artifact
from mlup_stream.delivery.kinds import Delivery, MappingMode
from mlup_stream.delivery.placement import Placement
from mlup_stream.delivery.private_file import private_file
from mlup_stream.delivery.terms import Built, Terms
from mlup_stream.delivery.view import View
from mlup_stream.errors import ConfigError, LoadError, MLupError, ModelBinarizationError
from mlup_stream.extras import require
from mlup_stream.formats.kinds import Format, name_of
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.ml.binarization.base import FormatBinarizer, one_line
from mlup_stream.ml.binarization.frameworks.torch_in_place import TorchZip, can_map, directory_of, is_whole, load_in_place
from mlup_stream.ml.binarization.frameworks.torch_shards import joined, shards_of
from mlup_stream.ml.binarization.pickles.checked_input import FindsClasses
from mlup_stream.ml.binarization.pickles.failure import whole_but

__all__ = ["TorchBinarizer", "TorchJITBinarizer"]

_OBJECT_BYTES = 4096
"""A tensor, its storage and its parameter: about 2 KiB; a module of its own for every second one: 4 KiB."""
_STRUCTURE_FACTOR = 10
"""What pickled structure becomes as objects, at most: the worst of `facts` about small objects."""
_SCRIPT_FACTOR = 40
"""What a script's code becomes as graphs; measured on code of 20 KiB to 2 MiB."""

# torch raises RuntimeError for everything; these are about the file.
_SAYS_DAMAGED = (
    "PytorchStreamReader",
    "corrupt",
    "unexpected EOF",
    "unexpected end",
    "Invalid magic number",
    "Invalid protocol version",
    "out of bounds for storage",
    "storage has wrong",
    "invalid zip",
    "failed finding central directory",
)

_SAYS_NOT_ADMITTED = ("Weights only", "weights_only=True", "Unsupported global", "Unsupported class", "Unsupported operand")
_SAYS_NO_DEVICE = (
    "Attempting to deserialize object on",
    "don't know how to restore data location",
    "not compiled with",
    "Storage device not recognized",
    "device module is not registered",
    "with arguments from the '",  # the rest are TorchScript's
    "supported devices include",
)
_GLOBAL = re.compile(r"(?:GLOBAL|class|global:?) ([A-Za-z_][\w.]*\.[\w.]+)")
_SHOWN_GLOBALS = 10


class _TorchFormat(FormatBinarizer):
    """What the two have in common."""

    libraries = ("torch",)
    option_names: ClassVar[frozenset[str]] = frozenset({"map_location"})
    corrupt = (*FormatBinarizer.corrupt, pickle.UnpicklingError, AssertionError, IndexError, KeyError, TypeError)

    @classmethod
    def prepare(cls) -> None:
        require("torch", f"{name_of(cls.format)} models")

    @classmethod
    def explain(cls, error: Exception, artifact: Artifact) -> MLupError:
        said = str(error)
        if isinstance(error, RuntimeError) and any(words in said for words in _SAYS_NO_DEVICE):
            return ModelBinarizationError(
                f"{artifact.name}: expected tensors for a device of this machine, found those of another"
                f' ({one_line(said.partition(". ")[0])}); set binarization_kwargs={{"map_location": "cpu"}}'
                " (--option map_location=cpu)",
                path=artifact.path,
                format=name_of(cls.format),
            )
        return super().explain(error, artifact)

    @classmethod
    def is_corrupt(cls, error: Exception) -> bool:
        if isinstance(error, OSError):
            return error.errno == errno.EINVAL  # its zip reader looks for the end before the beginning of a short file
        return super().is_corrupt(error) or (
            isinstance(error, RuntimeError) and any(words in str(error) for words in _SAYS_DAMAGED)
        )


class TorchBinarizer(_TorchFormat):
    """A `state_dict`, a whole module, or anything else that `torch.save` wrote; a module comes in evaluation mode.

    A whole module is a pickle, and loading a pickle runs code that the file chooses: load only files that you trust, with
    `weights_only=False`. A load admits tensors alone unless that is said, as `torch.load` does; the binarizer called directly, or
    by the old package, does as it always did. `TORCH_FORCE_WEIGHTS_ONLY_LOAD` and `TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD` are heeded.

    Options: `map_location`, `weights_only` and `encoding`, as of `torch.load`; `map_location="auto"` leaves each tensor where it
    was saved if this machine has that device, and takes the others to the CPU.
    """

    format = Format.TORCH
    deliveries = (Delivery.VIEW, Delivery.PATH, Delivery.STREAM, Delivery.BYTES)
    option_names: ClassVar[frozenset[str]] = frozenset({"encoding", "map_location", "weights_only"})

    @classmethod
    def estimate(cls, artifact: Artifact, terms: Terms) -> Estimate | None:
        try:
            files = [shard for shard, _ in shards_of(artifact)] or [artifact]
        except (LoadError, OSError):
            return None  # the load will say what is wrong
        found = [each for each in map(_directory, files) if each is not None]
        if len(found) < len(files):
            return None
        size_bytes = sum(each.size_bytes for each in files)
        payload_bytes = sum(each.payload_bytes for each in found)
        structure_bytes = sum(map(_structure_bytes, found))
        certainty = Certainty.EXACT if structure_bytes <= 0.02 * payload_bytes else Certainty.CONSERVATIVE
        why = "the directory of the torch zip"
        if terms.delivery is Delivery.VIEW and all(each.is_stored for each in found) and not artifact.has_content:
            return Estimate.in_place(size_bytes, certainty=certainty, why=why, private_bytes=structure_bytes, copy_on_write=True)
        private = Estimate.private(payload_bytes + structure_bytes, certainty=certainty, why=why)
        return private.with_raw(size_bytes) if terms.delivery is Delivery.BYTES and not artifact.has_content else private

    @classmethod
    def _dispatch(cls, artifact: Artifact, terms: Terms) -> Built:
        shards = shards_of(artifact)
        if not shards:
            return super()._dispatch(artifact, terms)
        parts = []
        for shard, names in shards:
            with cls.explained(shard):  # which is what has failed, and not the index
                parts.append((shard, names, super()._dispatch(shard, terms)))
        return joined(parts)

    @classmethod
    def arrays_writable(cls, terms: Terms) -> bool | None:
        return True

    @classmethod
    def from_path(cls, artifact: Artifact, terms: Terms) -> Built:
        with artifact.by_name() as path:
            return cls._load(path, artifact, terms)

    @classmethod
    def from_file(cls, file: BinaryIO, artifact: Artifact, terms: Terms) -> Built:
        if _is_tar(file) and not hasattr(getattr(file, "raw", file), "fileno"):
            with private_file(file) as path:
                return cls._load(path, artifact, terms)
        return cls._load(file, artifact, terms)

    @classmethod
    def from_view(cls, view: View, artifact: Artifact, terms: Terms) -> Built:
        torch = require("torch", "torch models")
        if not terms.writable:
            raise ConfigError(
                f"{artifact.name}: mapping='read-only' is not possible with torch, which would die of a write;"
                " leave it at 'auto'",
                field="mapping",
                value=terms.mapping.value,
                allowed=(MappingMode.AUTO.value, MappingMode.COPY_ON_WRITE.value),
            )
        found = artifact.header(directory_of)
        obstacle = _obstacle(found)
        if found is None or obstacle is not None:
            copied = Placement(0, view.size_bytes if found is None else found.payload_bytes, (str(obstacle),))
            return super().from_view(view, artifact, terms)._replace(placement=copied)
        if can_map(torch):
            options = {"map_location": None, "encoding": "utf-8", **_options(torch, terms)}
            model = _in_evaluation_mode(load_in_place(torch, view, pickle_module=_pickle_for(artifact), **options))
        elif artifact.file is not None:
            with artifact.by_name() as path:
                model = cls._load(path, artifact, terms, mmap=True).model
        else:
            return super().from_view(view, artifact, terms)
        return Built(model, Placement(found.payload_bytes, 0))

    @classmethod
    def _load(cls, source: str | BinaryIO, artifact: Artifact, terms: Terms, **more: Any) -> Built:
        torch = require("torch", "torch models")
        options = {**_options(torch, terms), **more}
        pickle_module = None if options["weights_only"] else _pickle_for(artifact)
        return Built(_in_evaluation_mode(torch.load(source, pickle_module=pickle_module, **options)))

    @classmethod
    def explain(cls, error: Exception, artifact: Artifact) -> MLupError:
        said = str(error)
        if isinstance(error, (pickle.UnpicklingError, RuntimeError)) and any(words in said for words in _SAYS_NOT_ADMITTED):
            names = _not_admitted(artifact, said)
            forced = " and unset TORCH_FORCE_WEIGHTS_ONLY_LOAD" if _is_set("TORCH_FORCE_WEIGHTS_ONLY_LOAD") else ""
            return ModelBinarizationError(
                f"{artifact.name}: expected weights alone, found more ({names}), which loading would import and call; if you"
                f' trust the file, set binarization_kwargs={{"weights_only": False}} (--option weights_only=false){forced}, or'
                " admit these alone with torch.serialization.add_safe_globals",
                path=artifact.path,
                format=cls.format.value,
            )
        if not isinstance(error, (OSError, RuntimeError)) and is_whole(artifact):
            return whole_but(error, artifact.name, path=artifact.path, format="torch file")
        return super().explain(error, artifact)


def _options(torch: ModuleType, terms: Terms) -> dict[str, Any]:
    """The user's options as `torch.load` takes them."""

    def where_it_was(storage: Any, location: str) -> Any:
        try:
            return torch.serialization.default_restore_location(storage, location)
        except (AssertionError, AttributeError, NotImplementedError, RuntimeError):  # depends on the device that is not here
            return storage

    auto = {"map_location": where_it_was} if terms.options.get("map_location") == "auto" else {}
    return {**terms.options, **auto, "weights_only": _weights_only(terms)}


def _weights_only(terms: Terms) -> bool:
    """As `torch.load` decides it since 2.6, with any torch; called directly, without a plan, the default is the old package's."""
    if _is_set("TORCH_FORCE_WEIGHTS_ONLY_LOAD"):
        return True
    given = terms.options.get("weights_only")
    if given is not None:
        return bool(given)
    return terms.planned and not _is_set("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")


def _is_set(name: str) -> bool:
    return os.environ.get(name, "0").lower() in ("1", "y", "yes", "true")  # what torch takes for yes


def _not_admitted(artifact: Artifact, said: str) -> str:
    """The names of what is not admitted, all of them where torch can tell, otherwise the first, of which it complains."""
    torch = require("torch", "torch models")
    find = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    with contextlib.suppress(Exception):  # it reads zips only, and this is an error message
        with artifact.open() as file:
            names = find(file) if find is not None else []
        if names:
            more = f" and {len(names) - _SHOWN_GLOBALS} more" if len(names) > _SHOWN_GLOBALS else ""
            return ", ".join(names[:_SHOWN_GLOBALS]) + more
    found = _GLOBAL.search(said)
    return found[1] if found else "something that is neither a tensor nor a container"


def _directory(artifact: Artifact) -> TorchZip | None:
    try:
        return artifact.header(directory_of)
    except (LoadError, OSError):
        return None  # the load will say what is wrong


class TorchJITBinarizer(_TorchFormat):
    """A TorchScript module, in evaluation mode. Options: `map_location` and `_extra_files`, as of `torch.jit.load`."""

    format = Format.TORCHSCRIPT
    option_names: ClassVar[frozenset[str]] = frozenset({"map_location", "_extra_files"})
    deliveries = (Delivery.PATH, Delivery.BYTES)

    @classmethod
    def estimate(cls, artifact: Artifact, terms: Terms) -> Estimate | None:
        found, reads_it_whole = _directory(artifact), terms.delivery is Delivery.BYTES and not artifact.has_content
        if found is None:
            return None
        code_bytes = sum(entry.size_bytes for entry in found.structure if entry.name.endswith(".py"))
        structure_bytes = _structure_bytes(found) + _SCRIPT_FACTOR * code_bytes
        certainty = Certainty.EXACT if structure_bytes <= 0.02 * found.payload_bytes else Certainty.CONSERVATIVE
        private = Estimate.private(
            found.payload_bytes + structure_bytes, certainty=certainty, why="the directory of the TorchScript archive"
        )
        return private.with_raw(artifact.size_bytes) if reads_it_whole else private

    @classmethod
    def from_path(cls, artifact: Artifact, terms: Terms) -> Built:
        with artifact.by_name() as path:
            return cls._load(path, terms)

    @classmethod
    def from_file(cls, file: BinaryIO, artifact: Artifact, terms: Terms) -> Built:
        with private_file(file) as path:
            return cls._load(path, terms)

    @classmethod
    def from_buffer(cls, buffer: bytes | bytearray | memoryview, artifact: Artifact, terms: Terms) -> Built:
        with private_file(buffer) as path:
            return cls._load(path, terms)

    @classmethod
    def _load(cls, path: str, terms: Terms) -> Built:
        model = require("torch", "torchscript models").jit.load(path, **terms.options)
        model.eval()
        return Built(model)


def _structure_bytes(found: TorchZip) -> int:
    pickled_bytes = sum(entry.size_bytes for entry in found.structure if entry.name.endswith("data.pkl"))
    return _OBJECT_BYTES * len(found.storages) + _STRUCTURE_FACTOR * pickled_bytes


def _obstacle(found: TorchZip | None) -> str | None:
    """Why the tensors cannot stay in the file."""
    if found is None:
        return "the torch format from before 1.6 is read once into memory"
    if found.is_script:
        return "TorchScript is read once into memory"
    return None if found.is_stored else "members of the zip are compressed"


def _pickle_for(artifact: Artifact) -> SimpleNamespace:
    """What torch takes of the module `pickle`, with an unpickler that says which class it could not find."""

    class Unpickler(FindsClasses, pickle.Unpickler):
        model_name = artifact.name
        format_name = "torch file"

    return SimpleNamespace(__name__="pickle", Unpickler=Unpickler, load=pickle.load)


def _in_evaluation_mode(model: Any) -> Any:
    from torch.nn import Module

    if isinstance(model, Module):
        model.eval()
    return model


def _is_tar(file: BinaryIO) -> bool:
    start = file.tell()
    file.seek(start + 257)
    magic = file.read(5)
    file.seek(start)
    return magic == b"ustar"
