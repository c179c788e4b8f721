"""Running one test in a fresh process, and sampling that process from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from mlup_stream.memory.outside import Sample, Sampler

__all__ = ["Ran", "run"]

_POLL_SECONDS = 0.02


class Ran(NamedTuple):
    """What became of a test in its process.

    Attributes:
        reports: pytest's, of its phases.
        events: What its process told, by the name of the event; the last of each.
        samples: Its memory, as seen from outside.
        ended_by: Why it was ended from here: empty if it was not.
        exit_code: Of the process; negative for a signal.
        said: What it wrote to standard error.
    """

    reports: list[pytest.TestReport]
    events: dict[str, dict[str, Any]]
    samples: list[Sample]
    ended_by: str
    exit_code: int
    said: str


def run(
    item: pytest.Item,
    *,
    shares: bool,
    timeout_seconds: float,
    is_too_much: Callable[[Sample, dict[str, Any]], str] = lambda sample, baseline: "",
    memray: str | None = None,
) -> Ran:
    """Runs `item` in a fresh process, with the command line and the working directory of this one.

    Args:
        item: The test.
        shares: Whether PSS is read too.
        timeout_seconds: After which the process is ended.
        is_too_much: Of a sample and of the baseline, why the process is to be ended now; empty if it is not.
        memray: The file for memray's record of the call.
    """
    with tempfile.TemporaryDirectory(prefix="mlup-stream-test-") as folder:
        with open(os.path.join(folder, "request.json"), "w", encoding="utf-8") as file:
            json.dump(_request(item, folder, shares, memray), file)
        events = _Events(os.path.join(folder, "events.jsonl"))
        watchdog = _Watchdog(events, is_too_much)
        shows = item.config.getoption("capture", "fd") == "no"
        with open(os.path.join(folder, "said"), "w+b") as said:
            child = subprocess.Popen(
                [sys.executable, os.path.join(os.path.dirname(__file__), "start.py"), folder],
                stdin=subprocess.DEVNULL,
                stdout=None if shows else said,
                stderr=None if shows else said,
                start_new_session=os.name != "nt",
            )
            try:
                with Sampler(child.pid, shares=shares, on_sample=watchdog.look) as sampler:
                    watchdog.ended_by = _wait(child, watchdog, timeout_seconds)
            finally:
                _end(child)
            said.seek(0)
            text = said.read().decode("utf-8", "replace").strip()
        events.read()
        reports = [_report(item.config, each["report"]) for each in events.of("report")]
        return Ran(reports, events.last, sampler.samples, watchdog.ended_by, child.returncode, text)


def _report(config: pytest.Config, data: dict[str, Any]) -> pytest.TestReport:
    """pytest's report of a phase, with the tuples that JSON made lists of."""
    report: pytest.TestReport = config.hook.pytest_report_from_serializable(config=config, data=data)
    if isinstance(report.longrepr, list):
        report.longrepr = tuple(report.longrepr)
    path, line, name = report.location
    report.location = (path, line, name)
    report.sections = [(name, text) for name, text in report.sections]
    report.user_properties = [(name, value) for name, value in report.user_properties]
    return report


def _wait(child: subprocess.Popen[bytes], watchdog: _Watchdog, timeout_seconds: float) -> str:
    """Until the process has ended; why it is to be ended, if it has not."""
    until = time.monotonic() + timeout_seconds
    while not watchdog.ended_by:
        if time.monotonic() > until:
            return f"it took longer than {timeout_seconds:g} s (rss_timeout)"
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_POLL_SECONDS)
            return ""
    return watchdog.ended_by


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends the process and whatever it has started."""
    if os.name == "nt":
        child.kill()
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()


class _Events:
    """The lines that the process has written."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._at = 0
        self._all: list[dict[str, Any]] = []
        self.last: dict[str, dict[str, Any]] = {}

    def read(self) -> None:
        with contextlib.suppress(OSError):
            if os.path.getsize(self._path) == self._at:
                return
            with open(self._path, "rb") as file:
                file.seek(self._at)
                found = file.read()
            whole = found[: found.rfind(b"\n") + 1]
            self._at += len(whole)
            for line in whole.splitlines():
                event = json.loads(line)
                self._all.append(event)
                self.last[event["event"]] = event

    def of(self, name: str) -> list[dict[str, Any]]:
        return [each for each in self._all if each["event"] == name]


class _Watchdog:
    """Looks at each sample of the call."""

    def __init__(self, events: _Events, is_too_much: Callable[[Sample, dict[str, Any]], str]) -> None:
        self._events = events
        self._is_too_much = is_too_much
        self.ended_by = ""

    def look(self, sample: Sample) -> None:
        self._events.read()
        if "started" in self._events.last and "ended" not in self._events.last and not self.ended_by:
            self.ended_by = self._is_too_much(sample, self._events.last["started"]["baseline"])


def _request(item: pytest.Item, folder: str, shares: bool, memray: str | None) -> dict[str, Any]:
    config = item.config
    arguments = [str(each) for each in config.invocation_params.args]
    if config.pluginmanager.hasplugin("_cov"):
        arguments.append("--no-cov")  # it would erase what is there; see `child`
    return {
        "node_id": item.nodeid,
        "argument": str(config.rootpath / item.nodeid),
        "arguments": arguments,
        "folder": str(config.invocation_params.dir),
        "sys_path": sys.path,
        "basetemp": _base_temp(config, folder),
        "coverage": _coverage(),
        "shares": shares,
        "memray": memray,
    }


def _base_temp(config: pytest.Config, folder: str) -> str:
    """Where the folders of the test's `tmp_path` lie: beside those of the others, which pytest clears away by itself."""
    factory = getattr(config, "_tmp_path_factory", None)
    return str(factory.getbasetemp() / os.path.basename(folder)) if factory is not None else os.path.join(folder, "tmp")


def _coverage() -> dict[str, Any] | None:
    """How coverage is measured in this process; None if it is not."""
    module = sys.modules.get("coverage")
    current = module.Coverage.current() if module is not None else None
    if current is None:
        return None
    config = current.config
    names = ("branch", "source", "source_pkgs", "omit", "include")
    found = {name: current.get_option(f"run:{name}") for name in names if name != "source_pkgs"}
    return {**{name: value for name, value in found.items() if value}, "data_file": os.path.abspath(config.data_file)}
