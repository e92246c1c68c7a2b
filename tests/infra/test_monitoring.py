"""Dashboards, alerts and the scrape configuration are valid for Grafana and Prometheus."""

import re

import pytest

from infra.monitoring_queries import (
    DASHBOARDS,
    all_queries,
    read_alert_rules,
    read_dashboard,
    selected_metrics,
)
from stillroom.serving.routing.shadow import ShadowMetrics
from stillroom.serving.telemetry.metrics import RouterMetrics

SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_can_be_imported_into_grafana(path):
    dashboard = read_dashboard(path)
    assert dashboard["uid"] == f"stillroom-{path.stem}"
    assert dashboard["title"] and dashboard["schemaVersion"]
    variables, panels = dashboard["templating"]["list"], dashboard["panels"]
    assert variables[0]["type"] == "datasource" and variables[0]["name"] == "datasource"
    assert len({panel["id"] for panel in panels}) == len(panels) >= 6
    assert len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        refs = [target["refId"] for target in panel["targets"]]
        assert refs and len({*refs}) == len(refs)
        for part in [panel, *panel["targets"], *variables[1:]]:
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    defined = {variable["name"] for variable in variables}
    used = set(re.findall(r"\$\{?(\w+)", path.read_text())) - {"__all"}
    assert used <= defined


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_no_panel_overlaps_another(path):
    occupied = set()
    for panel in read_dashboard(path)["panels"]:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & occupied, f"{panel['title']} overlaps another panel"
        occupied |= cells


def test_each_dashboard_has_the_panels_that_it_is_for():
    titles = {
        path.stem: " | ".join(panel["title"] for panel in read_dashboard(path)["panels"])
        for path in DASHBOARDS
    }
    expected = {
        "training": ["Loss", "Tokens per second", "MFU", "Gradient norm", "GPU memory"],
        "pipeline": ["Stage progress", "Rows per second"],
        "serving": [
            "Requests per second", "Latency", "Texts per forward", "second choice", "Shadow: cosine"
        ],
        "cluster": ["Running nodes", "Lost nodes"],
    }  # fmt: skip
    for name, words in expected.items():
        for word in words:
            assert word in titles[name], (name, word)


def test_every_alert_has_a_severity_and_a_summary():
    names = [rule["alert"] for rule in read_alert_rules()]
    assert len({*names}) == len(names) >= 10
    for rule in read_alert_rules():
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert rule["annotations"]["summary"]
        assert selected_metrics(rule["expr"]), rule["alert"]


def test_every_metric_of_the_router_that_a_query_names_exists():
    registry = RouterMetrics().registry
    ShadowMetrics(registry)
    exported = {m.name + suffix for m in registry.collect() for suffix in SUFFIXES[m.type]}
    named = {name for _, query, _ in all_queries() for name in selected_metrics(query)}
    of_the_router = {name for name in named if name.startswith("stillroom_")}
    assert of_the_router and of_the_router <= exported
