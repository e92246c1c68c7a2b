"""Nodes come when they are asked for and go when they are idle: `make clusters`, some minutes."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

sys.path.append(str(Path(__file__).parents[1] / "serving"))
from autoscaled import autoscaled, free_port, until
from cluster import hammer, queries, statuses
from releases import make_release

from stillroom.artifacts import Store
from tiny import tiny_decoder, tiny_encoder

TESTS = Path(__file__).parents[1]
SPOT = {"ray.io/market-type": "spot", "ray.io/accelerator-type": "H100"}
ON_DEMAND = {"ray.io/market-type": "on-demand"}
UP_TO_TWO = {"min_workers": 0, "max_workers": 2}
NODE_TYPES = {
    "train": {
        "resources": {"CPU": 2, "GPU": 1},
        "labels": SPOT,
        "min_workers": 0,
        "max_workers": 2,
    },
    "cpu": {"resources": {"CPU": 2}, "labels": ON_DEMAND, "min_workers": 0, "max_workers": 2},
}
GROWN = 240  # seconds in which a busy machine starts a node


@pytest.fixture(scope="module")
def cluster():
    with autoscaled(NODE_TYPES) as found:
        yield found


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, cluster):
    """Submits the pipeline as the README has it."""
    folder = tmp_path_factory.mktemp("pipeline")
    told = [
        f"teacher.base={tiny_decoder(folder / 'teacher')}",
        f"student.base={tiny_encoder(folder / 'student')}",
        f"root={folder / 'runs'}",
    ]

    def submit(*words):
        script = ["python", "jobs/run_pipeline.py", "jobs/recipes/tiny.yaml"]
        return cluster.submit(*script, *told, *words)

    submit.store = Store(str(folder / "runs"))
    return submit


def test_probes_need_no_token_and_everything_else_does(cluster):
    agent = httpx.get(f"http://127.0.0.1:{cluster.agent}/api/local_raylet_healthz")
    head = cluster.get("/api/gcs_healthz", token=None)
    assert (agent.status_code, head.status_code) == (200, 200)
    for path in ("/api/jobs/", "/api/v0/nodes"):
        assert cluster.get(path, token=None).status_code == 401
        assert cluster.get(path, token="another").status_code == 403


def test_what_no_node_will_ever_have_ends_a_job_at_once_and_is_said(cluster, pipeline):
    done = pipeline("scale.teacher.workers=16", "scale.teacher.cpus=1")
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "scale.teacher: asks for 16 × 1 CPUs, and the cluster has room for 8 at most" in said, said
    assert cluster.alive(accelerator__type="H100") == []


def test_the_pipeline_asks_for_nodes_runs_on_them_and_they_go(cluster, pipeline):
    done = pipeline("scale.teacher.node_labels={ray.io/market-type: spot}")
    assert done.returncode == 0, done.stdout + done.stderr
    made = {artifact.stage for artifact in pipeline.store.published()}
    assert made == {"corpus", "teacher", "vectors", "negatives", "student", "report", "release"}
    came = cluster.nodes()
    assert any(node["labels"].get("ray.io/market-type") == "spot" for node in came)
    until(lambda: not cluster.alive(), GROWN, "idle nodes stay")


ON_A_GPU = """
import json, ray
from stillroom.config.scale import Actors
from stillroom.stages.room import asks

ray.init()

def where():
    here = ray.get_runtime_context()
    (labels,) = (n["Labels"] for n in ray.nodes() if n["NodeID"] == here.get_node_id())
    return len(ray.get_gpu_ids()), labels

scale = Actors(gpus=1, node_labels={"ray.io/accelerator-type": "H100"})
plain = Actors(node_labels={"ray.io/market-type": "on-demand"})
found = [ray.get(ray.remote(**asks(of))(where).remote()) for of in (scale, plain)]
print("FOUND", json.dumps(found))
"""


def test_demand_for_labelled_gpus_lands_on_nodes_that_have_them(cluster):
    done = cluster.submit("python", "-c", ON_A_GPU)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FOUND"))
    (gpus, labels), (none, others) = json.loads(line.removeprefix("FOUND"))
    assert gpus == 1 and labels.items() >= SPOT.items()
    assert none == 0 and others.items() >= ON_DEMAND.items()


# --- serving ------------------------------------------------------------------------------------

SERVE = """
import json, sys, ray
from ray import serve
from stillroom.serving.app import build

ray.init(configure_logging=False)
port, args = int(sys.argv[1]), json.loads(sys.argv[2])
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(build(args), name="tried", route_prefix="/")
print("READY", flush=True)
sys.stdin.read()
"""
SCALE = {
    "min": 1, "max": 3, "target_ongoing": 2, "up_delay_s": 0, "down_delay_s": 2, "look_back_s": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A small cluster, and where a release is served on it."""
    one = {"resources": {"CPU": 1}, "labels": ON_DEMAND, "min_workers": 0, "max_workers": 4}
    release = make_release(tmp_path_factory.mktemp("served") / "blue", shared_space=True)
    port = free_port()
    args = {
        "releases": [str(release)],
        "teacher": {"replicas": 0},
        "student": {"num_cpus": 1, "autoscale": SCALE, "node_labels": ON_DEMAND},
    }
    with autoscaled({"serve": one}) as cluster:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(port), json.dumps(args)],
            env={**cluster.env, "RAY_ADDRESS": cluster.address},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert "READY" in iter(server.stdout.readline, "READY\n") or server.poll() is None
        yield cluster, f"http://127.0.0.1:{port}"
        server.kill()
        server.wait()


def test_a_served_release_has_replicas_and_nodes_as_the_load_needs_them(served):
    cluster, url = served
    assert len(cluster.alive()) == 1
    with asyncio.Runner() as runner:

        def loaded(wanted, count, callers):
            answers = runner.run(hammer(url, queries(count), callers=callers))
            assert statuses(answers) <= {200, 429}
            return len(cluster.alive()) == wanted

        until(lambda: loaded(3, 200, 32), GROWN, "no nodes came")
        until(lambda: loaded(1, 4, 1), GROWN, "idle nodes stay")
