"""The most that a cluster can ever hold."""

import types

import pytest

from stillroom.cluster.capacity import (
    HEAD_RESOURCE,
    NodeType,
    bundle_for,
    bundles_that_fit,
    cluster_node_types,
    possible_nodes,
    require_capacity,
)
from stillroom.config.scale import ActorPool, TrainingWorkers
from stillroom.errors import UserError

GPUS = NodeType({"CPU": 32, "GPU": 8}, 2, {"ray.io/market-type": "spot"})
CPUS = NodeType({"CPU": 8}, 4, {"ray.io/market-type": "on-demand"})


@pytest.mark.parametrize(
    ("pool", "count"),
    [
        ({"cpus": 1}, 2 * 32 + 4 * 8),
        ({"cpus": 5}, 2 * 6 + 4 * 1),  # no bundle spans two nodes
        ({"cpus": 1, "gpus": 1}, 16),
        ({"cpus": 1, "gpus": 0.1}, 64),  # ten per GPU, but the two nodes have only 32 CPUs each
        ({"cpus": 8, "gpus": 1}, 8),
        ({"cpus": 64}, 0),
        ({"cpus": 1, "node_labels": {"ray.io/market-type": "spot"}}, 64),
        ({"cpus": 1, "node_labels": {"ray.io/market-type": "spot", "disk": "fast"}}, 0),
        ({"cpus": 1, "node_labels": {"ray.io/market-type": "!spot"}}, 96),  # left to Ray
    ],
)
def test_bundles_are_counted_node_by_node(pool, count):
    assert bundles_that_fit([GPUS, CPUS], bundle_for(ActorPool(**pool))) == count


def test_nodes_with_unknown_labels_are_assumed_to_match():
    bundle = bundle_for(ActorPool(gpus=1, node_labels={"ray.io/market-type": "spot"}))
    assert bundles_that_fit([NodeType({"CPU": 8, "GPU": 8}, 3)], bundle) == 24


def node(resources, **labels):
    return {"Resources": resources, "Labels": labels}


def test_reported_node_groups_count_and_of_present_nodes_only_the_head():
    nodes = [node({"CPU": 2, HEAD_RESOURCE: 1}), node({"CPU": 8, "GPU": 1})]
    groups = [
        types.SimpleNamespace(resources={"CPU": 8, "GPU": 1}, max_count=4),
        types.SimpleNamespace(resources={"CPU": 4}, max_count=0),
    ]
    node_types = possible_nodes(nodes, groups)
    assert bundles_that_fit(node_types, bundle_for(ActorPool(cpus=1))) == 2 + 4 * 8
    assert bundles_that_fit(node_types, bundle_for(ActorPool(cpus=1, gpus=1))) == 4


@pytest.mark.parametrize(("labels", "count"), [({}, 0), ({"ray.io/node-group": "head"}, 10**9)])
def test_an_autoscaler_that_reports_no_groups_may_add_any_node(labels, count):
    node_types = possible_nodes([node({"CPU": 2, HEAD_RESOURCE: 1}, **labels)], [])
    assert min(10**9, bundles_that_fit(node_types, bundle_for(ActorPool(cpus=16, gpus=8)))) == count


def test_a_cluster_without_autoscaler_has_its_present_nodes(ray_cluster):
    (node,) = cluster_node_types()
    assert (node.resources["CPU"], node.count) == (2, 1)
    assert "ray.io/node-id" in node.labels
    require_capacity("teacher", TrainingWorkers(workers=2), 2)


def test_a_request_that_no_node_can_ever_hold_is_refused(ray_cluster):
    workers = TrainingWorkers(workers=3, cpus=1, gpus=1, node_labels={"ray.io/market-type": "spot"})
    with pytest.raises(UserError) as error:
        require_capacity("teacher", workers, 3)
    assert str(error.value).startswith(
        "scale.teacher: asks for 3 × 1 CPUs and 1 GPUs on a node labelled ray.io/market-type=spot, "
        "and the cluster has room for 0 at most"
    )
