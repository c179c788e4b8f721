"""What a skops file holds, from its zip's directory, its arrays' headers and one pass over its schema: nothing is built or
parsed.

A zip with `schema.json`, a tree of nodes that each name a loader, a class and a module, and beside it an `.npy` for each array,
an `.npz` for each sparse matrix and a `.bin` for bytes. Source: `skops/io` 0.16, protocol 2; `json.dumps` writes the schema, in
ASCII.

The pass counts what the nodes refer to and name, for the estimate and for people. It decides nothing about trust: that is
skops's audit, of what was parsed. Peak memory: the directory, a window of 1 MiB, and the names that are found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from mlup_stream.errors import CorruptModelError
from mlup_stream.formats.arrays.npy import told
from mlup_stream.formats.arrays.npz import NpzMember, open_member, read_members
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.listing import LISTED, listed
from mlup_stream.formats.peek import Peek
from mlup_stream.units import MIB, format_bytes

__all__ = ["MAX_SCHEMA_BYTES", "SCHEMA", "SkopsFile", "detect", "inspect", "read_skops"]

SCHEMA = "schema.json"
MAX_SCHEMA_BYTES = 256 * MIB
"""A tree of a forest takes about 25 KiB of it: room for 10 000."""

_WINDOW_BYTES = 1 * MIB
_OVERLAP_BYTES = 1024
"""A match is shorter, and one that ends in the last of a window is found in the next."""
_PARTS = (".npy", ".npz", ".bin")
_NODE = re.compile(
    rb'"__loader__":\s{0,9}"(?P<loader>\w{1,100})"'
    rb'|"file":\s{0,9}"(?P<file>[^"\\]{1,200})"'
    rb'|"__class__":\s{0,9}"(?P<class>[\w.<>]{1,200})",\s{0,400}"__module__":\s{0,9}"(?P<module>[\w.]{1,200})"'
    rb'|"_skops_version":\s{0,9}"(?P<version>[\w.+]{1,40})"'
)
_MAX_TYPES = 10_000
_BUILTIN = ("builtins.", "numpy.")


@dataclass(frozen=True, slots=True)
class SkopsFile:
    """What a file holds.

    Attributes:
        schema: The member with the tree of nodes.
        members: The others by name; `.npy` ones with their headers.
        version: Of the skops that wrote it; empty if it does not say.
        loaders: How many nodes there are of each kind.
        references: How often each member is referred to.
        types: What the nodes name, by how often.
    """

    schema: NpzMember
    members: dict[str, NpzMember]
    version: str
    loaders: dict[str, int]
    references: dict[str, int]
    types: dict[str, int]

    @property
    def nodes(self) -> int:
        return sum(self.loaders.values())


def read_skops(file: BinaryIO, name: str) -> SkopsFile:
    """What the file holds.

    Args:
        file: The zip, seekable.
        name: What to call it in a message.

    Raises:
        CorruptModelError: The zip or the header of an array is not what it should be.
        ModelBinarizationError: A member is encrypted or compressed by another method than deflate.
    """
    members = {each.place.name: each for each in read_members(file, name)}
    schema = members.pop(SCHEMA, None)
    if schema is None or schema.place.size_bytes > MAX_SCHEMA_BYTES:
        found = "none" if schema is None else format_bytes(schema.place.size_bytes)
        raise CorruptModelError(
            f"{name}: expected a skops file with a {SCHEMA} of at most {format_bytes(MAX_SCHEMA_BYTES)}, found {found};"
            " write it again with skops.io.dump",
            path=name,
            format=Format.SKOPS.value,
        )
    loaders: Counter[str] = Counter()
    references: Counter[str] = Counter()
    types: Counter[str] = Counter()
    version = ""
    for match in _matches(file, schema, name):
        said = {kind: text.decode(errors="replace") for kind, text in match.groupdict(b"").items()}
        loaders.update([said["loader"]] if said["loader"] else [])
        references.update([said["file"]] if said["file"] else [])
        version = said["version"] or version
        if said["class"] and len(types) < _MAX_TYPES:
            types[f"{said['module']}.{said['class']}"] += 1
    return SkopsFile(schema, members, version, dict(loaders), dict(references), dict(types))


def _matches(file: BinaryIO, schema: NpzMember, name: str) -> Iterator[re.Match[bytes]]:
    with open_member(file, schema.place, name) as stream:
        window, start = b"", 0
        while piece := stream.read(_WINDOW_BYTES):
            window = window[start:] + piece
            start = 0
            for found in _NODE.finditer(window):
                start = found.end()
                yield found
            start = max(start, len(window) - _OVERLAP_BYTES)


def detect(peek: Peek) -> str | None:
    """What says that it is a skops file, or None."""
    others = [name for name in peek.members if name != SCHEMA]
    if len(others) == len(peek.members) or not all(name.endswith(_PARTS) for name in others):
        return None
    return f"a zip with {SCHEMA} and {len(others)} arrays"


def inspect(given: Any, name: str) -> dict[str, Any]:
    if not hasattr(given, "read"):
        with open(given, "rb") as file:
            return inspect(file, name)
    found = read_skops(given, name)
    members = found.members.values()
    arrays = [{"name": each.key, "stored": each.stored, **told(each.header)} for each in members if each.header is not None]
    named = {each: count for each, count in found.types.items() if not each.startswith(_BUILTIN)}
    return {
        "skops_version": found.version,
        "nodes": found.nodes,
        "schema_bytes": found.schema.place.size_bytes,
        "payload_bytes": sum(each.payload_bytes for each in members),
        "types": dict(sorted(named.items(), key=lambda each: (-each[1], each[0]))[:LISTED]),
        **listed("arrays", arrays),
    }
