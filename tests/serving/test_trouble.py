"""What a deployment promises when things go wrong, with real processes on several nodes."""

import asyncio
import contextlib
import socket
import threading

import httpx
import pytest
import ray
from ray import serve
from ray._private.state import available_resources_per_node
from ray.cluster_utils import Cluster
from releases import make_release

from stillroom.serving.app import build

ONE = {"num_cpus": 0.1}
LONG = ["a text of some words " * 8] * 200


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    root = tmp_path_factory.mktemp("releases")
    return {
        shared: make_release(root / f"shared-{shared}", shared_space=shared)
        for shared in (True, False)
    }


@pytest.fixture(scope="module")
def cluster():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 8, "include_dashboard": False}
    )
    nodes.add_node(num_cpus=1, resources={"large": 1}, labels={"disk": "fast"})
    ray.init(address=nodes.address, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture
def deploy(cluster, releases):
    names = []

    def deployed(*, shared=True, **args):
        args = {"releases": [str(releases[shared])], "teacher": ONE, "student": ONE, **args}
        if not names:
            names.append("tried")
        serve.run(build(args), name="tried", route_prefix="/tried")
        return f"{cluster}/tried/v1/embeddings"

    yield deployed
    if names:
        serve.delete("tried")


def replicas(deployment):
    """The actors of a deployment's replicas."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return [
        ray.get_actor(actor["name"], namespace=actor["namespace"])
        for actor in named
        if f"tried#{deployment}#" in actor["name"]
    ]


def running(deployment):
    states = serve.status().applications["tried"].deployments[deployment].replica_states
    return states.get("RUNNING", 0)


async def hammer(url, bodies, *, callers=16, during=None):
    """Answers (or what was raised) to `bodies`; `during` is called when a quarter is answered."""
    waiting, answers = iter(enumerate(bodies)), [None] * len(bodies)
    quarter = asyncio.Event()

    async def call(http):
        for place, body in waiting:
            try:
                answers[place] = await http.post(url, json=body)
            except httpx.HTTPError as error:
                answers[place] = error
            if place == len(bodies) // 4:
                quarter.set()

    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits()) as http:
        calls = asyncio.gather(*(call(http) for _ in range(callers)))
        if during is not None:
            await quarter.wait()
            await asyncio.to_thread(during)
        await calls
    return answers


def statuses(answers):
    return {a.status_code if isinstance(a, httpx.Response) else repr(a) for a in answers}


def queries(count, text="text number"):
    return [
        {"model": "tiny", "input": f"{text} {number}", "input_type": "query"}
        for number in range(count)
    ]


def test_nothing_that_was_accepted_is_lost_with_a_replica(deploy):
    url = deploy(student={**ONE, "replicas": 2})
    answers = asyncio.run(
        hammer(url, queries(300), during=lambda: ray.kill(replicas("tiny-student")[0]))
    )
    assert statuses(answers) == {200}


def test_with_a_router_go_only_its_open_connections(deploy):
    url = deploy(routers=2)
    callers = 8
    answers = asyncio.run(
        hammer(url, queries(300), callers=callers, during=lambda: ray.kill(replicas("Router")[0]))
    )
    failed = [a for a in answers if not isinstance(a, httpx.Response) or a.status_code != 200]
    assert len(failed) <= callers


def test_a_rolling_update_under_load_fails_no_request(deploy):
    url = deploy(student={**ONE, "replicas": 2})

    def update():
        deploy(student={**ONE, "replicas": 2}, max_batch_tokens=2048)

    answers = asyncio.run(hammer(url, queries(2000), during=update))
    assert statuses(answers) == {200}


def test_at_ten_times_the_load_some_are_told_when_to_come_back_and_the_rest_are_served(deploy):
    url = deploy(target_latency_s=0.2, policy="student")
    bodies = [{"model": "tiny", "input": LONG} for _ in range(80)]
    answers = asyncio.run(hammer(url, bodies, callers=80))
    assert statuses(answers) == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1


def test_who_leaves_has_no_more_done_for_him(deploy):
    url = deploy(policy="student", student={**ONE, "max_ongoing": 2, "max_queued": 1})

    async def leave():
        async with httpx.AsyncClient(timeout=60) as http:
            endless = {"model": "tiny", "input": LONG * 40}
            calls = [asyncio.create_task(http.post(url, json=endless)) for _ in range(2)]
            # Both places in the replica and the one in its queue are taken …
            refused = 0
            while not refused:
                third = await asyncio.gather(*(http.post(url, json=b) for b in queries(2)))
                refused = sum(answer.status_code == 429 for answer in third)
            for call in calls:
                call.cancel()
            # … and free as soon as they have left, long before their work would be done.
            answer = await http.post(url, json=queries(1)[0])
            while answer.status_code == 429:
                answer = await http.post(url, json=queries(1)[0])
            return answer

    assert asyncio.run(leave()).status_code == 200


SCALED = {"min": 0, "max": 1, "up_delay_s": 0, "down_delay_s": 0.5, "look_back_s": 1}


def ask_until(url, body, wanted):
    """The answers up to the first that is `wanted`."""
    answers = []
    with httpx.Client(timeout=60) as http:
        while not answers or not wanted(answers[-1]):
            assert len(answers) < 20_000
            answers.append(http.post(url, json=body))
    return answers


def test_while_a_teacher_starts_its_student_answers_in_the_same_space(deploy):
    url = deploy(teacher={**ONE, "autoscale": SCALED})
    assert running("tiny-teacher") == 0
    answers = ask_until(
        url,
        {"model": "tiny", "input": "text", "input_type": "document"},
        lambda answer: answer.headers["x-stillroom-model"] == "tiny/teacher",
    )
    assert statuses(answers) == {200}
    assert answers[0].headers["x-stillroom-model"] == "tiny/student"
    assert {answer.headers["x-stillroom-space"] for answer in answers} == {"one"}


def test_without_a_shared_space_a_client_waits_for_the_teacher_to_start(deploy):
    url = deploy(shared=False, policy="teacher", teacher={**ONE, "autoscale": SCALED})
    answers = ask_until(
        url, {"model": "tiny", "input": "text"}, lambda answer: answer.status_code == 200
    )
    assert statuses(answers) == {200, 503}
    assert int(answers[0].headers["retry-after"]) >= 1


def test_replicas_follow_the_load_and_nothing_fails(deploy):
    scale = {**SCALED, "min": 1, "max": 3, "target_ongoing": 2}
    url = deploy(student={**ONE, "autoscale": scale})
    seen, done = {1}, threading.Event()

    def watch():
        while len(seen) < 2 and not done.is_set():
            seen.add(running("tiny-student"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with contextlib.closing(asyncio.Runner()) as runner:
        while watcher.is_alive():
            assert statuses(runner.run(hammer(url, queries(200)))) == {200}
        done.set()
        assert max(seen) > 1
        while running("tiny-student") > 1:  # a trickle goes on as they leave
            assert statuses(runner.run(hammer(url, queries(4)))) == {200}


def test_a_replica_is_placed_on_the_node_that_has_what_it_needs(deploy):
    deploy(
        teacher={**ONE, "resources": {"large": 1.0}},
        student={"num_cpus": 0.25, "node_labels": {"disk": "fast"}},
    )
    special = next(node for node in ray.nodes() if "large" in node["Resources"])
    left = available_resources_per_node()[special["NodeID"]]
    assert "large" not in left or left["large"] == 0
    assert left["CPU"] == pytest.approx(1 - 0.25 - 0.1)
