"""What a Keras model file says of itself: its class, its layers, its version. Builds nothing.

Two containers hold the same configuration. A `.keras` file is a zip with `config.json` (the class and configuration of the
model, and of each layer in it), `metadata.json` (`keras_version`, `date_saved`) and `model.weights.h5`. A `.h5` file is HDF5
whose root has the attributes `model_config` and `keras_version`. Source: `saving_lib.py` and `legacy_h5_format.py` of
keras-team/keras.

Hardened: members are at most `MAX_CONFIG_BYTES` once unpacked, whatever they claim. Peak memory: about ten times the
configuration.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlup_stream.formats.frameworks import hdf5
from mlup_stream.formats.listing import LISTED
from mlup_stream.formats.peek import Peek
from mlup_stream.formats.source import Source
from mlup_stream.formats.zip import DEFLATED, STORED, ZipMember, walk
from mlup_stream.units import MIB

__all__ = [
    "CONFIG_NAME",
    "MAX_CONFIG_BYTES",
    "METADATA_NAME",
    "WEIGHTS_NAME",
    "KerasConfig",
    "detect_folder",
    "detect_hdf5",
    "detect_zip",
    "inspect",
    "parse",
    "read_folder",
    "read_hdf5",
    "read_zip",
]

CONFIG_NAME = "config.json"
METADATA_NAME = "metadata.json"
WEIGHTS_NAME = "model.weights.h5"

MAX_CONFIG_BYTES = 64 * MIB
"""A layer takes about a kilobyte."""

_MAX_DEPTH = 100
_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class KerasConfig:
    """What the configuration says.

    Attributes:
        class_name: The model's class, such as `Sequential`.
        name: The model's own name.
        layers: How many layers there are of each class, models within the model counted with what they hold.
        custom: The registered names of classes that are not Keras's own: what `custom_objects` must have.
        metadata: `keras_version` and `date_saved`, where they were written.
    """

    class_name: str
    name: str
    layers: dict[str, int]
    custom: tuple[str, ...]
    metadata: dict[str, str]


def read_zip(given: Any, name: str | None = None) -> tuple[KerasConfig, tuple[ZipMember, ...]]:
    """The configuration in a `.keras` file, and the zip's members.

    Raises:
        CorruptModelError: The zip or the JSON in it is damaged, or a member is too large.
    """
    with Source(given, name) as source:
        members = walk(given, source.name)
        config = _json_member(source, members, CONFIG_NAME)
        metadata = _json_member(source, members, METADATA_NAME)
        return parse(config, metadata), members


def read_folder(path: str | os.PathLike[str]) -> KerasConfig:
    """The configuration in an unzipped `.keras` file.

    Raises:
        CorruptModelError: A file of it is missing, longer than configurations are, or no JSON.
        OSError: The folder cannot be read.
    """
    parsed = []
    for name in (CONFIG_NAME, METADATA_NAME):
        with Source(os.path.join(path, name)) as source:
            if source.size_bytes > MAX_CONFIG_BYTES:
                raise source.corrupt(f"{name} of at most {MAX_CONFIG_BYTES} bytes", f"one of {source.size_bytes}")
            parsed.append(_parsed(source, source.read(0, source.size_bytes, name), name))
    return parse(parsed[0], parsed[1])


def parse(config: dict[str, Any], metadata: dict[str, Any]) -> KerasConfig:
    """The same of a configuration that was read already."""
    layers: Counter[str] = Counter()
    custom: set[str] = set()
    inner = config.get("config")
    for each, is_layer in _objects(inner, "", 0):
        layers[str(each["class_name"])[:_MAX_NAME]] += is_layer
        module, registered = str(each.get("module")), each.get("registered_name")
        if isinstance(registered, str) and not module.startswith("keras") and module not in ("builtins", "None"):
            custom.add(registered[:_MAX_NAME])
    return KerasConfig(
        class_name=str(config.get("class_name")),
        name=str(inner.get("name")) if isinstance(inner, dict) else "",
        layers={class_name: count for class_name, count in layers.items() if count},
        custom=tuple(sorted(custom)),
        metadata={key: str(value) for key, value in metadata.items() if key in ("keras_version", "date_saved")},
    )


def _objects(value: Any, inside: str, depth: int) -> Iterator[tuple[dict[str, Any], bool]]:
    """Every serialised object (what has a `class_name` and a `config`), and whether it is a layer of a model."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, dict):
        if "class_name" in value and "config" in value:
            yield value, inside == "layers"
        for key, each in value.items():
            yield from _objects(each, key, depth + 1)
    elif isinstance(value, list):
        for each in value:
            yield from _objects(each, inside, depth + 1)


