"""The formats of this package by name, and what a row of the registry says of a format: its own, or somebody else's.

A row holds no function, only where one is ("package.module:function"): making it imports nothing.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

__all__ = ["Binarizer", "Detector", "Format", "FormatSpec", "Library", "function_at", "name_of"]


class Format(str, Enum):
    """The names that a report, an error and the command line use; a format of somebody else's has its name as a plain `str`."""

    PICKLE = "pickle"
    JOBLIB = "joblib"
    NPY = "npy"
    NPZ = "npz"
    ONNX = "onnx"
    LIGHTGBM = "lightgbm"
    XGBOOST = "xgboost"
    TORCH = "torch"
    TORCHSCRIPT = "torchscript"
    SAFETENSORS = "safetensors"
    KERAS = "keras"
    SAVED_MODEL = "savedmodel"
    GGUF = "gguf"
    ARROW = "arrow"
    SKOPS = "skops"
    CATBOOST = "catboost"
    FAISS = "faiss"
    USEARCH = "usearch"
    TFLITE = "tflite"


class Binarizer(NamedTuple):
    """What builds the model object.

    Attributes:
        at: Where its class is.
        names: What a configuration may call it, besides its class and its import path.
        member: The name of its member in `BinarizationType`; empty for somebody else's.
    """

    at: str
    names: tuple[str, ...] = ()
    member: str = ""

    @property
    def import_path(self) -> str:
        """The dotted path that a configuration holds."""
        return self.at.replace(":", ".")


class Detector(NamedTuple):
    """What tells that a file is of the format.

    Attributes:
        at: Where the function is: `(Peek) -> str | None`, what it saw in words, or None. It imports no library.
        begins: What the file must have at `offset` for the function to be asked, one of these; empty asks it of every file.
        offset: Where `begins` lies, within the first `END_BYTES` bytes.
        is_folder: Whether it looks at folders; otherwise at files.
        marked: Whether what it looks for is unmistakable. The others are asked only if none of these claims the file.
    """

    at: str
    begins: tuple[bytes, ...] = ()
    offset: int = 0
    is_folder: bool = False
    marked: bool = True


class Library(NamedTuple):
    """A library that a format needs or can use.

    Attributes:
        module: What is imported.
        minimum: The oldest version that has what is called, not the newest that was seen.
        extra: The extra of this package that installs it; empty for somebody else's.
        distribution: What `pip` calls it, where that is not `module`.
    """

    module: str
    minimum: tuple[int, ...] = ()
    extra: str = ""
    distribution: str = ""

    @property
    def to_install(self) -> str:
        """What to give to `pip install`."""
        return f'"mlup-stream[{self.extra}]"' if self.extra else self.distribution or self.module


@dataclass(frozen=True)
class FormatSpec:
    """One format: all that the rest of the package has to know of it.

    Attributes:
        format: A `Format`, or the name of somebody else's.
        title: What it is called in documents.
        binarizers: What builds its models; detection chooses the first.
        detectors: What tells that a file is of this format.
        inspector: Where the function is that says what the headers say: `(path, buffer or file, name) -> dict`, for JSON.
        packer: Where the function is that rewrites a file of it: `(View, Destination) -> Gain`; empty if there is none.
        nothing_to_gain: Why there is none.
        suffixes: How its files are called. A name makes a file a candidate in a folder, and breaks ties; it decides nothing else.
        libraries: What it needs, the first of all what builds its models.
        runs_code: Whether loading runs code that the file chooses, and why, for `docs/security.md`.
        code_options: The options of its binarizers by which the library is told to run what the file brings, each with the value
            that says so; None is any.
        origin: The distribution and entry point that the row came from; empty for this package's.
    """

    format: str
    title: str
    binarizers: tuple[Binarizer, ...]
    detectors: tuple[Detector, ...] = ()
    inspector: str = ""
    packer: str = ""
    nothing_to_gain: str = ""
    suffixes: tuple[str, ...] = ()
    libraries: tuple[Library, ...] = ()
    runs_code: tuple[str, str] = ("", "")
    code_options: tuple[tuple[str, Any], ...] = ()
    origin: str = ""

    @property
    def name(self) -> str:
        """The format's name as a plain `str`."""
        return name_of(self.format)

    @property
    def is_program(self) -> bool:
        """Whether loading it runs what the file chooses whatever the options are."""
        return self.runs_code[0].startswith("yes")


def name_of(format: str) -> str:
    """The name of a format as a plain `str`."""
    return format.value if isinstance(format, Format) else format


@functools.cache
def function_at(place: str) -> Any:
    """The function or class at "package.module:name".

    Raises:
        ImportError, AttributeError, ValueError: There is none.
    """
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
