"""The helper that the memory tests stand on."""

from __future__ import annotations

import pytest
from child import ChildFailed, run_child


def test_a_child_answers_with_a_value() -> None:
    """Values go in by keyword and come back as JSON."""
    assert run_child("answer([x, x + 1])", x=1) == [1, 2]


def test_a_child_that_dies_fails_the_test() -> None:
    """A child that dies of a signal is never taken for one that answered."""
    with pytest.raises(ChildFailed) as failed:
        run_child("import os; os.abort()")
    assert failed.value.returncode == -6
