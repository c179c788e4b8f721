"""The structure of a joblib file that is not compressed: where its arrays lie. Imports nothing and runs nothing that it names.

Source: `joblib.numpy_pickle`, joblib 0.10 to 1.6. The file is a pickle; where the unpickler has just built a `NumpyArrayWrapper`,
the bytes of an array follow, which are no opcodes. How many there are says the wrapper's state, its `shape` and `dtype`. So the
pickle has to be followed as an unpickler does it, and the standard library's does it here: with a stand-in that does nothing for
every class and function, and for every payload too.

Hardened as `formats.pickle` is: every length is checked against the file, nothing is read or allocated by it, and steps are
counted and bounded. About 2 us for a step. Peak memory: one window of 64 KiB, and what 100 bytes for each step come to.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from mlup_stream.errors import CorruptModelError
from mlup_stream.formats.pickles.dry_unpickler import ArrayState, CannotFollow, DryUnpickler
from mlup_stream.formats.pickles.frames import PAYLOAD_BYTES, scan
from mlup_stream.formats.source import Source
from mlup_stream.units import KIB

__all__ = ["JoblibStructure", "SteppedFile", "Survey", "survey"]

_MAX_STEPS = 50_000
_WINDOW_BYTES = 64 * KIB
_MOST_ALIGNED_BYTES = 8


@dataclass(frozen=True, slots=True)
class JoblibStructure:
    """What a joblib file is made of.

    Attributes:
        payload_bytes: The bytes of arrays, and of text and bytes of 64 KiB or more.
        structure_bytes: Everything else in the file.
        largest_payload_bytes: The largest of the payloads.
        not_aligned_bytes: The bytes of the arrays that are not aligned to their items in the file.
        arrays: How many arrays there are.
        steps: How many reads the survey took: one for an opcode, and one for its argument.
        whole: Whether the survey came to the pickle's end. If not, the rest of the file counts as structure.
        fetched: The memo's indices that the pickle ever asks for; of use only if `whole`.
    """

    payload_bytes: int
    structure_bytes: int
    largest_payload_bytes: int
    arrays: int
    steps: int
    whole: bool
    fetched: frozenset[int]
    not_aligned_bytes: int


def survey(given: Any, name: str | None = None, *, max_steps: int = _MAX_STEPS) -> JoblibStructure:
    """Where the bytes of the file belong.

    Args:
        given: A view, a path, a buffer or a seekable binary file that is not compressed.
        name: What to call it in a message.
        max_steps: After how many reads to give up (`whole` is then False).

    Raises:
        CorruptModelError: The file is truncated, or a length leads past its end.
    """
    with Source(given, name) as source:
        file = SteppedFile(given, source, max_steps)
        dry = Survey(file)
        whole = False
        try:
            dry.load()
            whole = True
        except CorruptModelError:
            raise
        except Exception:  # what no joblib writes: whether it is a damage, the real unpickler says
            pass
        return JoblibStructure(
            file.payload_bytes,
            source.size_bytes - file.payload_bytes,
            file.largest_payload_bytes,
            dry.arrays,
            file.steps,
            whole,
            frozenset(dry.fetched),
            dry.not_aligned_bytes,
        )


class SteppedFile:
    """What the unpickler reads from: counts the reads, and steps over payloads instead of reading them."""

    def __init__(self, given: Any, source: Source, max_steps: int, start: int = 0) -> None:
        self.given = given
        self.source = source
        self.at = start
        self.steps = 0
        self.payload_bytes = 0
        self.largest_payload_bytes = 0
        self._max_steps = max_steps
        self._window = b""
        self._base = 0

    def read(self, size_bytes: int) -> bytes:
        self.steps += 1
        if self.steps > self._max_steps:
            raise CannotFollow
        if size_bytes >= PAYLOAD_BYTES:
            self.step_over(size_bytes)
            return b""
        index = self.at - self._base
        if index < 0 or index + size_bytes > len(self._window):
            ahead_bytes = max(min(self.source.size_bytes - self.at, _WINDOW_BYTES), size_bytes)
            self._window = self.source.read(self.at, ahead_bytes, "pickle")
            self._base, index = self.at, 0
        self.at += size_bytes
        return self._window[index : index + size_bytes]

    @property
    def steps_left(self) -> int:
        return max(self._max_steps - self.steps, 0)

    def readline(self) -> bytes:
        parts: list[bytes] = []
        while not parts or not parts[-1].endswith(b"\n"):
            ahead_bytes = min(self.source.size_bytes - self.at, KIB)
            part = self.source.read(self.at, max(ahead_bytes, 1), "a line of the pickle")
            part = part[: part.find(b"\n") + 1 or len(part)]
            parts = [*parts[-1:], part]  # a line's end decides, and no name is longer than its last two parts
            self.at += len(part)
            self.steps += 1
            if self.steps > self._max_steps:
                raise CannotFollow
        return b"".join(parts)

    def step_over(self, size_bytes: int) -> None:
        """Moves behind a payload.

        Raises:
            CorruptModelError: The file ends before that.
        """
        room_bytes = self.source.size_bytes - self.at
        if size_bytes > room_bytes:
            raise self.source.corrupt(f"a payload of {size_bytes} bytes at {self.at}", f"{room_bytes} bytes up to the file's end")
        self.at += size_bytes
        self.payload_bytes += size_bytes
        self.largest_payload_bytes = max(self.largest_payload_bytes, size_bytes)


class Survey(DryUnpickler):
    """Steps over the arrays."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(DryUnpickler.dispatch)

    def __init__(self, file: SteppedFile) -> None:
        super().__init__(file)
        self._file = file
        self.arrays = self.not_aligned_bytes = 0
        self.fetched: set[int] = set()

    def array_follows(self, state: ArrayState) -> None:
        file = self._file
        item_bytes = state["dtype"].item_bytes
        self.arrays += 1
        if item_bytes is None:
            self._step_over_objects()
            return
        if state.get("numpy_array_alignment_bytes") is not None:
            padding_bytes = file.read(1)[0]
            file.read(padding_bytes)
        shape = state.get("shape")
        if not isinstance(shape, tuple) or not all(isinstance(each, int) and each >= 0 for each in shape):
            raise CannotFollow  # of a NumPy number, perhaps, which is a stand-in here
        size_bytes = math.prod(shape) * item_bytes
        if file.at % min(item_bytes & -item_bytes or 1, _MOST_ALIGNED_BYTES):
            self.not_aligned_bytes += size_bytes
        file.step_over(size_bytes)

    def _step_over_objects(self) -> None:
        """Over the pickle that an array of objects is."""
        file = self._file
        # Into its frames: only its STOP tells where it ends, and frames of the outer pickle may follow.
        inner = scan(file.given, file.source.name, max_steps=file.steps_left, start=file.at)
        if not inner.whole:
            raise CannotFollow
        file.at = file.source.size_bytes - inner.trailing_bytes
        file.payload_bytes += inner.payload_bytes + inner.text_bytes
        file.steps += inner.steps

    def load_long_binput(self) -> None:
        index = int.from_bytes(self.read(4), "little")
        # Each entry of the memo takes a byte or more of the pickle. The unpickler in C allocates as many as the index says.
        if index > self._file.source.size_bytes:
            raise self._file.source.corrupt(f"a memo index below {self._file.source.size_bytes}", str(index))
        self.memo[index] = self.stack[-1]

    dispatch[pickle.LONG_BINPUT[0]] = load_long_binput

    def _fetch(self, index: int) -> None:
        self.fetched.add(index)
        self.append(self.memo[index])

    def load_get(self) -> None:
        self._fetch(int(self.readline()[:-1]))

    dispatch[pickle.GET[0]] = load_get

    def load_binget(self) -> None:
        self._fetch(self.read(1)[0])

    dispatch[pickle.BINGET[0]] = load_binget

    def load_long_binget(self) -> None:
        self._fetch(int.from_bytes(self.read(4), "little"))

    dispatch[pickle.LONG_BINGET[0]] = load_long_binget
