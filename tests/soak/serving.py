"""Hours in minutes: `make soak`. Not among the tests that every change runs."""

import asyncio
import sys
from pathlib import Path

import httpx
import pytest

sys.path.append(str(Path(__file__).parents[1]))
from support.tiny_releases import make_release
from support.two_node_cluster import deploy, hammer, queries, running, statuses, two_nodes

SCALE = {
    "min": 1, "max": 3, "target_ongoing": 2, "up_delay_s": 0, "down_delay_s": 1, "look_back_s": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def url():
    with two_nodes() as found:
        yield found


@pytest.fixture(scope="module")
def args(tmp_path_factory):
    folder = tmp_path_factory.mktemp("soak")
    return {
        "releases": [
            str(make_release(folder / "blue", shared_space=True)),
            f"green={make_release(folder / 'green', shared_space=True)}",
        ],
        "policies": {"tiny": {"canary": {"share": 0.5, "to": "green/student", "rest": "student"}}},
        "no_auth": True,  # where HAProxy is, every caller is it
        "routers": 2,
        "teacher": {"replicas": 0},
        "student": {"num_cpus": 0.1, "replicas": 2},
    }


def test_rolling_updates_under_load_fail_none_of_ten_thousand_requests(url, args):
    deploy(args)

    def update():
        for tokens in (1024, 2048, 4096):
            deploy({**args, "max_batch_tokens": tokens})

    answers = asyncio.run(hammer(url, queries(10_000), during=update))
    assert statuses(answers) == {200}
    by = [answer.headers["x-stillroom-model"] for answer in answers]
    assert by.count("green/student") / len(by) == pytest.approx(0.5, abs=0.05)


def test_a_release_taken_away_under_load_leaves_the_other_untouched(url, args):
    deploy(args)
    blue = {**args, "releases": args["releases"][:1], "policies": {}}
    answers = asyncio.run(hammer(url, queries(2000, "tiny/student"), during=lambda: deploy(blue)))
    assert statuses(answers) == {200}
    gone = httpx.post(f"{url}/v1/embeddings", json=queries(1, "green")[0])
    assert gone.status_code == 404


def test_replicas_follow_the_load_and_nothing_fails(url, args):
    deploy({
        **args, "releases": args["releases"][:1], "policies": {},
        "student": {"num_cpus": 0.1, "autoscale": SCALE},
    })  # fmt: skip
    assert running("tiny-student") == 1
    with asyncio.Runner() as runner:
        while running("tiny-student") < 3:
            assert statuses(runner.run(hammer(url, queries(200), callers=32))) == {200}
        while running("tiny-student") > 1:  # a trickle goes on as they leave
            assert statuses(runner.run(hammer(url, queries(4), callers=1))) == {200}
