"""The structure of a pickle: where its frames and its large payloads lie. Builds nothing, imports nothing, runs nothing.

Source: the opcodes as `pickletools` in the standard library documents them, PEP 3154 (protocol 4: frames, 8-byte lengths) and PEP
574 (protocol 5: bytearrays and buffers). From protocol 4 on, picklers write what has 64 KiB or more outside the frames, so a walk
from frame to frame sees every large payload with one read of a few bytes for each: milliseconds for gigabytes.

    walk(file)      frame by frame: how much is payload, and whether the file is whole
    scan(file)      opcode by opcode: also which entries of the memo are ever asked for

Hardened: a length that leads past the end of the file, an unknown opcode and a memo index that no pickle of this size can have
are errors at once; the steps are counted and bounded. Peak memory: one window of 64 KiB.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mlup_stream.errors import CorruptModelError
from mlup_stream.formats.source import Source
from mlup_stream.units import KIB

__all__ = ["PAYLOAD_BYTES", "PickleStructure", "scan", "walk"]

PAYLOAD_BYTES = 64 * KIB
"""From here on picklers leave a payload outside the frames (`_FRAME_SIZE_TARGET` of the standard library)."""

_ALIGNMENT_BYTES = 8
_WINDOW_BYTES = 64 * KIB
_FIRST_WINDOW_BYTES = 64
_MAX_STEPS = 20_000
_MAX_STEPS_INTO_FRAMES = 1_000_000  # 0.6 s, to tell a damaged pickle from one that something follows

# What follows an opcode: the number of bytes, or one of these.
_LINE, _TWO_LINES, _COUNT1, _COUNT4, _COUNT8 = -1, -2, -3, -4, -5
_GET1, _GET4, _GET_LINE, _PUT4 = -6, -7, -8, -9
_FRAME, _STOP, _UNKNOWN = -10, -11, -12

_FOLLOWS: dict[int, bytes] = {
    0: b"(012NQRabde}l]ost)u\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98",
    1: b"K\x80\x82q",
    2: b"M\x83",
    4: b"J\x84",
    8: b"G",
    _LINE: b"FILPSVp",
    _TWO_LINES: b"ci",
    _COUNT1: b"CU\x8a\x8c",
    _COUNT4: b"BTX\x8b",
    _COUNT8: b"\x8d\x8e\x96",
    _GET1: b"h",
    _GET4: b"j",
    _GET_LINE: b"g",
    _PUT4: b"r",
    _FRAME: b"\x95",
    _STOP: b".",
}
_AFTER = [_UNKNOWN] * 256
for _kind, _opcodes in _FOLLOWS.items():
    for _opcode in _opcodes:
        _AFTER[_opcode] = _kind

_WIDTHS = {_COUNT1: 1, _COUNT4: 4, _COUNT8: 8}
_BYTES_OPCODES = frozenset(b"B\x8e\x96")
_TEXT_OPCODES = frozenset(b"TX\x8d")
_SIGNED_OPCODES = frozenset(b"T\x8b")


@dataclass(frozen=True, slots=True)
class PickleStructure:
    """What a pickle is made of.

    Attributes:
        protocol: The highest that it declares; 0 if it declares none.
        payload_bytes: The bytes in payloads of 64 KiB or more: arrays, and whatever else was written as bytes.
        text_bytes: The same for text.
        structure_bytes: Everything else in the file.
        largest_payload_bytes: The largest of the payloads.
        not_aligned_bytes: The bytes of the payloads that begin at no multiple of 8 in the file.
        payloads: How many there are.
        steps: How many frames and opcodes the walk stepped over.
        trailing_bytes: What follows the pickle in the file; 0 if the walk did not come to its end. Counts as structure.
        whole: Whether the walk came to the end of the pickle. If not, the rest of the file counts as structure.
        fetched: After `scan`, the memo's indices that are ever asked for; None after `walk`.
    """

    protocol: int
    payload_bytes: int
    text_bytes: int
    structure_bytes: int
    largest_payload_bytes: int
    payloads: int
    steps: int
    trailing_bytes: int
    whole: bool
    fetched: frozenset[int] | None = None
    not_aligned_bytes: int = 0


def walk(given: Any, name: str | None = None, *, max_steps: int = _MAX_STEPS) -> PickleStructure:
    """The structure, frame by frame: what lies within a frame is not looked at.

    Args:
        given: A view, a path, a buffer or a seekable binary file.
        name: What to call it in a message.
        max_steps: After how many frames and opcodes to give up (`whole` is then False). Protocols before 4 have no frames, and
            each opcode is a step: about 0.6 us.

    Raises:
        CorruptModelError: The pickle is truncated, a length leads past its end, or an opcode is unknown.
    """
    with Source(given, name) as source:
        try:
            return _Walk(source).run(into_frames=False, max_steps=max_steps)
        except CorruptModelError:
            # What follows a pickle in its file may look like more of it: only its STOP tells, which may lie in a frame.
            found = _Walk(source).run(into_frames=True, max_steps=_MAX_STEPS_INTO_FRAMES)
            if not found.whole:
                raise
            return replace(found, fetched=None)


def scan(given: Any, name: str | None = None, *, max_steps: int = 2**62, start: int = 0) -> PickleStructure:
    """The structure, opcode by opcode, frames and all: about 0.6 us for each opcode.

    Args:
        given: As for `walk`.
        name: As for `walk`.
        max_steps: After how many opcodes to give up (`whole` is then False).
        start: Where in the file the pickle begins; all figures go on being of the whole file.

    Raises:
        CorruptModelError: As `walk`.
    """
    with Source(given, name) as source:
        return _Walk(source).run(into_frames=True, max_steps=max_steps, start=start)


class _Walk:
    """One pass over a pickle, through a window that begins small after each jump and grows while opcodes follow each other."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._window = b""
        self._base = 0
        self._grown_bytes = _FIRST_WINDOW_BYTES
        self._protocol = 0
        self._payload_bytes = self._not_aligned_bytes = self._text_bytes = self._largest = self._payloads = 0
        self._fetched: set[int] = set()

    def run(self, *, into_frames: bool, max_steps: int, start: int = 0) -> PickleStructure:
        size = self._source.size_bytes
        at, steps = start, 0
        frame_end = -1
        whole = False
        while steps < max_steps and not whole:
            at, steps = self._step_over_simple(at, steps, max_steps)
            if steps >= max_steps:
                break
            steps += 1
            opcode = self._opcode(at)
            follows = _AFTER[opcode]
            if follows == _STOP:
                at += 1
                whole = True
            elif follows == _FRAME:
                length = self._number(at + 1, 8)
                frame_end = at + 9 + length
                if frame_end > size:
                    room = max(size - at - 9, 0)
                    raise self._corrupt(f"a frame of {length} bytes at {at}", f"{room} bytes up to the file's end")
                at = at + 9 if into_frames else frame_end
                if not into_frames and at == size:
                    if not self._stops_at(frame_end):
                        raise self._corrupt("a pickle that ends with STOP", "a last frame that does not")
                    whole = True
            elif follows == _UNKNOWN:
                # Something else may follow a pickle; pickle.load does not look at it either.
                if at != frame_end or into_frames or not self._stops_at(frame_end):
                    raise self._corrupt(f"a pickle opcode at {at}", f"the byte {opcode:#04x}")
                whole = True
            else:
                at = self._step_over(opcode, follows, at)
        return PickleStructure(
            self._protocol,
            self._payload_bytes,
            self._text_bytes,
            size - self._payload_bytes - self._text_bytes,
            self._largest,
            self._payloads,
            steps,
            size - at if whole else 0,
            whole,
            frozenset(self._fetched) if into_frames else None,
            self._not_aligned_bytes,
        )

    def _step_over_simple(self, at: int, steps: int, max_steps: int) -> tuple[int, int]:
        """Steps over opcodes that need no look at their argument; returns where the first other one lies."""
        # The loop that a scan spends its time in: local names, one table, nothing else.
        after, fetched = _AFTER, self._fetched
        while True:
            self._fill(at)
            window = self._window
            index = at - self._base
            last = len(window) - 9  # an opcode and the longest argument of fixed size fit behind
            while index <= last and steps < max_steps:
                opcode = window[index]
                follows = after[opcode]
                if follows >= 0:
                    if opcode == 0x80:
                        self._protocol = max(self._protocol, window[index + 1])
                    index += 1 + follows
                elif follows == _COUNT1:
                    index += 2 + window[index + 1]
                elif follows == _GET1:
                    fetched.add(window[index + 1])
                    index += 2
                else:
                    return self._base + index, steps
                steps += 1
            if steps >= max_steps or self._base + index + 9 > self._source.size_bytes:
                break
            at = self._base + index
        return self._last_steps(self._base + index, steps, max_steps)

    def _last_steps(self, at: int, steps: int, max_steps: int) -> tuple[int, int]:
        """The same for the last few bytes of the file, where an argument may be cut off."""
        while steps < max_steps:
            opcode = self._opcode(at)
            follows = _AFTER[opcode]
            if follows < 0:
                break
            if follows and opcode == 0x80:
                self._protocol = max(self._protocol, self._number(at + 1, 1))
            at += 1 + follows
            steps += 1
        return at, steps

    def _step_over(self, opcode: int, follows: int, at: int) -> int:
        """Where the next opcode lies, behind an argument that is not simply a few bytes."""
        if follows == _GET1:
            self._fetched.add(self._number(at + 1, 1))
            return at + 2
        if follows in (_GET4, _PUT4):
            memo_index = self._number(at + 1, 4)
            # Each entry of the memo takes a byte or more of the pickle. The C unpickler would allocate as many as the index says.
            if memo_index > self._source.size_bytes:
                raise self._corrupt(f"a memo index below {self._source.size_bytes} at {at}", str(memo_index))
            if follows == _GET4:
                self._fetched.add(memo_index)
            return at + 5
        if follows in (_LINE, _GET_LINE):
            end = self._line_end(at + 1)
            if follows == _GET_LINE:
                self._fetched.add(self._decimal(at + 1, end))
            return end
        if follows == _TWO_LINES:
            return self._line_end(self._line_end(at + 1))
        width = _WIDTHS[follows]
        count = self._number(at + 1, width, signed=opcode in _SIGNED_OPCODES)
        start = at + 1 + width
        if count < 0 or start + count > self._source.size_bytes:
            found = f"{max(self._source.size_bytes - start, 0)} bytes up to the file's end"
            raise self._corrupt(f"a payload of {count} bytes at {start}", found)
        if count >= PAYLOAD_BYTES:
            self._count_payload(opcode, start, count)
        return start + count

    def _count_payload(self, opcode: int, start: int, count: int) -> None:
        if opcode in _BYTES_OPCODES:
            self._payload_bytes += count
            self._not_aligned_bytes += count if start % _ALIGNMENT_BYTES else 0
            self._payloads += 1
            self._largest = max(self._largest, count)
        elif opcode in _TEXT_OPCODES:
            self._text_bytes += count

    def _fill(self, at: int) -> None:
        """Makes the window begin at `at`."""
        ahead = self._base + len(self._window) - at
        within = at >= self._base and ahead >= 0
        if within and ahead >= _FIRST_WINDOW_BYTES:
            return
        contiguous = within and self._window
        self._grown_bytes = min(self._grown_bytes * 4, _WINDOW_BYTES) if contiguous else _FIRST_WINDOW_BYTES
        size = self._source.size_bytes
        self._base = min(at, size)
        self._window = self._source.read(self._base, min(self._grown_bytes, size - self._base), "pickle")

    def _opcode(self, at: int) -> int:
        size = self._source.size_bytes
        if at >= size:
            raise self._corrupt("another opcode", f"the end of the file at {size}, before the pickle's STOP")
        self._fill(at)
        return self._window[at - self._base]

    def _number(self, at: int, width: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._source.read(at, width, "a number"), "little", signed=signed)

    def _line_end(self, at: int) -> int:
        """Where the line that begins at `at` ends, its newline included."""
        while at < self._source.size_bytes:
            self._fill(at)
            found = self._window.find(b"\n", at - self._base)
            if found >= 0:
                return self._base + found + 1
            at = self._base + len(self._window)
        raise self._corrupt("a line", "the end of the file before its newline")

    def _decimal(self, start: int, end: int) -> int:
        text = self._source.read(start, min(end - start, 24), "memo index")
        try:
            return int(text)
        except ValueError as error:
            raise self._corrupt(f"a memo index at {start}", repr(text)) from error

    def _stops_at(self, end: int) -> bool:
        return self._source.read(end - 1, 1, "STOP") == b"."

    def _corrupt(self, expected: str, found: str) -> Exception:
        return self._source.corrupt(expected, found)
