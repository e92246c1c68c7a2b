"""A Kubernetes API server on this machine, with its disruption controller and without nodes."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from support.ray_head import free_port

TOKEN = "a-token-that-only-this-server-knows"
START_S = 180


class KubernetesServer:
    """A server that runs.

    Attributes:
        kubeconfig: a file for kubectl and controllers.
    """

    def __init__(self, url: str, kubeconfig: Path):
        self.url, self.kubeconfig = url, kubeconfig
        headers = {"Authorization": f"Bearer {TOKEN}"}
        self.http = httpx.Client(base_url=url, headers=headers, verify=False, timeout=60)

    def kubectl(self, *words: object, stdin: str | None = None) -> str:
        """The output of a kubectl command; fails with its errors."""
        done = subprocess.run(
            ["kubectl", f"--kubeconfig={self.kubeconfig}", *map(str, words)],
            input=stdin, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"kubectl {' '.join(map(str, words))}: {done.stderr}"
        return done.stdout

    def apply(self, *resources: dict[str, Any]) -> None:
        """Creates or updates resources; unknown fields are refused."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": resources})
        self.kubectl("apply", "--server-side", "--validate=strict", "-f", "-", stdin=text)

    def evict(self, namespace: str, pod: str) -> int:
        """The HTTP status of the Eviction API: 201, or 429 where a budget forbids it."""
        eviction = {
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": pod, "namespace": namespace},
        }  # fmt: skip
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
        return self.http.post(path, json=eviction).status_code


@contextlib.contextmanager
def kubernetes_server(binaries: Path) -> Iterator[KubernetesServer]:
    """Starts the server.

    Args:
        binaries: folder with etcd, kube-apiserver and kube-controller-manager.
    """
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as at_end:
        folder = Path(scratch)
        client_port, peer_port, port = free_port(), free_port(), free_port()

        def start(program: str, **flags: object) -> subprocess.Popen:
            words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
            log = at_end.enter_context((folder / f"{program}.log").open("w"))
            process = subprocess.Popen(
                [binaries / program, *words], stdout=log, stderr=log, cwd=folder,
                env={**os.environ, "HOME": scratch}, start_new_session=True,
            )  # fmt: skip
            at_end.callback(process.wait)
            at_end.callback(lambda: os.killpg(process.pid, signal.SIGKILL))
            return process

        etcd = f"http://127.0.0.1:{client_port}"
        start(
            "etcd", data_dir=folder / "etcd", listen_client_urls=etcd, advertise_client_urls=etcd,
            listen_peer_urls=f"http://127.0.0.1:{peer_port}",
        )  # fmt: skip
        (folder / "tokens").write_text(f"{TOKEN},admin,admin,system:masters\n")
        (folder / "key").write_bytes(
            rsa.generate_private_key(65537, 2048).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
        api = start(
            "kube-apiserver", etcd_servers=etcd, bind_address="127.0.0.1", secure_port=port,
            cert_dir=folder / "certificates", token_auth_file=folder / "tokens",
            authorization_mode="RBAC", service_cluster_ip_range="10.96.0.0/16",
            service_account_issuer="https://kubernetes.default.svc",
            service_account_key_file=folder / "key",
            service_account_signing_key_file=folder / "key",
        )  # fmt: skip
        url = f"https://127.0.0.1:{port}"
        (folder / "kubeconfig").write_text(json.dumps(kubeconfig(url)))
        server = KubernetesServer(url, folder / "kubeconfig")
        deadline = time.monotonic() + START_S
        while not is_ready(server):
            log = (folder / "kube-apiserver.log").read_text()
            assert api.poll() is None and time.monotonic() < deadline, log[-3000:]
            time.sleep(0.5)  # polls for a condition, with a deadline
        start(
            "kube-controller-manager", kubeconfig=server.kubeconfig,
            controllers="disruption-controller", secure_port=free_port(), leader_elect="false",
            cert_dir=folder / "certificates",
        )  # fmt: skip
        yield server


def is_ready(server: KubernetesServer) -> bool:
    try:
        return server.http.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def kubeconfig(url: str) -> dict[str, Any]:
    cluster = {"server": url, "insecure-skip-tls-verify": True}
    return {
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": cluster}],
        "users": [{"name": "it", "user": {"token": TOKEN}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    }  # fmt: skip
