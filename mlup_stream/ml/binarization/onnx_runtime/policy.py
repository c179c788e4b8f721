"""What onnxruntime is told about memory and speed, and why.

`optimize="speed"` leaves onnxruntime's defaults alone. `optimize="memory"` switches off what copies weights while a session is
built; measured with onnxruntime 1.32 on two x86-64 cores, private memory over the payload, time of one prediction:

| model | onnxruntime's defaults | `memory` | |
|---|---|---|---|
| MatMul, 512 MiB | 1.97, 20 ms | 0.00, 35 ms | batch of 8; at 1 and 64 about equal |
| transformer, 324 MiB | 1.57, 53 ms | 0.01, 98 ms | |
| convolutions with batch normalisation, 243 MiB | 3.12, 300 ms | 0.01, 500 ms | |
| int8, QuantizeLinear around MatMul, 64 MiB | 2.03, 12 ms | 0.03, 39 ms | |
| float16, 128 MiB | 2.89, 59 ms | 2.45, 152 ms | its kernels are float32: the weights are converted |

Predictions differ in the last bits between the two, because packed weights are multiplied in another order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mlup_stream.delivery.kinds import Optimize
from mlup_stream.formats.onnx.layout import Layout
from mlup_stream.formats.onnx.ort import OrtModel
from mlup_stream.units import MIB

__all__ = ["Policy", "policy_for", "policy_for_ort"]

_WEIGHT_COPYING_OPTIMIZERS = frozenset(
    {
        "ConvBNFusion",  # multiplies the weights by what follows the convolution
        "ConvMulFusion",
        "NchwcTransformer",  # reorders the weights of convolutions in blocks of channels
    }
)
"""Where an unfused graph works on the weights as they are. Others that copy save more at each prediction than they take."""

_FOLDING_LIMIT = {"optimization.constant_folding_max_output_size_in_bytes": str(1 * MIB)}
"""A weight that is only transposed is then multiplied transposed (`MatmulTransposeFusion`), from where it lies; folded, it
would be a copy. Known since onnxruntime 1.27; others ignore it."""

_NO_PREPACKING = {"session.disable_prepacking": "1"}

_QUIET = 3
"""onnxruntime warns of each constant that the limit above keeps from being folded; errors are still written."""


@dataclass(frozen=True)
class Policy:
    """Settings of one session.

    Attributes:
        entries: Configuration entries of the session, unless the user has set them.
        disabled_optimizers: Graph optimisations that are left out, besides those that the user leaves out.
        log_severity_level: For the session's log; None leaves it as it is.
    """

    entries: dict[str, str] = field(default_factory=dict)
    disabled_optimizers: frozenset[str] = frozenset()
    log_severity_level: int | None = None


def policy_for(optimize: Optimize, layout: Layout) -> Policy:
    """The settings for a model."""
    if optimize is Optimize.SPEED:
        return Policy()
    entries: dict[str, str] = {}
    # What lies in the file packed already is mapped from there, and stays that way only while packing is on.
    if not layout.unpacks_weights and not any(tensor.prepacked for tensor in layout.tensors):
        # Weights of 4 bits would be unpacked at every prediction: 30 times slower, and five times the model in memory.
        entries |= _NO_PREPACKING
    if layout.transposes_weights:
        return Policy({**entries, **_FOLDING_LIMIT}, _WEIGHT_COPYING_OPTIMIZERS, _QUIET)
    return Policy(entries, _WEIGHT_COPYING_OPTIMIZERS)


def policy_for_ort(optimize: Optimize, model: OrtModel) -> Policy:
    """The settings for a model in onnxruntime's own format, whose graph was optimised when it was written."""
    entries = {"session.load_model_format": "ORT"}
    packs = optimize is Optimize.SPEED or model.unpacks_weights
    return Policy(entries if packs else entries | _NO_PREPACKING)
