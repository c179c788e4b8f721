"""Which tensors stayed in their file, by the maps that the process has of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("onnxruntime", reason="what places the tensors")

from mlup_stream.ml.binarization.onnx_runtime.placement import Placed, placement_of


def placed(offset: int, size_bytes: int) -> Placed:
    tensor: Any = SimpleNamespace(size_bytes=size_bytes, field=("field", offset), stays_because="")
    return Placed(tensor, "w.bin", offset)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)])
def test_tensors_are_found_in_their_maps_in_any_order(order: tuple[int, ...]) -> None:
    """The second of three lies between the maps: in whatever order a model names them, that one did not stay."""
    tensors = [placed(0, 100), placed(12288, 5000), placed(20480, 1000)]
    maps = {"w.bin": [(0, 8192), (4096, 12288), (20480, 24576)]}
    found = placement_of([tensors[index] for index in order], (), maps)
    assert (found.mapped_bytes, found.copied_bytes) == (1100, 5000)
