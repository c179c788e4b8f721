"""Tests with a memory limit, in runs of pytest of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest

from mlup_stream.testing import plugin
from mlup_stream.testing.limits import Limit, Taken, Verdict
from mlup_stream.testing.wording import blocks
from mlup_stream.units import MIB

PLUGIN = ("-p", "mlup_stream.testing.plugin", "-p", "no:cacheprovider", "-p", "no:randomly")

HEAD = """
import mmap, os, pytest
def allocate(mib):
    taken = bytearray(mib << 20)
    taken[::4096] = bytes(len(taken[::4096]))
    return taken
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> Any:
    """Runs a file of tests and returns pytest's result; `separate=True` in a process of its own."""

    def run(source: str, *options: str, separate: bool = False, ini: str = "") -> pytest.RunResult:
        pytester.makepyfile(test_it=HEAD + source)
        pytester.makeini(f"[pytest]\n{ini}")
        given = (*PLUGIN, *options)
        return pytester.runpytest_subprocess(*given) if separate else pytester.runpytest_inprocess(*given)

    return run


@pytest.mark.parametrize("figure", ["rss", "anon", "pss"])
def test_a_limit_has_two_sides(run: Any, figure: str) -> None:
    """64 MiB that are allocated pass 68 MiB and fail 60 MiB, and the failure says limit, measured and difference."""
    result = run(f"""
@pytest.mark.limit_{figure}("68 MiB")
def test_passes():
    allocate(64)

@pytest.mark.limit_{figure}("60 MiB")
def test_fails():
    allocate(64)
""")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.re_match_lines(
        [
            rf"peak_{figure}: limit 60 MiB, measured 6[3-5]\.\d MiB.*, [345]\.\d MiB over",
            r"RSS over \d+\.\d\d s: [▁▂▃▄▅▆▇█]+",
            r".*above the baseline: anon \d+\.\d MiB, file .*, shmem .*",
            r"=+ memory of limited tests, above the baseline =+",
            rf"test_it.py::test_passes +peak_{figure} +68\.0 MiB +6[3-5]\.\d MiB",
            rf"test_it.py::test_fails +peak_{figure} +60\.0 MiB +6[3-5]\.\d MiB +OVER",
        ]
    )


def test_a_touched_map_is_nobodys_private_memory(run: Any) -> None:
    """512 MiB of a mapped file that are read pass a limit of 16 MiB of private memory; RSS and PSS have them, and say so."""
    result = run("""
@pytest.fixture
def mapped(tmp_path):
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.truncate(512 << 20)
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)

@pytest.mark.limit_anon("16 MiB")
def test_anon(mapped):
    assert sum(mapped[::4096]) == 0

@pytest.mark.limit_rss("300 MiB")
def test_rss(mapped):
    sum(mapped[::4096])

@pytest.mark.limit_pss("300 MiB")
def test_pss(mapped):
    sum(mapped[::4096])
""")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.re_match_lines([r"peak_rss: limit 300 MiB, measured 51\d\.\d MiB.*", r".*anon .*, file 51\d\.\d MiB.*"])


def test_a_limited_test_is_a_test_as_others(run: Any, pytester: pytest.Pytester) -> None:
    """Fixtures of every scope, parameters, output, asserts with their values, skips, expected failures, unittest's cases."""
    pytester.makeconftest("""
import pytest
def pytest_addoption(parser):
    parser.addoption("--of-the-project", default="none")
@pytest.fixture(scope="session")
def said(request):
    return request.config.getoption("--of-the-project")
""")
    result = run(
        """
import unittest
pytestmark = pytest.mark.limit_anon("48 MiB")

@pytest.fixture(scope="module", params=[1, 2])
def number(request):
    print("set up", request.param)
    return request.param

def test_values(number, said, tmp_path, monkeypatch):
    print("in the test")
    assert os.getcwd() == os.environ["AT"]
    assert (number, said) == (1, "something")

@pytest.mark.skip(reason="not today")
def test_skipped():
    pass

@pytest.mark.skipif(True, reason="never")
def test_skipped_too():
    pass

@pytest.mark.xfail(reason="known")
def test_expected_to_fail():
    assert 1 == 2

@pytest.mark.xfail(reason="known to take too much")
def test_expected_to_take_too_much():
    allocate(64)

@pytest.mark.xfail(strict=True)
def test_expected_to_fail_and_passes():
    pass

def test_fails_in_its_set_up(no_such_fixture):
    pass

class TestCase(unittest.TestCase):
    def test_of_a_case(self):
        self.assertEqual(1, 1)
""",
        "--of-the-project=something",
        "-rA",
    )
    result.assert_outcomes(passed=2, failed=2, skipped=2, xfailed=2, errors=1)
    expected = "E * assert (2, 'something') == (1, 'something')"
    result.stdout.fnmatch_lines(["*fixture 'no_such_fixture' not found*", expected, "*set up 2*", "*in the test*"])
    result.stdout.fnmatch_lines(["*XPASS(strict)*"])


