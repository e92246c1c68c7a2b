"""A Ray head on this machine, as `ray start --head` starts it, with token authentication."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
    FakeMultiNodeProvider,
)

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TOKEN = "a-token-that-only-this-cluster-knows"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Head:
    """A running head.

    Attributes:
        gcs: RAY_ADDRESS, to join the cluster.
        url: of its dashboard, where jobs are submitted.
        env: environment variables of a machine that has the cluster's token.
        session: Ray's folder, with its logs.
    """

    def __init__(self, folder, gcs, url, session):
        self.gcs, self.url, self.session = gcs, url, session
        self.env = {**clean_environment(folder), "RAY_AUTH_TOKEN_PATH": str(folder / "token")}

    def run(self, *words, cwd=ROOT, **env):
        """Runs a command to its end."""
        return subprocess.run(
            [*map(str, words)],
            cwd=cwd, env={**self.env, **env}, capture_output=True, text=True,
        )  # fmt: skip

    def submit(self, *words, **others):
        return self.run(*SUBMIT, *words, "--address", self.url, **others)

    def jobs(self):
        """Every job, from the job API."""
        return self._get("jobs/")

    def nodes(self):
        """Every node, present or gone, from the state API."""
        return self._get("v0/nodes")["data"]["result"]["result"]

    def actors(self):
        """Every actor, alive or dead, from the state API."""
        return self._get("v0/actors?limit=10000&detail=1")["data"]["result"]["result"]

    def _get(self, path):
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return httpx.get(f"{self.url}/api/{path}", headers=headers, timeout=60).json()


SUBMIT = (sys.executable, "-m", "stillroom.cli", "submit")


def clean_environment(folder):
    """This process's environment without variables that name another cluster or a token."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**variables, "PATH": f"{BIN}{os.pathsep}{variables['PATH']}", "HOME": str(folder)}


@contextlib.contextmanager
def start_head(folder, node_types=None, **env):
    """Starts a head; its environment, and so that of every job, contains `env`.

    Args:
        node_types: node types that its autoscaler may add on this machine; the head then runs no
            tasks.
    """
    (folder / "token").write_text(TOKEN)
    session = tempfile.mkdtemp(prefix="ray")  # paths of sockets may have 107 characters at most
    port, dashboard = free_port(), free_port()
    autoscaler = []
    if node_types is not None:
        (folder / "autoscaling.yaml").write_text(json.dumps(autoscaling_config(node_types, port)))
        autoscaler = [f"--autoscaling-config={folder / 'autoscaling.yaml'}"]
        env |= {
            "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID, "RAY_TMPDIR": session,
            "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,  # as `ray up` and KubeRay have it
        }  # fmt: skip
    process = subprocess.Popen(
        [
            str(BIN / "ray"), "start", "--head", "--block", *autoscaler,
            f"--num-cpus={0 if node_types else 4}",
            f"--port={port}", f"--dashboard-port={dashboard}", "--include-dashboard=true",
            # The usual port is taken when another test's Ray runs beside this one.
            f"--dashboard-agent-listen-port={free_port()}",
            f"--temp-dir={session}", "--disable-usage-stats",
        ],
        env={
            **clean_environment(folder), "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"), **env,
        },
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{dashboard}"
        deadline = time.monotonic() + 120
        while not accepts_jobs(url):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)  # polls for a condition, with a deadline
        yield Head(folder, f"127.0.0.1:{port}", url, Path(session))
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with all processes of the head
        process.wait()
        shutil.rmtree(session, ignore_errors=True)


def autoscaling_config(node_types, port):
    """A cluster's YAML, for Ray's provider whose nodes are processes on this machine."""
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    commands = ("", "head_", "worker_")
    return {
        **{f"{prefix}setup_commands": [] for prefix in commands},
        **{f"{prefix}start_ray_commands": [] for prefix in commands[1:]},
        "initialization_commands": [], "file_mounts": {}, "cluster_synced_files": [],
        "cluster_name": "tried", "max_workers": 8, "upscaling_speed": 100,
        "idle_timeout_minutes": 0.1, "head_node_type": FAKE_HEAD_NODE_TYPE,
        "provider": {
            # As a built-in provider it needs a file that the wheel lacks.
            "type": "external",
            "module": f"{FakeMultiNodeProvider.__module__}.FakeMultiNodeProvider",
            "gcs_address": f"127.0.0.1:{port}", "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
        },
        "available_node_types": {FAKE_HEAD_NODE_TYPE: head, **node_types},
    }  # fmt: skip


def accepts_jobs(url):
    """Whether the head has an agent to run jobs; the address answers before that."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    try:
        nodes = httpx.get(f"{url}/nodes?view=summary", headers=headers).json()
        return bool(nodes["data"]["summary"])
    except (httpx.HTTPError, KeyError, ValueError):
        return False
