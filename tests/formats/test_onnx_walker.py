"""The walk of an ONNX model: that it finds what the onnx package finds, touches no payload, and survives hostile files."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest

numpy = pytest.importorskip("numpy", reason="needs the onnx extra")
onnx = pytest.importorskip("onnx", reason="needs the onnx extra")

from hypothesis import HealthCheck, given, settings  # noqa: E402  # after what decides whether to be here
from hypothesis import strategies as st  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx_models import BUILDERS, WIDTH, build, write_external  # noqa: E402

from mlup_stream.errors import CorruptModelError  # noqa: E402
from mlup_stream.formats.onnx import wire as protobuf  # noqa: E402
from mlup_stream.formats.onnx.external import Place, without_payloads  # noqa: E402
from mlup_stream.formats.onnx.layout import Layout, walk  # noqa: E402
from mlup_stream.formats.onnx.schema import ELEMENT_BITS, TYPE_NAMES  # noqa: E402
from mlup_stream.formats.onnx.values import ValueInfo  # noqa: E402
from mlup_stream.formats.onnx.wire import encode_field, encode_varint  # noqa: E402
from mlup_stream.formats.source import Source  # noqa: E402

LARGE_TENSORS = {
    "initializers": 3,
    "constants": 3,
    "packed": 3,
    "function_bodies": 1,
    "branches": 4,
    "loops": 2,
    "transposed": 3,
    "two_outputs": 1,
}
MATRIX_BYTES = WIDTH * WIDTH * 4


@pytest.mark.parametrize("where", BUILDERS)
def test_the_headers_are_those_that_the_onnx_package_reads(tmp_path: Path, where: str) -> None:
    """Versions, opsets, inputs, outputs and nodes, for every place that weights lie in."""
    path = build(tmp_path / "m.onnx", where)
    layout, model = walk(path), onnx.load(path)
    assert layout.size_bytes == path.stat().st_size
    assert (layout.ir_version, layout.producer_name) == (model.ir_version, model.producer_name)
    assert layout.opsets == {opset.domain: opset.version for opset in model.opset_import}
    assert layout.graph_name == model.graph.name
    assert layout.node_count == len(model.graph.node)
    assert layout.inputs == (ValueInfo("x", "float", ("batch", WIDTH)),)
    assert [value.name for value in layout.outputs] == [value.name for value in model.graph.output]
    assert len(layout.tensors) == LARGE_TENSORS[where]


@pytest.mark.parametrize("where", BUILDERS)
def test_payloads_are_the_arrays_bytes(tmp_path: Path, where: str) -> None:
    """What lies at each place found is the array, byte for byte; and no payload of that size is missed."""
    content = build(tmp_path / "m.onnx", where).read_bytes()
    layout = walk(content)
    matrices = {numpy_helper.to_array(tensor).tobytes() for tensor in _matrices(onnx.load_from_string(content))}
    found = {content[tensor.payload.body : tensor.payload.stop] for tensor in layout.tensors if tensor.payload}
    assert found == matrices
    assert layout.payload_bytes == sum(len(each) for each in matrices)
    assert layout.structure_bytes == len(content) - layout.payload_bytes
    assert not any(tensor.stays_because for tensor in layout.tensors)


def _matrices(model: Any) -> list[Any]:
    """Every tensor of the model with at least a matrix's elements, by the onnx package's reading."""
    graphs, nodes, tensors = [model.graph], [node for function in model.functions for node in function.node], []
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            tensors += graph.initializer
            nodes += graph.node
        else:
            for attribute in nodes.pop().attribute:
                graphs += [attribute.g] if attribute.HasField("g") else []
                tensors += [attribute.t] if attribute.HasField("t") else []
    return [tensor for tensor in tensors if len(tensor.dims) == 2]


@pytest.mark.parametrize("where", ["initializers", "constants", "packed", "function_bodies"])
def test_a_model_without_its_payloads_is_the_same_model(tmp_path: Path, where: str) -> None:
    """Written anew and read by the onnx package, which follows the external data into the first file, it is what it was."""
    path = build(tmp_path / "m.onnx", where)
    with Source(path) as source:
        layout = walk(source)
        small = without_payloads(source, layout, lambda tensor: Place(path.name, tensor.payload.body))  # type: ignore[union-attr]
    assert len(small) <= layout.structure_bytes + 120 * len(layout.tensors)
    (tmp_path / "small.onnx").write_bytes(small)
    before, after = onnx.load(path), onnx.load(tmp_path / "small.onnx")
    onnx.external_data_helper.load_external_data_for_model(after, str(tmp_path))
    for model in (before, after):
        for tensor in _matrices(model):
            raw = numpy_helper.to_array(tensor).tobytes()
            for field in ("float_data", "double_data", "external_data", "data_location"):
                tensor.ClearField(field)
            tensor.raw_data = raw
    assert before == after


def test_what_has_no_place_stays() -> None:
    """Tensors that `place` gives None stay byte for byte, and with them alone the model is the same bytes."""
    content = BUILDERS["branches"]().SerializeToString()
    with Source(content) as source:
        assert without_payloads(source, walk(source), lambda tensor: None) == content


def test_tensors_in_branches_are_hoisted(tmp_path: Path) -> None:
    """Each becomes an initializer of the main graph with a name of its own, although all of them are called `w`."""
    path = build(tmp_path / "m.onnx", "branches")
    with Source(path) as source:
        layout = walk(source)
        small = without_payloads(source, layout, lambda tensor: Place(path.name, tensor.payload.body))  # type: ignore[union-attr]
    model = onnx.load_from_string(small)
    names = [tensor.name for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    assert len(names) == len(set(names)) == 4
    assert not any(tensor.data_location == TensorProto.EXTERNAL for tensor in _matrices(model) if tensor.name not in names)
    then = next(attribute.g for attribute in model.graph.node[-1].attribute if attribute.name == "then_branch")
    assert [node.op_type for node in then.node] == ["Identity", "MatMul"]
    assert then.node[0].output[0] == "w"


def test_external_data_is_listed(tmp_path: Path) -> None:
    """Its files and its bytes, although a tensor that refers to them is small."""
    layout = walk(write_external(tmp_path / "m.onnx"))
    assert layout.external_locations == ("m.onnx.data",)
    assert layout.external_bytes == 3 * MATRIX_BYTES
    assert layout.payload_bytes == 0


def test_inputs_before_ir_version_4_are_without_initializers() -> None:
    """Where initializers have to be inputs as well, the layout tells the inputs that a user has to give."""
    model = BUILDERS["initializers"]()
    model.ir_version = 3
    model.graph.input.extend(helper.make_tensor_value_info(tensor.name, 1, tensor.dims) for tensor in model.graph.initializer)
    assert [value.name for value in walk(model.SerializeToString()).inputs] == ["x"]


def test_element_types_are_those_of_the_onnx_package() -> None:
    """Every type that both know has the same number and size."""
    for name, number in TensorProto.DataType.items():
        if number in ELEMENT_BITS and name != "STRING":
            assert TYPE_NAMES[number] == name.lower()
            if ELEMENT_BITS[number] >= 8:
                assert helper.tensor_dtype_to_np_dtype(number).itemsize * 8 == ELEMENT_BITS[number]


def _with(tensor: Any, **more: Any) -> Any:
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [], [tensor], **more)
    return walk(helper.make_model(graph, ir_version=8).SerializeToString(), min_payload_bytes=0).tensors[0]


STAYING = {
    "int64_data": (helper.make_tensor("w", TensorProto.INT64, [9], range(9)), "int64_data"),
    "int32_data of bytes": (helper.make_tensor("w", TensorProto.UINT8, [9], range(9)), "int32_data"),
    "strings": (helper.make_tensor("w", TensorProto.STRING, [2], ["a", "b"]), "string_data"),
    "complex numbers in float_data": (helper.make_tensor("w", TensorProto.COMPLEX64, [1], [1j]), "as they would in memory"),
    "a shape that does not fit": (TensorProto(name="w", data_type=1, dims=[3], raw_data=b"\0" * 8), "length of its shape"),
    "a shape of 2^63": (TensorProto(name="w", data_type=1, dims=[2**62, 4], raw_data=b"\0" * 8), "length of its shape"),
    "a negative shape": (TensorProto(name="w", data_type=1, dims=[-2, -1], raw_data=b"\0" * 8), "length of its shape"),
    "an unknown type": (TensorProto(name="w", data_type=77, dims=[2], raw_data=b"\0" * 8), "no fixed size"),
    "two kinds of data": (TensorProto(name="w", data_type=1, dims=[1], raw_data=b"\0" * 4, float_data=[0.0]), "in one piece"),
    "a segment": (
        TensorProto(name="w", data_type=1, dims=[1], raw_data=b"\0" * 4, segment=TensorProto.Segment(begin=0, end=1)),
        "segment",
    ),
}


@pytest.mark.parametrize(("tensor", "why"), STAYING.values(), ids=STAYING.keys())
def test_what_cannot_be_left_in_place_says_why(tensor: Any, why: str) -> None:
    """A payload that is not the array's bytes, or not as long as its shape says, is never given a place."""
    found = _with(tensor)
    assert why in found.stays_because


