"""What files that are no model here often turn out to be, so that the message can say so and what to do.

Sources: each format's own magic number (fastText's 793712314, TensorRT's `ptrt` and `ftrt`; CTranslate2's version and the name
of its specification); what TorchServe's archiver, PaddlePaddle, spaCy, H2O, LIBSVM and ncnn write; the Git LFS pointer
specification, version 1; the file identifiers of flatbuffers, at offset 4 (`ET12`); CoreML's `Model.proto`,
TensorFlow's `saved_model.proto` and `graph.proto`, and the footer of its tables (`table/format.h`); what `dump_model` of
LightGBM and XGBoost and `to_json` of Keras write.
"""

from __future__ import annotations

import os
import re

from mlup_stream.formats.peek import Peek

__all__ = ["known_non_model"]


def known_non_model(peek: Peek) -> str | None:
    """What it looks like, and what to do about it; None if nobody knows."""
    if peek.entries is not None:
        return _first(_FOLDERS, "\n".join(peek.entries[:_MAX_ENTRIES]))
    for begins, what in _BEGINNINGS:
        if re.match(begins, peek.head, re.DOTALL | re.IGNORECASE):
            return what
    if peek.head.startswith(b"\x08"):
        return _versioned_protobuf(peek)
    if peek.members:
        return _zip(peek.members)
    for ends, what in _ENDINGS:
        if peek.tail.endswith(ends):
            return what
    return _first(_NAMES, peek.name) or _beside(peek.name)


def _beside(name: str) -> str | None:
    """What a file is that says nothing of itself, by one beside it that does."""
    graph = re.sub(r"\.bin$", ".xml", name, flags=re.IGNORECASE)
    return f"perhaps {_OPENVINO_WEIGHTS}" if graph != name and os.path.isfile(graph) else None


def _first(table: tuple[tuple[str, str], ...], text: str) -> str | None:
    return next((what for pattern, what in table if re.search(pattern, text, re.MULTILINE | re.IGNORECASE)), None)


def _zip(members: tuple[str, ...]) -> str:
    found = _first(_ZIPS, "\n".join(members))
    if found is not None:
        return found
    shown = ", ".join(members[:5]) + (f" and {len(members) - 5} more" if len(members) > 5 else "")
    return f"a zip that is no model: it has {shown}"


def _versioned_protobuf(peek: Peek) -> str | None:
    """A version in field 1 and a message in field 2: a SavedModel ends after it, or repeats it; CoreML's model comes next."""
    if not re.match(rb"\x08[\x01-\x1f]\x12", peek.head):
        return None
    length, position = 0, 3
    for index, byte in enumerate(peek.head[3:13]):
        length |= (byte & 0x7F) << 7 * index
        position += 1
        if not byte & 0x80:
            break
    follows = peek.at(position + length, 1)
    if peek.head[1] == 1 and follows in (b"", b"\x12"):
        return "perhaps the saved_model.pb of a TensorFlow SavedModel; give its folder"
    if follows and (follows == b"\x50" or follows[0] & 0x80):  # isUpdatable, or a number above 15: the kinds begin at 200
        return _read_by("a CoreML model", "coremltools, on macOS")
    return None


_MAX_ENTRIES = 1000
_NO_BINARIZER = "there is no binarizer for it: export the model as ONNX, or write one and name it in binarization_type"


def _read_by(what: str, library: str) -> str:
    return f"{what}; {library} reads it, and {_NO_BINARIZER}"


_OPENVINO = _read_by("the graph of an OpenVINO model, whose weights are in a .bin beside it", "openvino.Core().read_model")
_OPENVINO_WEIGHTS = _read_by("the weights of an OpenVINO model, whose graph is the .xml beside it", "openvino.Core().read_model")
_CTRANSLATE2 = _read_by("a CTranslate2 model", "ctranslate2.Translator or .Generator, given its folder,")
_CHECKPOINT = "part of a TensorFlow checkpoint, which holds weights alone; save the whole model as a SavedModel or .keras"

_XML = rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--(?:(?!-->).)*-->\s*)*"
"""What may come before the first element."""

