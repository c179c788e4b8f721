"""Sizes in bytes, to and from text: `parse_bytes("512MiB")`, `format_bytes(536870912)`.

Binary units (KiB, MiB, GiB, TiB) are powers of 1024, decimal ones (kB, MB, GB, TB) powers of 1000, as IEC 80000-13 has it.
A bare K, M, G or T is binary: what `docker run --memory 512m` and Kubernetes' `Mi` users mean.
"""

from __future__ import annotations

import re

__all__ = ["GIB", "KIB", "MIB", "format_bytes", "parse_bytes"]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[_letter] = _UNITS[_letter + "i"] = _UNITS[_letter + "ib"] = 1024**_power
    _UNITS[_letter + "b"] = 1000**_power

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", re.ASCII)


def parse_bytes(text: str) -> int:
    """The number of bytes that `text` says: `"512MiB"`, `"2 GB"`, `"1.5g"`, `"4096"`.

    Raises:
        ValueError: The text is not a size; the message shows what one looks like.
    """
    match = _SIZE.fullmatch(text)
    factor = _UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not a size; expected a number and a unit, such as '512MiB', '2GB' or '4096'")
    return int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor


def format_bytes(size_bytes: int) -> str:
    """`size_bytes` for a reader, in binary units, one decimal from KiB up: `"1.5 GiB"`, `"-12.0 MiB"`, `"17 B"`."""
    magnitude = float(abs(size_bytes))
    sign = "-" if size_bytes < 0 else ""
    if magnitude < KIB:
        return f"{sign}{int(magnitude)} B"
    for unit in ("KiB", "MiB", "GiB"):
        magnitude /= KIB
        if magnitude < KIB:
            return f"{sign}{magnitude:.1f} {unit}"
    return f"{sign}{magnitude / KIB:.1f} TiB"
