"""What docs/testing.md shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCUMENT = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")


def _shape(text: str) -> str:
    """A failure without its numbers and the length of its line of blocks."""
    numbers = re.sub(r"\d+\.?\d*( ([KMG]i)?B)?", "N", text)
    return re.sub(r"[▁▂▃▄▅▆▇█]+", "#", numbers).replace(" (at most N)", "")  # left out where it is what was seen


def test_the_failure_is_the_documents(pytester: pytest.Pytester) -> None:
    """The example's test fails with the text that stands below it, but for the numbers."""
    section = DOCUMENT[DOCUMENT.index("## What a failure says") :]
    code, output = re.findall(r"```(?:python)?\n(.*?)```", section, re.DOTALL)[:2]
    pytester.makepyfile(test_it=code)
    result = pytester.runpytest_inprocess("-p", "mlup_stream.testing.plugin", "-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    assert _shape(output.strip()) in _shape(result.stdout.str())


def test_the_options_are_the_documents() -> None:
    """Every option and every ini setting has its row."""
    from mlup_stream.testing import plugin

    for name, *_ in (*plugin.OPTIONS, *plugin.SWITCHES):
        assert f"`--rss-{name.replace('_', '-')}" in DOCUMENT
        assert f"`rss_{name}`" in DOCUMENT


def test_the_suites_examples_pass(pytester: pytest.Pytester) -> None:
    """With a storage and a binarizer of a few lines in the place of yours, and as many tests as it says."""
    section = DOCUMENT[DOCUMENT.index("## Suites for your own") :]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    pytester.makepyfile(mine="""
import json, types
from mlup_stream.delivery.loaded_file import LoadedFile
from mlup_stream.ml.binarization.base import BaseBinarizer
from mlup_stream.ml.storage.local_disk import DiskStorage

class MyStorage(DiskStorage):
    def __init__(self, folder):
        super().__init__(path_to_files=str(folder), file_mask="model.bin")

class Model(types.SimpleNamespace):
    pass

class MyBinarizer(BaseBinarizer):
    @classmethod
    def deserialize(cls, data):
        content = data.raw_data or open(data.path, "rb").read()
        return Model(weights=json.loads(content)["weights"])

def save(model, path):
    path.write_text(json.dumps({"weights": model.weights}))
""")
    pytester.syspathinsert()
    head = "import mine as my_library\nfrom mine import MyBinarizer, MyStorage\n"
    code = code.replace("binarizer = MyBinarizer\n", "binarizer = MyBinarizer\n    errors = (ValueError,)\n")
    pytester.makepyfile(test_it=head + code)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-W", "ignore::ResourceWarning")
    assert result.parseoutcomes() == {"passed": 12, "skipped": 1}
    assert "The first has five tests, the second eight" in DOCUMENT