_BEGINNINGS = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself; run: git lfs pull"),
    (_XML + rb"<net\s", _OPENVINO),
    (_XML + rb"<PMML\s", _read_by("a PMML model", "jpmml_evaluator or pypmml")),
    (rb"\s*<(?:!doctype|html|\?xml)", "a web page or XML, perhaps an error page that was saved as the model; download it again"),
    (rb"binf", "an XGBoost model in the binary format of before 3.1; save it as .ubj with the version that wrote it"),
    (
        rb'\s*\{\s*"(?:ctr_data|features_info)"\s*:',
        "a CatBoost model in JSON; load it with CatBoost().load_model(path, format='json') and save it as .cbm",
    ),
    (rb".{4}ET\d\d", _read_by("an ExecuTorch program", "executorch.runtime")),
    (rb"[pf]trt", _read_by("a TensorRT engine, built for one kind of GPU", "tensorrt.Runtime")),
    (rb"\xba\x16\x4f\x2f", _read_by("a fastText model", "fasttext.load_model")),
    (rb"[\x01-\x1f]\0\0\0.\0\w{1,60}Spec\0", _CTRANSLATE2),
    (rb"FEA1", "a Feather table of version 1; read it with pyarrow.feather and write it again, which makes it version 2"),
    (rb"7767517\n", _read_by("the graph of an ncnn model", "ncnn")),
    (rb"svm_type \w|solver_type \w", _read_by("a LIBSVM or LIBLINEAR model", "libsvm or liblinear")),
    (rb"RKNN", _read_by("a Rockchip model", "rknnlite")),
    (
        rb'\s*\{\s*"format"\s*:\s*"(?:layers|graph)-model"',
        "the graph of a TensorFlow.js model; give the Keras model or the SavedModel that it was made from",
    ),
    (
        rb"\x0a.{1,4}\x0a.[\w./:-]+\x12.(?-i:[A-Z])\w+|node \{\s+name: ",
        "a TensorFlow graph (GraphDef), frozen or without weights; save the model as a SavedModel or export it as ONNX",
    ),
    (
        rb"(?:model_checkpoint_path|all_model_checkpoint_paths): ",
        "the list of a training's TensorFlow checkpoints, which hold weights alone; save the model as a SavedModel or .keras",
    ),
    (
        rb'\s*\{\s*"name"\s*:\s*"tree"',
        "a JSON dump of a LightGBM model, which LightGBM cannot load; write the model with Booster.save_model",
    ),
    (
        rb'\s*\[?\s*\{\s*"nodeid"|booster\[0\]:\s*0:',
        "a dump of an XGBoost model, which XGBoost cannot load; write the model with save_model, as .ubj",
    ),
    (
        rb'\s*\{\s*"learner"\s*:\s*\{\s*"generic_param"',
        "the settings of an XGBoost model without its trees (save_config); write the model with save_model, as .ubj",
    ),
    (
        rb'\s*\{\s*(?:"module"\s*:\s*"[\w.]*"\s*,\s*)?"class_name"\s*:\s*"\w+"\s*,\s*"config"',
        "the layers of a Keras model without its weights (to_json); save the whole model as .keras",
    ),
    (
        rb'\s*\{\s*"(?:weight_map"\s*:|metadata"\s*:\s*\{\s*"total_size")',
        "the index of a model in several files that cannot be put together here; save the model as safetensors, or give one file",
    ),
    (
        rb'\s*\{.*"(?:architectures|model_type|_name_or_path)"\s*:',
        "the configuration of a model without its weights; give the file beside it that has them",
    ),
    (rb'\s*\{.*"(?:added_tokens|truncation|tokenizer_class)"\s*:', "a tokenizer; give the file with the model's weights"),
    (rb"PK\x05\x06", "an empty zip"),
    (rb"(?:ggml|ggjt|ggla|lmgg|tjgg|algg)", "a llama.cpp model from before GGUF; convert it with llama.cpp's own script"),
    (rb".{257}ustar", "a tar archive; unpack it and give the model inside"),
    (rb"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first"),
    (rb"7z\xbc\xaf", "a 7z archive; unpack it and give the model inside"),
    (rb"Rar!", "a RAR archive; unpack it and give the model inside"),
    (rb"%PDF", "a PDF"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8", "a picture"),
    (rb"\x7fELF|MZ.{58}", "a program or library"),
    (rb"PAR1", "a Parquet table, which has to be unpacked whole; write it as an Arrow file, which stays in the file"),
    (rb"#!|(?:import|from|def|class) \w", "a script"),
    (rb"\0+\Z", "nothing but zeros: perhaps a download that was not finished"),
)

_ENDINGS = ((b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", _CHECKPOINT),)
"""The number that ends a table of TensorFlow's, which is one of LevelDB."""

_NAMES = (
    (r"\.onnx[._]data$", "the weights of an ONNX model, which are loaded with it; give the .onnx beside it"),
    (r"\.data-\d{5}-of-\d{5}$|\.ckpt\.meta$", _CHECKPOINT),
)
"""Bare numbers have no mark: only their name says what they are."""

_ZIPS = (
    (r"/archive_format$", "a torch.export archive; load it with torch.export.load"),
    (r"^MAR-INF/MANIFEST\.json$", "a TorchServe archive; unpack it and give the model inside"),
    (r"^model\.ini$", _read_by("an H2O MOJO", "h2o or daimojo")),
    (r"/\.data/extern_modules$", "a torch.package archive; load it with torch.package.PackageImporter"),
    (r"(?:^|/)saved_model\.pb$", "a zipped SavedModel; unpack it and give the folder"),
    (r"(?:^|/)word/document\.xml$|^xl/", "an office document"),
)

_FOLDERS = (
    (r"^MLmodel$", "an MLflow model whose MLmodel names no file that is known here; give the model's own file"),
    (r"^Manifest\.json$", _read_by("perhaps a CoreML package", "coremltools, on macOS")),
    (r"^coremldata\.bin$", _read_by("a compiled CoreML model", "CoreML itself, on Apple's systems")),
    (r"^(.+)\.bin\n(?:.*\n)*?\1\.xml$", _OPENVINO.replace("the graph of an OpenVINO model", "an OpenVINO model")),
    (r"^model\.bin\n(?:.*\n)*?(?:shared_|source_|target_)?vocabulary\.(?:json|txt)$", _CTRANSLATE2),
    (r"\.pdmodel$|\.pdiparams$", _read_by("a PaddlePaddle model", "paddle.inference")),
    (r"^config\.cfg\n(?:.*\n)*?meta\.json$", _read_by("a spaCy pipeline", "spacy.load")),
    (
        r"^config\.json\n(?:.*\n)*?(?:tokenizer\.json|tokenizer_config\.json|vocab\.\w+|spiece\.model)$",
        "the configuration and the tokenizer of a model as a hub has it, without its weights; put model.safetensors or"
        " pytorch_model.bin beside them",
    ),
    (r"\.data-\d{5}-of-\d{5}$", f"it holds {_CHECKPOINT}"),
)
