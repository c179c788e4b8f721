"""Runs the other scripts and writes what they print to `docs/measurements.md`.

    python profiling/write_measurements.py                        # all of it: an hour and 6 GB of disk
    python profiling/write_measurements.py --sections limits      # one section anew, the others as they are
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import common

TARGET = common.HERE.parent / "docs" / "measurements.md"
PREFACE = """# Measurements

Written by `python profiling/write_measurements.py` from what the scripts print; not by hand. What each of them measures, and how,
stands at its beginning and in [profiling/README.md](../profiling/README.md).
"""


@dataclass(frozen=True)
class Section:
    """One part of the document.

    Attributes:
        title: Its heading.
        text: What stands before the output.
        commands: `mlup-stream`, or a script of `profiling/`, and its arguments; `{folder}` is one for the models.
        models: The kind and file name of each model that is made for it.
        size: Of these models.
    """

    title: str
    text: str
    commands: tuple[str, ...]
    models: tuple[tuple[str, str], ...] = ()
    size: str = "512MiB"


# In parts, because each part is a table and is kept when the next one fails.
_FORMATS = (
    "pickle-arrays,onnx,safetensors-numpy",
    "joblib-arrays,npy,npz,safetensors-torch,onnx-external",
    "pickle-forest,pickle-dicts,joblib-forest,joblib-zlib",
    "torch,gguf,keras,savedmodel",
    "lightgbm,xgboost --again",
)
_FOR_SPEED = (
    "pickle-arrays,onnx,safetensors-numpy",
    "joblib-arrays,npy,npz,pickle-forest",
    "torch,safetensors-torch,gguf",
    "lightgbm,xgboost",
)
_LIMITS = (("pickle-arrays", "arrays.pkl"), ("onnx", "network.onnx"), ("safetensors-numpy", "arrays.safetensors"))

SECTIONS = {
    "demo": Section(
        "The demo",
        "Real models, each load in a fresh process, the library's own call first.",
        ("python profiling/demo.py",),
    ),
    "libraries": Section(
        "Against each library's own call",
        "In turn with the library; see `against_libraries.py`.",
        tuple(f"against_libraries.py --size 256MiB --repeat 3 --formats {names}" for names in _FORMATS),
    ),
    "rarer": Section(
        "Against the libraries of the rarer formats",
        "The same in the environment of `make test-formats`. Of the arrays of skops those are copied that are not aligned.",
        ("against_libraries.py --size 256MiB --repeat 3 --formats ort,arrow,skops",),
    ),
    "speed": Section(
        "The same with `optimize=\"speed\"`",
        "Copies what is not aligned, prepacks, touches mapped weights ahead, builds trees in all threads.",
        tuple(f"against_libraries.py --size 256MiB --repeat 3 --optimize speed --formats {names}" for names in _FOR_SPEED),
    ),
    "predictions": Section(
        "What ONNX predictions cost",
        "Of eight matrices, 128 MiB; see `onnx_predictions.py`. Memory is over the model's size, `x2` the time at batch 2 over"
        " that of onnxruntime's own session.",
        ("onnx_predictions.py --batches 1,2,8,16,64",),
    ),
    "cold": Section(
        "The same from a cold file",
        "The file is dropped from the page cache before each load, so that reading it from the disk counts: within the load where"
        " the library reads, at the first use where the weights stay in the file.",
        ("against_libraries.py --size 256MiB --repeat 3 --cold --formats pickle-arrays,onnx,safetensors-numpy",),
    ),
    "limits": Section(
        "The smallest memory limit",
        "In which a model of 512 MiB loads and answers; see `smallest_limit.py`.",
        tuple(f"smallest_limit.py {{folder}}/{name} --deliveries library,auto" for _, name in _LIMITS),
        _LIMITS,
    ),
    "bigger": Section(
        "Bigger than memory",
        "Models of which no tenth fits into the limit; see `bigger_than_memory.py`.",
        (
            "bigger_than_memory.py --formats pickle-arrays,joblib-arrays,npy,npz,safetensors-numpy,onnx,onnx-external,gguf",
            "bigger_than_memory.py --formats safetensors-torch,torch",
        ),
    ),
    "governor": Section(
        "What the governor costs",
        "Around one load; see `governor_cost.py`.",
        ("governor_cost.py",),
    ),
    "imports": Section(
        "What importing costs",
        "`mlup_stream`, above a bare interpreter; and each framework, beside what it is said to take before it is imported."
        " See `import_cost.py` and `framework_imports.py`.",
        ("import_cost.py", "framework_imports.py"),
    ),
    "estimates": Section(
        "How good the estimates are",
        "Private memory over the file's size; see `estimates.py`.",
        (
            "estimates.py --size 128MiB --formats pickle,joblib,npy,npz,onnx,safetensors,gguf",
            "estimates.py --size 128MiB --formats torch,lightgbm,xgboost,keras,savedmodel",
        ),
    ),
    "trust": Section(
        "What trust costs",
        "A walk over stand-ins before the first load under the lists; see `trust_cost.py`.",
        ("trust_cost.py --size 64MiB",),
    ),
    "tests": Section(
        "Tests with a memory limit",
        "How often a verdict is wrong on a busy machine, and what a limited test costs; see `limited_tests.py`.",
        ("limited_tests.py --repeat 17 --busy 2",),
    ),
    "memray": Section(
        "What memray counts",
        "Maps told apart from the heap; see `memray_session.py`, which also draws the flame graphs.",
        tuple(f"memray_session.py {{folder}}/{name} --output {{folder}}/flames" for name in ("arrays.pkl", "network.onnx")),
        (("pickle-arrays", "arrays.pkl"), ("onnx", "network.onnx")),
        "256MiB",
    ),
}


def run(command: str, folder: str) -> str:
    """What the command prints, with the temporary folder's name taken out."""
    program, *rest = (part.format(folder=folder) for part in command.split())
    common.note(f"$ {command}")
    # The console script of the environment that this interpreter belongs to, whatever the PATH says.
    start = [os.path.join(os.path.dirname(sys.executable), program)] if program == "mlup-stream" else [sys.executable, program]
    done = subprocess.run([*start, *rest], cwd=common.HERE, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command} ended with {done.returncode}; the document keeps what it had of this section")
    return done.stdout.replace(folder + os.sep, "").strip()


