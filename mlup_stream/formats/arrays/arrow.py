"""Arrow IPC files (also called Feather, version 2) and streams: tables whose columns lie as they would in memory.

A file is `ARROW1` and two zeros, messages, the footer, its length in 4 bytes and `ARROW1`; the footer is a flatbuffer with the
schema and the places of the record batches. A stream is the messages alone. A message is `ff ff ff ff`, a length in 4 bytes, so
much metadata, which is a flatbuffer, and the body with the buffers. A compressed buffer begins with its unpacked length in 8
bytes, -1 for one that is as it was. Source: the Arrow columnar format, "Serialization and Interprocess Communication", and its
`File.fbs`, `Message.fbs` and `Schema.fbs`.

Read is what an estimate needs and what people ask for. Whether the columns are sound only pyarrow's full validation says, and the
binarizer has it made. Peak memory: the schema and the list of batches, and a window of 4 KiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from mlup_stream.formats.flatbuffers import FlatBuffer, Table
from mlup_stream.formats.listing import listed
from mlup_stream.formats.peek import Peek
from mlup_stream.formats.source import Source
from mlup_stream.units import KIB

__all__ = ["ArrowTable", "Field", "detect_file", "detect_stream", "inspect", "is_file", "read_table"]

_MAGIC = b"ARROW1"
_CONTINUES = b"\xff\xff\xff\xff"
_HEAD_BYTES = 8
_MAX_DEPTH = 64
"""Of fields within fields; pyarrow's own limit."""

# The numbers of the fields, in the order of the schemas; and of the unions' members.
_FOOTER_SCHEMA, _FOOTER_DICTIONARIES, _FOOTER_BATCHES = 1, 2, 3
_MESSAGE_KIND, _MESSAGE_HEADER, _MESSAGE_BODY = 1, 2, 3
_SCHEMA_ORDER, _SCHEMA_FIELDS, _SCHEMA_METADATA = 0, 1, 2
_FIELD_NAME, _FIELD_TYPE, _FIELD_TYPE_TABLE, _FIELD_DICTIONARY, _FIELD_CHILDREN = 0, 2, 3, 4, 5
_BATCH_ROWS, _BATCH_NODES, _BATCH_BUFFERS, _BATCH_COMPRESSION = 0, 1, 2, 3
_DICTIONARY_BATCH = 1
_SCHEMA_MESSAGE, _DICTIONARY_MESSAGE, _BATCH_MESSAGE = 1, 2, 3
_BLOCK_BYTES, _NODE_BYTES, _BUFFER_BYTES = 24, 16, 16

_INT, _FLOAT = 2, 3
_TYPES = (
    *("none", "null", "int", "float", "binary", "utf8", "bool", "decimal", "date", "time", "timestamp", "interval", "list"),
    *("struct", "union", "fixed_size_binary", "fixed_size_list", "map", "duration", "large_binary", "large_utf8", "large_list"),
    *("run_end_encoded", "binary_view", "utf8_view", "list_view", "large_list_view"),
)
_FLOATS = ("float16", "float32", "float64")
_CODECS = ("lz4", "zstd")
_PREFIX_BYTES = 8
_MOST_OF_A_BYTE = {"lz4": 255, "zstd": 32 * KIB}
"""What one byte unpacks to at most: LZ4 counts a repetition in bytes of 255, a block of 128 KiB of zstd's takes 4 bytes."""
_SMALLEST_FRAME_UNPACKS_TO = 128 * KIB


class Field(NamedTuple):
    """A column."""

    name: str
    type: str
    is_dictionary: bool


class _Block(NamedTuple):
    """Where a message's metadata lies, and its body."""

    at: int
    metadata_bytes: int
    body_at: int
    body_bytes: int


@dataclass(frozen=True, slots=True)
class ArrowTable:
    """What a file or stream holds.

    Attributes:
        container: `file` or `stream`.
        big_endian: Whether numbers are so.
        fields: The columns.
        metadata: The keys of the schema's metadata.
        rows: Of all batches.
        batches: How many there are, and of dictionaries.
        arrays: How many arrays they are made of, nested ones too.
        codec: What buffers are compressed with; empty if none is.
        stored_bytes: Of buffers that lie as they would in memory.
        compressed_bytes: Of those that do not.
        unpacked_bytes: What these become.
    """

    container: str
    big_endian: bool
    fields: tuple[Field, ...]
    metadata: tuple[str, ...]
    rows: int
    batches: int
    arrays: int
    codec: str
    stored_bytes: int
    compressed_bytes: int
    unpacked_bytes: int


def is_file(source: Source) -> bool:
    """Whether it is a file, rather than a stream."""
    return source.size_bytes >= len(_MAGIC) and source.read(0, len(_MAGIC), "the file") == _MAGIC


