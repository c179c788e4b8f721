"""The fuzzer's corpus: for each outcome of each walker the smallest damaged file that leads there, tried again; and new ones.

`profiling/fuzz_walkers.py --corpus tests/corpus` adds to it what it finds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

for needed in ("numpy", "joblib", "onnx", "safetensors", "gguf"):
    pytest.importorskip(needed, reason="the fuzzer's seeds are files of every format")

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "profiling"))  # at the end: some of its modules are called as some of ours

from fuzz_targets import TARGETS  # noqa: E402  # see above
from fuzz_walkers import corpus_name, run, watched_outcome  # noqa: E402

CORPUS = ROOT / "tests" / "corpus"
NEW_INPUTS = range(200)


@pytest.mark.parametrize("walker", sorted(TARGETS))
def test_what_the_fuzzer_kept_still_ends_as_it_did(walker: str) -> None:
    """A value that can be true of the file or a typed error, the one that it is named for, in bounded memory and reading."""
    files = sorted((CORPUS / walker).iterdir())
    assert len(files) >= 4, "the corpus was lost"
    for path in files:
        data = path.read_bytes()
        key, _ = watched_outcome(TARGETS[walker], data)
        assert corpus_name(key, data) == path.name


@pytest.mark.parametrize("walker", sorted(TARGETS))
def test_new_damage_ends_in_a_value_or_a_typed_error(walker: str) -> None:
    """So does whatever damage comes next: inputs that are made up now, the same on each run."""
    tally = run(walker, 0, NEW_INPUTS, limited=False)
    assert tally.count == len(NEW_INPUTS)
    assert tally.findings == {}
    assert len(tally.smallest) >= 3, "the inputs did not get beyond the first checks"
