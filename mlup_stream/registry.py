"""The one table of formats: a literal row for each, and what is asked of them. Importing it imports nothing that they name.

Detection, the names of a configuration, `inspect`, `pack`, the extras and the tables in the documents are views of it. To add a
format, see CONTRIBUTING.md; one of somebody else's comes by an entry point, see `mlup_stream.plugins`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from enum import Enum
from typing import Any

from mlup_stream.errors import ConfigError
from mlup_stream.formats.kinds import Binarizer, Detector, Format, FormatSpec, Library
from mlup_stream.plugins import plugged_in

__all__ = [
    "AUTO",
    "BINARIZERS",
    "KNOWN_SUFFIXES",
    "ROWS",
    "BinarizationType",
    "Binarizer",
    "Detector",
    "Format",
    "FormatSpec",
    "Library",
    "StorageType",
    "binarization_type_of",
    "binarizer_class",
    "import_class",
    "spec_of",
    "storage_class",
]

AUTO = "auto"

_ZIP = (b"PK\3\4",)
_JSON = (b"{", b" ", b"\t", b"\r", b"\n")
_PROTOCOL = (b"\x80",)

_NUMPY = Library("numpy", (1, 24), extra="numpy")
_JOBLIB = Library("joblib", (1, 3), extra="joblib")

ROWS = (
    FormatSpec(
        Format.PICKLE,
        "pickle (protocols 0 to 5)",
        binarizers=(Binarizer("mlup_stream.ml.binarization.pickle:PickleBinarizer", ("pickle",), "PICKLE"),),
        detectors=(
            Detector("mlup_stream.formats.pickles.detection:detect_pickle", _PROTOCOL),
            Detector("mlup_stream.formats.pickles.detection:detect_bare_pickle", marked=False),
        ),
        inspector="mlup_stream.formats.pickles.detection:inspect_pickle",
        packer="mlup_stream.pack.pickles:pack_pickle",
        suffixes=(".pckl", ".pkl", ".pickle"),
        runs_code=("yes", "the format is a program for the unpickler"),
    ),
    FormatSpec(
        Format.JOBLIB,
        "joblib (plain and every compressor)",
        binarizers=(Binarizer("mlup_stream.ml.binarization.joblib:JoblibBinarizer", ("joblib",), "JOBLIB"),),
        detectors=(
            Detector("mlup_stream.formats.pickles.detection:detect_joblib", _PROTOCOL),
            Detector(
                "mlup_stream.formats.pickles.detection:detect_compressed",
                (b"\x78", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x5d\0\0", b"\x04\x22\x4d\x18", b"ZF0x"),
            ),
        ),
        inspector="mlup_stream.formats.pickles.detection:inspect_joblib",
        packer="mlup_stream.pack.pickles:pack_joblib",
        suffixes=(".joblib", ".jbl"),
        libraries=(_JOBLIB, _NUMPY, Library("lz4", (4, 0), extra="joblib")),
        runs_code=("yes", "it is a pickle"),
    ),
    FormatSpec(
        Format.NPY,
        "npy",
        binarizers=(Binarizer("mlup_stream.ml.binarization.numpy:NpyBinarizer", ("npy",), "NPY"),),
        detectors=(Detector("mlup_stream.formats.arrays.npy:detect", (b"\x93NUMPY",)),),
        inspector="mlup_stream.formats.arrays.npy:inspect",
        packer="mlup_stream.pack.npy:pack_npy",
        suffixes=(".npy",),
        libraries=(_NUMPY,),
        runs_code=('only with `binarization_kwargs={"allow_pickle": True}`', "object arrays are pickles"),
        code_options=(("allow_pickle", True),),
    ),
    FormatSpec(
        Format.NPZ,
        "npz",
        binarizers=(Binarizer("mlup_stream.ml.binarization.numpy:NpzBinarizer", ("npz",), "NPZ"),),
        detectors=(Detector("mlup_stream.formats.arrays.npz:detect", _ZIP),),
        inspector="mlup_stream.formats.arrays.npz:inspect",
        packer="mlup_stream.pack.zips:pack_npz",
        suffixes=(".npz",),
        libraries=(_NUMPY,),
        runs_code=('only with `binarization_kwargs={"allow_pickle": True}`', "object arrays are pickles"),
        code_options=(("allow_pickle", True),),
    ),
    FormatSpec(
        Format.ONNX,
        "ONNX (weights inside or in external data), onnxruntime's `.ort`",
        binarizers=(
            Binarizer("mlup_stream.ml.binarization.onnx:InferenceSessionBinarizer", ("onnx",), "ONNX_INFERENCE_SESSION"),
            Binarizer(
                "mlup_stream.ml.binarization.onnx:InferenceSessionFullReturnBinarizer",
                ("onnx-full-return",),
                "ONNX_INFERENCE_SESSION_FULL_RETURN",
            ),
        ),
        detectors=(
            Detector("mlup_stream.formats.onnx.head:detect", marked=False),
            Detector("mlup_stream.formats.onnx.head:detect_ort", (b"ORTM",), 4),
        ),
        inspector="mlup_stream.formats.onnx.head:inspect",
        packer="mlup_stream.pack.onnx:pack_onnx",
        suffixes=(".onnx", ".ort"),
        libraries=(Library("onnxruntime", (1, 17), extra="onnx"), Library("onnx", (1, 15), extra="onnx"), _NUMPY),
        runs_code=("the model's own graph, when it is asked", "a graph is code for its runtime"),
    ),
    FormatSpec(
        Format.LIGHTGBM,
        "LightGBM text",
        binarizers=(Binarizer("mlup_stream.ml.binarization.lightgbm:LightGBMBinarizer", ("lightgbm",), "LIGHTGBM"),),
        detectors=(Detector("mlup_stream.formats.trees.head:detect_lightgbm", (b"tree",)),),
        inspector="mlup_stream.formats.trees.head:inspect_lightgbm",
        nothing_to_gain="it is text, which LightGBM makes trees of",
        suffixes=(".txt", ".lgb"),
        libraries=(Library("lightgbm", (4, 0), extra="lightgbm"),),
        runs_code=("no", "numbers and text"),
    ),
    FormatSpec(
        Format.XGBOOST,
        "XGBoost (`.ubj`, `.json`)",
        binarizers=(Binarizer("mlup_stream.ml.binarization.xgboost:XGBoostBinarizer", ("xgboost",), "XGBOOST"),),
        detectors=(
            Detector("mlup_stream.formats.trees.head:detect_xgboost_ubj", (b"{",)),
            Detector("mlup_stream.formats.trees.head:detect_xgboost_json", _JSON),
        ),
        inspector="mlup_stream.formats.trees.head:inspect_xgboost",
        nothing_to_gain="XGBoost makes trees of it",
        suffixes=(".ubj", ".json"),
        libraries=(Library("xgboost", (2, 0), extra="xgboost"),),
        runs_code=("no", "numbers and text"),
    ),
    FormatSpec(
        Format.TORCH,
        "torch (`state_dict`, also sharded, whole module, the format from before 1.6)",
        binarizers=(Binarizer("mlup_stream.ml.binarization.torch:TorchBinarizer", ("torch",), "TORCH"),),
        detectors=(
            Detector("mlup_stream.formats.frameworks.torch_head:detect_zip", _ZIP),
            Detector("mlup_stream.formats.frameworks.torch_head:detect_legacy", (*_PROTOCOL, b"L1")),
            Detector("mlup_stream.formats.frameworks.torch_head:detect_tar", (b"ustar",), 257),
            Detector("mlup_stream.formats.frameworks.torch_index:detect", _JSON),
        ),
        inspector="mlup_stream.formats.frameworks.torch:inspect_torch",
        packer="mlup_stream.pack.zips:pack_torch",
        suffixes=(".pt", ".pth", ".ckpt", ".bin", ".bin.index.json"),
        libraries=(Library("torch", (2, 1), extra="torch"),),
        runs_code=("with `weights_only=False`, yes", "the format is a program for the unpickler"),
        code_options=(("weights_only", False),),
    ),
    FormatSpec(
        Format.TORCHSCRIPT,
        "TorchScript",
        binarizers=(Binarizer("mlup_stream.ml.binarization.torch:TorchJITBinarizer", ("torchscript", "torch-jit"), "TORCH_JIT"),),
        detectors=(Detector("mlup_stream.formats.frameworks.torch_head:detect_script", _ZIP),),
        inspector="mlup_stream.formats.frameworks.torch:inspect_torch",
        nothing_to_gain="torch reads its tensors into memory of its own",
        suffixes=(".torchscript", ".ts"),
        libraries=(Library("torch", (2, 1), extra="torch"),),
        runs_code=("the model's own graph, when it is asked", "a graph is code for its runtime"),
    ),
    FormatSpec(
        Format.SAFETENSORS,
        "safetensors (also sharded)",
        binarizers=(Binarizer("mlup_stream.ml.binarization.safetensors:SafetensorsBinarizer", ("safetensors",), "SAFETENSORS"),),
        detectors=(
            Detector("mlup_stream.formats.arrays.safetensors:detect", (b"{",), 8),
            Detector("mlup_stream.formats.arrays.safetensors:detect_index", _JSON),
        ),
        inspector="mlup_stream.formats.arrays.safetensors:inspect",
        packer="mlup_stream.pack.safetensors:pack_safetensors",
        suffixes=(".safetensors", ".safetensors.index.json"),
        libraries=(Library("safetensors", (0, 4), extra="safetensors"), _NUMPY),
        runs_code=("no", "numbers and text"),
    ),
    FormatSpec(
        Format.KERAS,
        "Keras (`.keras`, also unzipped, `.h5`)",
        binarizers=(
            Binarizer("mlup_stream.ml.binarization.tensorflow:TensorFlowBinarizer", ("tensorflow", "keras"), "TENSORFLOW"),
        ),
        detectors=(
            Detector("mlup_stream.formats.frameworks.keras:detect_zip", _ZIP),
            Detector("mlup_stream.formats.frameworks.keras:detect_folder", is_folder=True),
            Detector("mlup_stream.formats.frameworks.keras:detect_hdf5", (b"\x89HDF\r\n\x1a\n",)),
        ),
        inspector="mlup_stream.formats.frameworks.keras:inspect",
        nothing_to_gain="Keras copies the weights out of it into memory of its own",
        suffixes=(".keras", ".h5", ".hdf5"),
        libraries=(
            Library("tensorflow", (2, 16), extra="tensorflow", distribution="tensorflow-cpu"),
            Library("keras", (3, 0), extra="tensorflow"),
            Library("h5py", (3, 8), extra="tensorflow"),
        ),
        runs_code=("only what Keras allows; Lambda layers need its own switch", "`safe_mode` is Keras's default and is left on"),
        code_options=(("safe_mode", False), ("custom_objects", None)),
    ),
    FormatSpec(
        Format.SAVED_MODEL,
        "TensorFlow SavedModel",
        binarizers=(
            Binarizer(
                "mlup_stream.ml.binarization.tensorflow:TensorFlowSavedBinarizer",
                ("savedmodel", "tensorflow-zip"),
                "TENSORFLOW_ZIP",
            ),
        ),
        detectors=(Detector("mlup_stream.formats.frameworks.saved_model:detect", is_folder=True),),
        inspector="mlup_stream.formats.frameworks.saved_model:inspect",
        nothing_to_gain="TensorFlow reads the variables into memory of its own",
        libraries=(Library("tensorflow", (2, 16), extra="tensorflow", distribution="tensorflow-cpu"),),
        runs_code=("the model's own graph, when it is asked", "a graph is code for its runtime"),
    ),
    FormatSpec(
        Format.GGUF,
        "GGUF",
        binarizers=(Binarizer("mlup_stream.ml.binarization.gguf:GgufBinarizer", ("gguf",), "GGUF"),),
        detectors=(Detector("mlup_stream.formats.arrays.gguf:detect", (b"GGUF",)),),
        inspector="mlup_stream.formats.arrays.gguf:inspect",
        nothing_to_gain="its tensors are aligned by the format itself",
        suffixes=(".gguf",),
        libraries=(Library("gguf", (0, 10), extra="gguf"),),
        runs_code=("no", "numbers and text"),
    ),
    FormatSpec(
        Format.ARROW,
        "Arrow (IPC files, also called Feather, and streams)",
        binarizers=(Binarizer("mlup_stream.ml.binarization.arrow:ArrowBinarizer", ("arrow", "feather"), "ARROW"),),
        detectors=(
            Detector("mlup_stream.formats.arrays.arrow:detect_file", (b"ARROW1",)),
            Detector("mlup_stream.formats.arrays.arrow:detect_stream", (b"\xff\xff\xff\xff",)),
        ),
        inspector="mlup_stream.formats.arrays.arrow:inspect",
        nothing_to_gain="its buffers are aligned by the format itself; compressed ones are unpacked by writing it uncompressed",
        suffixes=(".arrow", ".feather", ".arrows", ".ipc"),
        libraries=(Library("pyarrow", (15, 0), extra="arrow"),),
        runs_code=("no", "numbers and text"),
    ),
    FormatSpec(
        Format.SKOPS,
        "skops",
        binarizers=(Binarizer("mlup_stream.ml.binarization.skops:SkopsBinarizer", ("skops",), "SKOPS"),),
        detectors=(Detector("mlup_stream.formats.frameworks.skops:detect", _ZIP),),
        inspector="mlup_stream.formats.frameworks.skops:inspect",
        packer="mlup_stream.pack.zips:pack_npz",
        suffixes=(".skops",),
        libraries=(Library("skops", (0, 16), extra="skops"), _NUMPY),
        runs_code=(
            'only of types that skops trusts, and of those in `binarization_kwargs={"trusted": [...]}`',
            "skops's own audit comes before anything is built",
        ),
    ),
    FormatSpec(
        Format.CATBOOST,
        "CatBoost (`.cbm`)",
        binarizers=(Binarizer("mlup_stream.ml.binarization.catboost:CatBoostBinarizer", ("catboost",), "CATBOOST"),),
        detectors=(Detector("mlup_stream.formats.trees.catboost:detect", (b"CBM1",)),),
        inspector="mlup_stream.formats.trees.catboost:inspect",
        nothing_to_gain="CatBoost uses it as it is",
        suffixes=(".cbm",),
        libraries=(Library("catboost", (1, 2), extra="catboost"),),
        runs_code=("no", "numbers and text"),
    ),
    FormatSpec(
        Format.FAISS,
        "faiss indexes",
        binarizers=(Binarizer("mlup_stream.ml.binarization.faiss:FaissBinarizer", ("faiss",), "FAISS"),),
        detectors=(Detector("mlup_stream.formats.arrays.faiss:detect", (b"I",)),),
        inspector="mlup_stream.formats.arrays.faiss:inspect",
        nothing_to_gain="faiss maps it as it is",
        suffixes=(".faiss",),
        libraries=(Library("faiss", (1, 13), extra="faiss", distribution="faiss-cpu"),),
        runs_code=("no", "numbers and text"),
    ),
    FormatSpec(
        Format.USEARCH,
        "usearch indexes",
        binarizers=(Binarizer("mlup_stream.ml.binarization.usearch:UsearchBinarizer", ("usearch",), "USEARCH"),),
        # Its mark lies behind its vectors, wherever that is.
        detectors=(Detector("mlup_stream.formats.arrays.usearch:detect", marked=False),),
        inspector="mlup_stream.formats.arrays.usearch:inspect",
        nothing_to_gain="usearch maps it as it is",
        suffixes=(".usearch",),
        libraries=(Library("usearch", (2, 9), extra="usearch"),),
        runs_code=("no", "numbers and text"),
    ),
    FormatSpec(
        Format.TFLITE,
        "TensorFlow Lite (LiteRT)",
        binarizers=(Binarizer("mlup_stream.ml.binarization.tflite:TfliteBinarizer", ("tflite", "litert"), "TFLITE"),),
        detectors=(Detector("mlup_stream.formats.frameworks.tflite:detect", (b"TFL3",), 4),),
        inspector="mlup_stream.formats.frameworks.tflite:inspect",
        nothing_to_gain="the interpreter maps it as it is",
        suffixes=(".tflite",),
        libraries=(Library("ai_edge_litert", (1, 2), extra="tflite", distribution="ai-edge-litert"),),
        runs_code=("the model's own graph, when it is asked", "a graph is code for its runtime"),
    ),
)

_MEMORY = Binarizer("mlup_stream.ml.binarization.memory:MemoryBinarizer", ("memory",), "MEMORY")
"""For models that are in memory already: it reads no format."""

_OURS = (_MEMORY, *(binarizer for row in ROWS for binarizer in row.binarizers))

BINARIZERS = {binarizer.member: binarizer.import_path for binarizer in _OURS}
"""The values of `BinarizationType`."""

KNOWN_SUFFIXES = tuple(suffix for row in ROWS for suffix in row.suffixes)


class StorageType(Enum):
    """Where the model lies."""

    memory = "mlup_stream.ml.storage.memory.MemoryStorage"
    disk = "mlup_stream.ml.storage.local_disk.DiskStorage"


class BinarizationType(Enum):
    """What builds the model object from the file."""

    MEMORY = BINARIZERS["MEMORY"]
    PICKLE = BINARIZERS["PICKLE"]
    JOBLIB = BINARIZERS["JOBLIB"]
    NPY = BINARIZERS["NPY"]
    NPZ = BINARIZERS["NPZ"]
    ONNX_INFERENCE_SESSION = BINARIZERS["ONNX_INFERENCE_SESSION"]
    ONNX_INFERENCE_SESSION_FULL_RETURN = BINARIZERS["ONNX_INFERENCE_SESSION_FULL_RETURN"]
    LIGHTGBM = BINARIZERS["LIGHTGBM"]
    XGBOOST = BINARIZERS["XGBOOST"]
    TORCH = BINARIZERS["TORCH"]
    TORCH_JIT = BINARIZERS["TORCH_JIT"]
    SAFETENSORS = BINARIZERS["SAFETENSORS"]
    TENSORFLOW = BINARIZERS["TENSORFLOW"]
    TENSORFLOW_ZIP = BINARIZERS["TENSORFLOW_ZIP"]
    GGUF = BINARIZERS["GGUF"]
    ARROW = BINARIZERS["ARROW"]
    SKOPS = BINARIZERS["SKOPS"]
    CATBOOST = BINARIZERS["CATBOOST"]
    FAISS = BINARIZERS["FAISS"]
    USEARCH = BINARIZERS["USEARCH"]
    TFLITE = BINARIZERS["TFLITE"]


def spec_of(format: str) -> FormatSpec:
    """The row of a format, by its name.

    Raises:
        ConfigError: No row has that name.
    """
    for rows in (lambda: ROWS, plugged_in):
        for row in rows():
            if row.name == format:
                return row
    known = tuple(row.name for row in (*ROWS, *plugged_in()))
    raise ConfigError(
        f"format={str(format)!r} is not known; expected one of {', '.join(known)}", field="format", value=format, allowed=known
    )


def binarization_type_of(format: str) -> BinarizationType | str:
    """What detection writes into the configuration for `format`: a member, or the import path of somebody else's binarizer."""
    path = spec_of(format).binarizers[0].import_path
    return BinarizationType(path) if path in BINARIZERS.values() else path