def test_elements_of_less_than_a_byte_are_counted_right() -> None:
    """Three int4 numbers are two bytes."""
    found = _with(TensorProto(name="w", data_type=TensorProto.INT4, dims=[3], raw_data=b"\x21\x03"))
    assert (found.size_bytes, found.stays_because, found.is_packed) == (2, "", True)


class _CountingFile(io.BytesIO):
    read_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self.read_bytes += len(content)
        return content


def test_no_payload_is_read() -> None:
    """read <= structure + one window for each payload that was stepped over + one."""
    content = BUILDERS["initializers"](layers=8, width=512).SerializeToString()
    file = _CountingFile(content)
    layout = walk(file)
    assert layout.payload_bytes == 8 * 512 * 512 * 4
    assert file.read_bytes <= layout.structure_bytes + (8 + 1) * protobuf._WINDOW_BYTES


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    """A model that ends early is never taken for a whole one."""
    content = BUILDERS["branches"](width=8).SerializeToString()
    assert walk(content)
    for length in range(len(content)):
        with pytest.raises(CorruptModelError):
            walk(content[:length])


def _nested(depth: int) -> bytes:
    """Graphs in nodes in graphs, `depth` of them."""
    graph = encode_field(2, b"innermost")
    for _ in range(depth):
        node = encode_field(4, b"If") + encode_field(5, encode_field(1, b"then_branch") + encode_field(6, graph))
        graph = encode_field(1, node)
    return encode_field(1, 8) + encode_field(7, graph) + encode_field(8, encode_field(2, 17))


