"""What wrote a pickle, from its first bytes and from what follows its frames: `pickle` itself, joblib, or torch before 1.6.

joblib writes the bytes of each array into the middle of the pickle, right after the pickled `NumpyArrayWrapper` that describes
it. From protocol 4 on, a pickle is cut into frames that say how long they are, so the first array is found by walking from frame
to frame, however large the structure before it: it lies where no frame follows, and the frame before it ends in the wrapper.
Payloads of 64 KiB and more stand between frames, as do up to three bytes of opcodes from one payload to the next. Without frames
only the beginning is searched; what shows no array there is undecided. A joblib dump of an object that has no arrays is, byte for
byte, a plain pickle.
Sources: PEP 3154 (frames), `pickletools` (opcodes), joblib's `numpy_pickle.py`, torch's `serialization.py` (its magic number).
"""

from __future__ import annotations

import io
import itertools
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
# An array as `pickle` writes it in protocols 2 and 3; joblib writes none so.
_PLAIN_ARRAY = re.compile(rb"cnumpy\.(?:_?core)\.multiarray\n_reconstruct\n(?:q.|r.{4})?cnumpy\nndarray\n", re.DOTALL)
_FRAME = b"\x95"
_STOP = b"."
_FIRST_PROTOCOL_WITH_FRAMES = 4
_MIN_FRAME_BYTES = 4  # `pickle._Framer._FRAME_SIZE_MIN`: less than that is written without a frame
_STEP_BYTES = _MIN_FRAME_BYTES - 1 + 9
# Payloads too large for a frame stand between two of them: opcode, and how many bytes its length has.
_BETWEEN_FRAMES = {b"B": 4, b"X": 4, b"\x8d": 8, b"\x8e": 8, b"\x96": 8}
_MAX_FRAMES = 4096  # of 64 KiB and more each: what takes longer to walk is decided by the name
_FRAME_END_BYTES = 2 * KIB
_WHOLE_FRAME_BYTES = 64 * KIB
_SEARCHED_BYTES = 16 * KIB
_FIRST_OPCODES = 3  # a text that begins like a pickle goes wrong within them

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
    if _read_opcodes(head, size_bytes, most=_FIRST_OPCODES).problem:
        return None
    if head[1] >= _FIRST_PROTOCOL_WITH_FRAMES and _step(read_at(2, _STEP_BYTES)) is not None:
        return _by_frames(read_at, size_bytes)
    searched = read_at(0, _SEARCHED_BYTES) if len(head) == END_BYTES else head
    if _WRAPPER.search(searched):
        return Writer.JOBLIB
    is_decided = size_bytes is None or size_bytes <= _SEARCHED_BYTES or _PLAIN_ARRAY.search(searched)
    return Writer.PICKLE if is_decided else Writer.UNDECIDED


def _by_frames(read_at: ReadAt, size_bytes: int | None) -> Writer:
    start = end = 2
    is_after_frame = False
    for _ in range(_MAX_FRAMES):
        if end == size_bytes or read_at(end, 1) == b"":
            return Writer.PICKLE
        follows = read_at(end, _STEP_BYTES)
        step = _step(follows)
        if is_after_frame and (step is None or step.skipped_bytes):
            # What follows the wrapper are the bytes of an array, whatever they look like.
            for looked_bytes in (_FRAME_END_BYTES, _WHOLE_FRAME_BYTES):
                begin = max(start, end - looked_bytes)
                if _WRAPPER.search(read_at(begin, end - begin)):
                    return Writer.JOBLIB
        if step is None:
            break
        begins = end + step.head_bytes
        is_after_frame = step.is_frame
        if is_after_frame:
            start = begins
        end = begins + step.content_bytes
        if size_bytes is not None and end > size_bytes:
            return Writer.PICKLE  # truncated, or a length that lies: whoever loads it will say so
    else:
        return Writer.UNDECIDED
    is_cut_off = size_bytes is not None and size_bytes - end < _STEP_BYTES
    return Writer.PICKLE if is_cut_off or read_at(end - 1, 1) == _STOP else Writer.UNDECIDED


class _Step(NamedTuple):
    """A frame, or a payload between two.

    Attributes:
        skipped_bytes: Opcodes before it, too few for a frame of their own.
        head_bytes: Up to its content, these included.
        content_bytes: Of the frame or payload.
        is_frame: Whether it is a frame.
    """

    skipped_bytes: int
    head_bytes: int
    content_bytes: int
    is_frame: bool


def _step(follows: bytes) -> _Step | None:
    """The frame or payload that begins here, or behind less than `_FRAME_SIZE_MIN` bytes of opcodes; None if there is none."""
    for skipped in range(_MIN_FRAME_BYTES):
        opcode = follows[skipped : skipped + 1]
        width = 8 if opcode == _FRAME else _BETWEEN_FRAMES.get(opcode, 0)
        head_bytes = skipped + 1 + width
        if not width or len(follows) < head_bytes:
            continue
        content_bytes = int.from_bytes(follows[skipped + 1 : head_bytes], "little")
        if not skipped:
            return _Step(0, head_bytes, content_bytes, opcode == _FRAME)
        least_bytes = _MIN_FRAME_BYTES if opcode == _FRAME else _WHOLE_FRAME_BYTES
        if content_bytes >= least_bytes and _are_opcodes(follows[:skipped]):
            return _Step(skipped, head_bytes, content_bytes, opcode == _FRAME)
    return None


def _are_opcodes(data: bytes) -> bool:
    """Whether these are whole opcodes, of those whose arguments have a fixed length."""
    from pickletools import opcodes

    sizes = {each.code.encode("latin-1"): 1 + (each.arg.n if each.arg is not None else 0) for each in opcodes}
    position = 0
    while position < len(data):
        size = sizes.get(data[position : position + 1], 0)
        if size < 1:
            return False
        position += size
    return position == len(data)


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


def _read_opcodes(head: bytes, size_bytes: int | None, most: int | None = None) -> _Opcodes:
    """The opcodes at the beginning, at most so many of them."""
    import pickletools  # here, because importing it takes 2 ms

    names: list[str] = []
    stack: list[Any] = []
    file = io.BytesIO(head)
    position = 0
    try:
        for opcode, argument, _ in itertools.islice(pickletools.genops(file), most):
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