def written(section: Section) -> Iterator[str]:
    """The section after each of its commands: a long run that is broken off is not lost."""
    parts = [f"## {section.title}\n\n{section.text}\n"]
    with tempfile.TemporaryDirectory(prefix="mlup-stream-measurements-") as folder:
        for kind, name in section.models:
            making = [sys.executable, "make_model.py", kind, os.path.join(folder, name), "--size", section.size]
            subprocess.run(making, cwd=common.HERE, stdout=subprocess.DEVNULL, check=True)
        for command in section.commands:
            shown = command.replace("{folder}/", "")
            shown = shown if shown.startswith("mlup-stream") else f"python profiling/{shown}"
            output = run(command, folder)
            # Only Markdown tables are left as they are.
            output = output if output.startswith("|") else f"```text\n{output}\n```\n\n{common.machine(_DEMO_PACKAGES)}"
            parts.append(f"`{shown}`\n\n{output}\n")
            yield "\n".join(parts)


_DEMO_PACKAGES = ("numpy", "scikit-learn", "joblib", "onnxruntime")


def put(heading: str, text: str) -> None:
    """Puts one section into the document, in the place of the one that it had, the others as they are."""
    there = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
    parts = {part.partition("\n")[0]: part.rstrip() + "\n" for part in re.split(r"^(?=## )", there, flags=re.MULTILINE)[1:]}
    parts[heading] = text
    chosen = [parts[f"## {section.title}"] for section in SECTIONS.values() if f"## {section.title}" in parts]
    TARGET.write_text("\n".join([PREFACE, *chosen]), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(SECTIONS), help=f"with commas; of {', '.join(SECTIONS)} (default: all)")
    arguments = parser.parse_args()
    wanted = arguments.sections.split(",")
    if not set(wanted) <= set(SECTIONS):
        parser.error(f"--sections: expected some of {', '.join(SECTIONS)}")
    TARGET.parent.mkdir(exist_ok=True)
    for name in wanted:
        for text in written(SECTIONS[name]):
            put(f"## {SECTIONS[name].title}", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
