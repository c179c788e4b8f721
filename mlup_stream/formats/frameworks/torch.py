"""What a torch file says of itself: its tensors with names, types and shapes, from the pickle inside it; torch is not imported.

Source: torch's `serialization.py` and `_utils.py`. A zip's `data.pkl` calls `_rebuild_tensor_v2(storage, offset, size, ...)` for
each tensor, where the storage is a persistent id `("storage", StorageType, key, device, items)`. The pickle is followed by an
unpickler that builds nothing (`dry_unpickler`), in which these few names stand for something.

Bounded: a pickle of at most 16 MiB is followed, for at most 500 000 reads: a second or two; otherwise only the directory is told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from mlup_stream.formats.pickles.dry_unpickler import DryUnpickler, Inert
from mlup_stream.formats.pickles.named_globals import first_globals
from mlup_stream.formats.shards import inspect_index, is_index
from mlup_stream.formats.source import Source
from mlup_stream.formats.zip import STORED, ZipMember, walk
from mlup_stream.units import KIB, MIB

__all__ = ["inspect_torch"]

_MAX_PICKLE_BYTES = 16 * MIB
_MAX_READS = 500_000
_MAX_DEPTH = 40
_MAX_SMALL_BYTES = 1 * KIB
_LISTED = 1000
_LEGACY_PICKLES = 5
"""A magic number, a version, the machine's sizes, the object, and the storages' keys."""

_TYPES = {
    "Double": ("float64", 8),
    "Float": ("float32", 4),
    "Half": ("float16", 2),
    "BFloat16": ("bfloat16", 2),
    "Long": ("int64", 8),
    "Int": ("int32", 4),
    "Short": ("int16", 2),
    "Char": ("int8", 1),
    "Byte": ("uint8", 1),
    "Bool": ("bool", 1),
    "ComplexFloat": ("complex64", 8),
    "ComplexDouble": ("complex128", 16),
    "QInt8": ("qint8", 1),
    "QUInt8": ("quint8", 1),
    "QInt32": ("qint32", 4),
}
"""The types by the names of their storages, and the bytes of an item."""


def inspect_torch(given: Any, name: str) -> dict[str, Any]:
    """The tensors of a zip and how many bytes its storages have; for the legacy format, what the first pickle names; the files
    of an index.

    Raises:
        CorruptModelError: The zip is damaged.
    """
    if is_index(given):
        return {"container": "index", **inspect_index(given, name)}
    with Source(given, name) as source:
        if source.read(0, min(2, source.size_bytes), "first bytes") != b"PK":
            return {"container": "legacy", "globals_in_head": first_globals(given, name, pickles=_LEGACY_PICKLES)}
        members = walk(given, name)
        below_top = {member.name.partition("/")[2]: member for member in members}
        storages = [member for key, member in below_top.items() if key.startswith(("data/", "constants/"))]
        found: dict[str, Any] = {
            "container": "zip",
            "script": "constants.pkl" in below_top,
            **{key: _small(source, below_top.get(key)) for key in ("version", "byteorder")},
            "storages": len(storages),
            "payload_bytes": sum(member.size_bytes for member in storages),
            "stored": all(member.method == STORED for member in storages),
        }
        if found["script"]:
            found["code"] = sorted(key for key in below_top if key.startswith("code/") and key.endswith(".py"))[:_LISTED]
        pickled = below_top.get("data.pkl")
        if pickled is not None and pickled.method == STORED and pickled.size_bytes <= _MAX_PICKLE_BYTES:
            data = source.read(pickled.data_offset, pickled.size_bytes, "data.pkl")
            found["globals_in_head"] = first_globals(data, name)
            tensors = _tensors(data)
            if tensors is not None:
                found |= {"tensors": tensors[:_LISTED], "tensors_total": len(tensors)}
        return found


def _small(source: Source, member: ZipMember | None) -> str | None:
    if member is None or member.method != STORED or member.size_bytes > _MAX_SMALL_BYTES:
        return None
    return source.read(member.data_offset, member.size_bytes, member.name).decode("ascii", "replace").strip()


class _Storage(Inert):
    def __init__(self, kind: str, key: str, items: int) -> None:
        self.kind, self.key, self.items = kind, key, items


class _Tensor(Inert):
    def __init__(self, storage: Any, *arguments: Any) -> None:
        self.storage = storage if isinstance(storage, _Storage) else None
        shape = arguments[1] if len(arguments) > 1 else ()
        plain = isinstance(shape, tuple) and len(shape) <= 64 and all(type(each) is int and each >= 0 for each in shape)
        self.shape = list(shape) if plain else None


class _Object(Inert):
    """An object whose state is kept: modules hold their parameters in it."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dict(dict[Any, Any]):
    """Stands for an OrderedDict; an attribute of it, such as a `state_dict`'s `_metadata`, is not kept."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


def _parameter(data: Any, *_: Any) -> Any:
    return data


class _StorageType:
    """A class such as `torch.FloatStorage`, named in a persistent id."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Follower(DryUnpickler):
    """Follows `data.pkl`."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name.startswith("_rebuild_parameter"):
            return _parameter
        if module == "torch._utils" and name.startswith("_rebuild_"):
            return _Tensor
        if (module, name) == ("collections", "OrderedDict"):
            return _Dict
        if module.startswith("torch") and name.endswith("Storage"):
            return _StorageType(name.removesuffix("Storage"))
        return _Object

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) >= 5 and isinstance(pid[1], _StorageType) and type(pid[4]) is int:
            return _Storage(pid[1].name, str(pid[2]), pid[4])
        return Inert()


class _Counted:
    """The pickle's bytes, for so many reads and no more."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        self._reads = 0

    def read(self, size_bytes: int) -> bytes:
        self._count()
        part = self._data[self._position : self._position + size_bytes]
        if len(part) < size_bytes:
            raise EOFError
        self._position += size_bytes
        return part

    def readline(self) -> bytes:
        self._count()
        end = self._data.find(b"\n", self._position) + 1
        if not end:
            raise EOFError
        line, self._position = self._data[self._position : end], end
        return line

    def _count(self) -> None:
        self._reads += 1
        if self._reads > _MAX_READS:
            raise EOFError


