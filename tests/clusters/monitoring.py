"""Every metric and label that a dashboard or an alert names is exported by a working cluster."""

import contextlib
import itertools
import json
import os
import re
import socket
import tempfile
import threading
import time
from pathlib import Path

import httpx
import pytest
import ray
import yaml
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.cluster_utils import Cluster

from infra.monitoring_queries import (
    DASHBOARDS,
    GPU_METRICS,
    MONITORING,
    PROMETHEUS_METRICS,
    ROOT,
    all_queries,
    grouping_labels,
    read_dashboard,
    selected_metrics,
)
from stillroom.config.load import read_recipe
from stillroom.pipeline.plan import pipeline
from stillroom.pipeline.run import run_steps
from support.tiny_releases import make_release
from support.two_node_cluster import deploy


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Metric → labels, exported by a cluster that has trained, served, and lost a worker and a
    node; read from the targets in prometheus.yml."""
    folder = tmp_path_factory.mktemp("monitored")
    with contextlib.ExitStack() as at_end:
        # A short path, because sockets are in it.
        ray_folder = at_end.enter_context(
            tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True)
        )
        autoscaler_port, dashboard_port, http_port = free_ports(3)
        environment = at_end.enter_context(pytest.MonkeyPatch.context())
        for name, value in {
            "RAY_TMPDIR": ray_folder,
            "RAY_AUTH_MODE": "disabled",
            "RAY_metrics_report_interval_ms": 500,
            # The default ports are taken where another Ray runs on this machine.
            "AUTOSCALER_METRIC_PORT": autoscaler_port,
            "DASHBOARD_METRIC_PORT": dashboard_port,
        }.items():
            environment.setenv(name, str(value))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
        at_end.callback(cluster.shutdown)
        node = cluster.add_node(num_cpus=1)
        environment.setenv("RAY_ADDRESS", cluster.address)
        at_end.callback(ray.shutdown)
        scraper = Scraper(ray_folder, http_port)
        at_end.callback(scraper.stop)
        train(folder)
        with pytest.raises(ray.exceptions.WorkerCrashedError):
            ray.get(ray.remote(max_retries=0)(lambda: os._exit(1)).remote())
        serve.start(http_options={"host": "127.0.0.1", "port": http_port})
        at_end.callback(serve.shutdown)
        send_requests(folder, f"http://127.0.0.1:{http_port}")
        named = {name for _, query, _ in all_queries() for name in selected_metrics(query)}
        expected = named - GPU_METRICS.keys() - PROMETHEUS_METRICS
        # The router may be on that node, and its counts would be lost with it.
        scraper.wait_for({name for name in expected if name.startswith("stillroom_shadow")})
        cluster.remove_node(node, allow_graceful=False)
        scraper.wait_for(expected)
        scraper.stop()
        yield scraper.metrics


def train(folder):
    """Run two stages that export metrics, on models of two layers."""
    recipe = read_recipe(
        ROOT / "jobs" / "recipes" / "tiny.yaml",
        [
            f"root={folder / 'runs'}", "corpus.max_pairs=64", "teacher.phases.0.steps=2",
            "teacher.phases.0.evaluate_every=1", "scale.teacher.engine=torch",
            "scale.teacher.zero_stage=0", "scale.teacher.workers=1",
            "scale.teacher.peak_flops=1e12", "scale.tracking.tensorboard=false",
        ],
    )  # fmt: skip
    corpus, teacher, *_ = pipeline(recipe)
    assert len(list(run_steps(recipe, [corpus, teacher]))) == 2


def send_requests(folder, url):
    """Send requests until the shadow has a rank correlation."""
    release = make_release(folder / "release", shared_space=True)
    half_a_cpu = {"num_cpus": 0.5}
    deploy({"releases": [str(release)], "shadow": {"share": 1.0}, "access_log": None,
            "teacher": half_a_cpu, "student": half_a_cpu})  # fmt: skip
    deadline = time.monotonic() + 60
    with httpx.Client(timeout=60) as http:
        for number in itertools.count():
            body = {"model": "tiny", "input": f"text {number}", "input_type": "query"}
            assert http.post(f"{url}/v1/embeddings", json=body).status_code == 200
            shadow = http.get(f"{url}/healthz").json()["shadow"]["tiny/student"]
            if shadow["rank_correlation"] is not None:
                return
            assert time.monotonic() < deadline


class Scraper:
    """Reads the targets in prometheus.yml over and over: Ray stops exporting what has ended."""

    def __init__(self, ray_folder, http_port):
        ray_job, router_job = yaml.safe_load((MONITORING / "prometheus.yml").read_text())[
            "scrape_configs"
        ]
        [target_list] = ray_job["file_sd_configs"][0]["files"]
        [router] = router_job["static_configs"][0]["targets"]
        self.target_list = Path(target_list.replace("/tmp/ray", f"{ray_folder}/ray"))
        self.router = router.replace(":8000", f":{http_port}")
        self.metrics = {}  # name → labels
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.scrape)
        self.thread.start()

    def scrape(self):
        while not self.stopped.wait(0.2):
            targets = [self.router]
            with contextlib.suppress(OSError, ValueError):  # not written yet
                groups = json.loads(self.target_list.read_text())
                targets += itertools.chain(*(group["targets"] for group in groups))
            for target in targets:
                with contextlib.suppress(httpx.HTTPError):  # not started yet, or lost
                    response = httpx.get(f"http://{target}/metrics", timeout=10)
                    if response.status_code == 200:
                        self.add(response.text)

    def add(self, page):
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                self.metrics.setdefault(sample.name, set()).update(sample.labels)

    def wait_for(self, names):
        deadline = time.monotonic() + 60
        while missing := names - self.metrics.keys():
            assert time.monotonic() < deadline, f"not exported: {sorted(missing)}"
            time.sleep(0.2)  # polls for a condition, with a deadline

    def stop(self):
        self.stopped.set()
        self.thread.join()


def test_every_metric_of_a_dashboard_or_an_alert_is_exported(exported):
    for where, expression, _ in all_queries():
        for name in selected_metrics(expression):
            assert name in exported or name in GPU_METRICS or name in PROMETHEUS_METRICS, (
                where, name
            )  # fmt: skip


def test_every_label_of_a_dashboard_or_an_alert_is_exported(exported):
    for where, expression, legend in all_queries():
        selected = selected_metrics(expression)
        if PROMETHEUS_METRICS & selected.keys():
            continue
        known = {name: exported.get(name) or GPU_METRICS[name] for name in selected}
        for name, labels in selected.items():
            assert labels <= known[name], (where, name)
        used = grouping_labels(expression) | set(re.findall(r"{{(\w+)}}", legend))
        assert used <= set.union(*known.values()), where


def test_every_variable_of_a_dashboard_has_values(exported):
    for path in DASHBOARDS:
        for variable in read_dashboard(path)["templating"]["list"][1:]:
            name, label = re.fullmatch(
                r"label_values\((\w+), (\w+)\)", variable["query"]["query"]
            ).groups()
            assert label in exported[name], path.stem


def free_ports(count):
    with contextlib.ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]
