"""What does a load cost under `trust="listed"`, the first time and later?

    python profiling/trust_cost.py --size 64MiB

A scikit-learn forest by joblib and by pickle, and a pickle of small dicts, each loaded under full trust, under the lists for the
first time, and once more, when the file is known to have passed. Seconds of a load in a fresh process, medians of `--repeat`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time

import common

KINDS = ("joblib-forest", "pickle-forest", "pickle-dicts")


def seconds(path: str, trust: str, cache: str) -> float:
    """For a fresh process."""
    os.environ.update(XDG_CACHE_HOME=cache, MLUP_STREAM_LEARNED="1")
    import sklearn.ensemble  # not part of it

    from mlup_stream.up import load

    del sklearn
    begun = time.perf_counter()
    load(path, trust=trust)
    return time.perf_counter() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=common.size_argument, default="64MiB", help="of each model (default: 64MiB)")
    parser.add_argument("--repeat", type=int, default=3, help="loads of each kind (default: 3)")
    arguments = parser.parse_args()
    rows = []
    for kind in KINDS:
        common.note(kind)
        with tempfile.TemporaryDirectory(prefix="mlup-stream-profiling-") as folder:
            path = os.path.join(folder, "model")
            common.call("formats:write", case=kind, path=path, size_bytes=arguments.size)
            found: dict[str, list[float]] = {"full": [], "first": [], "later": []}
            for number in range(arguments.repeat):
                cache = os.path.join(folder, str(number))
                for name, trust in (("full", "full"), ("first", "listed"), ("later", "listed")):
                    found[name].append(common.call("trust_cost:seconds", path=path, trust=trust, cache=cache))
            size = f"{common.size_of(path) / 2**20:.0f} MiB"
        rows.append((kind, size, *(f"{statistics.median(found[name]):.2f}" for name in ("full", "first", "later"))))
    print(common.table(("model", "size", "full", "listed, the first time", "listed, later"), rows))
    print(f"\nSeconds, files in the page cache, {arguments.repeat} loads each.")
    print(common.machine(("scikit-learn", "joblib", "numpy")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
