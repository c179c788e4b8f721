"""What opening an ONNX model will take, from its headers and from what onnxruntime was measured to do with each kind of tensor.

onnxruntime 1.32, private memory over the payload, at the peak and settled:

| payload | by `view` | by `stream` | by `path` |
|---|---|---|---|
| float32 and others that its kernels read as they are | 0, 0 | 1, 1 | 1, 1; in `Constant` nodes 2, 1 |
| float16, bfloat16: converted to float32 | 2.5, 2.5 | 3.5, 3.5 | 3.5, 2.9 |
| less than a byte: unpacked and packed anew | 3, 2.8 | 4, 3.8 | 4, 3.4 |
| `optimize="speed"`, matrices: packed for the kernel | 1, 1 | 2, 2 | 2, 2 |
| `optimize="speed"`, convolutions: fused, then reordered | 4, 4 | 5, 5 | 4, 4 |

A tensor that lies in the file packed already (`Tensor.prepacked`) is packed once more, to see whether it would be so here; it
stays in the file if it is, and in memory if not.

By `path` one tensor more is in memory at the peak, the one that is being moved from the parsed file to the session. The rest is
the structure, which is read, rewritten and parsed, and what onnxruntime keeps for each node.
"""

from __future__ import annotations

from typing import NamedTuple

from mlup_stream.delivery.kinds import Delivery, Optimize
from mlup_stream.formats.onnx.layout import Layout
from mlup_stream.formats.onnx.ort import OrtModel
from mlup_stream.formats.onnx.tensor import CONSTANT, Tensor
from mlup_stream.memory.estimate import Certainty, Estimate
from mlup_stream.ml.binarization.onnx_runtime.abilities import Abilities
from mlup_stream.units import KIB, MIB

__all__ = ["estimate", "estimate_ort"]

_SESSION_BYTES = 2 * MIB
_NODE_BYTES = 4 * KIB
_STRUCTURE_COPIES = 4  # read, rewritten, parsed, and the graph that is made of it

_CONVERTED = frozenset({"float16", "bfloat16"})


class _Factor(NamedTuple):
    peak: float
    settled: float


_AS_IT_IS, _CONVERSION, _UNPACKING = _Factor(0, 0), _Factor(2.5, 2.5), _Factor(3, 2.8)
_PACKING, _REORDERING = _Factor(1.05, 1.05), _Factor(4, 4)


def estimate(layout: Layout, delivery: Delivery, optimize: Optimize, abilities: Abilities) -> Estimate:
    """What `delivery` takes with an onnxruntime that has these abilities.

    Exact where every tensor is used as it is; otherwise an upper bound.
    """
    as_bytes = delivery is Delivery.BYTES
    if not abilities.reads_inside_files or (delivery is not Delivery.VIEW and not abilities.borrows_buffers):
        delivery = Delivery.PATH  # which is also how onnxruntime goes about bytes
    rest_bytes = _SESSION_BYTES + _NODE_BYTES * layout.node_count + _STRUCTURE_COPIES * layout.structure_bytes
    peak_bytes = settled_bytes = float(rest_bytes)
    mapped_bytes = own_bytes = constant_bytes = largest_bytes = 0
    certainty = Certainty.EXACT
    for tensor in layout.tensors:
        if tensor.stays_because:
            continue
        made = _made_of(tensor, optimize)
        if made is not _AS_IT_IS:
            certainty = Certainty.CONSERVATIVE
        peak_bytes += made.peak * tensor.size_bytes
        settled_bytes += made.settled * tensor.size_bytes
        if tensor.external or delivery is Delivery.VIEW:
            mapped_bytes += tensor.size_bytes * (2 if tensor.prepacked else 1)
        else:
            own_bytes += tensor.size_bytes
            if tensor.where == CONSTANT:
                constant_bytes += tensor.size_bytes
            largest_bytes = max(largest_bytes, tensor.size_bytes)
    moving_bytes = 0
    if delivery is Delivery.PATH:
        # `Constant` nodes keep their tensors until all of them have been moved, and so does a model given as bytes.
        moving_bytes = own_bytes if as_bytes else max(constant_bytes, largest_bytes)
    settled_bytes += own_bytes
    found = Estimate(
        peak_anon_bytes=int(peak_bytes) + own_bytes + moving_bytes,
        peak_file_bytes=0,
        settled_anon_bytes=int(settled_bytes),
        settled_file_bytes=0,
        certainty=certainty,
        why="the model's headers",
        mapped_bytes=mapped_bytes,
        copy_on_write_bytes=mapped_bytes,  # onnxruntime maps external data so, although it never writes to it
    )
    return found.with_raw(layout.size_bytes) if as_bytes else found


def estimate_ort(model: OrtModel, delivery: Delivery, optimize: Optimize, abilities: Abilities) -> Estimate:
    """The same for a model in onnxruntime's own format, whose tensors are as its kernels want them.

    onnxruntime 1.32, private memory over the file, at the peak and settled: mapped 0, 0; read by itself 2 and the largest tensor,
    1. What is packed for a kernel is there once more.
    """
    packs = optimize is Optimize.SPEED or model.unpacks_weights
    packed_bytes = int(_PACKING.peak * model.payload_bytes) if packs else 0
    rest_bytes = _SESSION_BYTES + _NODE_BYTES * model.nodes + (model.size_bytes - model.payload_bytes) + packed_bytes
    certainty = Certainty.CONSERVATIVE if packs else Certainty.EXACT
    why = "the headers of the .ort model"
    if delivery is Delivery.VIEW and abilities.maps_ort:
        return Estimate.in_place(model.size_bytes, certainty=certainty, why=why, private_bytes=rest_bytes, copy_on_write=True)
    largest_bytes = max((each.size_bytes for each in model.tensors), default=0)
    settled_bytes = model.payload_bytes + rest_bytes
    peak_bytes = settled_bytes + model.size_bytes + largest_bytes
    found = Estimate.private(peak_bytes, settled_bytes, certainty=certainty, why=why)
    return found.with_raw(model.size_bytes) if delivery is Delivery.BYTES else found


def _made_of(tensor: Tensor, optimize: Optimize) -> _Factor:
    if tensor.type_name in _CONVERTED:
        return _CONVERSION
    if tensor.is_packed:
        return _UNPACKING
    if optimize is Optimize.MEMORY and not tensor.prepacked:
        return _AS_IT_IS
    return _REORDERING if len(tensor.dims) > 2 else _PACKING
