"""What one load takes, measured in a fresh process: the material of the memory equations of single binarizers.

    took = measure_load("mlup_stream.ml.binarization.torch.TorchBinarizer", path, "view", answer_of="float(model['w'].sum())")
    assert took.peak_anon_bytes <= objects + slack

Imports are done before, what the load took is read before the model is asked, and the answer shows that it was really there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from child import run_child

__all__ = ["SLACK_BYTES", "Took", "measure_load"]

SLACK_BYTES = 4 * 1024 * 1024
"""Of the allocator's arenas, lazily imported modules and the kernel's per-CPU counters."""

_CODE = """
import gc, importlib, warnings
warnings.simplefilter("ignore")
from mlup_stream.delivery.kinds import Delivery, MappingMode, Optimize
from mlup_stream.delivery.artifact import artifact_of
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.delivery.terms import Terms
from mlup_stream.memory.meter import PeakMeter, snapshot
from mlup_stream.memory.reclaim import give_back

module_name, _, class_name = binarizer.rpartition(".")
binarizer = getattr(importlib.import_module(module_name), class_name)
for name in imports:
    importlib.import_module(name)
artifact = artifact_of(LoadedFile(path=path))
terms = Terms(Delivery(delivery), MappingMode(mapping), Optimize(optimize), options)
binarizer.prepare_for(options)
exec(warm_up)
estimate = binarizer.estimate(artifact, terms)
gc.collect()
with PeakMeter() as meter:
    model = binarizer.build(artifact, terms).model
    artifact.check()
give_back(artifact.release)
settled = snapshot()
answer({
    "peak_bytes": meter.peak.rss_bytes - meter.baseline.rss_bytes,
    "peak_anon_bytes": min(
        meter.peak.anon_high_bytes - meter.baseline.anon_bytes, meter.peak.rss_bytes - meter.baseline.rss_bytes
    ),
    "settled_bytes": settled.rss_bytes - meter.baseline.rss_bytes,
    "settled_anon_bytes": settled.anon_bytes - meter.baseline.anon_bytes,
    "answer": eval(answer_of),
    "estimate": estimate and estimate.to_dict(),
})
"""


class Took(NamedTuple):
    """What a load took on top of the baseline, in bytes, what the model answered, and what had been estimated.

    Private memory cannot have grown by more than RSS: no pages of files go meanwhile, there is memory enough. Its proof by page
    faults counts the huge pages of other processes too, such as of the test that runs beside this one.
    """

    peak_bytes: int
    peak_anon_bytes: int
    settled_bytes: int
    settled_anon_bytes: int
    answer: Any
    estimate: dict[str, Any] | None


def measure_load(
    binarizer: str,
    path: Path,
    delivery: str,
    *,
    answer_of: str,
    imports: tuple[str, ...] = (),
    warm_up: str = "",
    mapping: str = "auto",
    optimize: str = "memory",
    **options: Any,
) -> Took:
    """Loads `path` once and says what it took.

    Args:
        binarizer: Its import path.
        answer_of: An expression over `model` that depends on the whole payload.
        imports: What else to import first.
        warm_up: Code to run before anything is measured: the first use of a library allocates what later ones find.
        options: What `binarization_kwargs` would hold.
    """
    return Took(
        **run_child(
            _CODE,
            binarizer=binarizer,
            path=str(path),
            delivery=delivery,
            answer_of=answer_of,
            imports=imports,
            warm_up=warm_up,
            mapping=mapping,
            optimize=optimize,
            options=options,
        )
    )
