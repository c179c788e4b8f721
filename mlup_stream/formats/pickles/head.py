"""What wrote a pickle, from its first bytes and from what follows its frames: `pickle` itself, joblib, or torch before 1.6.

joblib writes the bytes of each array into the middle of the pickle, right after the pickled `NumpyArrayWrapper` that describes
it. From protocol 4 on, a pickle is cut into frames that say how long they are, so the first array is found by walking from frame
to frame, however large the structure before it: it lies where no frame follows, and the frame before it ends in the wrapper.
Without frames only the beginning is searched. A joblib dump of an object that has no arrays is, byte for byte, a plain pickle.
Sources: PEP 3154 (frames), `pickletools` (opcodes), joblib's `numpy_pickle.py`, torch's `serialization.py` (its magic number).
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from mlup_stream.formats.peek import END_BYTES
from mlup_stream.units import KIB

__all__ = ["Writer", "is_bare_pickle", "writer_of"]

ReadAt = Callable[[int, int], bytes]

_PROTOCOL = re.compile(rb"\x80[\x02-\x05]")
_TORCH_MAGIC = re.compile(
    rb"(?:\x80[\x02-\x05](?:\x95.{8})?\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19|L119547037146038801333356L?\n)\.",
    re.DOTALL,
)
# The class as a pickle names it: by two strings and STACK_GLOBAL, either of them remembered or not; or by GLOBAL.
_WRAPPER = re.compile(
    rb"joblib\.numpy_pickle(?:_compat)?(?:\x94|q.|r.{4})?(?:\x8c[\x0e-\x12]|\n)(?:NumpyArray|NDArray|ZNDArray)Wrapper", re.DOTALL
)
_FRAME = b"\x95"
# Payloads too large for a frame stand between two of them: opcode, and how many bytes its length has.
_BETWEEN_FRAMES = {b"B": 4, b"X": 4, b"\x8d": 8, b"\x8e": 8, b"\x96": 8}
_MAX_FRAMES = 4096  # of 64 KiB and more each: what takes longer to walk is decided by the name
_FRAME_END_BYTES = 2 * KIB
_WHOLE_FRAME_BYTES = 64 * KIB
_SEARCHED_BYTES = 16 * KIB

_TELLING = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "GLOBAL", "INST"})
_TELLING_OPCODES = 4
_REMEMBERED_AT_LAST = re.compile(rb"(?:p[0-9]+\n|q.|r.{4})\.\Z", re.DOTALL)
_NAMING = ("GLOBAL", "INST")
_DOTTED_NAMES = re.compile(r"[\w.]+ [\w.<>]+")  # as `pickletools` gives them: a module and what is in it
_LONG_LINES = frozenset({"STRING", "UNICODE", "GLOBAL", "INST", "LONG"})
_SHORT_LINE_BYTES = 32
_LENGTH_BYTES = {2: 1, 3: 4, 4: 4, 5: 8}  # by what `pickletools` calls TAKEN_FROM_ARGUMENT1, 4, 4U and 8U, without the sign


class Writer(Enum):
    """What wrote a pickle."""

    PICKLE = "pickle"
    JOBLIB = "joblib"
    TORCH = "torch before 1.6"
    UNDECIDED = "pickle or joblib"


def writer_of(read_at: ReadAt, size_bytes: int | None) -> Writer | None:
    """What wrote the pickle of protocol 2 to 5 that begins here (the magic number of torch: any protocol); None if none does.

    Args:
        read_at: Gives at most so many bytes from an offset.
        size_bytes: How long it is; None for the first bytes of a stream, whose end is not known.
    """
    head = read_at(0, END_BYTES)
    if _TORCH_MAGIC.match(head):
        return Writer.TORCH
    if not _PROTOCOL.match(head):
        return None
    if _WRAPPER.search(head):
        return Writer.JOBLIB
    read = _read_opcodes(head, size_bytes)
    if len(read.names) < 3 and read.problem:
        return None
    if head[2:3] == _FRAME:
        return _by_frames(read_at, size_bytes)
    if len(head) == END_BYTES and _WRAPPER.search(read_at(0, _SEARCHED_BYTES)):
        return Writer.JOBLIB
    return Writer.PICKLE if size_bytes is None or size_bytes <= _SEARCHED_BYTES else Writer.UNDECIDED


def _by_frames(read_at: ReadAt, size_bytes: int | None) -> Writer:
    start = end = 2
    for _ in range(_MAX_FRAMES):
        follows = read_at(end, 9)
        width = 8 if follows[:1] == _FRAME else _BETWEEN_FRAMES.get(follows[:1], 0)
        if not width or len(follows) < 1 + width:
            break
        begins = end + 1 + width
        if follows[:1] == _FRAME:
            start = begins
        end = begins + int.from_bytes(follows[1 : 1 + width], "little")
        if size_bytes is not None and end > size_bytes:
            return Writer.PICKLE  # truncated, or a length that lies: whoever loads it will say so
    else:
        return Writer.UNDECIDED
    if end == size_bytes:
        return Writer.PICKLE
    for looked_bytes in (_FRAME_END_BYTES, _WHOLE_FRAME_BYTES):
        begin = max(start, end - looked_bytes)
        if _WRAPPER.search(read_at(begin, end - begin)):
            return Writer.JOBLIB
    return Writer.PICKLE


def is_bare_pickle(head: bytes, tail: bytes, size_bytes: int) -> bool:
    """Whether this is a pickle of protocol 0 or 1, which begins with no mark: every opcode makes sense, on the stack too."""
    read = _read_opcodes(head, size_bytes)
    if read.problem:
        return False
    if read.names and read.names[-1] == "STOP" and read.end == size_bytes:
        return read.depth == 0
    # Text that happens to consist of opcodes neither remembers objects by number nor names classes.
    if len(read.names) >= _TELLING_OPCODES and _TELLING.intersection(read.names):
        return True
    return bool(size_bytes > len(head) and _REMEMBERED_AT_LAST.search(tail))  # one string, longer than what was read


class _Opcodes(NamedTuple):
    names: list[str]
    end: int
    """Where the last of them ends."""
    depth: int
    """How many objects they leave on the stack."""
    problem: bool
    """Whether what follows makes no sense, rather than not being there."""


def _read_opcodes(head: bytes, size_bytes: int | None) -> _Opcodes:
    import pickletools  # here, because importing it takes 2 ms

    names: list[str] = []
    stack: list[Any] = []
    file = io.BytesIO(head)
    position = 0
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if not _moves(stack, opcode) or (opcode.name in _NAMING and not _DOTTED_NAMES.fullmatch(str(argument))):
                return _Opcodes(names, position, len(stack), True)
            names.append(opcode.name)
            position = file.tell()
    except (ValueError, struct.error, DeprecationWarning):  # the last where warnings are errors: a bad escape
        cut_off = _is_cut_off(head[position:], position, size_bytes)
        return _Opcodes(names, position, len(stack), not cut_off)
    return _Opcodes(names, position, len(stack), False)


def _moves(stack: list[Any], opcode: Any) -> bool:
    """Does to the stack what the opcode does; False if that is impossible."""
    from pickletools import markobject

    takes = list(opcode.stack_before)
    if opcode.name == "POP" and stack and stack[-1] is markobject:
        takes = [markobject]
    if markobject in takes:
        if markobject not in stack:
            return False
        while stack.pop() is not markobject:
            pass
        takes = takes[: takes.index(markobject)]
    if len(takes) > len(stack):
        return False
    if takes:
        del stack[-len(takes) :]
    stack.extend(opcode.stack_after)
    return True


def _is_cut_off(rest: bytes, position: int, size_bytes: int | None) -> bool:
    """Whether the opcode at the end of what was read is a good one whose argument is not wholly there."""
    from pickletools import UP_TO_NEWLINE, opcodes

    opcode = next((each for each in opcodes if rest[:1] == each.code.encode("latin-1")), None)
    if opcode is None:
        return not rest
    if opcode.arg is None:
        return False
    if opcode.arg.n == UP_TO_NEWLINE:
        lines = 2 if opcode.name in _NAMING else 1
        return rest.count(b"\n") < lines and (opcode.name in _LONG_LINES or len(rest) < _SHORT_LINE_BYTES)
    if opcode.arg.n >= 0:
        return bool(opcode.arg.n > len(rest) - 1)
    width = _LENGTH_BYTES[-opcode.arg.n]
    length = int.from_bytes(rest[1 : 1 + width], "little")
    return size_bytes is None or length <= size_bytes - position or position == 2  # right after PROTO: a truncated file
