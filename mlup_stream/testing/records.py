"""What limited tests took, written to a file, and compared with one that was written before."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from typing import Any, NamedTuple

from mlup_stream._version import __version__
from mlup_stream.errors import ConfigError
from mlup_stream.testing.fresh import Ran
from mlup_stream.testing.limits import Limit, Taken, Verdict
from mlup_stream.units import MIB, format_bytes

__all__ = ["Growth", "entry", "table", "write"]

SCHEMA = 1
_DEFAULT_GROWTH = "5%"
_NOISE_BYTES = MIB
"""Growth of less is none: the kernel counts RSS per CPU and adds up now and then, the allocator takes its arenas by pages."""
_POINTS = 200
_LIMIT = ("figure", "limit_bytes", "over")


def entry(ran: Ran, taken: dict[str, Taken], verdicts: list[Verdict], *, retried: bool) -> dict[str, Any]:
    """What the record says of one test; JSON values. Sizes in bytes above the baseline, the timeline's as they were."""
    started = ran.events.get("started")
    baseline = started["baseline"] if started is not None else {}
    begun, ended = (started or {}).get("seconds", 0.0), ran.events.get("ended", {}).get("seconds", float("inf"))
    samples = [each for each in ran.samples if begun <= each.seconds <= ended]
    step = max(1, len(samples) // _POINTS)
    highest = [max(samples[at : at + step], key=lambda each: each.rss_bytes or 0) for at in range(0, len(samples), step)]
    return {
        "taken": {figure: each._asdict() for figure, each in taken.items()},
        "limits": [dict(zip(_LIMIT, (*each.limit[:2], each.is_over), strict=True)) for each in verdicts],
        "baseline": baseline,
        "retried": retried,
        "timeline": [[round(each.seconds - begun, 4), *each[1:]] for each in highest],
    }


def write(path: str, measured: dict[str, dict[str, Any]]) -> None:
    """Writes what was measured to `path`, in place of what was there of these tests and beside what was there of others.

    Args:
        path: The record.
        measured: An `entry` for each test, by its node id.
    """
    found = _read(path)["tests"] if os.path.exists(path) else {}
    content = {
        "schema": SCHEMA,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "mlup_stream": __version__,
        "timeline": ["seconds", "rss_bytes", "anon_bytes", "file_bytes", "shmem_bytes", "pss_bytes"],
        "tests": {**found, **measured},
    }
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
        json.dump(content, file, indent=1)
    os.replace(file.name, path)


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content: dict[str, Any] = json.load(file)
        if content["schema"] == SCHEMA and isinstance(content["tests"], dict):
            return content
        found = f"schema {content['schema']}"
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such record; write one with --rss-record {path}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: expected a record of --rss-record, found none ({error})") from error
    raise ConfigError(f"{path}: expected a record of schema {SCHEMA}, found {found}; write it again with --rss-record")


class Growth(NamedTuple):
    """What each test took when the record was written, and how much more it may take."""

    name: str
    tests: dict[str, Any]
    allowed: float

    @classmethod
    def of(cls, path: str | None, allowed: str | None) -> Growth:
        """
        Args:
            path: The record; None compares with nothing.
            allowed: Such as "5%".
        """
        text = (allowed or _DEFAULT_GROWTH).strip()
        try:
            share = float(text.rstrip("%")) / 100
        except ValueError as error:
            raise ConfigError(f"rss_fail_on_growth: expected a share, such as 5%, found {text!r}") from error
        return cls(os.path.basename(path), _read(path)["tests"], share) if path else cls("", {}, share)

    def limits(self, node_id: str, taken: dict[str, Taken]) -> list[Verdict]:
        """A limit for each figure that the record has of the test."""
        found = []
        for figure, before in self.tests.get(node_id, {}).get("taken", {}).items():
            if figure in taken and "peak" in figure:
                limit_bytes = max(int(before["low_bytes"] * (1 + self.allowed)), before["low_bytes"] + _NOISE_BYTES)
                said = f"{format_bytes(before['low_bytes'])} in {self.name} and {self.allowed:.0%}"
                found.append(Verdict(Limit(figure, limit_bytes, said), taken[figure]))
        return found


def table(measured: dict[str, dict[str, Any]]) -> list[str]:
    """What the terminal shows at the end: a line for each limit, and for each test without one its peak."""
    rows = [("test", "figure", "limit", "measured", "")]
    for node_id, found in measured.items():
        limits = found["limits"] or [{"figure": "peak_rss", "limit_bytes": None, "over": False}]
        for each in limits:
            taken = found["taken"].get(each["figure"])
            size_bytes = None if taken is None else taken["low_bytes"]
            rows.append(
                (
                    node_id,
                    each["figure"],
                    "" if each["limit_bytes"] is None else format_bytes(each["limit_bytes"]),
                    "not measured" if size_bytes is None else format_bytes(size_bytes),
                    ("OVER" if each["over"] else "") + (" (measured twice)" if found["retried"] else ""),
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        "  ".join((test.ljust(widths[0]), figure.ljust(widths[1]), limit.rjust(widths[2]), size.rjust(widths[3]), word)).rstrip()
        for test, figure, limit, size, word in rows
    ]
