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
from support.ray_head import free_port

APP = "tried"
IMAGE = Path(__file__).parents[2] / "infra" / "docker" / "Dockerfile"
# By what means Serve serves on a cluster: the image says it, and nothing here waits as long for
# load balancers of others to hear that something leaves. HAProxy must have heard by then, on a busy
# machine too: a request that it sends as a router closes its idle connections is lost.
MEANS = {
    **dict(re.findall(r"(RAY_SERVE_\w+)=(\S+)", IMAGE.read_text())),
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
}


def ports_of_a_node():
    """Serve's own, beside the one that is asked: on one machine each node needs others."""
    names = ("WORKER_PROXY_HTTP", "HAPROXY_STATS", "HAPROXY_METRICS")
    return {f"RAY_SERVE_{name}_PORT": str(free_port()) for name in names}


@contextlib.contextmanager
def two_nodes():
    """Yields where Serve listens. The second node has a resource `large` and a label."""
    port = free_port()
    # A folder of its own, in which it leaves its address: in the common one, the next `ray.init()`
    # of any test beside this one would find it and move in. Short, for sockets lie in it.
    with (
        tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as own,
        pytest.MonkeyPatch.context() as environment,
    ):

        def have(settings):
            for name, value in settings.items():
                environment.setenv(name, value)

        have({"RAY_TMPDIR": own, **MEANS, **ports_of_a_node()})
        nodes = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 8, "include_dashboard": False}
        )
        have(ports_of_a_node())
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
    """Returns when all of it runs; deployed again, it is updated."""
    serve.run(build(args), name=APP, route_prefix="/")


def settle(deployment):
    """Returns when nothing runs any more of what it was before an update."""
    while states(deployment).keys() != {"RUNNING"}:
        time.sleep(0.1)  # polls for a condition; pytest has the deadline


def replicas(deployment):
    """The actors of a deployment's replicas."""
    return [
        ray.get_actor(actor["name"], namespace=actor["namespace"])
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if f"{APP}#{deployment}#" in actor["name"]
    ]


def running(deployment):
    return states(deployment).get("RUNNING", 0)


def states(deployment):
    """How many of its replicas are in each."""
    return serve.status().applications[APP].deployments[deployment].replica_states


async def hammer(url, bodies, *, callers=16, during=None):
    """Answers (or what was raised) to `bodies`; `during` is called when a quarter is answered."""
    waiting, answers = iter(enumerate(bodies)), [None] * len(bodies)
    quarter = asyncio.Event()

    async def call(http):
        for place, body in waiting:
            try:
                answers[place] = await http.post(f"{url}/v1/embeddings", json=body)
            except httpx.HTTPError as error:
                answers[place] = error
            if place == len(bodies) // 4:
                quarter.set()

    async with httpx.AsyncClient(timeout=60) as http:
        calls = asyncio.gather(*(call(http) for _ in range(callers)))
        if during is not None:
            await quarter.wait()
            await asyncio.to_thread(during)
        await calls
    return answers


def statuses(answers):
    """Each once; of a failure of the server's, what it said too."""

    def status(answer):
        if not isinstance(answer, httpx.Response):
            return repr(answer)
        code = answer.status_code
        return code if code < 500 else f"{code}: {answer.text}"

    return {status(answer) for answer in answers}


def queries(count, model="tiny"):
    return [
        {"model": model, "input": f"text number {number}", "input_type": "query"}
        for number in range(count)
    ]


def ask_until(url, body, wanted):
    """The answers up to the first that is `wanted`."""
    answers = []
    with httpx.Client(timeout=60) as http:
        while not answers or not wanted(answers[-1]):
            assert len(answers) < 20_000
            answers.append(http.post(f"{url}/v1/embeddings", json=body))
    return answers
