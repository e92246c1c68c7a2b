"""A deployment's behaviour under failures, with real processes on two nodes.

One deployment goes through all tests, in this order: starting one takes most of the time.
"""

import asyncio
import json
import re

import httpx
import pytest
import ray
from ray._private.state import available_resources_per_node

from support.tiny_releases import make_release
from support.two_node_cluster import (
    deploy,
    post_until,
    query_bodies,
    replica_actors,
    running_replicas,
    send_load,
    statuses,
    two_node_cluster,
    wait_until_updated,
)

LONG_TEXTS = ["a text of some words " * 8] * 200
POLL_S = 0.05  # between two looks at the metrics, so that looking costs the server little


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trouble")


@pytest.fixture(scope="module")
def args(folder):
    to_zero = {
        "min_replicas": 0,
        "max_replicas": 1,
        "upscale_delay_s": 0,
        "downscale_delay_s": 600,
        "look_back_period_s": 1,
    }
    return {
        "releases": [str(make_release(folder / "release", shared_space=True))],
        "routers": 2,
        "no_auth": True,  # behind HAProxy, every caller has its address
        "target_latency_s": 60,
        "teacher": {"num_cpus": 0.5, "resources": {"large": 1}, "autoscale": to_zero},
        "student": {"num_cpus": 0.25, "node_labels": {"disk": "fast"}, "replicas": 2},
        "shadow": {
            "share": 1.0,
            "folder": str(folder / "disagreements"),
            "alert_below_cosine": 1.0,
        },
    }


@pytest.fixture(scope="module")
def updated(args):
    """The same args, but the teacher always has a replica, and batches are smaller."""
    teacher = {"num_cpus": 0.5, "resources": {"large": 1}, "max_ongoing_requests": 4}
    return {**args, "max_batch_tokens": 2048, "teacher": teacher}


@pytest.fixture(scope="module")
def url(args):
    with two_node_cluster() as url:
        deploy(args)
        yield url


