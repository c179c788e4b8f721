"""Writes a model of a format and a size, for the other scripts.

    python profiling/make_model.py pickle-arrays model.pkl --size 512MiB
"""

from __future__ import annotations

import argparse
import os
import sys

import common
import formats


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = [case.name for case in formats.CASES]
    parser.add_argument("kind", choices=kinds, metavar="KIND", help=f"one of: {'; '.join(kinds)}")
    parser.add_argument("path", help="a file, or a folder for a savedmodel")
    parser.add_argument("--size", type=common.size_argument, default="256MiB", help="default: 256MiB")
    arguments = parser.parse_args()
    if os.path.exists(arguments.path):
        parser.error(f"{arguments.path}: exists already")
    common.call("formats:write", case=arguments.kind, path=os.path.abspath(arguments.path), size_bytes=arguments.size)
    print(f"{arguments.path}: {common.size_of(arguments.path) / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
