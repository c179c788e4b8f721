"""Packing ONNX: weights in one aligned file beside the model, the same predictions, and never a model with another's weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from limits import needs_cgroups, run_limited
from models import onnx_matmuls
from onnx_models import build

import mlup_stream as mlup
from mlup_stream.errors import CorruptModelError, ModelNotFoundError, PackError
from mlup_stream.formats.onnx.layout import walk
from mlup_stream.pack import pack
from mlup_stream.pack.destination import Destination
from mlup_stream.units import KIB, MIB

numpy = pytest.importorskip("numpy", reason="the weights")
onnx = pytest.importorskip("onnx", reason="writes the models")
onnxruntime = pytest.importorskip("onnxruntime", reason="asks them")

ROWS = numpy.linspace(-1, 1, 2 * 1024, dtype="f4").reshape(2, 1024)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source" / "model.onnx"
    path.parent.mkdir()
    onnx_matmuls(path, 8 * MIB)
    return path


def answers(path: Path) -> Any:
    """What onnxruntime itself makes of the file."""
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"h0": ROWS})[0]


def data_of(path: Path) -> Path:
    (found,) = walk(str(path)).external_locations
    return path.parent / found


def test_weights_lie_aligned_beside_the_model(source: Path, tmp_path: Path) -> None:
    """Each at a multiple of 64 KiB; onnx and onnxruntime read the pair, and predictions are the same."""
    target = tmp_path / "packed.onnx"
    packed = pack(source, target)
    assert packed.files == (str(target), str(data_of(target)))
    assert packed.mappable_after_bytes == packed.payload_bytes == 8 * MIB > packed.mappable_before_bytes
    assert "both models predict the same" in packed.verified
    for tensor in walk(str(target)).tensors:
        assert int(tensor.external["offset"]) % (64 * KIB) == 0
    assert target.stat().st_size < 4 * KIB
    onnx.checker.check_model(str(target))
    assert numpy.array_equal(answers(target), answers(source))
    assert sorted(os.listdir(tmp_path)) == sorted(["source", *(os.path.basename(path) for path in packed.files)])


def test_it_is_loaded_in_place(source: Path, tmp_path: Path) -> None:
    """This package leaves all weights in the data file, and answers the same, bit for bit."""
    target = tmp_path / "packed.onnx"
    pack(source, target)
    up = mlup.UP(conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": str(target), "delivery": "view"}))
    up.ml.load()
    assert up.ml.report is not None
    assert up.ml.report.placement is not None
    assert up.ml.report.placement.mapped_bytes == 8 * MIB
    assert numpy.array_equal(up.predict(X=ROWS)[0], mlup.load(source, delivery="view").predict(ROWS)[0])
    up.ml.unload()


def test_external_data_is_moved_too(source: Path, tmp_path: Path) -> None:
    """A model whose weights lie in other files already: they come into the one file, in another folder, aligned."""
    external = source.parent / "external.onnx"
    onnx.save(onnx.load(source), external, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    target = tmp_path / "packed.onnx"
    packed = pack(external, target)
    assert packed.source_bytes > 8 * MIB
    assert numpy.array_equal(answers(target), answers(source))
    weights = sorted(name for name in os.listdir(source.parent) if name not in ("model.onnx", "external.onnx"))
    with pytest.raises(PackError, match="part of it"):
        pack(external, source.parent / weights[0], force=True)
    (source.parent / weights[0]).unlink()
    with pytest.raises(ModelNotFoundError):
        pack(external, target, force=True)
    assert numpy.array_equal(answers(target), answers(source))


def test_what_a_runtime_wants_inside_stays_inside(tmp_path: Path) -> None:
    """Weights in the branches of `If`, and those that are one varint for each element, stay; the report says how many and why."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    big, condition = numpy.arange(4096, dtype="f4"), helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])
    branches = []
    for name in ("then_branch", "else_branch"):
        inner = helper.make_node("Constant", [], [name], value=numpy_helper.from_array(big, "v"))
        out = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4096])
        branches.append(helper.make_graph([inner], name, [], [out]))
    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Add", ["y", "w"], ["z"]),
        helper.make_node("Cast", ["i"], ["f"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Add", ["z", "f"], ["out"]),
    ]
    integers = helper.make_tensor("i", onnx.TensorProto.INT64, [4096], range(4096))
    out = helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [4096])
    graph = helper.make_graph(nodes, "g", [condition], [out], [numpy_helper.from_array(big, "w"), integers])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    packed = pack(tmp_path / "m.onnx", tmp_path / "packed.onnx")
    assert packed.mappable_after_bytes == 16 * KIB
    assert packed.payload_bytes == (3 * 16 + 32) * KIB
    assert any("in a graph within another" in note for note in packed.notes)
    assert any("int64_data" in note for note in packed.notes)
    for given in (True, False):
        results = [
            onnxruntime.InferenceSession(str(tmp_path / name)).run(None, {"c": numpy.array(given)})[0]
            for name in ("m.onnx", "packed.onnx")
        ]
        assert numpy.array_equal(*results)