@pytest.fixture(autouse=True)
def where(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AT", str(pytester.path))


def test_others_are_left_alone(run: Any) -> None:
    """Tests without a limit run here, with what they have set up before and after a limited one between them."""
    result = run("""
made = []

@pytest.fixture(scope="module")
def once():
    made.append(os.getpid())
    yield len(made)
    made.append(0)

def test_before(once):
    assert (once, made) == (1, [os.getpid()])

@pytest.mark.limit_anon("16 MiB")
def test_limited(once):
    assert os.getpid() != os.getppid()
    os.environ["LEAKED"] = "1"
    made.append(1)

def test_after(once):
    assert (once, made) == (1, [os.getpid()])
    assert "LEAKED" not in os.environ

class TestOther:
    @pytest.mark.limit_anon("16 MiB")
    def test_limited(self):
        pass

    def test_plain(self, once):
        assert made == [os.getpid()]
""")
    result.assert_outcomes(passed=5)


def test_a_process_that_ends_fails_its_test(run: Any) -> None:
    """By a signal or by itself, or ended from here because it took too long or far too much: the next test runs all the same."""
    result = run(
        """
import signal, time
pytestmark = pytest.mark.limit_anon("8 MiB")

def test_killed():
    os.kill(os.getpid(), signal.SIGSEGV)

def test_leaves():
    os._exit(7)

def test_takes_far_too_much():
    taken = [allocate(32) for _ in range(100)]

def test_takes_too_long():
    time.sleep(100)

def test_is_there():
    pass
""",
        "--rss-timeout=6",
    )
    result.assert_outcomes(passed=1, failed=4)
    result.stdout.re_match_lines(
        [
            r"the test's process ended by SIGSEGV",
            r"the test's process ended by exit code 7",
            r"the test's process was ended: it took \d+\.\d MiB, far above its limit of 8 MiB",
            r"the test's process was ended: it took longer than 6 s \(rss_timeout\)",
        ]
    )


def test_the_first_failure_can_be_the_last(run: Any) -> None:
    """`-x` counts a passed limit as a failure."""
    result = run(
        """
@pytest.mark.limit_anon("8 MiB")
def test_over():
    allocate(64)

def test_never():
    pass
""",
        "-x",
    )
    result.assert_outcomes(failed=1)


def test_the_debugger_is_refused(run: Any) -> None:
    """The process of a limited test has no terminal: `--pdb` says so, and with `--rss-off` the test runs here."""
    source = '@pytest.mark.limit_anon("8 MiB")\ndef test_it():\n    allocate(64)\n'
    result = run(source, "--pdb")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--pdb: test_it.py::test_it has a memory limit*add --rss-off to run it here, unmeasured*"])
    run(source, "--pdb", "--rss-off").assert_outcomes(passed=1)


def test_what_was_recorded_is_compared(run: Any, pytester: pytest.Pytester) -> None:
    """Growth beyond what is allowed fails with the test and by how much; JSON, JUnit and the ini file say the same."""
    source = "@pytest.mark.limit_anon('100 MiB')\ndef test_it():\n    allocate({})\n\ndef test_plain():\n    pass\n"
    result = run(source.format(32), "--rss-record=out/record.json", "--junitxml=junit.xml")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["written to out/record.json"])
    record = json.loads((pytester.path / "out" / "record.json").read_text())
    assert list(record["tests"]) == ["test_it.py::test_it"]
    test = record["tests"]["test_it.py::test_it"]
    assert test["taken"]["peak_anon"]["low_bytes"] == pytest.approx(32 * MIB, abs=2 * MIB)
    assert test["limits"] == [{"figure": "peak_anon", "limit_bytes": 100 * MIB, "over": False}]
    assert len(test["timeline"][0]) == len(record["timeline"])
    properties = {each.get("name"): each.get("value") for each in xml.etree.ElementTree.parse("junit.xml").iter("property")}
    assert properties["peak_anon_bytes"] == str(test["taken"]["peak_anon"]["low_bytes"])
    assert properties["limit_peak_anon_bytes"] == str(100 * MIB)

    run(source.format(33), "--rss-compare=out/record.json").assert_outcomes(passed=2)
    result = run(source.format(48), ini="rss_compare = out/record.json\nrss_fail_on_growth = 20%")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.re_match_lines(
        [r"peak_anon: limit 3[789]\.\d MiB \(3[123]\.\d MiB in record.json and 20%\), measured 4[789]\.\d MiB.* MiB over"]
    )
    run(source.format(48), "--rss-compare=out/record.json", "--rss-fail-on-growth=80%").assert_outcomes(passed=2)
    result = run(source.format(48), "--rss-compare=none.json")
    result.stdout.fnmatch_lines(["*none.json: no such record; write one with --rss-record none.json"])


