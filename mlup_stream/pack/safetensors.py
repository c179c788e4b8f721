"""safetensors: the header padded with spaces, which the format allows for, and the tensors in an order in which each is aligned.

The format has no room between tensors, so only their order can align them: wide items first, as its own writer has it. That order
is used only where the one that was there does not do.

A sharded model becomes one file. Shards are for the sake of transport; where a model is used, one file is one map and one
descriptor, can be replaced in one step, and needs no index that could disagree with it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from mlup_stream.delivery.files import checked_stat
from mlup_stream.delivery.view import View
from mlup_stream.errors import CorruptModelError, PackError
from mlup_stream.formats.arrays.safetensors import BITS_OF, MAX_HEADER_BYTES, Tensor, read_header
from mlup_stream.formats.shards import read_index
from mlup_stream.formats.source import Source
from mlup_stream.pack.destination import Destination
from mlup_stream.pack.packed import ALIGNMENT_BYTES, Gain, is_aligned
from mlup_stream.pack.pieces import compare, differs, pieces

__all__ = ["pack_safetensors"]

_LENGTH_BYTES = 8


class _Piece(NamedTuple):
    view: View
    tensor: Tensor

    @property
    def item_bytes(self) -> int:
        return max(BITS_OF[self.tensor.dtype] // 8, 1)

    @property
    def alignment(self) -> int:
        return self.item_bytes & -self.item_bytes


def _shards_of(path: str) -> list[tuple[str, tuple[str, ...] | None]]:
    """The files of a model and the tensors that are wanted of each, None for all: of an index those that it lists."""
    with Source(path) as source:
        # JSON from the first byte on, which no header's length can look like: it would be larger than the format allows.
        if int.from_bytes(source.read(0, min(_LENGTH_BYTES, source.size_bytes), "header"), "little") <= MAX_HEADER_BYTES:
            return [(path, None)]
    return [(os.path.join(os.path.dirname(path), name), names) for name, names in read_index(path).items()]


def pack_safetensors(view: View, destination: Destination) -> Gain:
    """Writes the tensors in `view`, or in the files that it lists, aligned."""
    name = str(view.path)
    with contextlib.ExitStack() as stack:
        found, metadata, notes = _pieces(name, stack)
        shards = list(dict.fromkeys(str(each.view.path) for each in found))
        destination.refuse_same(shards)
        header, ordered = _laid_out(name, found, metadata)
        destination.reserve(len(header) + sum(each.tensor.size_bytes for each in ordered))
        destination.write(header)
        for each in ordered:
            with Source(each.view) as source:
                for piece in pieces(source, each.tensor.start, each.tensor.size_bytes, each.tensor.name):
                    destination.write(piece)
        destination.sync()
        after = _verified(name, ordered, metadata, destination)
        for shard in {id(each.view): each.view for each in found}.values():
            shard.check()
        return Gain(
            sum(each.tensor.size_bytes for each in found),
            sum(each.tensor.size_bytes for each in found if is_aligned(each.tensor.start, each.item_bytes)),
            after,
            f"{len(found)} tensors were mapped from what was written and compared with the source bit for bit",
            notes,
            tuple(shard for shard in shards if shard != name),
        )


def _pieces(path: str, stack: contextlib.ExitStack) -> tuple[list[_Piece], dict[str, str], tuple[str, ...]]:
    """The tensors of all files in the order of their bytes, and the metadata; where files disagree the first is right."""
    found: list[_Piece] = []
    metadata: dict[str, str] = {}
    notes = []
    shards = _shards_of(path)
    for shard, names in shards:
        checked_stat(shard)
        view = View(shard)
        stack.callback(view.release)
        header = read_header(view)
        missing = set(names or ()) - {tensor.name for tensor in header.tensors}
        if missing:
            raise CorruptModelError(
                f"{shard}: expected tensor {min(missing)!r}, as the index says, found {len(header.tensors)} others;"
                " the index and its files are not of one model",
                path=shard,
            )
        wanted = None if names is None else frozenset(names)
        found += [_Piece(view, tensor) for tensor in header.tensors if wanted is None or tensor.name in wanted]
        metadata = {**header.metadata, **metadata}
    if len(shards) > 1 or shards[0][1] is not None:
        notes.append(f"{len(shards)} files became one")
    return found, metadata, tuple(notes)


def _laid_out(name: str, found: Sequence[_Piece], metadata: dict[str, str]) -> tuple[bytes, list[_Piece]]:
    """The header, its length in front of it, and the tensors in the order in which they follow."""
    ordered = list(found)
    if not _all_aligned(ordered):
        ordered.sort(key=lambda each: -each.alignment)
    fields: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for each in ordered:
        tensor = each.tensor
        offsets = [end, end + tensor.size_bytes]
        fields[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        end += tensor.size_bytes
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % ALIGNMENT_BYTES)
    if len(text) > MAX_HEADER_BYTES:
        raise PackError(f"{name}: its header would have {len(text)} bytes, and the format allows {MAX_HEADER_BYTES}", path=name)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text, ordered


def _all_aligned(ordered: Sequence[_Piece]) -> bool:
    end = 0
    for each in ordered:
        if end % each.alignment:
            return False
        end += each.tensor.size_bytes
    return True


def _verified(name: str, ordered: Sequence[_Piece], metadata: dict[str, str], destination: Destination) -> int:
    """How many bytes are aligned in what was written, after it was compared."""
    written = View(destination.part)
    try:
        header = read_header(written)
        after = [(tensor.name, tensor.dtype, tensor.shape) for tensor in header.tensors]
        if sorted(after) != sorted((each.tensor.name, each.tensor.dtype, each.tensor.shape) for each in ordered):
            raise differs(name, "other names, types or shapes")
        if header.metadata != metadata:
            raise differs(name, "other metadata")
        before = {each.tensor.name: each for each in ordered}
        for tensor in header.tensors:
            piece = before[tensor.name]
            with Source(piece.view) as source:
                compare(written, tensor.start, pieces(source, piece.tensor.start, tensor.size_bytes, tensor.name), name)
        return sum(
            tensor.size_bytes for tensor in header.tensors if is_aligned(tensor.start, before[tensor.name].item_bytes)
        )
    finally:
        written.release()