def read_table(given: Any, name: str | None = None) -> ArrowTable:
    """What a file or stream holds.

    Args:
        given: A view, a path, a buffer or a seekable binary file.
        name: What to call it in a message.

    Raises:
        CorruptModelError: It is not what the format says, or is truncated.
    """
    with Source(given, name) as source:
        return _of_file(source) if is_file(source) else _of_stream(source)


def _of_file(source: Source) -> ArrowTable:
    end = source.size_bytes - len(_MAGIC) - 4
    tail = source.read(end, len(_MAGIC) + 4, "the end of an Arrow file")
    footer_bytes = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or not 0 < footer_bytes <= end - _HEAD_BYTES:
        raise source.corrupt("the footer of an Arrow file and ARROW1 at its end", repr(tail))
    footer = FlatBuffer(source, "the footer of an Arrow file", end - footer_bytes, footer_bytes).root()
    schema = footer.table(_FOOTER_SCHEMA)
    if schema is None:
        raise source.corrupt("the schema of an Arrow file", "a footer without one")
    counts = _Counts(source)
    for kind in (_FOOTER_DICTIONARIES, _FOOTER_BATCHES):
        start, count = footer.vector(kind, _BLOCK_BYTES)
        for at in range(start, start + count * _BLOCK_BYTES, _BLOCK_BYTES):
            counts.add(_block(source, at))
    return _table("file", source, schema, counts)


def _block(source: Source, at: int) -> _Block:
    raw = source.read(at, _BLOCK_BYTES, "a block of an Arrow file")
    offset, metadata_bytes = int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:12], "little")
    found = _message_at(source, offset)
    body_bytes = int.from_bytes(raw[16:], "little")
    if found is None or offset + metadata_bytes + body_bytes > source.size_bytes:
        raise source.corrupt("a record batch within the file", f"one of {metadata_bytes} and {body_bytes} bytes at {offset}")
    return found._replace(body_at=offset + metadata_bytes, body_bytes=body_bytes)


def _message_at(source: Source, at: int) -> _Block | None:
    """The message at a place, its body not known yet; None at the end. Before Arrow 0.15 it began with its length."""
    if at == source.size_bytes:
        return None
    head = source.read(at, 4, "a message of Arrow")
    at += 4
    if head == _CONTINUES:
        head = source.read(at, 4, "the length of a message of Arrow")
        at += 4
    size_bytes = int.from_bytes(head, "little")
    if size_bytes > source.size_bytes - at:
        raise source.corrupt(f"a message of Arrow, {size_bytes} bytes at {at}", f"a file of {source.size_bytes} bytes")
    return _Block(at, size_bytes, at + size_bytes, 0) if size_bytes else None


def _of_stream(source: Source) -> ArrowTable:
    schema = None
    counts = _Counts(source)
    at = 0
    while (block := _message_at(source, at)) is not None:
        message = _message(source, block)
        body_bytes = message.number(_MESSAGE_BODY, "q")
        if not 0 <= body_bytes <= source.size_bytes - block.body_at:
            raise source.corrupt(f"the body of a message, {body_bytes} bytes at {block.body_at}", "the end of the stream")
        block = block._replace(body_bytes=body_bytes)
        if schema is None and message.number(_MESSAGE_KIND, "B") == _SCHEMA_MESSAGE:
            schema = message.table(_MESSAGE_HEADER)
        else:
            counts.add(block)
        at = block.body_at + body_bytes
    if schema is None:
        raise source.corrupt("an Arrow stream that begins with its schema", "one without")
    return _table("stream", source, schema, counts)


def _message(source: Source, block: _Block) -> Table:
    return FlatBuffer(source, "a message of Arrow", block.at, block.metadata_bytes).root()