def test_a_near_miss_is_measured_once_more(run: Any, pytester: pytest.Pytester) -> None:
    """The second reading counts, and both are told."""
    result = run("""
@pytest.mark.limit_anon("64 MiB")
def test_once_too_much():
    first = not os.path.exists("ran")
    open("ran", "w").close()
    taken = allocate(66 if first else 40)
""")
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines([r"test_it.py::test_once_too_much .* (39|40)\.\d MiB +\(measured twice\)"])


def test_it_works_in_many_processes(run: Any, pytester: pytest.Pytester) -> None:
    """With pytest-xdist: verdicts, the table and the record are those of one process."""
    result = run(
        """
@pytest.mark.parametrize("mib", [8, 40])
@pytest.mark.limit_anon("24 MiB")
def test_it(mib):
    allocate(mib)
""",
        *("-n", "2", "--rss-record=record.json"),
        separate=True,
    )
    result.assert_outcomes(passed=1, failed=1)
    assert len(json.loads((pytester.path / "record.json").read_text())["tests"]) == 2
    result.stdout.re_match_lines([r"test_it.py::test_it\[40\] .* OVER"])


def test_coverage_counts_what_ran_in_the_fresh_process(run: Any, pytester: pytest.Pytester) -> None:
    """With pytest-cov: lines that only a limited test runs are covered, and those of others are not forgotten."""
    pytester.makepyfile(covered="def limited():\n    return 1\n\n\ndef plain():\n    return 2\n\n\ndef never():\n    return 3\n")
    result = run(
        """
import covered
@pytest.mark.limit_anon("24 MiB")
def test_limited():
    assert covered.limited() == 1
def test_plain():
    assert covered.plain() == 2
""",
        *("--cov=covered", "--cov-report=json:cov.json"),
        separate=True,
    )
    result.assert_outcomes(passed=2)
    files = json.loads((pytester.path / "cov.json").read_text())["files"]
    assert files["covered.py"]["missing_lines"] == [10]


