"""Ray on several nodes of this machine that share no folder but the one they are given."""

import contextlib
import os
import tempfile
import threading
import time
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from stillroom.cluster.ray_private import wait_for_slow_node
from support import shared_ray

WAIT_S = 120


class LocalCluster:
    """Nodes with a home and a cache of their own; those of this process are the head's.

    Attributes:
        workers: the nodes beside the head, by id.
    """

    def __init__(self, folder, environment, cpus):
        self.folder, self.environment, self.cpus = folder, environment, cpus
        self.nodes = 0
        self.settle(0)
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": cpus, "include_dashboard": False}
        )
        self.workers = {}

    def settle(self, number):
        """Gives the processes that are started next the folders of a node."""
        home = self.folder / f"node-{number}"
        home.mkdir(parents=True, exist_ok=True)
        self.environment.setenv("HOME", str(home))
        self.environment.setenv("STILLROOM_CACHE", str(home / "cache"))

    def add_node(self):
        self.nodes += 1
        self.settle(self.nodes)
        node = self.cluster.add_node(num_cpus=self.cpus)
        self.workers[node.node_id] = node
        self.settle(0)

    def kill(self, node_id):
        """Kills all processes of a node at once, as a machine dies."""
        self.cluster.remove_node(self.workers.pop(node_id), allow_graceful=False)

    def busy(self, node):
        """What the processes of a node work on, as Ray names them: `ray::f`, `ray::Actor.f`."""
        titles = set()
        for raylet in node.all_processes.get("raylet", ()):
            # Far cheaper than psutil, which looks at all processes of the machine.
            for children in Path(f"/proc/{raylet.process.pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    for child in children.read_text().split():
                        title = Path(f"/proc/{child}/cmdline").read_text().strip("\0")
                        titles |= {title} if title.startswith("ray::") else set()
        return titles - {"ray::IDLE"}


@contextlib.contextmanager
def local_cluster(folder, nodes=3, cpus=1):
    """Yields a `LocalCluster` of so many nodes, which this process has joined."""
    shared_ray.stop()
    token = Path.home() / ".ray" / "auth_token"
    # Short, since it holds sockets; apart, since Ray writes the cluster's address there.
    with (
        tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as ray_folder,
        pytest.MonkeyPatch.context() as environment,
    ):
        environment.setenv("RAY_TMPDIR", ray_folder)
        if token.exists():  # the nodes' homes have none
            environment.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        with wait_for_slow_node(WAIT_S):
            cluster = LocalCluster(folder, environment, cpus)
        try:
            with wait_for_slow_node(WAIT_S):
                for _ in range(nodes - 1):
                    cluster.add_node()
                quiet = ray.LoggingConfig(log_level="ERROR")
                ray.init(address=cluster.cluster.address, logging_config=quiet)
            yield cluster
        finally:
            ray.shutdown()
            cluster.cluster.shutdown()


@contextlib.contextmanager
def killed_when(cluster, node_id, condition):
    """In the block, kills a node once the condition holds; fails where it never held."""
    ended, killed = threading.Event(), threading.Event()

    def watch():
        while not ended.wait(0.01):
            if condition():
                cluster.kill(node_id)
                killed.set()
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    assert killed.is_set(), "the node lived"


def node_of_task():
    """The id of the node that the calling task runs on."""
    return ray.get_runtime_context().get_node_id()


def run_noted(folder, kind, victim, function, /, *args, **kwargs):
    """The function of a task, which notes where it ran; on the victim's node it does not end."""
    result = function(*args, **kwargs)
    with (folder / f"{kind}-{node_of_task()}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    if node_of_task() == victim:
        time.sleep(WAIT_S)  # killed with its node before that
    return result


def noted_nodes(folder, kind):
    """The nodes on which tasks of a kind were noted."""
    return {path.name.rpartition("-")[2] for path in folder.glob(f"{kind}-*")}
