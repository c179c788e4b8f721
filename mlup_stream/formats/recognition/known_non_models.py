"""What files that are no model here often turn out to be, so that the message can say so and what to do.

Sources: each format's own magic number; the Git LFS pointer specification, version 1.
"""

from __future__ import annotations

import re

from mlup_stream.formats.peek import Peek

__all__ = ["known_non_model"]


def known_non_model(peek: Peek) -> str | None:
    """What it looks like, and what to do about it; None if nobody knows."""
    for begins, what in _BEGINNINGS:
        if re.match(begins, peek.head, re.DOTALL | re.IGNORECASE):
            return what
    if peek.members:
        return _zip(peek.members)
    return None


def _zip(members: tuple[str, ...]) -> str:
    for pattern, what in _ZIPS:
        if any(re.search(pattern, name) for name in members):
            return what
    shown = ", ".join(members[:5]) + (f" and {len(members) - 5} more" if len(members) > 5 else "")
    return f"a zip that is no model: it has {shown}"


_BEGINNINGS = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself; run: git lfs pull"),
    (rb"\s*<(?:!doctype|html|\?xml)", "a web page or XML, perhaps an error page that was saved as the model; download it again"),
    (rb"binf", "an XGBoost model in the binary format of before 3.1; save it as .ubj with the version that wrote it"),
    (rb".{4}ORTM", "a model in onnxruntime's own .ort format; give the .onnx that it was made from"),
    (rb".{4}TFL3", "a TensorFlow Lite model, for which there is no binarizer; write one and name it in binarization_type"),
    (rb"\x08\x01\x12", "perhaps the saved_model.pb of a TensorFlow SavedModel; give its folder"),
    (rb"PK\x05\x06", "an empty zip"),
    (rb"(?:ggml|ggjt|ggla|lmgg|tjgg|algg)", "a llama.cpp model from before GGUF; convert it with llama.cpp's own script"),
    (rb".{257}ustar", "a tar archive; unpack it and give the model inside"),
    (rb"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first"),
    (rb"7z\xbc\xaf", "a 7z archive; unpack it and give the model inside"),
    (rb"Rar!", "a RAR archive; unpack it and give the model inside"),
    (rb"%PDF", "a PDF"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8", "a picture"),
    (rb"\x7fELF|MZ.{58}", "a program or library"),
    (rb"PAR1", "a Parquet table"),
    (rb"#!|(?:import|from|def|class) \w", "a script"),
    (rb"\0+\Z", "nothing but zeros: perhaps a download that was not finished"),
)

_ZIPS = (
    (r"^schema\.json$", "a skops file; load it with skops.io.load"),
    (r"/archive_format$", "a torch.export archive; load it with torch.export.load"),
    (r"/\.data/extern_modules$", "a torch.package archive; load it with torch.package.PackageImporter"),
    (r"(?:^|/)saved_model\.pb$", "a zipped SavedModel; unpack it and give the folder"),
    (r"(?:^|/)word/document\.xml$|^xl/", "an office document"),
)
