"""Which format a file has, from a few hundred bytes at each end, a zip's directory, and nothing imported.

One literal table of recognisers. Each looks at a `Peek` and says in words what it saw, or None. Those of formats that begin with
an unmistakable mark are asked first, and the others only when none of these claims the file: protobuf, and pickles of protocol 0
and 1, begin with nothing that could not begin something else. A file that two formats claim is decided by its name if that fits
one of them; the name decides nothing else, because names lie.

To add a format: a member in `formats.kinds.Format`, a recogniser below, a row in the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

from mlup_stream.formats.frameworks import hdf5
from mlup_stream.formats.kinds import Format
from mlup_stream.formats.onnx.head import onnx_evidence
from mlup_stream.formats.peek import Peek
from mlup_stream.formats.pickles.compressed_head import unpacked_head
from mlup_stream.formats.pickles.head import Writer, is_bare_pickle, writer_of
from mlup_stream.formats.recognition.strangers import stranger

__all__ = ["Finding", "recognise"]

SAFETENSORS_HEADER_LIMIT_BYTES = 100_000_000
"""The largest header that the safetensors format allows."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A format that claims the file, and what says so."""

    format: Format
    evidence: str


def recognise(peek: Peek) -> tuple[Finding, ...]:
    """The formats that claim what is peeked at: one if it was recognised, none if not, several if it is ambiguous.

    When none does, `peek.remarks` and `peek.damage` say what was noticed. Nothing is allocated by a number found in the file.
    """
    for tier in (_MARKED, _UNMARKED):
        found = []
        for recogniser in tier:
            evidence = recogniser.look(peek)
            if evidence is not None:
                found.append(Finding(recogniser.format, evidence))
        if found:
            return _break_tie(peek, found)
    if peek.entries is None and (what := stranger(peek)):
        peek.remarks.append(what)
    return ()


def _break_tie(peek: Peek, found: list[Finding]) -> tuple[Finding, ...]:
    if len(found) > 1:
        named = [finding for finding in found if peek.is_named(*_NAMES.get(finding.format, ("\0",)))]
        if len(named) == 1:
            return (Finding(named[0].format, f"{named[0].evidence}; also others, which its name does not fit"),)
    return tuple(found)


# Formats that are one file with a mark at its start.


def _npy(peek: Peek) -> str | None:
    return "the .npy magic number" if re.match(rb"\x93NUMPY[\1-\3]", peek.head) else None


def _gguf(peek: Peek) -> str | None:
    # The version is small in one byte order or the other.
    return "the GGUF magic number" if re.match(rb"GGUF(?:[^\0]\0\0\0|\0\0\0[^\0])", peek.head) else None


def _safetensors(peek: Peek) -> str | None:
    length = int.from_bytes(peek.head[:8], "little")
    if not 2 <= length <= SAFETENSORS_HEADER_LIMIT_BYTES or not re.match(rb"\{[\"} \n]", peek.head[8:10]):
        return None
    cut_off = ", cut off" if 8 + length > peek.size_bytes else ""
    return f"a header length of {length} and JSON after it, as in safetensors{cut_off}"


def _safetensors_index(peek: Peek) -> str | None:
    if re.match(rb"\s*\{", peek.head) and re.search(rb'"weight_map"\s*:\s*\{[^}]*?\.safetensors"', peek.head):
        return "JSON with a weight_map of .safetensors files: the index of a sharded model"
    return None


def _lightgbm(peek: Peek) -> str | None:
    return "the first lines of a LightGBM text model" if re.match(rb"tree\r?\n(?:version=v|num_class=)\d", peek.head) else None


def _xgboost_ubj(peek: Peek) -> str | None:
    # A UBJSON object whose first key, of 7 bytes in any of the integer types, is "learner".
    found = re.match(rb"\{(?:[iU]|I\0|l\0{3}|L\0{7})\x07learner\{", peek.head)
    return 'UBJSON that begins with the key "learner", as XGBoost\'s' if found else None


def _xgboost_json(peek: Peek) -> str | None:
    first = re.match(rb'\s*\{\s*"(learner|version)"\s*:\s*[{\[]', peek.head)
    if not first or (first[1] == b"version" and b'"learner"' not in peek.head):
        return None
    known = rb'"(?:attributes|feature_names|feature_types|gradient_booster|learner_model_param|objective)"'
    return 'JSON with the key "learner" and what XGBoost keeps in it' if re.search(known, peek.head) else None


def _keras_h5(peek: Peek) -> str | None:
    if not peek.head.startswith(hdf5.MAGIC):
        return None
    attributes = hdf5.root_attributes(peek.at)
    if "model_config" in attributes:
        return "an HDF5 file with the attribute model_config, as Keras writes it"
    found = ", ".join(sorted(attributes)) or "none"
    peek.remarks.append(
        f"an HDF5 file whose root has no attribute model_config (found: {found}): weights alone, or no model;"
        " save the whole Keras model"
    )
    return None


# Folders.


def _saved_model(peek: Peek) -> str | None:
    for name in ("saved_model.pb", "saved_model.pbtxt"):
        if peek.entries and name in peek.entries:
            return f"a folder with {name}"
    return None


# Zips, told by the names in their directory.


def _torch_zip(peek: Peek) -> str | None:
    names = _below_top(peek)
    if "data.pkl" in names and names & {"version", "byteorder"} and not _is_torchscript(names):
        return "a zip with data.pkl and version, as torch.save writes it"
    return None


def _torchscript(peek: Peek) -> str | None:
    return "a zip with constants.pkl and code/, as torch.jit.save writes it" if _is_torchscript(_below_top(peek)) else None


