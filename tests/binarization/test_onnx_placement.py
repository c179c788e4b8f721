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
    """Two of three lie in maps, which overlap; in whatever order a model names them, as many bytes are said to have stayed."""
    tensors = [placed(0, 100), placed(4096, 1000), placed(16384, 5000)]
    found = placement_of([tensors[index] for index in order], (), {"w.bin": [(0, 8192), (4096, 12288)]})
    assert (found.mapped_bytes, found.copied_bytes) == (1100, 5000)
