"""What `fuzz_walkers` begins with: small valid files of every format that a walker reads.

They are made by hand or by the standard library, so that a fuzzer runs where no framework is installed, and so that its inputs do
not depend on a version of one.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from typing import Any

from mlup_stream.formats.onnx.wire import encode_field, encode_varint

__all__ = ["seeds"]


def seeds() -> dict[str, tuple[bytes, ...]]:
    """The files, by format."""
    return {
        "pickle": _pickles(),
        "joblib": _joblibs(),
        "onnx": _onnx_models(),
        "zip": _zips(),
        "safetensors": _safetensors(),
        "safetensors index": _indexes(),
        "npy": _npys(),
        "gguf": _ggufs(),
        "ort": _orts(),
        "arrow": _arrows(),
        "skops": _skops(),
        "catboost": _catboosts(),
        "faiss": _faisses(),
        "usearch": _usearches(),
        "tflite": _tflites(),
        "others": _others(),
    }


def _pickles() -> tuple[bytes, ...]:
    shared = ["shared", 2**70, -5, 1.5, None, True]
    model: Any = {"a": shared, "b": (shared, b"bytes" * 9, "text" * 9), "c": OrderedDict(d={1, 2}, e=frozenset("xy"), f=())}
    files = [pickle.dumps(model, protocol) for protocol in range(6)]
    files += [pickle.dumps(each, 5) for each in (bytearray(b"payload"), [bytes(70_000), "x" * 70_000, bytearray(70_000)])]
    files.append(pickle.dumps(list(range(300)), 2))
    framed = b"\x80\x04" + _frame(b"]\x94(") + b"B\x04\0\0\0data" + b"X\x02\0\0\0no" + _frame(b"K\1e.")
    out_of_band = pickle.dumps(pickle.PickleBuffer(b"12345678"), 5, buffer_callback=lambda _: None)
    persistent = b"\x80\x02Pid\n\x85."
    extension = b"\x80\x02\x82\x01\x83\x02\x03\x84\x01\0\0\0\x87."
    return (*files, framed, out_of_band, persistent, extension, framed + framed)


def _frame(content: bytes) -> bytes:
    return b"\x95" + struct.pack("<Q", len(content)) + content


def _joblibs() -> tuple[bytes, ...]:
    """What `joblib.dump` writes of an array of three float64, and of an array of objects, at protocols 4 and 2."""

    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode()

    dtype = text("numpy") + text("dtype") + b"\x93" + text("f8") + b"\x89\x88\x87R"
    dtype += b"(K\3" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    wrapper = text("joblib.numpy_pickle") + text("NumpyArrayWrapper") + b"\x93)\x81}("
    state = text("subclass") + text("numpy") + text("ndarray") + b"\x93" + text("shape") + b"K\3\x85" + text("order") + text("C")
    state += text("dtype") + dtype + text("allow_mmap") + b"\x88"
    aligned = text("numpy_array_alignment_bytes") + b"K\x10"
    payload = struct.pack("<3d", 1, 2, 3)
    old = b"\x80\x04" + _frame(wrapper + state + b"ub") + payload + b"."
    new = b"\x80\x04" + _frame(b"}\x94(" + text("w") + wrapper + state + aligned + b"ub")
    new += b"\x05" + b"\xff" * 5 + payload + _frame(b"NNu.")
    objects = state.replace(text("f8"), text("O8"))
    nested = b"\x80\x04" + _frame(wrapper + objects + aligned + b"ub") + pickle.dumps(["an object"], 5) + _frame(b"N\x86.")
    unframed = b"\x80\x02" + wrapper + state + aligned + b"ub\0" + payload + b"."
    return old, new, nested, unframed, pickle.dumps({"no": "arrays"}, 4)


def _field(number: int, *values: int | bytes) -> bytes:
    return b"".join(encode_field(number, value) for value in values)


def _tensor(name: str, *data: bytes, dims: tuple[int, ...] = (8,), kind: int = 1) -> bytes:
    return _field(1, *dims) + _field(2, kind) + _field(8, name.encode()) + b"".join(data)


def _onnx_models() -> tuple[bytes, ...]:
    floats = struct.pack("<8f", *range(8))
    entries = (("location", "weights.bin"), ("offset", "0"), ("length", "32"))
    external = b"".join(_field(13, _field(1, key.encode()) + _field(2, value.encode())) for key, value in entries) + _field(14, 1)
    raw, packed = _tensor("raw", _field(9, floats)), _tensor("packed", _field(4, floats))
    doubles = _tensor("doubles", _field(10, floats), dims=(2, 2), kind=11)
    others = [
        _tensor("external", external),
        _tensor("int32", _field(5, b"\1\2\3"), dims=(3,), kind=6),
        _tensor("unpacked", b"".join(b"\x25" + floats[i : i + 4] for i in range(0, 32, 4))),
        _tensor("words", _field(6, b"word", b"more"), dims=(2,), kind=8),
        _tensor("nibbles", _field(9, b"\x12\x34"), dims=(4,), kind=22),
        _tensor("segment", _field(3, _field(1, 0)), _field(9, floats)),
        b"\x0a\x02\x02\x04" + _field(2, 1) + _field(9, floats),
    ]

    def node(operator: str, *attributes: bytes, inputs: tuple[str, ...] = ("x",), output: str = "y") -> bytes:
        names = b"".join(_field(1, each.encode()) for each in inputs) + _field(2, output.encode())
        return names + _field(4, operator.encode()) + b"".join(_field(5, each) for each in attributes)

    constant = node("Constant", _field(1, b"value") + _field(5, raw) + _field(20, 4), inputs=())
    sparse = _field(1, raw) + _field(2, _tensor("indices", _field(9, floats * 2), kind=7)) + _field(3, 64)
    size, unknown = _field(1, _field(1, 8)), _field(1, _field(2, b"n"))
    value = _field(1, b"x") + _field(2, _field(1, _field(1, 1) + _field(2, unknown + size)))
    sequence = _field(1, b"s") + _field(2, _field(4, b""))
    inner = _field(1, constant) + _field(5, raw) + _field(2, b"inner")
    graphs = node("If", _field(1, b"then_branch") + _field(6, inner) + _field(20, 5), _field(1, b"both") + _field(11, inner))
    attributes = node("Custom", _field(1, b"t") + _field(10, raw) + _field(22, sparse), _field(1, b"n") + _field(8, 1, 2, 3))
    transposed = node("Transpose", inputs=("raw",)) + node("MatMulNBits", inputs=("raw",))
    opset = _field(8, _field(1, b"") + _field(2, 17), _field(1, b"ai.onnx.ml") + _field(2, 3))
    function = _field(25, _field(1, b"f") + _field(7, constant))
    head = _field(1, 8) + _field(2, b"a test") + _field(3, b"1.0") + _field(5, 1)

    def model(graph: bytes, after: bytes = opset) -> bytes:
        return head + _field(7, graph) + after

    return (
        model(_field(2, b"graph") + _field(1, constant) + _field(11, value, sequence) + _field(12, value), opset + function),
        model(_field(1, graphs)),
        model(_field(1, attributes)),
        model(_field(1, transposed) + _field(5, raw)),
        model(_field(5, packed, doubles) + _field(15, sparse)),
        *(model(_field(5, each)) for each in others),
        _field(1, 3) + _field(7, _field(5, raw) + _field(11, _field(1, b"raw"), value)) + opset,
        _field(1, 2) + _field(7, _field(5, packed)),
    )


def _zips() -> tuple[bytes, ...]:
    def archive(members: dict[str, bytes], method: int, *, wide: bool = False, comment: bytes = b"") -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as written:
            for name, data in members.items():
                info = zipfile.ZipInfo(name)
                info.compress_type = method
                with written.open(info, "w", force_zip64=wide) as member:
                    member.write(data)
            written.comment = comment
        return file.getvalue()

    npz = {"a.npy": _npys()[0], "b.npy": _npys()[1]}
    torch = {"m/data.pkl": b"\x80\x02}q\0.", "m/version": b"3\n", "m/byteorder": b"little", "m/data/0": bytes(64)}
    script = {"m/data.pkl": b".", "m/constants.pkl": b".", "m/code/m.py": b"pass", "m/version": b"3\n"}
    keras = {"metadata.json": b"{}", "config.json": b"{}", "model.weights.h5": _hdf5()}
    stored, deflated = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
    inner = archive(npz, deflated)
    return (
        inner,
        archive(npz, stored, wide=True),
        archive(torch, stored, comment=b"a comment"),
        archive(script, deflated),
        archive(keras, stored),
        b"#!/bin/sh\n" + archive({"naïve.txt": b"x", "folder/": b""}, stored),
        archive({"inner.zip": inner}, stored),
        _with_zip64_end(archive({"a": b"x"}, stored)),
    )


def _with_zip64_end(data: bytes) -> bytes:
    """The same archive with the end record that only archives of more than 65535 members need."""
    end = data.rindex(b"PK\5\6")
    count, size, offset = struct.unpack_from("<HLL", data, end + 10)
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
    return data[:end] + record + struct.pack("<4sLQL", b"PK\6\7", 0, end, 1) + data[end:]


def _safetensors() -> tuple[bytes, ...]:
    def file(header: dict[str, Any], size_bytes: int, pad: int = 0) -> bytes:
        text = json.dumps(header).encode() + b" " * pad
        return struct.pack("<Q", len(text)) + text + bytes(range(size_bytes))

    def tensor(dtype: str, shape: list[int], *offsets: int) -> dict[str, Any]:
        return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}

    several = {"__metadata__": {"format": "pt"}, "w": tensor("F32", [2, 3], 0, 24), "b": tensor("BF16", [], 24, 26)}
    odd = {"empty": tensor("I64", [0, 5], 0, 0), "nibbles": tensor("F4", [3, 2], 0, 3), "flag": tensor("BOOL", [1], 3, 4)}
    return file(several, 26, 3), file(odd, 4), file({}, 0)


def _indexes() -> tuple[bytes, ...]:
    index = {"metadata": {"total_size": 9}, "weight_map": {"w": "model-1.safetensors", "b": "model-2.safetensors"}}
    return (json.dumps(index).encode(), json.dumps(index, indent=2).encode())


def _npys() -> tuple[bytes, ...]:
    def file(version: int, header: str, data: bytes) -> bytes:
        length = "<H" if version == 1 else "<I"
        start = 8 + struct.calcsize(length)
        text = header.encode() + b" " * (-(start + len(header.encode()) + 1) % 64) + b"\n"
        return b"\x93NUMPY" + bytes([version, 0]) + struct.pack(length, len(text)) + text + data

    plain = "{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }"
    matrix = "{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3), }"
    record = "{'descr': [('a', '<i4'), ('b', '<f8', (2,)), ('c', [('d', '|S3')])], 'fortran_order': False, 'shape': (1,), }"
    objects = "{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    wide = "{'descr': [('naïve', '<U2')], 'fortran_order': False, 'shape': (1,), }"
    return (
        file(1, plain, struct.pack("<3d", 1, 2, 3)),
        file(1, matrix, bytes(6)),
        file(2, record, bytes(23)),
        file(1, objects, pickle.dumps("x", 4)),
        file(3, wide, bytes(8)),
    )


def _ggufs() -> tuple[bytes, ...]:
    """Source: the GGUF specification in ggml's documentation, versions 2 and 3."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("general.alignment") + struct.pack("<II", 4, 32),
        text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
        text("nested") + struct.pack("<IIQIQ", 9, 9, 1, 0, 2) + b"\1\2",
        text("scale") + struct.pack("<Id", 12, 1.5),
        text("flag") + struct.pack("<IB", 7, 1),
    ]
    tensors = [
        text("weight") + struct.pack("<IQQIQ", 2, 3, 2, 0, 0),
        text("quantised") + struct.pack("<IQIQ", 1, 32, 8, 32),
    ]
    files = []
    for version in (2, 3):
        head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)
        files.append(head + bytes(-len(head) % 32) + bytes(32) + bytes(34))
    return tuple(files)


