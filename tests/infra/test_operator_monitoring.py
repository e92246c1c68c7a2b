"""infra/kuberay/monitoring: what the Prometheus operator scrapes, and its alerts."""

from functools import cache
from pathlib import Path

import jsonschema
import yaml

from infra.kuberay_objects import pods_of, selects
from infra.kustomize import build
from infra.monitoring_queries import MONITORING, all_queries, job_names
from infra.ray_schema import closed

KUBERAY = Path(__file__).parents[2] / "infra" / "kuberay"

# The fields that are used of monitoring.coreos.com/v1, of the Prometheus operator 0.93.
TEXT = {"type": "string"}
SECRET_KEY = closed("name key", name=TEXT, key=TEXT)
SELECTOR = closed(matchLabels={"type": "object"}, matchExpressions={"type": "array"})
RELABELING = closed(action={"enum": ["replace"]}, targetLabel=TEXT, replacement=TEXT)
ENDPOINT = closed(
    "port",
    port=TEXT,
    path=TEXT,
    authorization=closed(credentials=SECRET_KEY),
    relabelings={"type": "array", "items": RELABELING},
)
POD_MONITOR = closed(
    "podMetricsEndpoints selector",
    selector=SELECTOR,
    podMetricsEndpoints={"type": "array", "items": ENDPOINT},
)


@cache
def built():
    return build(KUBERAY / "monitoring")


def monitors():
    return {r["metadata"]["name"]: r["spec"] for r in built() if r["kind"] == "PodMonitor"}


@cache
def pods():
    resources = build(KUBERAY / "overlays" / "gpu")
    return [
        pod
        for resource in resources
        if resource["kind"] in ("RayCluster", "RayJob", "RayService")
        for pod in pods_of(resource)
    ]


def ports(pod):
    return {port["name"]: port["containerPort"] for port in pod.container.get("ports", ())}


def test_the_monitors_pass_the_operator_s_schema():
    for spec in monitors().values():
        jsonschema.validate(spec, POD_MONITOR)
    assert {resource["metadata"]["namespace"] for resource in built()} == {"stillroom"}


def test_every_ray_pod_is_scraped_and_nothing_else():
    spec = monitors()["stillroom-ray"]
    for pod in pods():
        selected = selects(spec["selector"], pod.labels)
        assert selected == ("ray.io/node-type" in pod.labels)
        assert not selected or "metrics" in ports(pod)
    names = {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]}
    (head, *_) = (pod for pod in pods() if pod.labels.get("ray.io/node-type") == "head")
    assert names <= ports(head).keys()


def test_the_server_is_scraped_once_through_its_head():
    """Through the proxy of every pod, each router would be counted once for every pod."""
    spec = monitors()["stillroom-server"]
    (pod,) = (pod for pod in pods() if selects(spec["selector"], pod.labels))
    assert (pod.owner, pod.labels["ray.io/node-type"]) == ("RayService", "head")
    (endpoint,) = spec["podMetricsEndpoints"]
    assert endpoint["path"] == "/metrics" and ports(pod)[endpoint["port"]] == 8000


def test_the_network_policy_admits_every_scrape():
    (policy,) = (
        resource["spec"]
        for resource in build(KUBERAY / "overlays" / "gpu")
        if resource["kind"] == "NetworkPolicy" and resource["metadata"]["name"] == "stillroom"
    )
    (rule,) = (rule for rule in policy["ingress"] if "monitoring" in str(rule["from"]))
    open_ports = {port["port"] for port in rule["ports"]}
    for spec in monitors().values():
        for pod in pods():
            if selects(spec["selector"], pod.labels):
                scraped = {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]}
                assert {ports(pod)[name] for name in scraped & ports(pod).keys()} <= open_ports


def test_the_jobs_of_queries_are_those_of_prometheus_and_of_the_operator():
    static = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    in_operator = {
        relabeling["replacement"]
        for spec in monitors().values()
        for endpoint in spec["podMetricsEndpoints"]
        for relabeling in endpoint["relabelings"]
        if relabeling["targetLabel"] == "job"
    }
    assert in_operator == {config["job_name"] for config in static} == {"ray", "stillroom"}
    used = {job for _, query, _ in all_queries() for job in job_names(query)}
    assert used and used <= in_operator


def test_the_operator_has_the_alerts_of_prometheus():
    (rules,) = (resource for resource in built() if resource["kind"] == "PrometheusRule")
    assert rules["spec"] == yaml.safe_load((MONITORING / "alerts.yml").read_text())