def test_a_replaced_model_never_meets_the_other_data(source: Path, tmp_path: Path) -> None:
    """With force another data file is written beside the old one, which goes when the new model has the name."""
    target = tmp_path / "packed.onnx"
    pack(source, target)
    old = data_of(target)
    other = source.parent / "other.onnx"
    onnx_matmuls(other, 4 * MIB)
    pack(other, target, force=True)
    assert data_of(target) != old
    assert not old.exists()
    assert numpy.array_equal(answers(target), answers(other))
    packed = pack(other, target, force=True)
    assert packed.files[1] == str(data_of(target))
    assert sorted(os.listdir(tmp_path)) == sorted(["packed.onnx", data_of(target).name, "source"])


def test_a_failure_keeps_the_old_pair(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when the data is written and the model is not: what was there answers as before, and nothing is left."""
    target = tmp_path / "packed.onnx"
    pack(source, target)
    before = sorted(os.listdir(tmp_path))
    other = source.parent / "other.onnx"
    onnx_matmuls(other, 4 * MIB)
    sync, count = Destination.sync, []

    def interrupted_the_second_time(self: Destination) -> None:
        count.append(self)
        if len(count) == 2:
            raise KeyboardInterrupt
        sync(self)

    monkeypatch.setattr(Destination, "sync", interrupted_the_second_time)
    with pytest.raises(KeyboardInterrupt):
        pack(other, target, force=True)
    assert sorted(os.listdir(tmp_path)) == before
    assert numpy.array_equal(answers(target), answers(source))


def test_data_that_was_written_wrongly_is_noticed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of a weight, flipped on its way to the disk."""
    commit = Destination.commit

    def flip_a_bit_first(self: Destination) -> None:
        self.sync()
        with open(self.part, "r+b") as file:
            file.seek(MIB)
            byte = file.read(1)[0]
            file.seek(MIB)
            file.write(bytes([byte ^ 1]))
        commit(self)

    monkeypatch.setattr(Destination, "commit", flip_a_bit_first)
    with pytest.raises(PackError, match="expected to read back what was written"):
        pack(source, tmp_path / "packed.onnx")
    assert os.listdir(tmp_path) == ["source"]


def test_a_truncated_model_is_an_error_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    """Cut off at many places."""
    whole = source.read_bytes()
    for end in range(0, len(whole), len(whole) // 13):
        source.write_bytes(whole[:end])
        with pytest.raises((CorruptModelError, PackError), match=r"model\.onnx"):
            pack(source, tmp_path / "packed.onnx", format=_onnx())
        assert os.listdir(tmp_path) == ["source"]


def _onnx() -> Any:
    from mlup_stream.formats.kinds import Format

    return Format.ONNX


def test_a_model_without_weights_has_nothing_to_gain(tmp_path: Path) -> None:
    """Tensors below a page stay in the model."""
    onnx_matmuls(tmp_path / "m.onnx", 0, width=8)
    with pytest.raises(PackError, match="nothing to gain"):
        pack(tmp_path / "m.onnx", tmp_path / "packed.onnx")
    assert os.listdir(tmp_path) == ["m.onnx"]


@pytest.mark.parametrize("where", ["branches", "loops", "function_bodies"])
def test_what_stays_inside_is_not_overlooked(tmp_path: Path, where: str) -> None:
    """A model that has all its weights in graphs within others, or in functions, is told that, and not that it has none."""
    with pytest.raises(PackError, match=r"found \d+\.0 KiB stay in the model: in a graph within another, or a function: nothing"):
        pack(build(tmp_path / "m.onnx", where), tmp_path / "packed.onnx")


def test_a_model_that_cannot_be_asked_is_packed_all_the_same(tmp_path: Path) -> None:
    """Made-up rows that suit no model: the weights are compared, and the report says why the predictions were not."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    words = helper.make_tensor_value_info("words", onnx.TensorProto.STRING, [None])
    out = helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [4096])
    nodes = [helper.make_node("Identity", ["w"], ["out"]), helper.make_node("Shape", ["words"], ["unused"])]
    graph = helper.make_graph(nodes, "g", [words], [out], [numpy_helper.from_array(numpy.arange(4096, dtype="f4"), "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    packed = pack(tmp_path / "m.onnx", tmp_path / "packed.onnx")
    assert "predict" not in packed.verified
    assert packed.notes == ("predictions were not compared: no rows can be made up for tensor(string)",)


_PACK_BYTES = 256 * MIB
_PROCESS_BYTES = 160 * MIB
"""The interpreter, onnx, onnxruntime and two of its sessions without weights, windows of the copy, dirty pages."""


@pytest.mark.big
@needs_cgroups
def test_memory_is_bounded(tmp_path: Path) -> None:
    """process + windows + two sessions without their weights fit into a group in which the 256 MiB of weights do not.

    Not RLIMIT_DATA: it counts what onnxruntime maps of external data, although nothing of it becomes private.
    """
    onnx_matmuls(tmp_path / "m.onnx", _PACK_BYTES)
    code = """
        from mlup_stream.pack import pack
        answer(pack(folder + "/m.onnx", folder + "/packed.onnx").to_dict())
    """
    found = run_limited(code, limit_bytes=_PROCESS_BYTES, folder=str(tmp_path))
    assert found["mappable_after_bytes"] == _PACK_BYTES
    assert "both models predict the same" in found["verified"], found["notes"]
    for each in tmp_path.iterdir():
        each.unlink()
