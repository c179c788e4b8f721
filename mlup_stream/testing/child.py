"""What runs in the process of one limited test: it is measured around its call, and what happens is told to `fresh`."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import time
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Any

import pytest

from mlup_stream.memory.meter import PeakMeter, Snapshot, snapshot
from mlup_stream.memory.reclaim import give_back
from mlup_stream.testing.limits import load_arguments
from mlup_stream.units import format_bytes, parse_bytes

__all__ = ["Events", "LoadedInTest", "Step", "loaded"]

class Events:
    """What measures one test in its process, and tells what happens."""

    def __init__(self, folder: str, request: dict[str, Any]) -> None:
        self._path = os.path.join(folder, "events.jsonl")
        self._node_id: str = request["node_id"]
        self._shares: bool = request["shares"]
        self._memray: str | None = request["memray"]

    def tell(self, event: str, **values: Any) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "seconds": time.monotonic(), **values}) + "\n")

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        for name in ("lfplugin", "nfplugin", "stepwiseplugin"):  # they would overwrite what the starting process remembers
            if session.config.pluginmanager.hasplugin(name):
                session.config.pluginmanager.unregister(name=name)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid == self._node_id][:1]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        give_back()
        with contextlib.ExitStack() as stack:
            if self._memray is not None:
                from mlup_stream.extras import require

                stack.enter_context(require("memray", "--rss-memray").Tracker(self._memray))
            meter = PeakMeter()
            self.tell("started", baseline=snapshot(detailed=self._shares).to_dict())
            meter.start()
            try:
                result = yield
            finally:
                peak = meter.stop()
                self.tell("ended", peak=peak.to_dict(), at_end=snapshot(detailed=self._shares).to_dict())
        give_back()
        self.tell("settled", settled=snapshot().to_dict())
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.tell("report", report=self.config.hook.pytest_report_to_serializable(config=self.config, report=report))

    def pytest_configure(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.tell("not collected", text=str(report.longrepr))


class Step:
    """Memory of this process over one step of a test; a context.

    Attributes:
        name: What to call it in a message.
        taken_bytes: By how much RSS rose at the peak; None where the system does not say.
        kept_bytes: By how much private memory was higher at the end, with everything given back that could be.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.taken_bytes: int | None = None
        self.kept_bytes: int | None = None
        self._meter = PeakMeter()
        self._before: Snapshot | None = None

    def __enter__(self) -> Step:
        give_back()
        self._before = snapshot()
        self._meter.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        peak = self._meter.stop()
        give_back()
        assert self._before is not None
        if peak.rss_bytes is not None and self._before.rss_bytes is not None:
            self.taken_bytes = peak.rss_bytes - self._before.rss_bytes
        self.kept_bytes = snapshot().private_bytes - self._before.private_bytes

    def assert_returned(self, within: str = "3%") -> None:
        """Makes sure that what the step took came back when it ended.

        Args:
            within: How much may stay: a share of what it took at its peak (`"3%"`), or a size (`"4 MiB"`).

        Raises:
            AssertionError: More stayed.
            RuntimeError: The step has not ended, or its memory could not be read.
        """
        if self.taken_bytes is None or self.kept_bytes is None:
            raise RuntimeError(f"{self.name}: what it took is not known; ask after the with block, and where memory can be read")
        share = float(within.rstrip("%")) / 100 if within.endswith("%") else None
        allowed_bytes = parse_bytes(within) if share is None else int(share * self.taken_bytes)
        assert self.kept_bytes <= allowed_bytes, (
            f"{self.name}: {format_bytes(self.kept_bytes)} of the {format_bytes(self.taken_bytes)} that it took did not come"
            f" back; expected at most {within}, {format_bytes(allowed_bytes)}; see what still refers to it"
        )


class LoadedInTest:
    """What the fixture `load` gives.

    Attributes:
        model_obj: The model.
        report: What its load took; see `mlup_stream.ml.report.LoadReport`.
        path: The file.
    """

    def __init__(self, ml: Any, path: str) -> None:
        self._ml = ml
        self.path = path

    @property
    def model_obj(self) -> Any:
        return self._ml.model_obj

    @property
    def report(self) -> Any:
        return self._ml.report

    def predict(self, **data: Any) -> Any:
        """What the model answers; see `MLupModel.predict`."""
        return self._ml.predict(**data)


@contextlib.contextmanager
def loaded(
    marker: tuple[tuple[Any, ...], dict[str, Any]], folders: list[str], events: Events | None
) -> Iterator[LoadedInTest]:
    """The model that the marker names, for as long as the block runs; what its load took is told to `events`."""
    path, _, settings = load_arguments(marker, folders)
    from mlup_stream.config import Config
    from mlup_stream.up import UP

    folder, file_name = os.path.split(os.path.abspath(path))
    where = {"path_to_files": folder, "file_mask": file_name, "delivery": settings.pop("delivery", "auto")}
    up = UP(conf=Config(storage_type="disk", storage_kwargs=where, **settings))
    gc.collect()
    started = time.monotonic()
    up.ml.load()
    ended = time.monotonic()
    try:
        if events is not None and up.ml.report is not None:
            memory = up.ml.report.memory
            taken = {name: getattr(memory, name).to_dict() for name in ("baseline", "peak", "settled")}
            events.tell("loaded", started=started, ended=ended, **taken)
        yield LoadedInTest(up.ml, path)
    finally:
        up.ml.unload()
