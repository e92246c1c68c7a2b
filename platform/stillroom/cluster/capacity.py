"""The capacity of a cluster: its current nodes, and those that its autoscaler may add.

Ray waits silently for resources that no node will ever have. A run should report that instead.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from stillroom.cluster.ray_private import autoscaler_config
from stillroom.config.scale import ActorPool, TrainingWorkers
from stillroom.errors import UserError

HEAD_RESOURCE = "node:__internal_head__"
NODE_GROUP_LABEL = "ray.io/node-group"  # set on every node that `ray up` or KubeRay started
UNITS = {"CPU": "CPUs", "GPU": "GPUs"}


@dataclass(frozen=True)
class NodeType:
    """At most `count` equal nodes.

    Attributes:
        resources: of one node, by Ray's names.
        labels: of one node; None where only the autoscaler knows them.
    """

    resources: Mapping[str, float]
    count: int
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Bundle:
    """Resources that one worker or actor needs from one node."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]

    def __str__(self) -> str:
        amounts = [f"{amount:g} {UNITS[name]}" for name, amount in self.resources.items() if amount]
        labels = ", ".join(f"{name}={value}" for name, value in self.labels.items())
        return " and ".join(amounts) + (f" on a node labelled {labels}" if labels else "")


def bundle_for(scale: TrainingWorkers | ActorPool) -> Bundle:
    """Resources that one worker or actor of this scale needs."""
    return Bundle({"CPU": scale.cpus, "GPU": scale.gpus}, scale.node_labels)


def ray_options(scale: TrainingWorkers | ActorPool) -> dict[str, Any]:
    """The result of `bundle_for` as options of a Ray task or actor."""
    return {"num_cpus": scale.cpus, "num_gpus": scale.gpus, "label_selector": scale.node_labels}


# Any node that an autoscaler without reported node groups may add.
ANY_NODE = NodeType({"CPU": sys.maxsize, "GPU": sys.maxsize}, 1)


def cluster_node_types() -> list[NodeType]:
    """Possible nodes of the cluster that this process is connected to."""
    # An autoscaler that reports its groups reports them here, where Ray Train and Ray Data look
    # too. Ray's own autoscaler reports none.
    config = autoscaler_config()
    groups = [] if config is None else list(config.node_group_configs)
    return possible_nodes([node for node in ray.nodes() if node["Alive"]], groups)


def possible_nodes(nodes: Iterable[Mapping[str, Any]], groups: Sequence[Any]) -> list[NodeType]:
    """The nodes that a cluster has or may get.

    Args:
        nodes: present ones, as `ray.nodes` lists them.
        groups: node groups that an autoscaler reports. Its present nodes belong to them, so only
            the head is counted in addition.
    """
    present = [(node, NodeType(node["Resources"], 1, node["Labels"])) for node in nodes]
    if groups:
        heads = [node_type for node, node_type in present if HEAD_RESOURCE in node["Resources"]]
        return heads + [
            NodeType(
                dict(group.resources), group.max_count if group.max_count >= 0 else sys.maxsize
            )
            for group in groups
        ]
    may_grow = any(NODE_GROUP_LABEL in node["Labels"] for node, _ in present)
    return [node_type for _, node_type in present] + ([ANY_NODE] if may_grow else [])


def bundles_that_fit(node_types: Iterable[NodeType], bundle: Bundle) -> int:
    """How many bundles these nodes can hold at once."""
    total = 0
    for node_type in node_types:
        per_node = min(
            int(node_type.resources.get(name, 0) / amount + 1e-6)
            for name, amount in bundle.resources.items()
            if amount
        )
        if node_type.labels is None or all(
            # Only Ray can evaluate `!value` and `in(…)`: assume that such a node fits.
            value.startswith(("!", "in(")) or node_type.labels.get(name) == value
            for name, value in bundle.labels.items()
        ):
            total += node_type.count * per_node
    return total


def require_capacity(stage: str, scale: TrainingWorkers | ActorPool, count: int) -> None:
    """Checks that the cluster can ever hold `count` workers or actors of a stage.

    Raises:
        UserError: when it cannot.
    """
    bundle = bundle_for(scale)
    room = bundles_that_fit(cluster_node_types(), bundle)
    if room < count:
        raise UserError(
            f"scale.{stage}",
            f"asks for {count} × {bundle}, and the cluster has room for {room} at most, counting "
            "the nodes that its autoscaler may add",
            "Ask for less, ask for other nodes, or add such nodes to the cluster",
        )