def _hdf5() -> bytes:
    """The superblock and the root group's header of an HDF5 file, with two attributes."""
    names = (b"keras_version", b"model_config")
    messages = b"".join(
        struct.pack("<HHB3xBBHHH", 0x0C, 8 + 16, 0, 1, 0, len(name) + 1, 8, 8) + name.ljust(16, b"\0") for name in names
    )
    header = struct.pack("<BBHLL4x", 1, 0, 2, 1, len(messages)) + messages
    superblock = b"\x89HDF\r\n\x1a\n" + bytes(56) + struct.pack("<Q", 96) + bytes(24)
    newer = b"OHDR" + struct.pack("<BB", 2, 0) + bytes([len(messages)]) + messages
    return superblock + header + newer


def flatbuffer(root: dict[int, Any], identifier: bytes = bytes(4)) -> bytes:
    """A flatbuffer of tables as `{field: value}`: numbers as their bytes, text, lists of these, vectors as `(count, bytes)`."""
    out = bytearray(4) + identifier

    def point(at: int, value: Any) -> None:
        out[at : at + 4] = struct.pack("<I", place(value) - at)

    def place(value: Any) -> int:
        out.extend(bytes(-len(out) % 8))
        if isinstance(value, dict):
            return table(value)
        at = len(out)
        if isinstance(value, list):
            out.extend(struct.pack("<I", len(value)) + bytes(4 * len(value)))
            for number, each in enumerate(value):
                point(at + 4 + 4 * number, each)
        else:
            count, content = (len(value.encode()), value.encode() + b"\0") if isinstance(value, str) else value
            out.extend(struct.pack("<I", count) + content)
        return at

    def table(fields: dict[int, Any]) -> int:
        offsets, size_bytes = [0] * (max(fields, default=-1) + 1), 8
        for number, value in fields.items():
            offsets[number] = size_bytes
            size_bytes += 8 if isinstance(value, bytes) else 4
        vtable = struct.pack(f"<{len(offsets) + 2}H", 4 + 2 * len(offsets), size_bytes, *offsets)
        at = len(out) + len(vtable) + -len(vtable) % 8
        out.extend(vtable + bytes(-len(vtable) % 8) + struct.pack("<i", at - len(out)) + bytes(size_bytes - 4))
        for number, value in fields.items():
            if isinstance(value, bytes):
                out[at + offsets[number] : at + offsets[number] + len(value)] = value
            else:
                point(at + offsets[number], value)
        return at

    point(0, root)
    return bytes(out)


