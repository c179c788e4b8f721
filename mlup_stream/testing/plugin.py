"""The pytest plugin: tests with a memory limit, each in a fresh process.

    @pytest.mark.limit_anon("300 MiB")
    def test_handler(): ...

pytest imports it wherever this package is installed, so it does nothing and imports nothing of its own before a test asks for it.
`fresh` runs a test in its process, `judging` holds what it took against its limits, `records` writes that down and compares it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mlup_stream.testing.child import LoadedInTest, Step

OPTIONS = (
    ("record", "FILE", "write what the limited tests took to FILE, as JSON"),
    ("compare", "FILE", "fail a limited test that takes more than FILE says it took"),
    ("fail_on_growth", "PERCENT", "how much more than that it may take (default: 5%%)"),
    ("timeout", "SECONDS", "end a limited test after so long (default: 300)"),
)
SWITCHES = (
    ("memray", "run a test that took too much once more under memray, and show its largest allocations"),
    ("off", "run the limited tests in this process and measure nothing, for a debugger"),
)
_MARKERS = (
    'limit_rss(size): what a test may take at its peak, in a fresh process, above what was there before it: limit_rss("300 MiB")',
    "limit_anon(size): the same of private memory alone, without pages of mapped files",
    "limit_pss(size): the same with each shared page divided by the number of its users",
    "limit_load(path, peak_rss, peak_anon, settled_rss, settled_anon, **config): what the load of a model may take,"
    " as a multiple of its file (0.05) or a size; the fixture `load` has the model",
)
_FIXTURES = ("load", "rss_meter")

in_child = pytest.StashKey[Any]()
"""Of a configuration, in the process of one limited test: what measures it there."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("memory limits (mlup-stream)")
    for name, metavar, text in OPTIONS:
        group.addoption(f"--rss-{name.replace('_', '-')}", metavar=metavar, help=text)
        parser.addini(f"rss_{name}", text.replace("%%", "%"))
    for name, text in SWITCHES:
        group.addoption(f"--rss-{name}", action="store_true", default=None, help=text)
        parser.addini(f"rss_{name}", text, type="bool", default=False)
    parser.addini(
        "rss_unmeasured",
        "where the system does not tell private memory apart: `skip` limited tests, or use what `psutil` has",
        default="skip",
    )


def pytest_configure(config: pytest.Config) -> None:
    for line in _MARKERS:
        config.addinivalue_line("markers", line)
    config.pluginmanager.register(_Measured(config), "mlup-stream measured")


def is_limited(item: pytest.Item) -> bool:
    """Whether the test runs in a process of its own."""
    if item.config.stash.get(in_child, None) is not None:
        return False
    if any(item.get_closest_marker(line.partition("(")[0]) is not None for line in _MARKERS):
        return True
    return any(name in getattr(item, "fixturenames", ()) for name in _FIXTURES) and _is_ours(item)


def _is_ours(item: pytest.Item) -> bool:
    """Whether it is our fixture that the test asks for: others' may have the same name."""
    definitions = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    found = [definitions[name][-1] for name in _FIXTURES if definitions.get(name)]
    return any(getattr(each.func, "__module__", "") == __name__ for each in found)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("usepdb", False) or option(config, "off"):
        return
    for item in items:
        if is_limited(item):
            raise pytest.UsageError(
                f"--pdb: {item.nodeid} has a memory limit and runs in a process of its own, which has no terminal;"
                " add --rss-off to run it here, unmeasured"
            )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if not is_limited(item) or option(item.config, "off"):
        return None
    from mlup_stream.testing.judging import reports_of

    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in reports_of(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # What tests before it have set up and no later one needs; its own set-up was in its process.
    item.session._setupstate.teardown_exact(nextitem)
    return True


class _Measured:
    """What the limited tests of this run took, as their reports say, from other processes of pytest-xdist too."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._tests: dict[str, dict[str, Any]] = {}
        self._unmeasured = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = getattr(report, "memory", None) or {}
        self._unmeasured = found.get("unmeasured", self._unmeasured)
        if report.when == "call" and found:
            self._tests[report.nodeid] = found

    def pytest_sessionfinish(self) -> None:
        path = option(self._config, "record")
        if path and not hasattr(self._config, "workerinput") and self._config.stash.get(in_child, None) is None:
            from mlup_stream.testing import records

            records.write(path, self._tests)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self._tests and not self._unmeasured:
            return
        from mlup_stream.testing import records

        terminalreporter.section("memory of limited tests, above the baseline")
        for line in records.table(self._tests):
            terminalreporter.write_line(line)
        if self._unmeasured:
            terminalreporter.write_line(f"{self._unmeasured}; see the setting rss_unmeasured")
        if option(self._config, "record"):
            terminalreporter.write_line(f"written to {option(self._config, 'record')}")


def option(config: pytest.Config, name: str) -> Any:
    """What the command line says, or else the ini file."""
    said = config.getoption(f"rss_{name}", None)
    return config.getini(f"rss_{name}") if said is None else said


@pytest.fixture
def rss_meter(request: pytest.FixtureRequest) -> Any:
    """Measures steps of a test: `with rss_meter("load") as step: ...`, then `step.assert_returned(within="3%")`."""
    from mlup_stream.testing.child import Step

    @contextmanager
    def measure(name: str = "step") -> Iterator[Step]:
        with Step(name) as step:
            yield step

    return measure


@pytest.fixture
def load(request: pytest.FixtureRequest) -> Iterator[LoadedInTest]:
    """The model that `limit_load` names, loaded: `load.model_obj`, `load.report`."""
    marker = request.node.get_closest_marker("limit_load")
    if marker is None:
        raise pytest.UsageError(f'{request.node.nodeid}: the fixture `load` needs @pytest.mark.limit_load("path/of/the/model")')
    from mlup_stream.testing.child import loaded

    with loaded((marker.args, dict(marker.kwargs)), folders_of(request.node), request.config.stash.get(in_child, None)) as found:
        yield found


def folders_of(item: pytest.Item) -> list[str]:
    """Where the paths of a test's markers are looked for."""
    return [str(item.path.parent), str(item.config.rootpath)]
