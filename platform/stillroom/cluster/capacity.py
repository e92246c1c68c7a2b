"""What a cluster can ever hold: nodes that are there, and those that its autoscaler may add.

Ray waits, in silence, for what no node will ever have; a run should rather say so.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from stillroom.config.scale import Actors, Workers
from stillroom.errors import UserError

HEAD = "node:__internal_head__"

GROUP = "ray.io/node-group"  # a label that a node has which `ray up` or KubeRay started

UNITS = {"CPU": "CPUs", "GPU": "GPUs"}


@dataclass(frozen=True)
class Kind:
    """Nodes of a kind, at most `count` of them. Labels are None where only the autoscaler knows."""

    resources: Mapping[str, float]
    count: int
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Bundle:
    """What one worker or actor asks of one node."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]

    def __str__(self) -> str:
        asked = [f"{amount:g} {UNITS[name]}" for name, amount in self.resources.items() if amount]
        labels = ", ".join(f"{name}={value}" for name, value in self.labels.items())
        return " and ".join(asked) + (f" on a node labelled {labels}" if labels else "")


def bundle(scale: Workers | Actors) -> Bundle:
    return Bundle({"CPU": scale.cpus, "GPU": scale.gpus}, scale.node_labels)


def asks(scale: Actors) -> dict[str, Any]:
    """The same as options of a Ray task or actor."""
    return {"num_cpus": scale.cpus, "num_gpus": scale.gpus, "label_selector": scale.node_labels}


# What an autoscaler adds that does not say what it may add.
ANYTHING = Kind({"CPU": sys.maxsize, "GPU": sys.maxsize}, 1)


def kinds() -> list[Kind]:
    """Of the cluster that this process is connected to."""
    # Where an autoscaler says what it may add, it says so here: Ray Train and Ray Data look there,
    # too. Ray's own does not.
    config = ray._private.state.state.get_cluster_config()
    groups = [] if config is None else list(config.node_group_configs)
    return growing([node for node in ray.nodes() if node["Alive"]], groups)


def growing(nodes: Iterable[Mapping[str, Any]], groups: Sequence[Any]) -> list[Kind]:
    """Of nodes that are there, as `ray.nodes` tells them, and groups that an autoscaler keeps."""
    there = [(node, Kind(node["Resources"], 1, node["Labels"])) for node in nodes]
    if groups:
        heads = [kind for node, kind in there if HEAD in node["Resources"]]
        return heads + [
            Kind(dict(group.resources), group.max_count if group.max_count >= 0 else sys.maxsize)
            for group in groups
        ]
    grows = any(GROUP in node["Labels"] for node, _ in there)
    return [kind for _, kind in there] + ([ANYTHING] if grows else [])


def places(found: Iterable[Kind], wanted: Bundle) -> int:
    """How many bundles these nodes can hold at once."""
    total = 0
    for kind in found:
        of_a_node = min(
            int(kind.resources.get(name, 0) / amount + 1e-6)
            for name, amount in wanted.resources.items()
            if amount
        )
        if kind.labels is None or all(
            value.startswith(("!", "in(")) or kind.labels.get(name) == value  # Ray's to decide
            for name, value in wanted.labels.items()
        ):
            total += kind.count * of_a_node
    return total


def require(stage: str, scale: Workers | Actors, count: int) -> None:
    """That the cluster can ever hold so many of what the scale asks for a stage.

    Raises:
        UserError: when it cannot.
    """
    wanted = bundle(scale)
    room = places(kinds(), wanted)
    if room < count:
        raise UserError(
            f"scale.{stage}",
            f"asks for {count} × {wanted}, and the cluster has room for {room} at most, whatever "
            "its autoscaler adds",
            "Ask for less, or for other nodes, or give the cluster such nodes",
        )