def binarizer_class(value: Any) -> type[Any]:
    """The binarizer that a configuration means: a class, a `BinarizationType`, its name, a short name, or an import path."""
    names = _names(_OURS)
    if isinstance(value, str) and _find(value, names) is None and not value.rpartition(".")[0]:
        names |= _names(binarizer for row in plugged_in() for binarizer in row.binarizers)
    return _resolve("binarization_type", value, names, requires="deserialize")


def _names(binarizers: Iterable[Binarizer]) -> dict[str, str]:
    return {name: each.import_path for each in binarizers for name in (*each.names, each.member) if name}


def storage_class(value: Any) -> type[Any]:
    """The storage that a configuration means: a class, a `StorageType`, its name, or an import path."""
    return _resolve("storage_type", value, {each.name: each.value for each in StorageType}, requires="load")


def _find(value: str, names: dict[str, str]) -> str | None:
    return names.get(value) or names.get(value.replace("_", "-").lower()) or names.get(value.upper())


def _resolve(field: str, value: Any, names: dict[str, str], *, requires: str) -> type[Any]:
    chosen = value
    if isinstance(value, str):
        chosen = _find(value, names) or value
    elif isinstance(value, Enum):
        chosen = value.value
    if isinstance(chosen, str):
        chosen = import_class(field, chosen, tuple(names))
    if not isinstance(chosen, type) or not callable(getattr(chosen, requires, None)):
        raise ConfigError(
            f"{field}={value!r} is not valid; expected a class with a method {requires!r}, its import path, or one of"
            f" {', '.join(sorted(names))}",
            field=field,
            value=value,
            allowed=tuple(sorted(names)),
        )
    return chosen


def import_class(field: str, path: str, names: tuple[str, ...] = ()) -> type[Any]:
    """The class at a dotted import path. A path of the old `mlup` package leads to the class of the same name here.

    Raises:
        ConfigError: There is no such module or class; the message suggests the nearest known name.
    """
    module_name, _, class_name = path.rpartition(".")
    if module_name.startswith("mlup.ml."):
        module_name = module_name.replace("mlup.", "mlup_stream.", 1)
    problem: Exception | None = None
    if module_name:
        try:
            found = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError, ValueError) as error:
            problem = error
        else:
            return found  # type: ignore[no-any-return]  # what it is, the caller checks
    near = difflib.get_close_matches(path, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected an import path or one of {', '.join(sorted(names))}"
    why = f" ({problem})" if problem else ""
    raise ConfigError(f"{field}={path!r} cannot be resolved{why}; {hint}", field=field, value=path, allowed=names) from problem
