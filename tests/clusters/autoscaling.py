"""Clusters that grow and shrink, by Ray's own autoscaler: `make clusters`."""

import asyncio
import itertools
import json
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))
from stillroom.stages.vectors.encode import EncodingActor
from support.ray_head import ROOT, SUBMIT, free_port, start_head
from support.tiny_models import tiny_decoder, tiny_encoder
from support.tiny_releases import make_release
from support.two_node_cluster import (
    SERVE_SETTINGS,
    free_serve_ports,
    query_bodies,
    send_load,
    statuses,
)

WAIT_S = 180
MEMORY = 200 * 2**20  # of a node's object store
NODE_TYPES = {
    "plain": {
        "resources": {"CPU": 2, "object_store_memory": MEMORY},
        "node_config": {}, "min_workers": 0, "max_workers": 2,
    },
    "accelerated": {
        "resources": {"CPU": 1, "object_store_memory": MEMORY},
        "labels": {"ray.io/accelerator-type": "H100"},
        "node_config": {}, "min_workers": 0, "max_workers": 2,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("autoscaling")


@pytest.fixture(scope="module")
def head(folder):
    settings = {**SERVE_SETTINGS, **free_serve_ports(), "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.1"}
    with start_head(folder, NODE_TYPES, **settings) as head:
        yield head


@pytest.fixture(autouse=True)
def starts_and_ends_with_the_head_only(head):
    wait_until(lambda: not workers(head))
    yield
    wait_until(lambda: not workers(head))


def wait_until(condition):
    """Waits for a true value of the condition, and returns it."""
    deadline = time.monotonic() + WAIT_S
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.2)  # polls for a condition, with a deadline
    return value


def workers(head):
    """Living nodes other than the head."""
    return [node for node in head.nodes() if node["state"] == "ALIVE" and not node["is_head_node"]]


def node_type_of(head, actor):
    """The type of the node on which an actor ran."""
    [node] = [node for node in head.nodes() if node["node_id"] == actor["node_id"]]
    accelerated = "ray.io/accelerator-type" in (node["labels"] or {})
    return "accelerated" if accelerated else "plain"


def test_a_pipeline_gets_new_nodes_with_the_labels_it_asks_for_and_idle_nodes_leave(head, folder):
    before = {node["node_id"] for node in head.nodes()}
    models = tiny_decoder(folder / "teacher"), tiny_encoder(folder / "student")
    done = head.run(
        *SUBMIT[:-1], "run", ROOT / "jobs" / "recipes" / "tiny.yaml",
        f"teacher.base={models[0]}", f"student.base={models[1]}", f"root={folder / 'runs'}",
        "scale.vectors.node_labels={ray.io/accelerator-type: H100}",
        RAY_ADDRESS=head.gcs, RAY_AUTH_MODE="token",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "release/tiny" in done.stdout
    assert {node["node_id"] for node in head.nodes()} > before
    by_class = itertools.groupby(
        sorted(head.actors(), key=lambda actor: actor["class_name"]),
        key=lambda actor: actor["class_name"],
    )
    node_types = {
        name: {node_type_of(head, actor) for actor in actors} for name, actors in by_class
    }
    assert node_types[EncodingActor.__name__] == {"accelerated"}
    assert any("plain" in kinds for name, kinds in node_types.items() if "Train" in name), (
        node_types
    )


def test_replicas_and_nodes_follow_the_load_up_and_down_and_no_request_fails(head, folder):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    scale = {
        "min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 2,
        "upscale_delay_s": 0, "downscale_delay_s": 1, "look_back_period_s": 1,
    }  # fmt: skip
    args = {
        "releases": [str(make_release(folder / "release", shared_space=True))],
        "policy": "student",
        "no_auth": True,  # behind HAProxy, every caller has its address
        "teacher": {"replicas": 0},
        "student": {"num_cpus": 1, "autoscale": scale},
    }
    application = {
        "name": "stillroom", "route_prefix": "/", "import_path": "stillroom.serving.app:build",
        "args": args,
    }  # fmt: skip
    config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [application],
    }
    (folder / "serve.yaml").write_text(json.dumps(config))
    in_cluster = {"RAY_AUTH_MODE": "token", "RAY_DASHBOARD_ADDRESS": head.url}
    deployed = head.run("serve", "deploy", folder / "serve.yaml", **in_cluster)
    assert deployed.returncode == 0, deployed.stderr
    wait_until(lambda: "RUNNING" in head.run("serve", "status", **in_cluster).stdout)
    assert len(workers(head)) == 1

    with asyncio.Runner() as runner:

        def load(count, callers):
            assert statuses(runner.run(send_load(url, query_bodies(count), callers=callers))) == {
                200
            }

        deadline = time.monotonic() + WAIT_S
        while len(workers(head)) < 2:
            assert time.monotonic() < deadline
            load(200, callers=32)
        while len(workers(head)) > 1:  # a few requests go on while nodes leave
            assert time.monotonic() < 2 * deadline
            load(4, callers=1)
    removed = head.run("serve", "shutdown", "--yes", **in_cluster)
    assert removed.returncode == 0, removed.stderr
