"""A Ray head on this machine, as `ray start --head` starts it, with token authentication."""

import contextlib
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

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TOKEN = "a-token-that-only-this-cluster-knows"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Head:
    """Where jobs are submitted, and how.

    Attributes:
        gcs: what RAY_ADDRESS is where the cluster is joined.
        env: of a machine that has the cluster's token.
        session: Ray's folder, with its logs.
    """

    def __init__(self, folder, gcs, url, session):
        self.gcs, self.url, self.session = gcs, url, session
        self.env = {**environment(folder), "RAY_AUTH_TOKEN_PATH": str(folder / "token")}

    def run(self, *words, cwd=ROOT, **env):
        """The command once it has ended."""
        return subprocess.run(
            [*map(str, words)],
            cwd=cwd, env={**self.env, **env}, capture_output=True, text=True,
        )  # fmt: skip

    def submit(self, *words, **others):
        return self.run(*SUBMIT, *words, "--address", self.url, **others)

    def jobs(self):
        """What the job API tells of every job."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return httpx.get(f"{self.url}/api/jobs/", headers=headers).json()


SUBMIT = (sys.executable, "-m", "stillroom.cli", "submit")


def environment(folder):
    """Without what would lead elsewhere, or hold a token."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "PATH": f"{BIN}{os.pathsep}{kept['PATH']}", "HOME": str(folder)}


@contextlib.contextmanager
def started(folder, **env):
    """A head; `env` is in its environment, and so in that of every job."""
    (folder / "token").write_text(TOKEN)
    session = tempfile.mkdtemp(prefix="ray")  # its sockets' paths may have 107 characters
    port, dashboard = free_port(), free_port()
    process = subprocess.Popen(
        [
            str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=4",
            f"--port={port}", f"--dashboard-port={dashboard}", "--include-dashboard=true",
            # Its usual port is taken where another test's Ray runs beside this one.
            f"--dashboard-agent-listen-port={free_port()}",
            f"--temp-dir={session}", "--disable-usage-stats",
        ],
        env={
            **environment(folder), "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"), **env,
        },
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{dashboard}"
        deadline = time.monotonic() + 120
        while not takes_jobs(url):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)  # polls for a condition, with a deadline
        yield Head(folder, f"127.0.0.1:{port}", url, Path(session))
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the head's processes share its fate
        process.wait()
        shutil.rmtree(session, ignore_errors=True)


def takes_jobs(url):
    """Whether the head has an agent that would run a job; the address answers before that."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    try:
        nodes = httpx.get(f"{url}/nodes?view=summary", headers=headers).json()
        return bool(nodes["data"]["summary"])
    except (httpx.HTTPError, KeyError, ValueError):
        return False
