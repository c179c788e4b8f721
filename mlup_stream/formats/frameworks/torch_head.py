"""What tells the files that torch wrote: zips by the names in their directory, older ones by a number or by three names."""

from __future__ import annotations

import re

from mlup_stream.formats.peek import Peek
from mlup_stream.formats.pickles.detection import writer_at
from mlup_stream.formats.pickles.head import Writer

__all__ = ["detect_legacy", "detect_script", "detect_tar", "detect_zip"]

_TAR_MEMBERS = {"pickle", "storages", "tensors"}


def detect_zip(peek: Peek) -> str | None:
    names = _below_top(peek)
    if "data.pkl" in names and names & {"version", "byteorder"} and not _is_torchscript(names):
        return "a zip with data.pkl and version, as torch.save writes it"
    return None


def detect_script(peek: Peek) -> str | None:
    return "a zip with constants.pkl and code/, as torch.jit.save writes it" if _is_torchscript(_below_top(peek)) else None


def _is_torchscript(names: frozenset[str]) -> bool:
    return bool(names & {"constants.pkl", "model.json"}) and any(name.startswith("code/") for name in names)


def _below_top(peek: Peek) -> frozenset[str]:
    """The names below the one folder that everything in a torch zip lies in."""
    tops = {name.partition("/")[0] for name in peek.members}
    return frozenset(name.partition("/")[2] for name in peek.members) if len(tops) == 1 else frozenset()


def detect_legacy(peek: Peek) -> str | None:
    if writer_at(peek) is Writer.TORCH:
        return "the pickled magic number of torch before 1.6"
    return None


def detect_tar(peek: Peek) -> str | None:
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