def _json_member(source: Source, members: tuple[ZipMember, ...], name: str) -> dict[str, Any]:
    member = next((each for each in members if each.name == name), None)
    if member is None:
        raise source.corrupt(f"the member {name} in the zip", "none")
    if max(member.size_bytes, member.compressed_bytes) > MAX_CONFIG_BYTES or member.encrypted:
        raise source.corrupt(f"a {name} of at most {MAX_CONFIG_BYTES} bytes, not encrypted", f"{member.size_bytes} bytes")
    data = source.read(member.data_offset, member.compressed_bytes, name)
    if member.method == DEFLATED:
        data = _inflated(source, data, member)
    elif member.method != STORED:
        raise source.corrupt(f"{name} to be stored or deflated", f"compression method {member.method}")
    return _parsed(source, data, name)


def _parsed(source: Source, data: bytes | str, name: str) -> dict[str, Any]:
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as error:
        cause = ValueError(str(error).splitlines()[0][:120])  # the error itself holds the document
    else:
        if not isinstance(parsed, dict):
            raise source.corrupt(f"a JSON object in {name}", type(parsed).__name__)
        return parsed
    raise source.corrupt(f"JSON in {name}", str(cause)) from cause


def _inflated(source: Source, data: bytes, member: ZipMember) -> bytes:
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.size_bytes + 1)
    except zlib.error as error:
        raise source.corrupt(f"deflated bytes in {member.name}", str(error)) from error


def read_hdf5(given: Any, name: str | None = None) -> KerasConfig | None:
    """The same of a `.h5` file, by its path or as a file object; None without h5py, which alone can read its attributes.

    Raises:
        CorruptModelError: The file is damaged, or its configuration.
    """
    try:
        h5py = importlib.import_module("h5py")
    except ImportError:
        return None
    with Source(given, name) as source, contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(h5py.File(given, "r"))
            config, version = file.attrs.get("model_config", "{}"), file.attrs.get("keras_version", "")
        except (OSError, RuntimeError, KeyError) as error:
            raise source.corrupt("a whole HDF5 file", str(error).splitlines()[0][:120]) from error
        if len(config) > MAX_CONFIG_BYTES:
            raise source.corrupt(f"a model_config of at most {MAX_CONFIG_BYTES} bytes", f"{len(config)} bytes")
        return parse(_parsed(source, config, "model_config"), {"keras_version": _text(version)})


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def detect_zip(peek: Peek) -> str | None:
    names = set(peek.members)
    if {"config.json", "metadata.json"} <= names and any(name.startswith("model.weights.") for name in names):
        return "a zip with config.json, metadata.json and the weights, as Keras 3 writes it"
    return None


def detect_folder(peek: Peek) -> str | None:
    if {CONFIG_NAME, METADATA_NAME, WEIGHTS_NAME} <= set(peek.entries or ()):
        return "a folder with config.json, metadata.json and the weights: an unzipped .keras"
    return None


def detect_hdf5(peek: Peek) -> str | None:
    if not peek.head.startswith(hdf5.MAGIC):
        return None
    attributes = hdf5.root_attributes(peek.at)
    if "model_config" in attributes:
        return "an HDF5 file with the attribute model_config, as Keras writes it"
    found = ", ".join(sorted(attributes)) or "none"
    peek.remarks.append(
        f"an HDF5 file whose root has no attribute model_config (found: {found}): weights alone, or no model;"
        " save the whole Keras model"
    )
    return None


def inspect(given: Any, name: str) -> dict[str, Any]:
    if isinstance(given, (str, os.PathLike)) and os.path.isdir(given):
        config: KerasConfig | None = read_folder(given)
        return _told("folder", config, {})
    with Source(given, name) as source:
        is_hdf5 = source.read(0, min(len(hdf5.MAGIC), source.size_bytes), "first bytes") == hdf5.MAGIC
    members: dict[str, Any] = {}
    if is_hdf5:
        config = read_hdf5(given, name)
    else:
        config, found = read_zip(given, name)
        members = {"members": {each.name: each.size_bytes for each in found[:LISTED]}}
    return _told("hdf5" if is_hdf5 else "zip", config, members)


def _told(container: str, config: KerasConfig | None, members: dict[str, Any]) -> dict[str, Any]:
    if config is None:
        return {"container": container, "note": "install h5py to see more"}
    return {
        "container": container,
        "model": config.class_name,
        "name": config.name,
        "layers": config.layers,
        "custom_objects": list(config.custom),
        **config.metadata,
        **members,
    }
