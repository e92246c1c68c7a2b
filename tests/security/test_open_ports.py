"""A server that we start listens only on this machine, asks for keys, and uses its own Ray."""

import itertools
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import psutil
import pytest

from support.ray_head import clean_environment, free_port
from support.tiny_releases import make_release

SECRET = "sk-planted-0123456789abcdef"
OTHER_SECRET = "sk-planted-fedcba9876543210"


@dataclass(frozen=True)
class Server:
    """A running `stillroom serve`.

    Attributes:
        lines: that it printed until it was ready.
        home: its home folder.
        ray_folder: where Ray keeps its sessions and logs.
    """

    process: subprocess.Popen
    url: str
    lines: list[str]
    home: Path
    ray_folder: Path

    def ray_processes(self):
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server whose Ray folder names another cluster, at an address where nothing listens."""
    folder = tmp_path_factory.mktemp("ports")
    release = make_release(folder / "release", shared_space=False)
    (folder / "keys").write_text(f"me:{SECRET}\n")
    # A short path, because paths of Ray's sockets may have at most 107 characters.
    ray_folder = Path(tempfile.mkdtemp(prefix="ray"))
    (ray_folder / "ray_current_cluster").write_text("127.0.0.1:1")
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable, "-m", "stillroom.cli", "serve", str(release), "--port", str(port),
            "--keys-file", str(folder / "keys"),
        ],
        env={
            **clean_environment(folder), "RAY_TMPDIR": str(ray_folder),
            "STILLROOM_API_KEYS": f"ann:{OTHER_SECRET}",
        },
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ready"):
            break
    yield Server(process, f"http://127.0.0.1:{port}", lines, folder, ray_folder)
    process.terminate()
    process.communicate()
    shutil.rmtree(ray_folder)


def test_open_ports_are_on_loopback_or_need_the_token(server):
    listening = {
        (process.name(), connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for process in server.ray_processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {name for name, _, _ in listening} >= {"gcs_server", "raylet"}
    reachable = {(name, port) for name, address, port in listening if address != "127.0.0.1"}
    # Serve's replicas call each other there; Ray binds these ports to every address.
    assert {name.partition(":stillroom:")[0] for name, _ in reachable} <= {"ray::ServeReplica"}
    for _, port in reachable:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        with channel, pytest.raises(grpc.RpcError) as error:
            channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"", timeout=30)
        assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_our_ray_requires_a_token_that_only_its_owner_can_read(server):
    token = server.home / ".ray" / "auth_token"
    assert len(token.read_text()) == 64
    assert token.parent.stat().st_mode & 0o077 == 0
    processes = {process.name(): process for process in server.ray_processes()}
    # Ray's Python processes overwrite their environment with their titles.
    modes = [processes[name].environ()["RAY_AUTH_MODE"] for name in ("gcs_server", "raylet")]
    assert modes == ["token", "token"]


def test_a_key_gives_access_and_is_written_nowhere(server):
    body = {"model": "tiny/student", "input": "a text"}
    url = f"{server.url}/v1/embeddings"
    refused = httpx.post(url, json=body)
    bearer = {"Authorization": f"Bearer {SECRET}"}
    answered = httpx.post(url, json=body, headers=bearer)
    assert (refused.status_code, answered.status_code) == (401, 200)
    token = (server.home / ".ray" / "auth_token").read_text()
    logs = [path.read_bytes() for path in server.ray_folder.rglob("*") if path.is_file()]
    assert any(b"tiny" in log for log in logs)
    processes = psutil.process_iter(["cmdline"])
    command_lines = [" ".join(process.info["cmdline"] or ()) for process in processes]
    for secret in (SECRET, OTHER_SECRET, token):
        assert not any(secret.encode() in log for log in logs)
        assert secret not in "".join([*command_lines, *server.lines])


@pytest.mark.promise("routing")
def test_only_holders_of_a_key_may_call_and_spaces_are_never_mixed(server):
    url = f"{server.url}/v1/embeddings"
    body = {"model": "tiny", "input": "text"}
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = httpx.post(url, json=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    for secret, input_type in itertools.product((SECRET, OTHER_SECRET), ("query", "document")):
        answer = httpx.post(
            url,
            json={**body, "input_type": input_type},
            headers={"Authorization": f"Bearer {secret}"},
        )
        assert answer.headers["x-stillroom-model"] == "tiny/student"
        assert answer.headers["x-stillroom-space"] == "two"
