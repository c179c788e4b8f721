"""Where a session's weights ended up: what onnxruntime left in a file, and what it made copies of.

Whether a weight stays where it lies is decided inside onnxruntime, operator by operator, after it has mapped it: packing it for a
kernel, folding it, fusing it or converting its type makes a copy and gives the map back. So the answer is read off the maps that
are left.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mlup_stream.delivery.placement import Placement
from mlup_stream.formats.onnx.tensor import Tensor
from mlup_stream.formats.onnx.wire import Field

__all__ = ["NewMaps", "Placed", "placement_of"]

_MAPS = "/proc/self/maps"

_Ranges = list[tuple[int, int]]


class Placed(NamedTuple):
    """A tensor that was handed to onnxruntime as external data, and where; one that lies there twice comes twice."""

    tensor: Tensor
    path: str
    offset: int


class NewMaps:
    """The maps of some files that this process makes from now on.

    Args:
        paths: The files.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._names = {os.path.realpath(path): path for path in paths}
        self._inodes: dict[int, str] = {}
        for path in self._names.values():
            with contextlib.suppress(OSError):
                self._inodes[os.stat(path).st_ino] = path
        # There are a thousand lines about libraries, and to take each of them apart costs as much as opening a small model.
        self._marks = (*(f" {inode} " for inode in self._inodes), *self._names)
        self._before = {start for _, start, _, _ in self._all()}

    def ranges(self) -> dict[str, _Ranges] | None:
        """By path the ranges of the file that are mapped, from and to (exclusive), sorted; None where that cannot be known."""
        if not os.path.exists(_MAPS):
            return None
        found: dict[str, _Ranges] = {}
        for path, start, begin, end in self._all():
            if start not in self._before:
                found.setdefault(path, []).append((begin, end))
        return {path: sorted(ranges) for path, ranges in found.items()}

    def _all(self) -> Iterator[tuple[str, int, int, int]]:
        # Source: proc_pid_maps(5): "start-end perms offset dev inode path", in hexadecimal but for the inode. Layered file
        # systems show another inode there than stat does, and the path decides; a file that was renamed has another path.
        if not self._names or not os.path.exists(_MAPS):
            return
        with open(_MAPS, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                if not any(mark in line for mark in self._marks):
                    continue
                fields = line.rstrip("\n").split(maxsplit=5)
                if len(fields) < 6 or not fields[5].startswith("/"):
                    continue
                path = self._inodes.get(int(fields[4])) or self._names.get(fields[5])
                if path is not None:
                    start, stop = (int(address, 16) for address in fields[0].split("-"))
                    begin = int(fields[2], 16)
                    yield path, start, begin, begin + stop - start


def placement_of(placed: Iterable[Placed], stayed: Iterable[Tensor], maps: dict[str, _Ranges] | None) -> Placement:
    """What became of a model's payload.

    Args:
        placed: What was handed over as external data.
        stayed: Tensors that had to be part of the model that onnxruntime was given.
        maps: What is mapped of which file; None if that is not known, when all that was handed over is taken to be.
    """
    mapped_bytes = copied_bytes = 0
    reasons: Counter[str] = Counter()
    by_path: dict[str, list[Placed]] = {}
    for each in placed:
        by_path.setdefault(each.path, []).append(each)
    by_field: dict[Field, list[Placed]] = {}
    staying: set[Field] = set()
    for path, tensors in by_path.items():
        for each, stays in _covered(tensors, None if maps is None else maps.get(path, [])):
            by_field.setdefault(each.tensor.field, []).append(each)
            if stays:
                staying.add(each.tensor.field)
    for field, places in by_field.items():
        if field in staying:
            mapped_bytes += places[0].tensor.size_bytes
        else:
            copied_bytes += places[0].tensor.size_bytes
            reasons["onnxruntime packed, folded, fused or converted it"] += 1
    for tensor in stayed:
        copied_bytes += tensor.size_bytes
        reasons[tensor.stays_because] += 1
    told = tuple(f"{_tensors(count)}: {reason}" for reason, count in sorted(reasons.items()))
    return Placement(mapped_bytes, copied_bytes, told)


def _covered(tensors: list[Placed], ranges: _Ranges | None) -> Iterator[tuple[Placed, bool]]:
    """Each of them, and whether the ranges hold its bytes."""
    index = reach = 0
    for each in sorted(tensors, key=lambda one: one.offset):
        while ranges is not None and index < len(ranges) and ranges[index][0] <= each.offset:
            reach = max(reach, ranges[index][1])
            index += 1
        yield each, ranges is None or reach >= each.offset + each.tensor.size_bytes


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count} tensors"
