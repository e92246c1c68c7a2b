"""What we start on this machine is reached from this machine alone, and is our own."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc
import httpx
import psutil
import pytest

from support.ray_head import environment, free_port
from support.tiny_releases import make_release

SECRET = "sk-planted-0123456789abcdef"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """`stillroom serve` beside another Ray, which is said to be at an address where nothing is: the
    process, its address, what it printed, the home that it had, and Ray's folder."""
    folder = tmp_path_factory.mktemp("doors")
    release = make_release(folder / "release", shared_space=True)
    (folder / "keys").write_text(f"me:{SECRET}\n")
    others = Path(tempfile.mkdtemp(prefix="ray"))  # its sockets' paths may have 107 characters
    (others / "ray_current_cluster").write_text("127.0.0.1:1")
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable, "-m", "stillroom.cli", "serve", str(release), "--port", str(port),
            "--keys-file", str(folder / "keys"),
        ],
        env={**environment(folder), "RAY_TMPDIR": str(others)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ready"):
            break
    yield process, f"http://127.0.0.1:{port}", lines, folder, others
    process.terminate()
    process.communicate()
    shutil.rmtree(others)


def test_what_listens_is_on_loopback_or_wants_the_token(served):
    process, *_ = served
    listening = {
        (one.name(), connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for one in psutil.Process(process.pid).children(recursive=True)
        for connection in one.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {name for name, _, _ in listening} >= {"gcs_server", "raylet"}
    elsewhere = {(name, port) for name, address, port in listening if address != "127.0.0.1"}
    # Where Serve's replicas call one another: Ray binds that to every address.
    assert {name.partition(":stillroom:")[0] for name, _ in elsewhere} <= {"ray::ServeReplica"}
    for _, port in elsewhere:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        with channel, pytest.raises(grpc.RpcError) as no:
            channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"", timeout=30)
        assert no.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_ray_of_our_own_wants_a_token_that_nobody_else_reads(served):
    process, _, _, folder, _ = served
    token = folder / ".ray" / "auth_token"
    assert len(token.read_text()) == 64
    assert token.parent.stat().st_mode & 0o077 == 0
    family = {one.name(): one for one in psutil.Process(process.pid).children(recursive=True)}
    # Ray's Python processes write their titles over their environment.
    modes = [family[name].environ()["RAY_AUTH_MODE"] for name in ("gcs_server", "raylet")]
    assert modes == ["token", "token"]


def test_a_key_lets_in_and_is_written_nowhere(served):
    _, url, lines, folder, session = served
    body = {"model": "tiny/student", "input": "a text"}
    refused = httpx.post(f"{url}/v1/embeddings", json=body)
    bearer = {"Authorization": f"Bearer {SECRET}"}
    answered = httpx.post(f"{url}/v1/embeddings", json=body, headers=bearer)
    assert (refused.status_code, answered.status_code) == (401, 200)
    token = (folder / ".ray" / "auth_token").read_text()
    logs = [path.read_bytes() for path in session.rglob("*") if path.is_file()]
    assert any(b"tiny" in log for log in logs)
    told = [" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])]
    for secret in (SECRET, token):
        assert not any(secret.encode() in log for log in logs)
        assert secret not in "".join([*told, *lines])
