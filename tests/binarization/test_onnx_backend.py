"""ONNX's own backend tests, in place with no payload too small: the outputs that are expected, and bit for bit onnxruntime's own.

The models of operators take all their tensors as inputs. So each is run a second time with all inputs but the first made
initializers, in which every kernel reads weights from where protobuf happened to put them, aligned or not.

Models that onnxruntime itself cannot load or run are counted and named (`-rA` shows them), and there may be only so many.
"""

from __future__ import annotations

import collections
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from given import Given, deserialize

numpy = pytest.importorskip("numpy", reason="needs the onnx extra")
onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")

from onnx import numpy_helper  # noqa: E402  # after what decides whether to be here

from mlup_stream.constants import Delivery, Optimize  # noqa: E402
from mlup_stream.errors import ModelBinarizationError  # noqa: E402
from mlup_stream.formats.onnx.layout import walk  # noqa: E402
from mlup_stream.ml.binarization import onnx as binarizers  # noqa: E402
from mlup_stream.ml.binarization.onnx import InferenceSessionFullReturnBinarizer  # noqa: E402
from mlup_stream.ml.binarization.onnx_runtime.policy import policy_for  # noqa: E402

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is mapped is read from /proc")

ONE_THREAD = {"intra_op_num_threads": 1, "inter_op_num_threads": 1}


