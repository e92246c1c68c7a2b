"""Ray Serve on a cluster of two nodes on this machine, and many callers at once."""

import asyncio
import contextlib
import re
import tempfile
import time
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster

from stillroom.serving.app import build
from support import shared_ray
from support.ray_head import free_port

APP = "tested"
IMAGE = Path(__file__).parents[2] / "infra" / "docker" / "Dockerfile"
# Serve's settings on a cluster, as the image has them, with less time for load balancers to notice
# that a router leaves. HAProxy must notice within that time, on a busy machine too: a request that
# it sends while a router closes its idle connections is lost.
SERVE_SETTINGS = {
    **dict(re.findall(r"(RAY_SERVE_\w+)=(\S+)", IMAGE.read_text())),
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
}


def free_serve_ports():
    """Settings with a node's own Serve ports: on one machine every node needs different ones."""
    names = ("WORKER_PROXY_HTTP", "HAPROXY_STATS", "HAPROXY_METRICS")
    return {f"RAY_SERVE_{name}_PORT": str(free_port()) for name in names}


@contextlib.contextmanager
def two_node_cluster():
    """Yields the URL that Serve listens on. The second node has a resource `large` and a label."""
    shared_ray.stop()
    port = free_port()
    # A separate folder, because Ray writes its address there: in the common folder, the next
    # `ray.init()` of another running test would find it and join. Short, since it holds sockets.
    with (
        tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as ray_folder,
        pytest.MonkeyPatch.context() as environment,
    ):

        def set_environment(settings):
            for name, value in settings.items():
                environment.setenv(name, value)

        set_environment({"RAY_TMPDIR": ray_folder, **SERVE_SETTINGS, **free_serve_ports()})
        nodes = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 8, "include_dashboard": False}
        )
        set_environment(free_serve_ports())
        nodes.add_node(num_cpus=1, resources={"large": 1}, labels={"disk": "fast"})
        ray.init(address=nodes.address, configure_logging=False)
        try:
            serve.start(
                proxy_location="EveryNode", http_options={"host": "127.0.0.1", "port": port}
            )
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()
            ray.shutdown()
            nodes.shutdown()


def deploy(args):
    """Deploys or updates the application; returns when all of it runs."""
    serve.run(build(args), name=APP, route_prefix="/")


def wait_until_updated(deployment):
    """Returns when every replica runs the updated version."""
    while replica_states(deployment).keys() != {"RUNNING"}:
        time.sleep(0.1)  # polls for a condition; pytest has the deadline


def replica_actors(deployment):
    """The actors of a deployment's replicas."""
    return [
        ray.get_actor(actor["name"], namespace=actor["namespace"])
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if f"{APP}#{deployment}#" in actor["name"]
    ]


def running_replicas(deployment):
    """The number of replicas that run."""
    return replica_states(deployment).get("RUNNING", 0)


def replica_states(deployment):
    """State → the number of a deployment's replicas in it."""
    return serve.status().applications[APP].deployments[deployment].replica_states


async def send_load(url, bodies, *, callers=16, during=None):
    """The answers to `bodies`, or the errors raised, from so many callers at once.

    `during` is called when a quarter is answered.
    """
    unsent, answers = iter(enumerate(bodies)), [None] * len(bodies)
    quarter = asyncio.Event()

    async def call(http):
        for index, body in unsent:
            try:
                answers[index] = await http.post(f"{url}/v1/embeddings", json=body)
            except httpx.HTTPError as error:
                answers[index] = error
            if index == len(bodies) // 4:
                quarter.set()

    async with httpx.AsyncClient(timeout=60) as http:
        calls = asyncio.gather(*(call(http) for _ in range(callers)))
        if during is not None:
            await quarter.wait()
            await asyncio.to_thread(during)
        await calls
    return answers


def statuses(answers):
    """The set of statuses: server errors with their text, raised errors as their repr."""

    def status(answer):
        if not isinstance(answer, httpx.Response):
            return repr(answer)
        code = answer.status_code
        return code if code < 500 else f"{code}: {answer.text}"

    return {status(answer) for answer in answers}


def query_bodies(count, model="tiny"):
    """Bodies of POST /v1/embeddings with different queries."""
    return [
        {"model": model, "input": f"text number {number}", "input_type": "query"}
        for number in range(count)
    ]


def post_until(url, body, is_last):
    """Sends a body again and again; the answers up to the first that `is_last`."""
    answers = []
    with httpx.Client(timeout=60) as http:
        while not answers or not is_last(answers[-1]):
            assert len(answers) < 20_000
            answers.append(http.post(f"{url}/v1/embeddings", json=body))
            time.sleep(0.01)  # leaves CPU time for the processes that start
    return answers
