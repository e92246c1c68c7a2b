"""Long runs of serving under load: `make soak`. Not among the tests that every change runs."""

import asyncio
import sys
from pathlib import Path

import httpx
import pytest

sys.path.append(str(Path(__file__).parents[1]))
from support.tiny_releases import make_release
from support.two_node_cluster import (
    deploy,
    query_bodies,
    running_replicas,
    send_load,
    statuses,
    two_node_cluster,
)

AUTOSCALE = {
    "min_replicas": 1,
    "max_replicas": 3,
    "target_ongoing_requests": 2,
    "upscale_delay_s": 0,
    "downscale_delay_s": 1,
    "look_back_period_s": 1,
}


@pytest.fixture(scope="module")
def url():
    with two_node_cluster() as url:
        yield url


@pytest.fixture(scope="module")
def args(tmp_path_factory):
    folder = tmp_path_factory.mktemp("soak")
    return {
        "releases": [
            str(make_release(folder / "blue", shared_space=True)),
            f"green={make_release(folder / 'green', shared_space=True)}",
        ],
        "policies": {"tiny": {"canary": {"share": 0.5, "to": "green/student", "rest": "student"}}},
        "no_auth": True,  # behind HAProxy, every caller has its address
        "routers": 2,
        "teacher": {"replicas": 0},
        "student": {"num_cpus": 0.1, "replicas": 2},
    }


def test_rolling_updates_under_load_fail_none_of_ten_thousand_requests(url, args):
    deploy(args)

    def update():
        for tokens in (1024, 2048, 4096):
            deploy({**args, "max_batch_tokens": tokens})

    answers = asyncio.run(send_load(url, query_bodies(10_000), during=update))
    assert statuses(answers) == {200}
    models = [answer.headers["x-stillroom-model"] for answer in answers]
    assert models.count("green/student") / len(models) == pytest.approx(0.5, abs=0.05)


def test_removing_a_release_under_load_fails_no_request_to_the_other(url, args):
    deploy(args)
    only_blue = {**args, "releases": args["releases"][:1], "policies": {}}
    answers = asyncio.run(
        send_load(url, query_bodies(2000, "tiny/student"), during=lambda: deploy(only_blue))
    )
    assert statuses(answers) == {200}
    removed = httpx.post(f"{url}/v1/embeddings", json=query_bodies(1, "green")[0])
    assert removed.status_code == 404


def test_replicas_follow_the_load_and_no_request_fails(url, args):
    deploy({
        **args, "releases": args["releases"][:1], "policies": {},
        "student": {"num_cpus": 0.1, "autoscale": AUTOSCALE},
    })  # fmt: skip
    assert running_replicas("tiny-student") == 1
    with asyncio.Runner() as runner:
        while running_replicas("tiny-student") < 3:
            assert statuses(runner.run(send_load(url, query_bodies(200), callers=32))) == {200}
        while running_replicas("tiny-student") > 1:  # a few requests go on while replicas leave
            assert statuses(runner.run(send_load(url, query_bodies(4), callers=1))) == {200}
