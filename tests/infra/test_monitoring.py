"""Dashboards, alerts and the scrape configuration are what Grafana and Prometheus take."""

import re

import pytest

from infra.monitored import DASHBOARDS, dashboard, rules, selectors


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_what_grafana_takes(path):
    found = dashboard(path)
    assert found["uid"] == f"stillroom-{path.stem}" and found["title"] and found["schemaVersion"]
    variables = found["templating"]["list"]
    assert variables[0]["type"] == "datasource" and variables[0]["name"] == "datasource"
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 6
    assert len({panel["title"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
        refs = [target["refId"] for target in panel["targets"]]
        assert refs and len({*refs}) == len(refs)
        for one in [panel, *panel["targets"], *variables[1:]]:
            assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    known = {variable["name"] for variable in variables}
    asked = set(re.findall(r"\$\{?(\w+)", path.read_text())) - {"__all"}
    assert asked <= known


def test_each_dashboard_shows_what_it_is_for():
    shown = {
        path.stem: " ".join(p["title"] for p in dashboard(path)["panels"]) for path in DASHBOARDS
    }
    for name, words in {
        "training": ["Loss", "Tokens per second", "MFU", "Gradient norm", "GPU memory"],
        "pipeline": ["Stages", "Rows per second"],
        "serving": ["Requests per second", "Latency", "Texts in a forward", "Spill", "fidelity"],
        "cluster": ["Nodes that report", "Nodes lost"],
    }.items():
        for word in words:
            assert word in shown[name], (name, word)


def test_every_alert_says_how_bad_it_is_and_what_happened():
    names = [rule["alert"] for rule in rules()]
    assert len({*names}) == len(names) >= 10
    for rule in rules():
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert rule["annotations"]["summary"]
        assert selectors(rule["expr"]), rule["alert"]
