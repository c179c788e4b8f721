"""Formats of other distributions: rows that come by the entry point group `mlup_stream.formats`.

    [project.entry-points."mlup_stream.formats"]
    fasttext = "their_package.rows:FASTTEXT"        # a FormatSpec, or a function that returns one or several

Such a format is detected, planned, inspected, packed and loaded like ours. Its detectors are asked when no mark of ours claims
the file. An entry point that cannot be read, and a detector that raises, is named in a warning and left out, and stops no load.

`importlib.metadata` takes 7 MiB and tens of milliseconds to import. The folders on `sys.path` are searched for the group's name
first, and it is imported only if a distribution there has it.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from mlup_stream.formats.kinds import Format, FormatSpec, function_at

__all__ = ["GROUP", "plugged_in"]

GROUP = "mlup_stream.formats"


@functools.cache
def plugged_in() -> tuple[FormatSpec, ...]:
    """The rows of other distributions, found once in a process."""
    if not _is_any_declared():
        return ()
    from importlib.metadata import entry_points

    found: dict[str, FormatSpec] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda each: each.name):
        origin = f"{point.dist.name if point.dist else 'an unknown distribution'}: {point.name} = {point.value}"
        try:
            for row in _rows(point.load(), origin):
                if row.name in found:
                    raise ValueError(f"the format {row.name!r} is there already, from {found[row.name].origin}")
                found[row.name] = row
        except Exception as error:  # whatever is wrong with it, a load goes on without it
            warnings.warn(
                f"mlup_stream: the entry point {origin} of the group {GROUP} is left out ({type(error).__name__}: {error})",
                RuntimeWarning,
                stacklevel=2,
            )
    return tuple(found.values())


def _is_any_declared() -> bool:
    """Whether a distribution in a folder on `sys.path` has the group."""
    wanted = GROUP.encode()
    for folder in dict.fromkeys(sys.path):
        try:
            entries = [each.path for each in os.scandir(folder or ".") if each.name.endswith((".dist-info", ".egg-info"))]
        except OSError:  # a zip, or nothing there
            continue
        for path in entries:
            try:
                with open(os.path.join(path, "entry_points.txt"), "rb") as file:
                    if wanted in file.read():
                        return True
            except OSError:  # most distributions have none
                continue
    return False


def _rows(given: Any, origin: str) -> Iterator[FormatSpec]:
    made = given() if callable(given) else given
    for row in (made,) if isinstance(made, FormatSpec) else tuple(made):
        if not isinstance(row, FormatSpec):
            raise TypeError(f"expected a FormatSpec, found {type(row).__name__}")
        if row.name in [each.value for each in Format]:
            raise ValueError(f"the format {row.name!r} is one of mlup_stream's own")
        if not row.binarizers:
            raise ValueError(f"the format {row.name!r} has no binarizer")
        for place in (*(each.at for each in row.detectors), *filter(None, (row.inspector, row.packer))):
            function_at(place)
        yield dataclasses.replace(row, origin=origin)
