"""A Ray cluster of several nodes on this machine that are taken away, with a notice or without."""

import contextlib
import random
import tempfile
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from stillroom.cluster.session import API_SERVER_VARIABLE, NO_API_SERVER
from support import shared_ray

SPOT = {"ray.io/market-type": "spot"}
ON_DEMAND = {"ray.io/market-type": "on-demand"}
NOTICE_S = (8, 20)  # less than a cloud's; the models are tiny
REPLACED_AFTER_S = (0, 5)


class SpotNodes:
    """A head that runs no tasks, and spot nodes of one CPU each.

    Attributes:
        address: of the cluster.
        log: a line for each node that went or came.
    """

    def __init__(self, count: int):
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "labels": ON_DEMAND},
        )
        self.address: str = self.cluster.address
        self.count = count
        self.log: list[str] = []
        self.fill_up()

    def fill_up(self) -> None:
        """Adds nodes until all are there."""
        while len(self.cluster.worker_nodes) < self.count:
            self.cluster.add_node(num_cpus=1, labels=SPOT)

    def take_away(self, rng: random.Random, *, notice: bool) -> None:
        """Takes a drawn node away, after its notice or at once, and brings another one."""
        node = rng.choice(sorted(self.cluster.worker_nodes, key=lambda node: node.node_id))
        notice_s = rng.uniform(*NOTICE_S) if notice else 0.0
        if notice:
            accepted, why = GcsClient(address=self.address).drain_node(
                node.node_id,
                autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
                "a spot machine is wanted back",
                int((time.time() + notice_s) * 1000),
            )
            assert accepted, why
            time.sleep(notice_s)  # the cloud's
        kill_machine(node)
        self.cluster.remove_node(node, allow_graceful=False)
        how = f"with {notice_s:.0f} s of notice" if notice else "without notice"
        self.log.append(f"{node.node_id[:6]} {how}")
        time.sleep(rng.uniform(*REPLACED_AFTER_S))  # the time to get a new machine
        self.fill_up()


def kill_machine(node) -> None:
    """Kills all processes of a node at once, as a machine that loses its power."""
    processes = []
    for pid in [info.process.pid for infos in node.all_processes.values() for info in infos]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            processes += [process, *process.children(recursive=True)]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@contextlib.contextmanager
def spot_nodes(count: int, **environment: str) -> Iterator[SpotNodes]:
    """Yields a cluster whose processes have `environment`, and ends it."""
    shared_ray.stop()
    with (
        # Short, since it holds sockets; not the common one, where another Ray would find this one.
        tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as ray_folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {
            "RAY_TMPDIR": ray_folder, "RAY_AUTH_MODE": "disabled",
            API_SERVER_VARIABLE: NO_API_SERVER, "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
            "RAY_worker_niceness": "0",  # else the raylets' own work goes before that of the tasks
            **environment,
        }.items():  # fmt: skip
            patch.setenv(name, value)
        nodes = SpotNodes(count)
        try:
            yield nodes
        finally:
            nodes.cluster.shutdown()


class InBackground(threading.Thread):
    """Runs a function in a thread; `join` raises what it raised."""

    def __init__(self, function, *args, **options):
        super().__init__(daemon=True)
        self.call = (function, args, options)
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        function, args, options = self.call
        try:
            function(*args, **options)
        except BaseException as error:
            self.error = error

    def join(self, timeout: float | None = None) -> None:
        super().join(timeout)
        if self.error is not None:
            raise self.error
