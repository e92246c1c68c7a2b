"""What a deployment promises when things go wrong, with real processes on two nodes.

One deployment goes through it all, in this order: a deployment's start is most of the time.
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
    ask_until,
    deploy,
    hammer,
    queries,
    replicas,
    running,
    settle,
    statuses,
    two_nodes,
)

LONG = ["a text of some words " * 8] * 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trouble")


@pytest.fixture(scope="module")
def args(folder):
    sleeping = {"min": 0, "max": 1, "up_delay_s": 0, "down_delay_s": 600, "look_back_s": 1}
    return {
        "releases": [str(make_release(folder / "release", shared_space=True))],
        "routers": 2,
        "no_auth": True,  # where HAProxy is, every caller is it
        "target_latency_s": 60,
        "teacher": {"num_cpus": 0.5, "resources": {"large": 1}, "autoscale": sleeping},
        "student": {"num_cpus": 0.25, "node_labels": {"disk": "fast"}, "replicas": 2},
        "shadow": {"share": 1.0, "folder": str(folder / "kept"), "alert_cosine": 1.0},
    }


@pytest.fixture(scope="module")
def updated(args):
    """The same with a teacher that never sleeps, and smaller batches."""
    teacher = {"num_cpus": 0.5, "resources": {"large": 1}, "max_ongoing": 4}
    return {**args, "max_batch_tokens": 2048, "teacher": teacher}


@pytest.fixture(scope="module")
def url(args):
    with two_nodes() as found:
        deploy(args)
        yield found


def test_while_the_teacher_starts_its_student_answers_in_the_same_space(url):
    assert running("tiny-teacher") == 0
    alone = httpx.post(f"{url}/v1/embeddings", json={"model": "tiny/teacher", "input": "text"})
    assert (alone.status_code, alone.json()["error"]["code"]) == (503, "overloaded")
    assert int(alone.headers["retry-after"]) >= 1
    answers = ask_until(
        url,
        {"model": "tiny", "input": "text", "input_type": "document"},
        lambda answer: answer.headers["x-stillroom-model"] == "tiny/teacher",
    )
    assert statuses(answers) == {200}
    assert answers[0].headers["x-stillroom-model"] == "tiny/student"
    assert {answer.headers["x-stillroom-space"] for answer in answers} == {"one"}


def test_replicas_are_placed_on_the_node_that_has_what_they_need(url):
    special = next(node for node in ray.nodes() if "large" in node["Resources"])
    left = available_resources_per_node()[special["NodeID"]]
    assert (left.get("large", 0), left.get("CPU", 0)) == (0, 0)  # one teacher, two students


def test_answers_are_compared_with_the_teacher_s_and_an_alert_stops_no_traffic(url, folder):
    told, counted = {"rank": None}, False
    with httpx.Client(timeout=60) as http:
        for body in queries(2000):
            assert http.post(f"{url}/v1/embeddings", json=body).status_code == 200
            # Each of the two routers tells of what it has compared itself.
            health = http.get(f"{url}/healthz")
            assert health.status_code == 200
            if told["rank"] is None:
                told = health.json()["shadow"]["tiny/student"]
            metrics = http.get(f"{url}/metrics").text
            counted |= 'stillroom_shadow_cosine_count{model="tiny/student"' in metrics
            if told["rank"] is not None and counted:
                break
    assert counted
    assert told["alert"] and -1 <= told["cosine"] < 1
    kept = [json.loads(line) for line in (folder / "kept" / "tiny.jsonl").read_text().splitlines()]
    sent = {"text"} | {body["input"] for body in queries(2000)}
    assert kept and {row["text"] for row in kept} <= sent


def test_a_router_tells_how_many_replicas_serve_knows_of(url):
    def told(http):
        shown = http.get(f"{url}/metrics").text
        return re.search(r'stillroom_ready_replicas{model="tiny/student".*} (\S+)', shown)[1]

    with httpx.Client(timeout=60) as http:
        for body in queries(200):  # either router answers; each knows from its first request on
            assert http.post(f"{url}/v1/embeddings", json=body).status_code == 200
            if (count := told(http)) == "2.0":
                break
    assert count == "2.0"


def test_nothing_that_was_accepted_is_lost_with_a_replica(url):
    answers = asyncio.run(
        hammer(url, queries(200), during=lambda: ray.kill(replicas("tiny-student")[0]))
    )
    assert statuses(answers) == {200}


def test_with_a_router_go_only_its_open_connections(url):
    answers = asyncio.run(
        hammer(url, queries(200), callers=8, during=lambda: ray.kill(replicas("Router")[0]))
    )
    failed = [a for a in answers if not isinstance(a, httpx.Response) or a.status_code != 200]
    assert len(failed) <= 8


def test_a_rolling_update_under_load_fails_no_request(url, updated):
    answers = asyncio.run(hammer(url, queries(500), during=lambda: deploy(updated)))
    assert statuses(answers) == {200}


def test_an_encoder_moves_into_the_routers_under_load_and_fails_no_request(url, updated):
    inside = {**updated["student"], "in_router": True}

    def move():
        deploy({**updated, "routers": 1, "student": inside})

    answers = asyncio.run(hammer(url, queries(500), during=move))
    assert statuses(answers) == {200}
    # Where the old student went before its router did, the teacher has stood in.
    assert {answer.headers["x-stillroom-space"] for answer in answers} == {"one"}
    assert not replicas("tiny-student") and running("Router") == inside["replicas"]
    # One dies with what it had; the other, and then a new one, serve on.
    answers = asyncio.run(
        hammer(url, queries(200), callers=8, during=lambda: ray.kill(replicas("Router")[0]))
    )
    failed = [a for a in answers if not isinstance(a, httpx.Response) or a.status_code != 200]
    assert len(failed) <= 8


def test_when_the_last_teacher_dies_its_student_answers_what_it_had(url):
    body = {"model": "tiny", "input": LONG[:20], "input_type": "document"}
    answers = asyncio.run(
        hammer(url, [body] * 200, during=lambda: ray.kill(replicas("tiny-teacher")[0]))
    )
    assert statuses(answers) == {200}
    by = [answer.headers["x-stillroom-model"] for answer in answers]
    assert set(by) == {"tiny/teacher", "tiny/student"}
    ask_until(url, body, lambda answer: answer.headers["x-stillroom-model"] == "tiny/teacher")


def test_at_ten_times_the_load_some_are_told_to_come_back_and_the_rest_are_served(url, updated):
    deploy({**updated, "target_latency_s": 0.1})
    bodies = [{"model": "tiny/student", "input": LONG[:20]} for _ in range(160)]
    answers = asyncio.run(hammer(url, bodies, callers=60))
    assert statuses(answers) == {200, 429}
    assert all(int(a.headers["retry-after"]) >= 1 for a in answers if a.status_code == 429)


@pytest.mark.parametrize("in_router", [False, True])
def test_who_leaves_has_no_more_done_for_him(url, updated, in_router):
    few = {**updated["student"], "replicas": 1, "max_ongoing": 2, "max_queued": 1}
    student = {**few, "in_router": in_router}
    deploy({**updated, "routers": 1, "max_batch_tokens": 32, "student": student})
    settle("Router")  # so that all is asked of one, its figures too

    async def leave():
        async with httpx.AsyncClient(timeout=60) as http:

            async def ask(body):
                return (await http.post(f"{url}/v1/embeddings", json=body)).status_code

            async def told(series):
                text = (await http.get(f"{url}/metrics")).text
                found = re.search(rf"^stillroom_{series}.* (\S+)$", text, re.MULTILINE)
                return float(found[1]) if found else 0

            endless = {"model": "tiny/student", "input": LONG * 10}  # 2,000 forwards
            calls = []
            for count in (1, 2, 3):
                calls.append(asyncio.create_task(ask(endless)))
                while await told('ongoing_requests{model="tiny/student"') < count:
                    pass
            # Both places in the replica are taken, and the one in its queue …
            refused = await ask(queries(1)[0])
            for call in calls:
                call.cancel()
            # … and free when they have left, before any was answered.
            while (left := await told('requests_total{.*status="499"')) < 3:
                pass
            return refused, left, await ask(queries(1)[0])

    assert asyncio.run(asyncio.wait_for(leave(), 60)) == (429, 3, 200)
