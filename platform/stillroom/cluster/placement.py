"""Where a task may run: on any node, or only on this machine, where its local files are."""

import logging
import os
from collections.abc import Sequence
from enum import Enum

import ray

from stillroom.cluster.capacity import Bundle, bundles_that_fit, cluster_node_types

PROBE_S = 60.0  # a node that takes longer to look for files does not count as having them
FileIdentity = tuple[int, int]  # size and time of writing
log = logging.getLogger(__name__)


class Place(Enum):
    """Where a task may run."""

    ANY_NODE = "any node"
    DRIVER_NODE = "this machine"
    DRIVER = "this process"  # where Ray runs no tasks on this machine, as on the head of a cluster


def find_places(files_of: Sequence[Sequence[str] | None]) -> list[Place]:
    """Where tasks that read local files may run.

    A task may run on any node if every node has the same files under the same paths, by size and
    time of writing; one that reads no local file may always.

    Args:
        files_of: the local files of each task; None for what only this machine has.
    """
    paths = sorted({path for files in files_of for path in files or ()})
    nodes = [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
    ]
    missing = _missing_files(nodes, {path: file_identity(path) for path in paths})
    node_here = missing.get(ray.get_runtime_context().get_node_id())

    def seen_by_all(files: Sequence[str]) -> bool:
        if nodes:
            return all(lacks.isdisjoint(files) for lacks in missing.values())
        # What nodes an autoscaler will add have is not known.
        fit = bundles_that_fit(cluster_node_types(), Bundle({"CPU": 1}, {}))
        return not files and fit > 0

    def place(files: Sequence[str] | None) -> Place:
        if files is not None and seen_by_all(files):
            return Place.ANY_NODE
        seen_here = node_here is not None and node_here.isdisjoint(files or ())
        return Place.DRIVER_NODE if seen_here else Place.DRIVER

    return [place(files) for files in files_of]


def file_identity(path: str) -> FileIdentity | None:
    """Tells a file from others of its name; None where there is no such file."""
    try:
        status = os.stat(os.path.expanduser(path))
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _missing_files(
    nodes: Sequence[str], identities: dict[str, FileIdentity | None]
) -> dict[str, set[str]]:
    """Node → the files that it has not."""
    if not identities:
        return {node: set() for node in nodes}
    files = ray.put(identities)
    probe = ray.remote(num_cpus=0, max_retries=0)(_differing_files)
    probes = {
        node: probe.options(label_selector={"ray.io/node-id": node}).remote(files) for node in nodes
    }
    ray.wait([*probes.values()], num_returns=len(probes), timeout=PROBE_S)
    missing = {}
    for node, ref in probes.items():
        try:
            missing[node] = ray.get(ref, timeout=0)
        except ray.exceptions.RayError as error:
            log.warning("node %s does not say which files it has: %s", node, error)
            missing[node] = set(identities)
    return missing


def _differing_files(identities: dict[str, FileIdentity | None]) -> set[str]:
    return {path for path, identity in identities.items() if file_identity(path) != identity}
