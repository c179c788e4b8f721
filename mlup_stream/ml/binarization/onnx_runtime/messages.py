"""What onnxruntime says when it refuses a model, without what it says of its own source code."""

from __future__ import annotations

import re

__all__ = ["plain_words"]

_MAX_CHARACTERS = 400

_NOT_FOR_USERS = (
    re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : "),
    re.compile(r"Load model from .*? failed:"),
    re.compile(r"\S+\.(?:cc|h):\d+ [^()]*\(.*?\) (?=\S)"),  # file, line and the signature of the function that complains
    re.compile(r"\S+\.(?:cc|h):\d+ [\w:~]+ "),
    re.compile(r"==> Context: "),
)


def plain_words(error: Exception) -> str:
    """The message of an error of onnxruntime's, in one line."""
    text = " ".join(str(error).split())
    for part in _NOT_FOR_USERS:
        text = part.sub("", text)
    return text[:_MAX_CHARACTERS] or "no message"
