"""What does a TensorFlow Lite model cost that leaves its weights in the file? Seconds of a prediction without and with XNNPACK.

    python profiling/tflite_speed.py --size 64MiB

Each in a fresh process: a chain of products with matrices of 1024 x 1024, of one row and of 64; the median of 20 predictions.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from typing import Any

import common


def predict(path: str, optimize: str, rows: int) -> dict[str, Any]:
    """Seconds of a prediction, and private memory of the load. For a fresh process."""
    import numpy

    import mlup_stream as mlup

    with mlup.open(path, optimize=optimize) as loaded:
        model, memory = loaded.model, loaded.report.memory
        given = model.get_input_details()[0]["index"]
        model.resize_tensor_input(given, (rows, 1024))
        model.allocate_tensors()
        model.set_tensor(given, numpy.ones((rows, 1024), "f4"))
        model.invoke()
        seconds = []
        for _ in range(20):
            before = time.perf_counter()
            model.invoke()
            seconds.append(time.perf_counter() - before)
        return {"seconds": statistics.median(seconds), "anon": memory.settled.anon_bytes - memory.baseline.anon_bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=common.size_argument, default="64MiB", help="of the model (default: 64MiB)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlup-stream-profiling-") as folder:
        path = os.path.join(folder, "model.tflite")
        common.call("formats:write", case="tflite", path=path, size_bytes=arguments.size)
        size_bytes = os.path.getsize(path)
        table = []
        for rows in (1, 64):
            for optimize in ("memory", "speed"):
                found = common.call("tflite_speed:predict", path=path, optimize=optimize, rows=rows)
                milliseconds = f"{found['seconds'] * 1000:.1f} ms"
                table.append([str(rows), optimize, milliseconds, common.ratio(found["anon"], size_bytes)])
    print(common.table(("rows", "optimize", "a prediction", "private memory / file"), table, left=2))
    print(f"\n{common.machine(('ai-edge-litert',))}")


if __name__ == "__main__":
    main()
