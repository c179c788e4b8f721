"""Damaged files through the public `load`: a model or a typed error, whatever is wrong, and the process goes on."""

from __future__ import annotations

import importlib.util
from collections import Counter

import mutated_loads
import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("resource") is None, reason="the children have limits of POSIX")

RARE = ("pyarrow", "skops", "catboost", "faiss", "usearch", "ai_edge_litert")
LIBRARIES = ("numpy", "safetensors", "gguf", "onnxruntime", "lightgbm", "xgboost", "torch", *RARE)
MARKS = {"torch": pytest.mark.torch, **dict.fromkeys(RARE, pytest.mark.formats)}
MUTATIONS = 200


@pytest.mark.parametrize(
    "library", [pytest.param(each, marks=MARKS.get(each, ())) for each in LIBRARIES]
)
def test_no_damaged_file_ends_the_process_or_raises_something_untyped(library: str) -> None:
    """200 mutations of each kind of file, always the same: none is a signal, a hang, or an error of the library's own.

    Most are refused, and some still load: a mutation of nothing but numbers is a model like another.
    """
    pytest.importorskip(library)
    kinds = [kind for kind in mutated_loads.KINDS if mutated_loads.KINDS[kind].library == library]
    worker = mutated_loads.Worker(kinds[0], "ours")
    try:
        for kind in kinds:
            found = list(mutated_loads.outcomes(kind, MUTATIONS, 20261126, beside=False, worker=worker))
            faults = [(number, each.ours) for number, each in enumerate(found) if each.is_fault]
            assert faults == [], kind
            counts = Counter(each.ours.partition(":")[0] for each in found)
            assert counts["refused"] >= MUTATIONS // 3, kind
            assert counts["loads"] >= 1, kind
    finally:
        worker.end()
