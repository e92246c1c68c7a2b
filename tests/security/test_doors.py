"""What we start on this machine is reached from this machine alone, and is our own."""

import os
import signal
import subprocess
import sys

import httpx
import psutil
import pytest
from releases import make_release

from head import environment, free_port

SECRET = "sk-planted-0123456789abcdef"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """`stillroom serve` beside another Ray, which is said to be at an address where nothing is: the
    process, its address, and what it printed."""
    folder = tmp_path_factory.mktemp("doors")
    release = make_release(folder / "release", shared_space=True)
    (folder / "keys").write_text(f"me:{SECRET}\n")
    others = folder / "ray"
    others.mkdir()
    (others / "ray_current_cluster").write_text("127.0.0.1:1")
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable, "-m", "stillroom.cli", "serve", str(release), "--port", str(port),
            "--keys-file", str(folder / "keys"),
        ],
        env={**environment(folder), "RAY_TMPDIR": str(others)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ready"):
            break
    yield process, f"http://127.0.0.1:{port}", lines, folder
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate()


def test_every_socket_that_listens_is_on_loopback(served):
    process, *_ = served
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    listening = {
        (psutil.Process(one.pid).name(), connection.laddr.ip.removeprefix("::ffff:"))
        for one in family
        for connection in psutil.Process(one.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {name for name, _ in listening} >= {"gcs_server", "raylet"}
    assert {address for _, address in listening} == {"127.0.0.1"}


def test_a_ray_of_our_own_wants_a_token_that_nobody_else_reads(served):
    process, _, _, folder = served
    token = folder / ".ray" / "auth_token"
    assert len(token.read_text()) == 64
    assert token.parent.stat().st_mode & 0o077 == 0
    environments = [p.environ() for p in psutil.Process(process.pid).children(recursive=True)]
    assert {environment.get("RAY_AUTH_MODE") for environment in environments} == {"token"}


def test_a_key_lets_in_and_is_written_nowhere(served):
    process, url, lines, folder = served
    body = {"model": "tiny/student", "input": "a text"}
    refused = httpx.post(f"{url}/v1/embeddings", json=body)
    bearer = {"Authorization": f"Bearer {SECRET}"}
    answered = httpx.post(f"{url}/v1/embeddings", json=body, headers=bearer)
    assert (refused.status_code, answered.status_code) == (401, 200)
    token = (folder / ".ray" / "auth_token").read_text()
    logs = [path for path in (folder / "ray").rglob("*") if path.is_file()]
    assert any(b"tiny/student" in path.read_bytes() for path in logs)
    command_lines = [
        " ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])
    ]
    for secret in (SECRET, token):
        assert not [path for path in logs if secret.encode() in path.read_bytes()]
        assert secret not in "".join([*command_lines, *lines])
