"""What was estimated beside what was measured: within 5% of the file for exact estimates, never too low for conservative ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from child import run_child
from models import KINDS, each_of, need, remove

from mlup_stream.units import MIB

pytestmark = [
    pytest.mark.big,
    pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the figures of Linux"),
]

SIZE_BYTES = 128 * MIB
CYCLE_BYTES = 2 * MIB  # what the load cycle and the interpreter take meanwhile

MEASURE = """
    import importlib, warnings
    warnings.simplefilter("ignore")
    for name in imports.split(", "):
        importlib.import_module(name)
    import mlup_stream as mlup

    def up_of(path, delivery):
        return mlup.UP(conf=mlup.Config(storage_type="disk", storage_kwargs={"path_to_files": path, "delivery": delivery}))

    up_of(tiny, "auto").ml.load()    # what is imported at the first load is no part of the second
    with mlup.MemoryGovernor(None, learned=False) as governor:
        estimates = {row.delivery: row.estimate.to_dict() for row in up_of(path, "auto").ml.plan(governor) if row.estimate}
    found = {}
    for delivery, estimate in estimates.items():
        up = up_of(path, delivery)
        up.ml.load()
        memory = up.ml.report.memory
        base = memory.baseline.anon_bytes
        low, high = memory.peak.anon_low_bytes - base, memory.peak.anon_high_bytes - base
        found[delivery] = [estimate, low, high, memory.settled.anon_bytes - base]
        up.ml.unload()
    answer(found)
"""


@pytest.fixture(scope="module", params=each_of(KINDS))
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """For each delivery of a file of 128 MiB: the estimate, the interval of the peak of private memory, and what settled."""
    kind = KINDS[request.param]
    need(request.param)
    folder: Path = tmp_path_factory.mktemp("estimates")
    (folder / "tiny").mkdir()
    path, tiny = folder / kind.file_name, folder / "tiny" / kind.file_name
    kind.build(path, min(SIZE_BYTES, kind.quick_bytes))
    kind.build(tiny, MIB)
    try:
        yield run_child(MEASURE, path=str(path), tiny=str(tiny), imports=kind.imports, timeout_seconds=240)
    finally:
        remove(path)


def test_what_is_exact_is_within_a_twentieth_of_the_file(measured: dict[str, Any]) -> None:
    """Peak and settled private memory, by every delivery: estimate = measured +- 5% of the file, or 2 MiB of the cycle."""
    slack_bytes = max(0.05 * SIZE_BYTES, CYCLE_BYTES)
    sure = {delivery: each for delivery, each in measured.items() if each[0]["certainty"] == "exact"}
    assert sure or all(each[0]["certainty"] == "conservative" for each in measured.values())
    for delivery, (estimate, low, high, settled) in sure.items():
        assert low - slack_bytes <= estimate["peak_anon_bytes"] <= high + slack_bytes, delivery
        assert abs(estimate["settled_anon_bytes"] - settled) <= slack_bytes, delivery


def test_what_is_conservative_is_never_too_low(measured: dict[str, Any]) -> None:
    """measured <= estimate + what the cycle itself takes."""
    for delivery, (estimate, low, _, settled) in measured.items():
        if estimate["certainty"] == "conservative":
            assert low <= estimate["peak_anon_bytes"] + CYCLE_BYTES, delivery
            assert settled <= estimate["settled_anon_bytes"] + CYCLE_BYTES, delivery
