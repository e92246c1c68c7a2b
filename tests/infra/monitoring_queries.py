"""The queries of infra/monitoring's dashboards and alerts: which metrics and labels they name."""

import json
from pathlib import Path

import promql_parser
import yaml
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "infra" / "monitoring"
DASHBOARDS = sorted((MONITORING / "dashboards").glob("*.json"))
PROMETHEUS_METRICS = {"up"}  # made by Prometheus itself
# Metric → labels of Ray's GPU metrics, which a node without a GPU does not export.
GPU_METRICS = {
    f"ray_{name}": set(METRICS_GAUGES[name].view.columns)
    for name in ("node_gram_used", "node_gram_available", "node_gpus_utilization")
}


def read_dashboard(path):
    return json.loads(path.read_text(encoding="utf-8"))


def read_alert_rules():
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]:
        yield from group["rules"]


def all_queries():
    """(where, expression, legend) of every panel and every alert."""
    for path in DASHBOARDS:
        for panel in read_dashboard(path)["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"], target["legendFormat"]
    for rule in read_alert_rules():
        yield rule["alert"], rule["expr"], ""


def selected_metrics(expression):
    """Metric → labels that the expression filters it by."""
    metrics = {}

    def visit(node):
        if isinstance(node, promql_parser.VectorSelector):
            labels = {matcher.name for matcher in node.matchers.matchers}
            metrics.setdefault(node.name, set()).update(labels)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return metrics


def job_names(expression):
    """Values of the label `job` that the expression selects by."""
    names = set()

    def visit(node):
        if isinstance(node, promql_parser.VectorSelector):
            names.update(m.value for m in node.matchers.matchers if m.name == "job")

    promql_parser.walk(promql_parser.parse(expression), visit)
    return names


def grouping_labels(expression):
    """Labels that the expression aggregates by."""
    labels = set()

    def visit(node):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            labels.update(node.modifier.labels)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return labels
