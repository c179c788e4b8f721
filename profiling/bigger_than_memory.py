"""Does a model that is bigger than the memory load and answer? Every format whose weights stay in the file, against its library.

    python profiling/bigger_than_memory.py --sizes 512MiB,2GiB

The limit is what the same process needs for its imports alone (see `smallest_limit.py`) and `--room` more: none of the model.
Each model is made, loaded by its library and by `auto` under that limit, from a cold file, asked once, and removed. An answer
counts only if it is the one that the library gives without a limit.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator

import common
import formats
import limiters
from common import LIBRARY
from smallest_limit import IMPORTS, Search

from mlup_stream.units import MIB

IN_PLACE = (
    "pickle-arrays",
    "joblib-arrays",
    "npy",
    "npz",
    "safetensors-numpy",
    "safetensors-torch",
    "torch",
    "onnx",
    "onnx-external",
    "gguf",
)
_MOST_BYTES = {"onnx": 1920 * MIB}
"""A message of protobuf ends before 2 GiB: larger models have external data."""
HEADINGS = ("format", "model", "imports alone", "limit", "library's own call", "mlup_stream, auto")


def rows(arguments: argparse.Namespace, limiter: limiters.Limiter, folder: str) -> Iterator[list[str]]:
    for name in arguments.formats.split(","):
        case = formats.case_named(name.strip())
        if not formats.is_installed(case):
            common.note(f"{case.name}: not installed")
            continue
        bare_bytes = None
        for size_bytes in arguments.sizes:
            path = os.path.join(folder, f"model{case.suffix}")
            written_bytes = min(size_bytes, _MOST_BYTES.get(case.name, size_bytes))
            common.call("formats:write", case=case.name, path=path, size_bytes=written_bytes)
            try:
                search = Search(arguments, path, case.name, limiter)
                search.learn_the_answer()
                if bare_bytes is None:
                    bare_bytes = search.run(IMPORTS)["limit_bytes"]
                limit_bytes = bare_bytes + arguments.room
                told = [_told(search.fits(way, limit_bytes)) for way in (LIBRARY, "auto")]
                sizes = [f"{each / MIB:.0f} MiB" for each in (common.size_of(folder), bare_bytes, limit_bytes)]
                yield [case.name, *sizes, *told]
            finally:
                for each in os.listdir(folder):
                    os.unlink(os.path.join(folder, each))


def _told(seconds: float | None) -> str:
    return "does not" if seconds is None else f"answers, {seconds:.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="512MiB,2GiB", help="of the models, with commas (default: 512MiB,2GiB)")
    parser.add_argument("--room", type=common.size_argument, default="48MiB", help="above the imports (default: 48MiB)")
    parser.add_argument("--formats", default=",".join(IN_PLACE), help="with commas (default: those that stay in the file)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds until a try counts as failed (default: 120)")
    # What `Search` wants to know besides.
    parser.set_defaults(precision=4 * MIB, highest=32 << 30, optimize="memory", ask=None)
    arguments = parser.parse_args()
    arguments.sizes = [common.size_argument(size) for size in arguments.sizes.split(",")]
    limiter = limiters.find_limiter()
    with tempfile.TemporaryDirectory(prefix="mlup-stream-bigger-") as folder:
        found = list(rows(arguments, limiter, folder))
    print(common.table(HEADINGS, found))
    print(f"\nLimited by: {limiter.name}. From a cold file; the seconds are of the load and one answer, which reads it all.")
    print(common.machine(("numpy", "joblib", "onnxruntime", "safetensors", "torch", "gguf")))
    return int(any(row[-1] == _told(None) for row in found))


if __name__ == "__main__":
    sys.exit(main())