def test_where_nothing_can_be_measured(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without figures of private memory a limited test is skipped, said once; or psutil's samples are used, which know no PSS."""
    from mlup_stream.memory import outside
    from mlup_stream.testing import judging

    for module in (judging, outside):
        monkeypatch.setattr(module, "is_told_apart", lambda: False)
    source = """
@pytest.mark.limit_rss("40 MiB")
def test_rss():
    taken = allocate(64)
    import time; time.sleep(0.2)

@pytest.mark.limit_pss("40 MiB")
def test_pss():
    pass
"""
    result = run(source, "-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(
        ["this system does not tell private memory*; see the setting rss_unmeasured", "*; rss_unmeasured = psutil uses*"]
    )
    result = run(source, ini="rss_unmeasured = psutil")
    result.assert_outcomes(failed=1, skipped=1)
    result.stdout.re_match_lines([r"peak_rss: limit 40 MiB, measured \d+\.\d MiB.*, \d+\.\d MiB over"])


def test_the_load_of_a_model_is_limited(run: Any, pytester: pytest.Pytester) -> None:
    """As a multiple of its file or as a size, apart from what the test does with it; a wrong path says where it was sought."""
    import numpy

    numpy.save(pytester.path / "model.npy", numpy.arange(4 << 20, dtype=numpy.float64))
    result = run("""
pytest.importorskip("numpy")

@pytest.mark.limit_load("model.npy", peak_anon=0.1, settled_anon="2 MiB", delivery="view")
def test_in_place(load):
    assert load.model_obj.sum() == sum(range(4 << 20))
    assert load.report.delivery == "view"
    allocate(64)

@pytest.mark.limit_load("model.npy", peak_anon=0.5, delivery="bytes")
def test_copied(load):
    assert load.model_obj[1] == 1

@pytest.mark.limit_load("none.npy", peak_anon=0.5)
def test_none(load):
    pass

@pytest.mark.limit_load("model.npy", peak_anon=0.5)
def test_without_the_fixture():
    pass
""")
    result.assert_outcomes(passed=1, failed=1, errors=2)
    result.stdout.re_match_lines(
        [
            r"limit_load: none.npy: no such file in .*; give a path from one of them",
            r"limit_load: the test loads nothing; let it take the fixture `load`",
            r"load peak_anon: limit 16\.0 MiB \(0\.5x of the file\), measured 6[3-5]\.\d MiB.* over",
        ]
    )


def test_what_a_step_took_comes_back(run: Any) -> None:
    """Within a share of its peak, or a size; a list that is kept is told by how much."""
    result = run("""
def test_returns(rss_meter):
    with rss_meter("load") as step:
        taken = allocate(64)
        del taken
    step.assert_returned(within="3%")
    assert (60 << 20) < step.taken_bytes < (68 << 20)

def test_keeps(rss_meter):
    with rss_meter("load") as step:
        kept = allocate(64)
    step.assert_returned(within="2 MiB")
""")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.re_match_lines([r"E .*load: 6\d\.\d MiB of the 6\d\.\d MiB that it took did not come back; expected.*"])


def test_memray_shows_where_it_was_allocated(run: Any) -> None:
    """Under `--rss-memray` a test that took too much runs once more, and its failure has the largest allocations' stacks."""
    pytest.importorskip("memray", reason="memray does not run on Windows")
    result = run(
        """
def by_this_function():
    return allocate(48)

@pytest.mark.limit_anon("8 MiB")
def test_it():
    kept = by_this_function()
""",
        "--rss-memray",
    )
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines(
        [r"by memray, at the highest moment of its heap, .*:", r"  48\.0 MiB in 1 alloc.*", r" +allocate .*", r" +by_this_fun.*"]
    )


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ("limit_anon()", 'limit_anon: expected one size, such as limit_anon("300 MiB"), found ()'),
        ('limit_rss("much")', "limit_rss: expected a size, such as '300 MiB', found 'much'"),
        ("limit_load(peak_anon=0.1)", 'limit_load: expected one path, limit_load("model.onnx", peak_anon=0.05), found ()'),
    ],
)
def test_a_wrong_marker_is_told(run: Any, marker: str, said: str) -> None:
    """In one line, as the error of its test."""
    result = run(f"@pytest.mark.{marker}\ndef test_it():\n    pass\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([said.replace("[", "[[]")])


def test_it_costs_nothing_where_nobody_asks(tmp_path: Path) -> None:
    """A run without a limited test imports neither the governor nor what measures; another's fixture `load` is not ours."""
    (tmp_path / "test_it.py").write_text("""
import sys, pytest
@pytest.fixture
def load():
    return 1
def test_it(load):
    assert load == 1
    ours = {name for name in sys.modules if name.startswith("mlup_stream.")}
    assert ours == {"mlup_stream._version", "mlup_stream.testing", "mlup_stream.testing.plugin"}
    assert not {"numpy", "psutil"} & set(sys.modules)
""")
    command = [sys.executable, "-m", "pytest", *PLUGIN, "-q", "-p", "no:hypothesispytest", "test_it.py"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(Path(plugin.__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout


def test_a_timeline_is_one_line() -> None:
    """As wide as there are samples, up to its width, from the baseline to the highest."""
    assert blocks([0, 1, 2, 3, 4, 5, 6, 7, 8], 0) == "▁▂▃▄▅▆▇██"
    assert blocks([5], 5) == "▁"
    line = blocks(list(range(1000)), 0, columns=10)
    assert (len(line), line[0], line[-1]) == (10, "▁", "█")


def test_exactly_the_limit_is_within_it() -> None:
    """A byte more is not."""
    limit = Limit("peak_anon", 100, "100 B")
    assert not Verdict(limit, Taken(100, 100, "")).is_over
    assert Verdict(limit, Taken(101, 101, "")).is_over
    assert str(Verdict(limit, None)) == "peak_anon: limit 100 B, not measured here"
