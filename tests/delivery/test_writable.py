"""One call gives one kind of array: `mapping` says whether they may be written to, never the delivery, and the report says it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from models import KINDS, each_of, need

import mlup_stream as mlup
from mlup_stream.errors import ConfigError
from mlup_stream.units import MIB


def arrays_of(model: Any) -> Iterator[Any]:
    import numpy

    if isinstance(model, numpy.ndarray):
        yield model
    elif hasattr(model, "values"):
        for each in model.values():
            yield from arrays_of(each)
    elif isinstance(model, (list, tuple)):
        for each in model:
            yield from arrays_of(each)


@pytest.mark.parametrize("mapping", ["auto", "read-only", "copy-on-write"])
@pytest.mark.parametrize("name", each_of(["pickle", "joblib", "npy", "npz", "safetensors", "gguf"]))
def test_the_mapping_decides_and_the_report_says_so(name: str, mapping: Any, tmp_path: Path) -> None:
    """For each delivery alike; without an answer (None) for what has no arrays."""
    need(name)
    kind: Any = KINDS[name]
    path = tmp_path / kind.file_name
    kind.build(path, 2 * MIB)
    said = set()
    for delivery in kind.deliveries:
        with mlup.open(path, delivery=delivery, mapping=mapping) as loaded:
            flags = {array.flags.writeable for array in arrays_of(loaded.model)}
            assert flags == {loaded.report.arrays_writable}, (delivery, flags)
            said |= flags
    assert said == {mapping != "read-only" if name != "gguf" else mapping == "copy-on-write"}


@pytest.mark.parametrize("name", each_of(["onnx", "lightgbm"]))
def test_what_has_no_arrays_says_nothing_of_them(name: str, tmp_path: Path) -> None:
    """None, rather than an answer to a question that makes no sense."""
    need(name)
    kind: Any = KINDS[name]
    path = tmp_path / kind.file_name
    kind.build(path, MIB)
    with mlup.open(path) as loaded:
        assert loaded.report.arrays_writable is None


def test_a_mapping_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """Before anything is opened."""
    with pytest.raises(ConfigError, match="mapping"):
        mlup.load(tmp_path / "m.npy", mapping="write-through")  # type: ignore[arg-type]
