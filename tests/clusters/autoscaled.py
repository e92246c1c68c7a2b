"""A cluster of this machine that grows and shrinks, with tokens: Ray's autoscaler over its fake
provider, whose nodes are real raylets.

`ray.cluster_utils.AutoscalingCluster` starts the same, but ends every Ray of the machine first, and
reads a file that Ray's wheel lacks.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FakeMultiNodeProvider,
)

BIN = Path(sys.executable).parent
TOKEN = "of-this-test-alone"
NOTHING_TO_DO = (
    "cluster_synced_files", "initialization_commands", "setup_commands", "head_setup_commands",
    "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def until(condition, seconds, what):
    """What the condition gives once it is true; polls it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.5)  # polls for a condition, with a deadline
    return found


class Autoscaled:
    def __init__(self, folder, node_types, idle_minutes):
        self.folder = folder
        self.gcs, self.dashboard, self.agent = free_port(), free_port(), free_port()
        self.address, self.url = f"127.0.0.1:{self.gcs}", f"http://127.0.0.1:{self.dashboard}"
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        config = {
            "cluster_name": "tried",
            "max_workers": sum(kind["max_workers"] for kind in node_types.values()),
            "upscaling_speed": 10,
            "idle_timeout_minutes": idle_minutes,
            "provider": {
                # By its class: the wheel lacks the file that type: fake_multinode would read.
                "type": "external",
                "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "gcs_address": self.address,
                "head_node_id": FAKE_HEAD_NODE_ID,
                "launch_multiple": True,
            },
            **{name: {} for name in ("auth", "docker", "file_mounts")},
            **{name: [] for name in NOTHING_TO_DO},
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": head,
                **{name: {"node_config": {}, **kind} for name, kind in node_types.items()},
            },
        }
        (folder / "autoscaler.json").write_text(json.dumps(config))
        self.env = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
        }
        self.head = subprocess.Popen(
            [
                str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=0",
                f"--port={self.gcs}", f"--dashboard-port={self.dashboard}",
                f"--dashboard-agent-listen-port={self.agent}", f"--temp-dir={folder}",
                f"--autoscaling-config={folder / 'autoscaler.json'}", "--disable-usage-stats",
            ],
            env={
                **self.env,
                "RAY_FAKE_CLUSTER": "1",
                "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            },
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        until(self.takes_jobs, 180, "the head takes no jobs")

    def get(self, path, token=TOKEN):
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.get(f"{self.url}{path}", headers=headers, timeout=30)

    def takes_jobs(self):
        assert self.head.poll() is None
        try:
            return self.get("/api/jobs/").status_code == 200 and self.nodes()
        except (httpx.HTTPError, KeyError, ValueError):
            return False

    def nodes(self):
        """The workers that were ever there: state, labels and resources of each."""
        found = self.get("/api/v0/nodes?detail=1&limit=1000").json()["data"]["result"]["result"]
        return [node for node in found if not node["is_head_node"]] or (
            [] if not found else _Empty()
        )

    def alive(self, **labels):
        wanted = {name.replace("__", "-"): value for name, value in labels.items()}
        return [
            node
            for node in self.nodes()
            if node["state"] == "ALIVE"
            and all(node["labels"].get(f"ray.io/{k}") == v for k, v in wanted.items())
        ]

    def submit(self, *words):
        """A finished `ray job submit` of the project."""
        return subprocess.run(
            [
                str(BIN / "ray"), "job", "submit", f"--address={self.url}", "--working-dir", ".",
                "--runtime-env", "jobs/runtime_env.yaml", "--", *words,
            ],
            cwd=Path(__file__).parents[2], env=self.env, capture_output=True, text=True,
        )  # fmt: skip

    def end(self):
        """Every process of this cluster: their command lines name its folder."""
        mine = [self.head.pid]
        for process in psutil.process_iter(["pid", "cmdline"]):
            if str(self.folder) in " ".join(process.info["cmdline"] or ()):
                mine.append(process.info["pid"])
        for pid in mine:
            with contextlib.suppress(psutil.NoSuchProcess):
                tree = psutil.Process(pid)
                for process in [*tree.children(recursive=True), tree]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
        self.head.wait()


class _Empty(list):
    """No workers, of a head that answers."""

    def __bool__(self):
        return True


@contextlib.contextmanager
def autoscaled(node_types, *, idle_minutes=0.2):
    """Yields a cluster of a head without CPUs, which may have nodes of these types."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: sockets lie in it
    cluster = Autoscaled(folder, node_types, idle_minutes)
    try:
        yield cluster
    finally:
        cluster.end()
        shutil.rmtree(folder, ignore_errors=True)
