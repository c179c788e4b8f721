"""Starts the process of one limited test: pytest again, with the same command line and this test alone.

    python .../testing/start.py FOLDER

By its path and without importing the package, which pytest's own plug-in loader would then find imported too early.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["main"]

_OFF = ("usepdb", "distload", "looponfail", "lf", "failedfirst", "newfirst", "stepwise", "stepwise_skip", "cacheclear")
_NONE = ("numprocesses", "maxprocesses", "xmlpath", "htmlpath", "pastebin", "durations")
_QUIET_OPTIONS: dict[str, Any] = {**dict.fromkeys(_OFF, False), **dict.fromkeys(_NONE), "dist": "no", "tx": [], "px": []}
"""What the command line may say that is the starting process's business."""


def main(folder: str) -> int:
    """Runs the test that `FOLDER/request.json` names. What happens goes to `FOLDER/events.jsonl`, a line each."""
    with open(os.path.join(folder, "request.json"), encoding="utf-8") as file:
        request: dict[str, Any] = json.load(file)
    os.chdir(request["folder"])
    sys.path[:] = request["sys_path"]
    with _covered(request["coverage"]):
        from _pytest.config import _prepareconfig

        config = _prepareconfig(request["arguments"])
        config.args = [request["argument"]]
        for name, value in {**_QUIET_OPTIONS, "basetemp": request["basetemp"]}.items():
            if hasattr(config.option, name):
                setattr(config.option, name, value)
        config.pluginmanager.unregister(name="terminal")
        from mlup_stream.testing.child import Events
        from mlup_stream.testing.plugin import in_child

        events = Events(folder, request)
        config.stash[in_child] = events
        config.pluginmanager.register(events, "mlup-stream child")
        return int(config.hook.pytest_cmdline_main(config=config))


@contextlib.contextmanager
def _covered(settings: dict[str, Any] | None) -> Iterator[None]:
    """Measures coverage as the starting process does, into a file beside its own."""
    if settings is None:
        yield
        return
    import coverage

    measured = coverage.Coverage(data_suffix=True, **settings)
    measured.start()
    try:
        yield
    finally:
        measured.stop()
        measured.save()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