def _tensors(data: bytes) -> list[dict[str, Any]] | None:
    """The tensors in the object that the pickle describes, by their paths in it; None where it cannot be followed."""
    try:
        model = _Follower(_Counted(data)).load()
    except Exception:  # what torch does not write: whether it is a damage, torch says
        return None
    found = []
    for name, tensor in _walk(model):
        kind = tensor.storage.kind if tensor.storage is not None else "?"
        dtype, item_bytes = _TYPES.get(kind, (kind, None))
        size_bytes = None if tensor.shape is None or item_bytes is None else item_bytes * math.prod(tensor.shape)
        found.append({"name": name, "dtype": dtype, "shape": tensor.shape, "size_bytes": size_bytes})
    return found


def _walk(model: Any) -> Iterator[tuple[str, _Tensor]]:
    """Each tensor with its path; each object once, and as deep as models go."""
    stack: list[tuple[str, Any, int]] = [("", model, 0)]
    seen: set[int] = set()
    while stack:
        path, value, depth = stack.pop()
        if isinstance(value, _Tensor):
            yield path, value
            continue
        if depth > _MAX_DEPTH or id(value) in seen:
            continue
        seen.add(id(value))
        inside: list[tuple[Any, Any]] = []
        if isinstance(value, dict):
            inside = list(value.items())
        elif isinstance(value, (list, tuple)):
            inside = list(enumerate(value))
        elif isinstance(value, _Object):
            inside = [("", value.state)]
        for key, each in reversed(inside):
            # Where a module keeps its own is no part of the names that a state_dict gives.
            part = "" if key in ("_parameters", "_buffers", "_modules") else str(key)[:200]
            stack.append((".".join(filter(None, (path, part))), each, depth + 1))
