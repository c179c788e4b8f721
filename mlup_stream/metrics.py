"""A pool's report as OpenMetrics text (https://github.com/prometheus/OpenMetrics, version 1.0.0)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlup_stream.ml.pool_report import PoolReport

__all__ = ["openmetrics"]

_OF_A_MODEL = (
    # name, type, unit, attribute, help
    ("mlup_pool_model_loaded", "gauge", "", "loaded", "Whether the model is loaded"),
    ("mlup_pool_model_users", "gauge", "", "users", "How many use the model now"),
    ("mlup_pool_model_private_bytes", "gauge", "bytes", "private_bytes", "Memory of the model that nobody can take back"),
    ("mlup_pool_model_file_bytes", "gauge", "bytes", "file_bytes", "Pages of the model's file that are in memory now"),
    ("mlup_pool_model_pss_bytes", "gauge", "bytes", "pss_bytes", "The same, each page divided by the number of its users"),
    ("mlup_pool_loads", "counter", "", "loads", "How often the model was loaded"),
    ("mlup_pool_load_seconds", "counter", "seconds", "load_seconds", "How long all loads of the model took"),
    ("mlup_pool_hits", "counter", "", "hits", "How often the model was there when somebody asked"),
    ("mlup_pool_evictions", "counter", "", "evictions", "How often the model was let go of"),
    ("mlup_pool_failures", "counter", "", "failures", "How often a load of the model failed"),
)


def openmetrics(report: PoolReport) -> str:
    """The text, with its end mark."""
    lines = []
    for name, kind, unit, attribute, words in _OF_A_MODEL:
        lines += _head(name, kind, unit, words)
        suffix = "_total" if kind == "counter" else ""
        for model in report.models:
            value = getattr(model, attribute)
            lines.append(f'{name}{suffix}{{model="{_escaped(model.name)}"}} {int(value) if isinstance(value, bool) else value}')
    if report.left_bytes is not None:
        lines += _head("mlup_pool_budget_left_bytes", "gauge", "bytes", "What is left of the pool's budget")
        lines.append(f"mlup_pool_budget_left_bytes {report.left_bytes}")
    return "\n".join([*lines, "# EOF", ""])


def _head(name: str, kind: str, unit: str, words: str) -> list[str]:
    return [f"# TYPE {name} {kind}", *([f"# UNIT {name} {unit}"] if unit else []), f"# HELP {name} {words}"]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
