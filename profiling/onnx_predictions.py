"""What does leaving an ONNX model's weights in its file cost at each prediction, and what does it save?

    python profiling/onnx_predictions.py --batches 1,2,8,64

The same matrices, one after the other: onnxruntime's own session, ours with `optimize="memory"` and `"speed"`, and ours over the
model as onnxruntime saves it with its weights packed (`session.save_external_prepacked_constant_initializers`), where they stay.
Each way in fresh processes, all ways in turn; a batch is asked a few times before it is timed. Memory is what the session added
once all batches were answered: private memory, and pages of the file, which can be taken back and are shared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from typing import Any

import common
import writers

WAYS = {
    "onnxruntime's own": (common.LIBRARY, "model"),
    'optimize="memory"': ("memory", "model"),
    'optimize="speed"': ("speed", "model"),
    "saved packed": ("memory", "packed"),
}
_WARM_UP = 3
_ASKED = 15


def pack(path: str, packed: str) -> bool:
    """Has onnxruntime save the model with its weights packed. For a fresh process."""
    import mlup_stream

    options = {
        "optimized_model_filepath": packed,
        "session.optimized_model_external_initializers_file_name": os.path.basename(packed) + ".data",
        "session.optimized_model_external_initializers_min_size_in_bytes": 4096,
        "session.save_external_prepacked_constant_initializers": 1,
    }
    mlup_stream.load(path, optimize="speed", sess_options=options)
    return True


def asked(path: str, optimize: str, batches: list[int]) -> dict[str, Any]:
    """Seconds of each prediction by batch, and the memory that the session has added. For a fresh process."""
    import numpy
    import onnxruntime

    import mlup_stream
    from mlup_stream.memory.meter import snapshot
    from mlup_stream.memory.reclaim import give_back
    from mlup_stream.ml.binarization.onnx_runtime.session import start_runtime

    start_runtime()
    give_back()
    before = snapshot()
    if optimize == common.LIBRARY:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    else:
        session = mlup_stream.load(path, optimize=optimize)
    taken = session.get_inputs()[0]
    seconds = {}
    for batch in batches:
        rows = numpy.random.default_rng(batch).standard_normal((batch, taken.shape[1]), dtype=numpy.float32)
        for _ in range(_WARM_UP):
            session.run(None, {taken.name: rows})
        seconds[batch] = []
        for _ in range(_ASKED):
            started = time.perf_counter()
            session.run(None, {taken.name: rows})
            seconds[batch].append(time.perf_counter() - started)
    give_back()
    after = snapshot()
    return {
        "seconds": list(seconds.values()),
        "anon_bytes": (after.anon_bytes or 0) - (before.anon_bytes or 0),
        "file_bytes": (after.file_bytes or 0) - (before.file_bytes or 0),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=common.size_argument, default="128MiB", help="of the weights: eight matrices")
    parser.add_argument("--batches", default="1,2,8,64")
    parser.add_argument("--repeat", type=int, default=3, help="processes for each way")
    options = parser.parse_args()
    batches = [int(each) for each in options.batches.split(",")]
    with tempfile.TemporaryDirectory(prefix="mlup-stream-predictions-") as folder:
        paths = {name: os.path.join(folder, f"{name}.onnx") for name in ("model", "packed")}
        common.note(f"writing {paths['model']}")
        writers.onnx_inside(paths["model"], options.size)
        common.call("onnx_predictions:pack", path=paths["model"], packed=paths["packed"])
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for number in range(options.repeat):
            for way, (optimize, name) in WAYS.items():
                common.note(f"{number + 1} of {options.repeat}: {way}")
                found[way].append(common.call("onnx_predictions:asked", path=paths[name], optimize=optimize, batches=batches))
        size_bytes = os.path.getsize(paths["model"])
    print(common.table(_headings(batches), [_row(way, runs, found, size_bytes) for way, runs in found.items()]))
    print(f"\n{common.machine(('onnxruntime', 'numpy'))}")
    return 0


def _headings(batches: list[int]) -> tuple[str, ...]:
    times = (f"batch {batch}, ms" for batch in batches)
    return ("session", "private", "in the file", *times, *(f"x{batch}" for batch in batches))


def _row(way: str, runs: list[dict[str, Any]], found: dict[str, list[dict[str, Any]]], size_bytes: int) -> tuple[str, ...]:
    own, library = _medians(runs), _medians(next(iter(found.values())))
    ratios = [common.ratio(int(statistics.median(run[key] for run in runs)), size_bytes) for key in ("anon_bytes", "file_bytes")]
    times = [f"{1000 * each:.1f}" for each in own]
    return (way, *ratios, *times, *(f"{a / b:.2f}" for a, b in zip(own, library, strict=True)))


def _medians(runs: list[dict[str, Any]]) -> list[float]:
    by_batch = zip(*(run["seconds"] for run in runs), strict=True)
    return [statistics.median(second for each in same for second in each) for same in by_batch]


if __name__ == "__main__":
    sys.exit(main())