@pytest.mark.promise("routing")
def test_while_the_teacher_starts_its_student_answers_in_the_same_space(url):
    assert running_replicas("tiny-teacher") == 0
    answer = httpx.post(f"{url}/v1/embeddings", json={"model": "tiny/teacher", "input": "text"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1
    answers = post_until(
        url,
        {"model": "tiny", "input": "text", "input_type": "document"},
        lambda answer: answer.headers["x-stillroom-model"] == "tiny/teacher",
    )
    assert statuses(answers) == {200}
    assert answers[0].headers["x-stillroom-model"] == "tiny/student"
    assert {answer.headers["x-stillroom-space"] for answer in answers} == {"one"}


def test_replicas_are_placed_on_the_node_with_the_resources_they_need(url):
    special = next(node for node in ray.nodes() if "large" in node["Resources"])
    free = available_resources_per_node()[special["NodeID"]]
    assert (free.get("large", 0), free.get("CPU", 0)) == (0, 0)  # one teacher, two students


def test_answers_are_compared_with_the_teacher_s_and_an_alert_stops_no_traffic(url, folder):
    agreement, counted = {"rank_correlation": None}, False
    with httpx.Client(timeout=60) as http:
        for body in query_bodies(2000):
            assert http.post(f"{url}/v1/embeddings", json=body).status_code == 200
            # Each of the two routers reports only its own comparisons.
            health = http.get(f"{url}/healthz")
            assert health.status_code == 200
            if agreement["rank_correlation"] is None:
                agreement = health.json()["shadow"]["tiny/student"]
            metrics = http.get(f"{url}/metrics").text
            counted |= 'stillroom_shadow_cosine_count{model="tiny/student"' in metrics
            if agreement["rank_correlation"] is not None and counted:
                break
    assert counted
    assert agreement["alert"] and -1 <= agreement["cosine"] < 1
    rows = [
        json.loads(line)
        for line in (folder / "disagreements" / "tiny.jsonl").read_text().splitlines()
    ]
    sent = {"text"} | {body["input"] for body in query_bodies(2000)}
    assert rows and {row["text"] for row in rows} <= sent


def test_metrics_show_how_many_replicas_serve_knows(url):
    def ready_replicas(http):
        metrics = http.get(f"{url}/metrics").text
        return re.search(r'stillroom_ready_replicas{model="tiny/student".*} (\S+)', metrics)[1]

    with httpx.Client(timeout=60) as http:
        # Either router answers; each knows from its first request on.
        for body in query_bodies(200):
            assert http.post(f"{url}/v1/embeddings", json=body).status_code == 200
            if (count := ready_replicas(http)) == "2.0":
                break
    assert count == "2.0"


@pytest.mark.promise("routing")
def test_killing_a_replica_loses_no_accepted_request(url):
    answers = asyncio.run(
        send_load(
            url, query_bodies(200), during=lambda: ray.kill(replica_actors("tiny-student")[0])
        )
    )
    assert statuses(answers) == {200}


def test_killing_a_router_loses_only_its_open_connections(url):
    answers = asyncio.run(
        send_load(
            url, query_bodies(200), callers=8, during=lambda: ray.kill(replica_actors("Router")[0])
        )
    )
    failed = [a for a in answers if not isinstance(a, httpx.Response) or a.status_code != 200]
    assert len(failed) <= 8


@pytest.mark.promise("routing")
def test_a_rolling_update_under_load_fails_no_request(url, updated):
    answers = asyncio.run(send_load(url, query_bodies(500), during=lambda: deploy(updated)))
    assert statuses(answers) == {200}


@pytest.mark.full
def test_moving_an_encoder_into_the_routers_under_load_fails_no_request(url, updated):
    in_router = {**updated["student"], "in_router": True}

    def move():
        deploy({**updated, "routers": 1, "student": in_router})

    answers = asyncio.run(send_load(url, query_bodies(500), during=move))
    assert statuses(answers) == {200}
    # If the old student stopped before its router, the teacher answered.
    assert {answer.headers["x-stillroom-space"] for answer in answers} == {"one"}
    assert (
        not replica_actors("tiny-student") and running_replicas("Router") == in_router["replicas"]
    )
    # One router dies with its requests; the other, then also a new one, keeps serving.
    answers = asyncio.run(
        send_load(
            url, query_bodies(200), callers=8, during=lambda: ray.kill(replica_actors("Router")[0])
        )
    )
    failed = [a for a in answers if not isinstance(a, httpx.Response) or a.status_code != 200]
    assert len(failed) <= 8


@pytest.mark.promise("routing")
def test_when_the_last_teacher_dies_the_student_answers_its_requests(url):
    body = {"model": "tiny", "input": LONG_TEXTS[:20], "input_type": "document"}
    answers = asyncio.run(
        send_load(url, [body] * 200, during=lambda: ray.kill(replica_actors("tiny-teacher")[0]))
    )
    assert statuses(answers) == {200}
    models = {answer.headers["x-stillroom-model"] for answer in answers}
    assert models == {"tiny/teacher", "tiny/student"}
    post_until(url, body, lambda answer: answer.headers["x-stillroom-model"] == "tiny/teacher")


@pytest.mark.full
@pytest.mark.promise("routing")
def test_at_ten_times_the_load_some_requests_get_429_and_the_rest_are_served(url, updated):
    deploy({**updated, "target_latency_s": 0.1})
    bodies = [{"model": "tiny/student", "input": LONG_TEXTS[:20]} for _ in range(160)]
    answers = asyncio.run(send_load(url, bodies, callers=60))
    assert statuses(answers) == {200, 429}
    assert all(int(a.headers["retry-after"]) >= 1 for a in answers if a.status_code == 429)


@pytest.mark.full
@pytest.mark.parametrize("in_router", [False, True])
def test_a_client_that_leaves_costs_no_more_work(url, updated, in_router):
    limited = {
        **updated["student"],
        "replicas": 1,
        "max_ongoing_requests": 2,
        "max_queued_requests": 1,
    }
    student = {**limited, "in_router": in_router}
    deploy({**updated, "routers": 1, "max_batch_tokens": 32, "student": student})
    wait_until_updated("Router")  # so that one router gets all requests, also those for metrics

    async def leave():
        async with httpx.AsyncClient(timeout=None) as http:

            async def post(body):
                return (await http.post(f"{url}/v1/embeddings", json=body)).status_code

            async def metric(series):
                text = (await http.get(f"{url}/metrics")).text
                match = re.search(rf"^stillroom_{series}.* (\S+)$", text, re.MULTILINE)
                return float(match[1]) if match else 0

            endless = {"model": "tiny/student", "input": LONG_TEXTS * 10}  # 2,000 forwards
            calls = []
            for count in (1, 2, 3):
                calls.append(asyncio.create_task(post(endless)))
                while await metric('ongoing_requests{model="tiny/student"') < count:
                    await asyncio.sleep(POLL_S)
            # The replica runs two requests and its queue holds one: all slots are taken …
            refused = await post(query_bodies(1)[0])
            for call in calls:
                call.cancel()
            # … and are free again once the clients disconnect, before any was answered.
            while (cancelled := await metric('requests_total{.*status="499"')) < 3:
                await asyncio.sleep(POLL_S)
            return refused, cancelled, await post(query_bodies(1)[0])

    assert asyncio.run(leave()) == (429, 3, 200)
