"""What a cluster can ever hold."""

import types

import pytest
import ray

from stillroom.cluster.capacity import HEAD, Kind, bundle, growing, kinds, places, require
from stillroom.config.scale import Actors, Workers
from stillroom.errors import UserError

GPUS = Kind({"CPU": 32, "GPU": 8}, 2, {"ray.io/market-type": "spot"})
CPUS = Kind({"CPU": 8}, 4, {"ray.io/market-type": "on-demand"})


@pytest.mark.parametrize(
    ("asked", "room"),
    [
        ({"cpus": 1}, 2 * 32 + 4 * 8),
        ({"cpus": 5}, 2 * 6 + 4 * 1),  # nothing is put together from two nodes
        ({"cpus": 1, "gpus": 1}, 16),
        ({"cpus": 1, "gpus": 0.1}, 64),  # ten a GPU, but two nodes have but 32 CPUs each
        ({"cpus": 8, "gpus": 1}, 8),
        ({"cpus": 64}, 0),
        ({"cpus": 1, "node_labels": {"ray.io/market-type": "spot"}}, 64),
        ({"cpus": 1, "node_labels": {"ray.io/market-type": "spot", "disk": "fast"}}, 0),
        ({"cpus": 1, "node_labels": {"ray.io/market-type": "!spot"}}, 96),  # Ray's to decide
    ],
)
def test_places_are_counted_node_by_node(asked, room):
    assert places([GPUS, CPUS], bundle(Actors(**asked))) == room


def test_labels_that_only_the_autoscaler_knows_are_not_held_against_it():
    wanted = bundle(Actors(gpus=1, node_labels={"ray.io/market-type": "spot"}))
    assert places([Kind({"CPU": 8, "GPU": 8}, 3)], wanted) == 24


def node(resources, **labels):
    return {"Resources": resources, "Labels": labels}


def test_what_an_autoscaler_says_that_it_keeps_counts_with_the_head_alone():
    nodes = [node({"CPU": 2, HEAD: 1}), node({"CPU": 8, "GPU": 1})]
    groups = [
        types.SimpleNamespace(resources={"CPU": 8, "GPU": 1}, max_count=4),
        types.SimpleNamespace(resources={"CPU": 4}, max_count=0),
    ]
    found = growing(nodes, groups)
    assert places(found, bundle(Actors(cpus=1))) == 2 + 4 * 8
    assert places(found, bundle(Actors(cpus=1, gpus=1))) == 4


@pytest.mark.parametrize(("labels", "room"), [({}, 0), ({"ray.io/node-group": "head"}, 10**9)])
def test_nodes_of_a_launcher_s_or_an_operator_s_group_may_be_joined_by_any_other(labels, room):
    found = growing([node({"CPU": 2, HEAD: 1}, **labels)], [])
    assert min(10**9, places(found, bundle(Actors(cpus=16, gpus=8)))) == room


@pytest.fixture(scope="module")
def cluster():
    ray.init("local", num_cpus=2, include_dashboard=False, configure_logging=False)
    yield
    ray.shutdown()


def test_a_cluster_s_nodes_are_as_they_are(cluster):
    (node,) = kinds()
    assert (node.resources["CPU"], node.count) == (2, 1)
    assert "ray.io/node-id" in node.labels
    require("teacher", Workers(workers=2), 2)


def test_what_no_node_will_ever_have_is_refused_and_said(cluster):
    asked = Workers(workers=3, cpus=1, gpus=1, node_labels={"ray.io/market-type": "spot"})
    with pytest.raises(UserError) as fault:
        require("teacher", asked, 3)
    assert str(fault.value).startswith(
        "scale.teacher: asks for 3 × 1 CPUs and 1 GPUs on a node labelled ray.io/market-type=spot, "
        "and the cluster has room for 0 at most"
    )
