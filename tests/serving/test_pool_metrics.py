"""What a pool tells a scraper."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

import mlup_stream as mlup

pytestmark = pytest.mark.serving


def test_the_metrics_are_openmetrics_and_say_what_happened(tmp_path: Path) -> None:
    """By the parser of `prometheus_client`: each family with its type and unit, each model with its figures, names escaped."""
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    names = {'quo"te\\': tmp_path / "a.pkl", "plain": tmp_path / "b.pkl"}
    for path in names.values():
        path.write_bytes(pickle.dumps({"weights": b"x" * (2 << 20)}))
    with mlup.ModelPool(names, memory_budget="64MiB") as pool:
        pool.warm()
        with pool.use("plain"):
            pool.evict()
            families = {each.name: each for each in parser.text_string_to_metric_families(pool.metrics())}
            report = pool.report()
    found = {(name, each.labels.get("model")): each.value for name, family in families.items() for each in family.samples}
    for said in report.models:
        assert found["mlup_pool_model_loaded", said.name] == said.loaded
        assert found["mlup_pool_model_private_bytes", said.name] == said.private_bytes
        assert found["mlup_pool_loads", said.name] == said.loads == 1
        assert found["mlup_pool_evictions", said.name] == said.evictions == (said.name != "plain")
        assert found["mlup_pool_load_seconds", said.name] == pytest.approx(said.load_seconds)
    assert found["mlup_pool_model_users", "plain"] == 1
    assert 0 < found["mlup_pool_budget_left_bytes", None] <= 64 << 20
    assert {families[each].type for each in ("mlup_pool_hits", "mlup_pool_failures")} == {"counter"}
    assert families["mlup_pool_model_pss_bytes"].unit == "bytes"