def test_a_nesting_bomb_is_an_error() -> None:
    """Graphs may nest as deep as protobuf's own parsers go, and 2000 of them do not exhaust the stack."""
    assert walk(_nested(20), min_payload_bytes=0).node_count == 1
    for depth in (30, 2000):
        with pytest.raises(CorruptModelError, match="deep"):
            walk(_nested(depth), min_payload_bytes=0)


def _with_graph(graph: bytes) -> bytes:
    return encode_field(1, 8) + encode_field(7, graph) + encode_field(8, encode_field(2, 17))


HOSTILE = {
    "no graph": encode_field(1, 8) + encode_field(8, encode_field(2, 17)),
    "two graphs": _with_graph(b"") + encode_field(7, b""),
    "no operator sets": encode_field(1, 8) + encode_field(7, b""),
    "a graph that is a number": encode_field(1, 8) + encode_field(7, 5) + encode_field(8, encode_field(2, 17)),
    "an initializer beyond the graph": _with_graph(encode_varint(5 << 3 | 2) + encode_varint(1 << 40)),
    "a shape of a million dimensions": _with_graph(encode_field(5, encode_field(1, b"\1" * 1_000_000) + b"location")),
    "an output's shape of 5000 dimensions": _with_graph(
        encode_field(12, encode_field(2, encode_field(1, encode_field(2, encode_field(1, b"") * 5000))))
    ),
    "nothing": b"",
    "garbage": bytes(range(256)) * 64,
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_models_are_typed_errors(content: bytes) -> None:
    """Each is damaged content."""
    with pytest.raises(CorruptModelError):
        walk(content)


def test_lists_with_a_field_for_each_element_are_not_walked() -> None:
    """An attribute of two million floats that are not packed, as tree ensembles have them, costs no more than its first."""
    attribute = encode_field(1, b"nodes_values") + (encode_varint(7 << 3 | 5) + b"\0\0\0\0") * 2_000_000
    content = _with_graph(encode_field(1, encode_field(4, b"TreeEnsembleRegressor") + encode_field(5, attribute)))
    started = time.process_time()
    assert walk(content).tensors == ()
    assert time.process_time() - started < 1


def test_a_model_of_nothing_but_fields_ends_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a walk is bounded by the number of fields, whatever the size of the file."""
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 10_000)
    with pytest.raises(CorruptModelError, match="at most 10000 fields"):
        walk(_with_graph(encode_field(5, b"") * 20_000))


CONTENTS = [builder(width=16).SerializeToString() for builder in BUILDERS.values()]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_models_are_walked_or_refused(data: st.DataObject) -> None:
    """Whatever bytes of a model are changed, cut or doubled: an error, or a layout whose payloads lie apart within the file.

    What can be walked can also be written anew.
    """
    content = bytearray(data.draw(st.sampled_from(CONTENTS)))
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, max(len(content) - 1, 0)))
        stop = min(len(content), start + data.draw(st.integers(0, 4)))
        content[start:stop] = data.draw(st.binary(max_size=4))
    check_layout(bytes(content))


def check_layout(content: bytes) -> Layout | None:
    """Walks `content`, and makes sure of the layout; None if it is refused."""
    try:
        with Source(content) as source:
            layout = walk(source, min_payload_bytes=0)
            movable = {each.field: each for each in layout.tensors if each.payload and not each.stays_because}
            small = without_payloads(
                source, layout, lambda tensor: Place("m", tensor.payload.body) if tensor.field in movable else None  # type: ignore[union-attr]
            )
    except CorruptModelError:
        return None
    end = 0
    for each in sorted(movable.values(), key=lambda tensor: tensor.field.start):
        assert each.payload is not None
        assert end <= each.field.start <= each.payload.body <= each.payload.stop <= each.field.stop <= len(content)
        assert each.size_bytes == each.payload.body_bytes
        end = each.field.stop
    assert len(small) <= len(content) - layout.payload_bytes + 200 * len(movable) + 100
    return layout
