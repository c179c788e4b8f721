"""How much of a file is payload: what an estimate is made of, for the formats whose headers say so."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Share"]


@dataclass(frozen=True, slots=True)
class Share:
    """A file's bytes, by what becomes of them.

    Attributes:
        payload_bytes: The bytes of arrays, unpacked: they take as much memory as here, or none where they stay in the file.
        structure_bytes: The bytes of everything else as they lie in the file; as objects they take up to ten times as much.
        exact: Whether the headers say so. False where the walk gave up, and where compressed content was not looked into:
            what was not looked at counts as structure.
        largest_payload_bytes: The largest single array: what a format that copies one by one needs on top.
    """

    payload_bytes: int
    structure_bytes: int
    exact: bool = True
    largest_payload_bytes: int = 0
