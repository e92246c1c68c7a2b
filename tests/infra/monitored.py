"""What infra/monitoring names: metrics, labels, panels and rules."""

import json
from pathlib import Path

import promql_parser
import yaml
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "monitoring"
DASHBOARDS = sorted((FOLDER / "dashboards").glob("*.json"))
PROMETHEUS_S_OWN = {"up"}
# What a node without a GPU has not. Ray declares it all the same.
OF_GPUS = {
    f"ray_{name}": set(METRICS_GAUGES[name].view.columns)
    for name in ("node_gram_used", "node_gram_available", "node_gpus_utilization")
}


def dashboard(path):
    return json.loads(path.read_text(encoding="utf-8"))


def targets():
    """(where, expression, legend) of everything that a dashboard draws."""
    for path in DASHBOARDS:
        for panel in dashboard(path)["panels"]:
            for target in panel["targets"]:
                where = f"{path.stem}: {panel['title']}"
                yield where, target["expr"], target["legendFormat"]


def rules():
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]:
        yield from group["rules"]


def selectors(expression):
    """The series that an expression selects: name → labels that it tells them by."""
    found = {}

    def visit(node):
        if isinstance(node, promql_parser.VectorSelector):
            found.setdefault(node.name, set()).update(m.name for m in node.matchers.matchers)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def grouped(expression):
    """Labels that an expression aggregates by."""
    found = set()

    def visit(node):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            found.update(node.modifier.labels)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


# --- as files -------------------------------------------------------------------------------


def every():
    yield from targets()
    yield from ((rule["alert"], rule["expr"], "") for rule in rules())