class Case(NamedTuple):
    name: str
    content: bytes
    data_sets: list[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float


@pytest.fixture(autouse=True)
def as_they_are(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No payload is too small to stay in the file, and onnxruntime keeps what it cannot do to itself."""
    monkeypatch.setattr(binarizers, "_MIN_PAYLOAD_BYTES", 0)
    onnxruntime.set_default_logger_severity(4)
    yield
    onnxruntime.set_default_logger_severity(2)


def operators() -> Iterator[Case]:
    """The models of single operators, which the onnx package makes when it is asked."""
    from onnx.backend.test.case.node import collect_testcases

    for each in collect_testcases():
        yield Case(each.name, each.model.SerializeToString(), each.data_sets, each.rtol, each.atol)


def files(kind: str) -> Iterator[Case]:
    """The models that the onnx package has as files, with their inputs and outputs."""
    from onnx.backend.test.loader import load_model_tests

    for test in load_model_tests(kind=kind):
        folder = Path(test.model_dir)
        content = (folder / "model.onnx").read_bytes()
        graph = onnx.load_from_string(content).graph
        given = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in given]
        folders = sorted(folder.glob("test_data_set_*"))
        data_sets = [(_values(each, "input", inputs), _values(each, "output", graph.output)) for each in folders]
        yield Case(test.name, content, data_sets, test.rtol, test.atol)


def _values(folder: Path, what: str, infos: Any) -> list[Any]:
    values = []
    for index in range(len(list(folder.glob(f"{what}_*.pb")))):
        content = (folder / f"{what}_{index}.pb").read_bytes()
        if infos[index].type.HasField("sequence_type"):
            values.append(numpy_helper.to_list(onnx.SequenceProto.FromString(content)))
        else:
            values.append(numpy_helper.to_array(onnx.TensorProto.FromString(content)))
    return values


def with_initializers(case: Case) -> Case | None:
    """The same with all inputs but the first as initializers; None where there are none, or they are not tensors."""
    model = onnx.load_from_string(case.content)
    inputs, values = list(model.graph.input), case.data_sets[0][0]
    if len(inputs) < 2 or len(inputs) != len(values):
        return None
    for info, value in zip(inputs[1:], values[1:], strict=True):
        if not isinstance(value, (numpy.ndarray, numpy.generic)) or not info.type.HasField("tensor_type"):
            return None
        tensor = numpy_helper.from_array(numpy.asarray(value), info.name)
        if tensor.data_type != info.type.tensor_type.elem_type:
            return None
        model.graph.initializer.append(tensor)
        model.graph.input.remove(info)
    content = model.SerializeToString()
    return case._replace(name=f"{case.name} with initializers", content=content, data_sets=[(values[:1], case.data_sets[0][1])])


class Outcome:
    """What became of many cases: how many of each kind, and the names of those that onnxruntime cannot run."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.mapped_bytes = 0
        self.cannot: dict[str, str] = {}

    def run(self, case: Case, path: Path) -> None:
        path.write_bytes(case.content)
        loaded = Given(path=path, delivery=Delivery.VIEW)
        try:
            session = deserialize(InferenceSessionFullReturnBinarizer, loaded, sess_options=ONE_THREAD)
        except ModelBinarizationError as error:
            self.cannot[case.name] = str(error)
            with pytest.raises(type(error.__cause__)):  # type: ignore[arg-type]
                _own_session(path)
            return
        finally:
            loaded.release()
        assert loaded.placement is not None
        assert "external data" not in str(loaded.placement.reasons), case.name
        self.mapped_bytes += loaded.placement.mapped_bytes
        in_place = loaded.placement.mapped_bytes > 0
        self.counts["in place" if in_place else "nothing to leave in place"] += 1
        # Where nothing was left in place the session is onnxruntime's own, and only the expected outputs are left to compare.
        own = _own_session(path) if in_place else session
        for inputs, outputs in case.data_sets:
            names = [value.name for value in own.get_inputs()]
            feed = {name: _as_input(value) for name, value in zip(names, inputs, strict=True)}
            try:
                theirs = own.run(None, feed)
            except Exception as error:  # onnxruntime's errors have no common class
                self.cannot[case.name] = str(error)
                return
            ours = session.run(None, feed) if in_place else theirs
            assert [_bits(each) for each in ours] == [_bits(each) for each in theirs], case.name
            self.counts["same as onnxruntime's own"] += in_place
            if all(_is_close(*pair, case) for pair in zip(theirs, outputs, strict=False)):
                self.counts["as expected"] += 1
            else:
                self.cannot[f"{case.name} (its answer)"] = "onnxruntime's own answer is not the expected one"

    def tell(self) -> None:
        """Names what onnxruntime cannot do, by what it says."""
        print(dict(self.counts), f"{self.mapped_bytes} bytes mapped")
        for name, said in sorted(self.cannot.items()):
            print(f"onnxruntime cannot: {name}: {' '.join(said.split())[:160]}")


def _own_session(path: Path) -> Any:
    """onnxruntime's own session over the file, with our settings of `optimize="memory"`."""
    policy = policy_for(Optimize.MEMORY, walk(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for key, value in policy.entries.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(path, options, disabled_optimizers=set(policy.disabled_optimizers))


def _as_input(value: Any) -> Any:
    return value if isinstance(value, list) or value is None else numpy.asarray(value)


def _bits(value: Any) -> Any:
    """Type, shape and bytes of an array, or of each in a list."""
    if isinstance(value, (list, tuple)):
        return [_bits(each) for each in value]
    if isinstance(value, numpy.ndarray):
        return value.dtype, value.shape, value.tolist() if value.dtype == object else value.tobytes()
    return value


def _is_close(found: Any, expected: Any, case: Case) -> bool:
    if isinstance(found, (list, tuple)) or isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(_is_close(*pair, case) for pair in zip(found, expected, strict=True))
    found, expected = numpy.asarray(found), numpy.asarray(expected)
    if found.shape != expected.shape:
        return False
    if found.dtype == object or expected.dtype.kind in "OSU":
        return bool((found.astype(str) == expected.astype(str)).all())
    return numpy.allclose(found.astype("f8"), expected.astype("f8"), rtol=case.rtol, atol=case.atol, equal_nan=True)


def test_single_operators(tmp_path: Path) -> None:
    """Every operator that onnxruntime's processor kernels know, as it is and with its tensors as initializers."""
    outcome = Outcome()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, about the arithmetic that some cases are about
        for case in operators():
            outcome.run(case, tmp_path / "m.onnx")
            changed = with_initializers(case)
            if changed is not None:
                outcome.run(changed, tmp_path / "m.onnx")
    outcome.tell()
    assert outcome.counts["same as onnxruntime's own"] >= outcome.counts["in place"] - 60 >= 400
    assert outcome.counts["as expected"] >= 2500
    assert len(outcome.cannot) <= 500


@pytest.mark.parametrize(("kind", "at_least"), [("simple", 17), ("pytorch-converted", 55), ("pytorch-operator", 20)])
def test_models_that_come_with_the_onnx_package(tmp_path: Path, kind: str, at_least: int) -> None:
    """Among them layers that were converted from torch, with their weights."""
    outcome = Outcome()
    for case in files(kind):
        outcome.run(case, tmp_path / "m.onnx")
    outcome.tell()
    assert outcome.counts["as expected"] >= at_least
    assert kind != "pytorch-converted" or outcome.counts["same as onnxruntime's own"] >= 25