def _is_torchscript(names: frozenset[str]) -> bool:
    return bool(names & {"constants.pkl", "model.json"}) and any(name.startswith("code/") for name in names)


def _below_top(peek: Peek) -> frozenset[str]:
    """The names below the one folder that everything in a torch zip lies in."""
    tops = {name.partition("/")[0] for name in peek.members}
    return frozenset(name.partition("/")[2] for name in peek.members) if len(tops) == 1 else frozenset()


def _keras_zip(peek: Peek) -> str | None:
    names = set(peek.members)
    if {"config.json", "metadata.json"} <= names and any(name.startswith("model.weights.") for name in names):
        return "a zip with config.json, metadata.json and the weights, as Keras 3 writes it"
    return None


def _npz(peek: Peek) -> str | None:
    if peek.members and all(name.endswith(".npy") for name in peek.members):
        return f"a zip of {len(peek.members)} .npy members"
    return None


# Pickles, and what is written around them.


def _writer(peek: Peek) -> Writer | None:
    if "writer" not in peek.notes:
        peek.notes["writer"] = writer_of(peek.at, peek.size_bytes)
    return cast("Writer | None", peek.notes["writer"])


def _torch_legacy(peek: Peek) -> str | None:
    if _writer(peek) is Writer.TORCH:
        return "the pickled magic number of torch before 1.6"
    return None


def _torch_tar(peek: Peek) -> str | None:
    """torch before 0.1.10: a tar with these three members (POSIX.1-1988 ustar: name, size in octal at 124, blocks of 512)."""
    names = set()
    position = 0
    for _ in range(16):
        header = peek.at(position, 512)
        if header[257:262] != b"ustar":
            break
        names.add(header[:100].rstrip(b"\0").decode("ascii", "replace"))
        size = header[124:136].strip(b"\0 ")
        position += 512 + (-(-int(size, 8) // 512) * 512 if re.fullmatch(rb"[0-7]+", size) else 0)
    return "a tar with the members pickle, storages and tensors, as torch before 0.1.10" if names >= _TAR_MEMBERS else None


_TAR_MEMBERS = {"pickle", "storages", "tensors"}


def _joblib(peek: Peek) -> str | None:
    writer = _writer(peek)
    if writer is Writer.JOBLIB:
        return "a pickle with joblib's array wrapper"
    if writer is Writer.UNDECIDED and peek.is_named(*_NAMES[Format.JOBLIB]):
        return "a pickle; its beginning shows no arrays, and its name says joblib"
    return None


def _joblib_compressed(peek: Peek) -> str | None:
    unpacked = unpacked_head(peek)
    if unpacked is None:
        return None
    data = unpacked.data
    if writer_of(lambda offset, size_bytes: data[offset : offset + size_bytes], None) is not None:
        return f"a pickle, compressed with {unpacked.compressor}"
    if data and is_bare_pickle(data[:512], b"", len(data)):
        return f"a pickle of protocol 0 or 1, compressed with {unpacked.compressor}"
    inside = f"something that begins with {data[:16]!r} and is not a pickle" if data else "a damaged stream"
    peek.remarks.append(f"compressed with {unpacked.compressor}, and inside is {inside}")
    return None


def _pickle(peek: Peek) -> str | None:
    writer = _writer(peek)
    if writer is Writer.PICKLE or (writer is Writer.UNDECIDED and not peek.is_named(*_NAMES[Format.JOBLIB])):
        return f"a pickle of protocol {peek.head[1]}"
    return None


def _bare_pickle(peek: Peek) -> str | None:
    return "pickle opcodes of protocol 0 or 1" if is_bare_pickle(peek.head, peek.tail, peek.size_bytes) else None


class Recogniser(NamedTuple):
    format: Format
    look: Callable[[Peek], str | None]


_MARKED = (
    Recogniser(Format.PICKLE, _pickle),
    Recogniser(Format.JOBLIB, _joblib),
    Recogniser(Format.JOBLIB, _joblib_compressed),
    Recogniser(Format.NPY, _npy),
    Recogniser(Format.NPZ, _npz),
    Recogniser(Format.LIGHTGBM, _lightgbm),
    Recogniser(Format.XGBOOST, _xgboost_ubj),
    Recogniser(Format.XGBOOST, _xgboost_json),
    Recogniser(Format.TORCH, _torch_zip),
    Recogniser(Format.TORCH, _torch_legacy),
    Recogniser(Format.TORCH, _torch_tar),
    Recogniser(Format.TORCHSCRIPT, _torchscript),
    Recogniser(Format.SAFETENSORS, _safetensors),
    Recogniser(Format.SAFETENSORS, _safetensors_index),
    Recogniser(Format.KERAS, _keras_zip),
    Recogniser(Format.KERAS, _keras_h5),
    Recogniser(Format.SAVED_MODEL, _saved_model),
    Recogniser(Format.GGUF, _gguf),
)
_UNMARKED = (
    Recogniser(Format.ONNX, onnx_evidence),
    Recogniser(Format.PICKLE, _bare_pickle),
)

# For ties alone.
_NAMES = {
    Format.PICKLE: (".pckl", ".pkl", ".pickle"),
    Format.JOBLIB: (".joblib", ".jbl"),
    Format.NPZ: (".npz",),
    Format.ONNX: (".onnx",),
    Format.XGBOOST: (".ubj", ".json"),
    Format.TORCH: (".pt", ".pth", ".ckpt", ".bin"),
    Format.TORCHSCRIPT: (".torchscript", ".ts"),
    Format.SAFETENSORS: (".safetensors", ".safetensors.index.json"),
    Format.KERAS: (".keras", ".h5", ".hdf5"),
}