def _orts() -> tuple[bytes, ...]:
    floats = struct.pack("<8f", *range(8))
    tensor = {0: "w", 2: (2, struct.pack("<2q", 2, 4)), 3: struct.pack("<i", 1), 4: (32, floats)}
    inner = {0: [{**tensor, 0: "inner"}], 2: [{5: "Identity"}]}
    nodes = [{5: "MatMul"}, {5: "MatMulNBits"}, {5: "If", 10: [{7: inner}, {12: [inner, inner]}]}]
    nodes.append({5: "Constant", 10: [{6: tensor}]})
    graph = {0: [tensor, {0: "words", 3: struct.pack("<i", 8), 5: ["a", "b"]}], 2: nodes, 5: ["x"], 6: ["y"]}
    opsets = [{0: "", 1: struct.pack("<q", 17)}, {0: "com.microsoft", 1: struct.pack("<q", 1)}]
    model = {0: struct.pack("<q", 8), 1: opsets, 2: "by hand", 3: "1", 7: graph}
    return (flatbuffer({0: "6", 1: model}, b"ORTM"), flatbuffer({0: "6", 1: {7: {}}}, b"ORTM"), flatbuffer({}, b"ORTM"))


def _arrows() -> tuple[bytes, ...]:
    """A file, a file with compressed buffers, one without batches, and a stream."""

    def number(value: int) -> bytes:
        return struct.pack("<q", value)

    def message(kind: int, header: dict[int, Any], body: bytes) -> tuple[int, bytes]:
        metadata = flatbuffer({0: struct.pack("<h", 4), 1: bytes([kind]), 2: header, 3: number(len(body))})
        metadata += bytes(-len(metadata) % 8)
        head = b"\xff\xff\xff\xff" + struct.pack("<I", len(metadata)) + metadata
        return len(head), head + body

    def batch(*buffers: bytes, codec: int | None = None) -> tuple[dict[int, Any], bytes]:
        places, body = b"", b""
        for each in buffers:
            places += number(len(body)) + number(len(each))
            body += each + bytes(-len(each) % 8)
        fields: dict[int, Any] = {0: number(4), 1: (1, number(4) + number(0)), 2: (len(buffers), places)}
        return fields | ({} if codec is None else {3: {0: bytes([codec])}}), body

    column = {0: "w", 2: b"\3", 3: {0: struct.pack("<h", 1)}}
    words = {0: "s", 2: b"\5", 3: {}, 4: {0: number(7)}, 5: [{0: "inner", 2: b"\2", 3: {0: struct.pack("<i", 32), 1: b"\1"}}]}
    schema = {1: [column, words], 2: [{0: "key", 1: "value"}]}
    plain, body = batch(struct.pack("<4f", *range(4)))
    packed, packed_body = batch(number(16) + bytes(9), number(-1) + bytes(16), b"", codec=0)
    dictionary = {0: number(7), 1: plain}
    messages = [(2, dictionary, body), (3, plain, body), (3, packed, packed_body)]

    def file(chosen: list[tuple[int, dict[int, Any], bytes]]) -> bytes:
        out, places = b"ARROW1\0\0", {2: b"", 3: b""}
        for kind, header, content in chosen:
            size_bytes, data = message(kind, header, content)
            places[kind] += struct.pack("<qi4xq", len(out), size_bytes, len(content))
            out += data
        blocks = {kind: (len(place) // 24, place) for kind, place in places.items()}
        footer = flatbuffer({0: struct.pack("<h", 4), 1: schema, **blocks})
        return out + footer + struct.pack("<I", len(footer)) + b"ARROW1"

    stream = b"".join(message(*each)[1] for each in [(1, schema, b""), *messages]) + b"\xff\xff\xff\xff" + bytes(4)
    return (file(messages), file(messages[1:2]), file([]), stream)


def _numbers(kind: str, *given: float) -> tuple[int, bytes]:
    return len(given), struct.pack(f"<{len(given)}{kind}", *given)


def _catboosts() -> tuple[bytes, ...]:
    """Symmetric trees, trees that are not, and trees of categories with a table behind them."""
    floats = [{1: struct.pack("<i", 0), 3: _numbers("f", 0.5, 0.75)}]
    trees = {0: struct.pack("<i", 1), 1: _numbers("i", 0, 1), 2: _numbers("i", 1, 1), 3: _numbers("i", 0, 1), 5: floats}
    trees |= {8: _numbers("d", 1, 2, 3, 4), 9: _numbers("d", 1, 1, 1, 1)}
    steps = {1: _numbers("i", 0, 0, 0), 2: _numbers("i", 3), 3: _numbers("i", 0), 8: _numbers("d", 1, 2)}
    steps |= {10: (3, struct.pack("<6H", 1, 2, 0, 0, 0, 0)), 11: _numbers("I", 9, 0, 1)}
    base = {0: {0: _numbers("i", 0)}, 1: b"\0"}
    of_categories = {4: [{1: struct.pack("<i", 0)}], 7: [{0: {0: base}, 1: _numbers("f", 0.5)}], 1: _numbers("i", 0, 2)}
    table = flatbuffer({0: base, 1: (24, struct.pack("<QIQI", 2**64 - 1, 0, 7, 0)), 2: (8, bytes(8)), 4: struct.pack("<i", 2)})

    def file(fields: dict[int, Any], *parts: str, behind: bytes = b"") -> bytes:
        core = flatbuffer({0: "FlabuffersModel_v1", 1: fields, 2: [{0: "params", 1: "{}"}], 3: list(parts)})
        return b"CBM1" + struct.pack("<I", len(core)) + core + behind

    behind = struct.pack("<II", 1, len(table)) + table
    return (file(trees), file(trees | steps), file(trees | of_categories, "static_provider_v1", behind=behind))


def _faisses() -> tuple[bytes, ...]:
    """Vectors, with ids too; lists of product codes with their quantizer; vectors of bits."""

    def head(code: bytes, dimensions: int, vectors: int) -> bytes:
        return struct.pack("<4siqqqBi", code, dimensions, vectors, 1 << 20, 1 << 20, 1, 1)

    flat = head(b"IxF2", 2, 2) + struct.pack("<Q4f", 4, 1, 2, 3, 4)
    codes = struct.pack("<2Q", 2, 1) + flat + b"\0" + struct.pack("<QBQ3Q", 0, 1, 1, 2, 1, 4) + struct.pack("<Q2f", 2, 1, 2)
    with_ids = head(b"IxMp", 2, 2) + flat + struct.pack("<3Q", 2, 7, 8)
    bits = struct.pack("<4siiqBi", b"IBxF", 8, 1, 2, 1, 1) + struct.pack("<Q2B", 2, 1, 2)
    return (flat, with_ids, head(b"IwPQ", 2, 2) + codes, bits)


def _usearches() -> tuple[bytes, ...]:
    """Two vectors, and none; with counts of 4 bytes and of 8."""

    def file(kind: str, count: int) -> bytes:
        rows = struct.pack(f"<2{kind}", count, 8) + struct.pack("<2f", 1, 2) * count
        head = struct.pack("<7s3H4BQQQB", b"usearch", 2, 26, 6, 99, 11, 14, 15, count, 0, 2, 0).ljust(64, b"\0")
        graph = struct.pack("<5Q", count, 2, 2, 0, 0) + struct.pack("<h", 0) * count
        return rows + head + graph + b"".join(struct.pack("<QhI2I", i, 0, 1, 1 - i, 0) for i in range(count))

    return (file("I", 2), file("Q", 2), file("I", 0))


def _tflites() -> tuple[bytes, ...]:
    """A product, and a graph whose tensors lie in no buffer."""
    tensors = [{0: _numbers("i", 1, 2), 3: "x"}, {0: _numbers("i", 2, 2), 2: struct.pack("<I", 1), 3: "w"}, {3: "y"}]
    node = {1: _numbers("i", 0, 1, -1), 2: _numbers("i", 2)}
    graph = {0: tensors, 1: _numbers("i", 0), 2: _numbers("i", 2), 3: [node], 4: "main"}
    signature = {0: [{0: "x"}], 2: "serving_default"}
    model = {0: struct.pack("<I", 3), 2: [graph], 3: "by hand", 4: [{}, {0: (16, bytes(range(16)))}], 7: [signature]}
    return (flatbuffer(model, b"TFL3"), flatbuffer({2: [{0: tensors[:1]}]}, b"TFL3"))


def _skops() -> tuple[bytes, ...]:
    array = {"__class__": "ndarray", "__module__": "numpy", "__loader__": "NdArrayNode", "type": "numpy", "file": "1.npy"}
    plain = {"__class__": "str", "__module__": "builtins", "__loader__": "JsonNode", "content": "3", "is_json": True}
    content = {"__class__": "list", "__module__": "builtins", "__loader__": "ListNode", "content": [array, plain]}
    schema = json.dumps({**content, "protocol": 2, "_skops_version": "0.16.0"}, indent=2).encode()
    files = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            archive.writestr("1.npy", _npys()[0])
            archive.writestr("schema.json", schema)
        files.append(buffer.getvalue())
    return tuple(files)


def _others() -> tuple[bytes, ...]:
    """What detection alone looks into."""
    dumped = _joblibs()[0] + bytes(64)
    lz4 = b"\x04\x22\x4d\x18\x40\x40\xc0" + struct.pack("<I", len(dumped) | 0x80000000) + dumped
    matched = b"\x04\x22\x4d\x18\x68\x40" + bytes(8) + b"\x00" + struct.pack("<I", 12) + b"\x84\x80\x04\x95\1\0\0\0\0\x01\0\x10."
    tar = b""
    for name in (b"pickle", b"storages", b"tensors"):
        tar += (name.ljust(124, b"\0") + b"00000000001\0").ljust(257, b"\0") + b"ustar".ljust(255, b"\0") + bytes(512)
    newer_hdf5 = b"\x89HDF\r\n\x1a\n\2" + bytes(27) + struct.pack("<Q", 96) + _hdf5()[44:]
    return (
        zlib.compress(dumped),
        gzip.compress(dumped, mtime=0),
        bz2.compress(dumped),
        lzma.compress(dumped),
        lzma.compress(dumped, lzma.FORMAT_ALONE),
        lz4,
        matched,
        b"ZF0x100            " + zlib.compress(dumped),
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.",
        tar,
        _hdf5(),
        newer_hdf5,
        b"tree\nversion=v4\nnum_class=1\nfeature_names=a b\n",
        b'{"learner":{"attributes":{},"gradient_booster":{}},"version":[2,0,0]}',
        b"{L\0\0\0\0\0\0\0\x07learner{L\0\0\0\0\0\0\0\x0aattributes{}",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
        encode_varint(2**64 - 1) * 8,
    )