class _Counts:
    """What the batches hold together."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.rows = self.batches = self.arrays = 0
        self.codec = ""
        self.stored_bytes = self.compressed_bytes = self.unpacked_bytes = 0

    def add(self, block: _Block) -> None:
        message = _message(self._source, block)
        kind, header = message.number(_MESSAGE_KIND, "B"), message.table(_MESSAGE_HEADER)
        if kind == _DICTIONARY_MESSAGE and header is not None:
            header = header.table(_DICTIONARY_BATCH)
        elif kind != _BATCH_MESSAGE:
            raise self._source.corrupt("a record batch of Arrow", f"a message of kind {kind}")
        if header is None:
            raise self._source.corrupt("a record batch of Arrow", "a message without one")
        self.batches += 1
        self.rows += header.number(_BATCH_ROWS, "q") if kind == _BATCH_MESSAGE else 0
        self.arrays += header.vector(_BATCH_NODES, _NODE_BYTES)[1]
        compression = header.table(_BATCH_COMPRESSION)
        if compression is None:
            self.stored_bytes += block.body_bytes
            return
        codec = compression.number(0, "b")
        if codec not in range(len(_CODECS)):
            raise self._source.corrupt("buffers compressed with lz4 or zstd", f"codec {codec}")
        self.codec = _CODECS[codec]
        start, count = header.vector(_BATCH_BUFFERS, _BUFFER_BYTES)
        for at in range(start, start + count * _BUFFER_BYTES, _BUFFER_BYTES):
            self._add_compressed(at, block)

    def _add_compressed(self, at: int, block: _Block) -> None:
        raw = self._source.read(at, _BUFFER_BYTES, "a buffer of Arrow")
        offset, size_bytes = int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")
        if offset + size_bytes > block.body_bytes:
            raise self._source.corrupt("a buffer within its record batch", f"{size_bytes} bytes at {offset}")
        if size_bytes < _PREFIX_BYTES:
            return
        prefix = self._source.read(block.body_at + offset, _PREFIX_BYTES, "a compressed buffer")
        unpacked_bytes = int.from_bytes(prefix, "little", signed=True)
        if unpacked_bytes == -1:
            self.stored_bytes += size_bytes - _PREFIX_BYTES
            return
        # pyarrow makes room for as much as is said here, before it unpacks anything.
        if not 0 <= unpacked_bytes <= _SMALLEST_FRAME_UNPACKS_TO + size_bytes * _MOST_OF_A_BYTE[self.codec]:
            raise self._source.corrupt(f"a buffer of {size_bytes} bytes compressed with {self.codec}", f"{unpacked_bytes} in it")
        self.compressed_bytes += size_bytes
        self.unpacked_bytes += unpacked_bytes


def _table(container: str, source: Source, schema: Table, counts: _Counts) -> ArrowTable:
    return ArrowTable(
        container,
        schema.number(_SCHEMA_ORDER, "h") == 1,
        tuple(_field(each, source, 0) for each in schema.tables(_SCHEMA_FIELDS)),
        tuple(each.text(0) for each in schema.tables(_SCHEMA_METADATA)),
        counts.rows,
        counts.batches,
        counts.arrays,
        counts.codec,
        counts.stored_bytes,
        counts.compressed_bytes,
        counts.unpacked_bytes,
    )


def _field(field: Table, source: Source, depth: int) -> Field:
    if depth > _MAX_DEPTH:
        raise source.corrupt(f"columns at most {_MAX_DEPTH} deep", "one deeper")
    kind, details = field.number(_FIELD_TYPE, "B"), field.table(_FIELD_TYPE_TABLE)
    name = _TYPES[kind] if kind < len(_TYPES) else f"type {kind}"
    if kind == _INT and details is not None:
        name = f"{'' if details.number(1, 'B') else 'u'}int{details.number(0, 'i')}"
    elif kind == _FLOAT and details is not None:
        precision = details.number(0, "h")
        name = _FLOATS[precision] if precision in range(len(_FLOATS)) else name
    inner = ", ".join(_inner(field, source, depth))
    return Field(field.text(_FIELD_NAME), f"{name}<{inner}>" if inner else name, field.table(_FIELD_DICTIONARY) is not None)


def _inner(field: Table, source: Source, depth: int) -> Iterator[str]:
    for child in field.tables(_FIELD_CHILDREN):
        yield _field(child, source, depth + 1).type


def detect_file(peek: Peek) -> str | None:
    """What says that it is an Arrow file, or None."""
    return "ARROW1 at its start" + (" and at its end" if peek.tail.endswith(_MAGIC) else "")


def detect_stream(peek: Peek) -> str | None:
    """What says that it is an Arrow stream, or None."""
    size_bytes = int.from_bytes(peek.head[4:8], "little")
    data = peek.at(_HEAD_BYTES, min(size_bytes, 64 * KIB))
    try:
        with Source(data, peek.name) as source:
            is_schema = _message(source, _Block(0, len(data), 0, 0)).number(_MESSAGE_KIND, "B") == _SCHEMA_MESSAGE
    except ValueError:
        return None
    return "a message of Arrow's with a schema" if is_schema else None


def inspect(given: Any, name: str) -> dict[str, Any]:
    table = read_table(given, name)
    fields = [{"name": each.name, "type": each.type, "dictionary": each.is_dictionary} for each in table.fields]
    return {
        "container": table.container,
        "byte_order": "big-endian" if table.big_endian else "little-endian",
        "rows": table.rows,
        "batches": table.batches,
        "compression": table.codec or "none",
        "payload_bytes": table.stored_bytes + table.unpacked_bytes,
        "metadata": list(table.metadata),
        **listed("columns", fields),
    }
