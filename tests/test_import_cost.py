"""What importing costs, in a fresh process: little memory, and none of the heavy modules."""

from __future__ import annotations

import pickle
import sys
import textwrap
from pathlib import Path

import pytest
from child import run_child

from mlup_stream.units import MIB

BARE_RSS = """
    import os
    def rss():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
"""
HEAVY = ("numpy", "joblib", "sklearn", "onnx", "onnxruntime", "torch", "tensorflow", "keras", "psutil", "yaml", "click", "rich")

needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@needs_proc
def test_importing_costs_at_most_10_mb() -> None:
    """RSS(import mlup_stream) - RSS(bare interpreter) <= 10 MB, and nothing heavy is among the modules."""
    code = """
        import sys
        before = rss()
        import mlup_stream
        answer([rss() - before, [name for name in heavy if name in sys.modules]])
    """
    cost_bytes, heavy = run_child(_with_rss(code), heavy=HEAVY)
    assert heavy == []
    assert cost_bytes <= 10 * MIB


@needs_proc
def test_a_small_pickle_through_the_whole_cycle_costs_at_most_15_mb(tmp_path: Path) -> None:
    """RSS(import, detect, load, report) - RSS(bare interpreter) <= 15 MB, numpy not imported."""
    path = tmp_path / "small.pckl"
    path.write_bytes(pickle.dumps(list(range(400))))
    code = """
        import sys
        before = rss()
        import mlup_stream as mlup
        model = mlup.load(path)
        answer([rss() - before, model[-1], [name for name in heavy if name in sys.modules]])
    """
    cost_bytes, last, heavy = run_child(_with_rss(code), path=str(path), heavy=[name for name in HEAVY if name != "psutil"])
    assert (last, heavy) == (399, [])
    assert cost_bytes <= 15 * MIB


def test_importing_configures_nothing() -> None:
    """No logging handler, warning filter, signal handler or thread comes with the import."""
    code = """
        import logging, signal, threading, warnings
        before = [list(logging.root.handlers), list(warnings.filters), threading.active_count(), signal.getsignal(signal.SIGINT)]
        import mlup_stream
        after = [list(logging.root.handlers), list(warnings.filters), threading.active_count(), signal.getsignal(signal.SIGINT)]
        answer([before == after, logging.getLogger("mlup_stream").handlers == []])
    """
    assert run_child(code) == [True, True]


def _with_rss(code: str) -> str:
    return textwrap.dedent(BARE_RSS) + textwrap.dedent(code)
