"""Whatever a dashboard or an alert names, a cluster that works really tells."""

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

from infra.monitored import (
    DASHBOARDS,
    FOLDER,
    OF_GPUS,
    PROMETHEUS_S_OWN,
    ROOT,
    dashboard,
    every,
    grouped,
    selectors,
)
from stillroom.config.load import read_recipe
from stillroom.pipeline.plan import pipeline
from stillroom.pipeline.run import run
from support.tiny_releases import make_release
from support.two_node_cluster import deploy


@pytest.fixture(scope="module")
def told(tmp_path_factory, decoder, encoder):
    """Metric → labels of its series, of a cluster that has trained, served, and lost a worker and
    a node; read from where prometheus.yml says."""
    folder = tmp_path_factory.mktemp("watched")
    with contextlib.ExitStack() as at_end:
        # Short, for sockets lie in it.
        own = at_end.enter_context(
            tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True)
        )
        autoscaler, dashboards, http = free_ports(3)
        environment = at_end.enter_context(pytest.MonkeyPatch.context())
        for name, value in {
            "RAY_TMPDIR": own,
            "RAY_AUTH_MODE": "disabled",
            "RAY_metrics_report_interval_ms": 500,
            # Their usual ones are taken where another Ray runs beside this one.
            "AUTOSCALER_METRIC_PORT": autoscaler,
            "DASHBOARD_METRIC_PORT": dashboards,
            "TINY_TEACHER": decoder,
            "TINY_STUDENT": encoder,
        }.items():
            environment.setenv(name, str(value))
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
        at_end.callback(nodes.shutdown)
        lost = nodes.add_node(num_cpus=1)
        environment.setenv("RAY_ADDRESS", nodes.address)
        at_end.callback(ray.shutdown)
        page = Scraped(own, http)
        at_end.callback(page.end)
        train(folder)
        with pytest.raises(ray.exceptions.WorkerCrashedError):
            ray.get(ray.remote(max_retries=0)(lambda: os._exit(1)).remote())
        serve.start(http_options={"host": "127.0.0.1", "port": http})
        at_end.callback(serve.shutdown)
        ask(folder, f"http://127.0.0.1:{http}")
        named = {name for _, expression, _ in every() for name in selectors(expression)}
        wanted = named - OF_GPUS.keys() - PROMETHEUS_S_OWN
        # The node may take the router with it, and all that it has counted.
        page.wait({name for name in wanted if name.startswith("stillroom_shadow")})
        nodes.remove_node(lost, allow_graceful=False)
        page.wait(wanted)
        page.end()
        yield page.found


def train(folder):
    """Two stages that tell of themselves, on models of two layers."""
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
    assert len(list(run(recipe, [corpus, teacher]))) == 2


def ask(folder, url):
    """Requests until the shadow has compared the orders of some."""
    release = make_release(folder / "release", shared_space=True)
    share = {"num_cpus": 0.5}
    deploy({"releases": [str(release)], "shadow": {"share": 1.0}, "access_log": None,
            "teacher": share, "student": share})  # fmt: skip
    deadline = time.monotonic() + 60
    with httpx.Client(timeout=60) as http:
        for number in itertools.count():
            body = {"model": "tiny", "input": f"text {number}", "input_type": "query"}
            assert http.post(f"{url}/v1/embeddings", json=body).status_code == 200
            if http.get(f"{url}/healthz").json()["shadow"]["tiny/student"]["rank"] is not None:
                return
            assert time.monotonic() < deadline


class Scraped:
    """What prometheus.yml's targets tell, read over and over: of who has gone, Ray says no more."""

    def __init__(self, own, http):
        ray_s, routers = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
        [place] = ray_s["file_sd_configs"][0]["files"]
        [target] = routers["static_configs"][0]["targets"]
        self.listed = Path(place.replace("/tmp/ray", f"{own}/ray"))
        self.router = target.replace(":8000", f":{http}")
        self.found = {}  # name → labels
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def read(self):
        while not self.over.wait(0.2):
            targets = [self.router]
            with contextlib.suppress(OSError, ValueError):  # not written yet
                groups = json.loads(self.listed.read_text())
                targets += itertools.chain(*(group["targets"] for group in groups))
            for target in targets:
                with contextlib.suppress(httpx.HTTPError):  # not begun, or lost
                    page = httpx.get(f"http://{target}/metrics", timeout=10)
                    if page.status_code == 200:
                        for family in text_string_to_metric_families(page.text):
                            for sample in family.samples:
                                self.found.setdefault(sample.name, set()).update(sample.labels)

    def wait(self, wanted):
        """Until all that is wanted was told."""
        deadline = time.monotonic() + 60
        while missing := wanted - self.found.keys():
            assert time.monotonic() < deadline, f"nobody tells {sorted(missing)}"
            time.sleep(0.2)  # polls for a condition, with a deadline

    def end(self):
        self.over.set()
        self.thread.join()


def test_whatever_a_dashboard_or_an_alert_names_is_told_by_a_cluster_that_works(told):
    for where, expression, _ in every():
        for name in selectors(expression):
            assert name in told or name in OF_GPUS or name in PROMETHEUS_S_OWN, (where, name)


def test_so_is_every_label(told):
    for where, expression, legend in every():
        of = selectors(expression)
        if PROMETHEUS_S_OWN & of.keys():
            continue
        known = {name: told.get(name) or OF_GPUS[name] for name in of}
        for name, labels in of.items():
            assert labels <= known[name], (where, name)
        named = grouped(expression) | set(re.findall(r"{{(\w+)}}", legend))
        assert named <= set.union(*known.values()), where


def test_so_is_every_variable_of_a_dashboard(told):
    for path in DASHBOARDS:
        for variable in dashboard(path)["templating"]["list"][1:]:
            name, label = re.fullmatch(
                r"label_values\((\w+), (\w+)\)", variable["query"]["query"]
            ).groups()
            assert label in told[name], path.stem


def free_ports(count):
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
