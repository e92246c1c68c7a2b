"""TODO docstring: serving/local_server.py."""

import contextlib
import json
import os
import signal
import socket
import threading

import ray
from ray import serve

from stillroom.cluster.join import join
from stillroom.errors import UserError
from stillroom.release.reader import Release
from stillroom.serving.app import build
from stillroom.serving.http.auth import ENVIRONMENT, Keys, is_loopback

APPLICATION = "stillroom"

DRAIN_S = 60  # for what is ongoing when a server is stopped


def serve_release(
    release: str,
    *,
    port: int = 8000,
    host: str = "127.0.0.1",
    root: str | None = None,
    policy: str = "auto",
    keys_file: str | None = None,
    no_auth: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Serve a release until SIGINT or SIGTERM, on the cluster of RAY_ADDRESS or on a Ray of this
    machine, which it then starts.

    The machine's CPUs, and its GPUs if any, are shared out evenly among the release's encoders.
    Raises UserError as `build` does, when the port is taken, and when other machines could call
    without a key.
    """
    root = root or os.environ.get("STILLROOM_ROOT", "runs")
    name, encoders = (opened := Release.open(release, root)).name, list(opened.contracts)
    if not (is_loopback(host) or no_auth or Keys.read(os.environ, keys_file).configured):
        raise UserError(
            "--host",
            f"{host} lets other machines call, and no API key is configured",
            f"Set {ENVIRONMENT} or a keys file, or say that you want no authentication",
        )
    _check_free(host, port)
    ours = not ray.is_initialized()
    if ours:
        if address := os.environ.get("RAY_ADDRESS"):
            join(address, log_to_driver=False)
        else:  # what else runs here may be somebody else's
            ray.init(address="local", include_dashboard=False, log_to_driver=False)
    shared = bool(serve.status().applications)
    try:
        per_encoder = _share(ray.cluster_resources(), len(encoders))
        # With one router there is no need of a process more, and of a message to it and back.
        inside = "student" if "student" in encoders else encoders[0]
        app = build(
            {
                "releases": [release],
                "root": root,
                "policy": policy,
                "keys_file": keys_file,
                "no_auth": no_auth,
                "trust_remote_code": trust_remote_code,
                **{one: {**per_encoder, "in_router": one == inside} for one in encoders},
            }
        )
        serve.start(http_options={"host": host, "port": port})
        serve.run(app, name=APPLICATION, route_prefix="/")
        url = f"http://{host}:{port}"
        print(f"Ready: {name} at {url} (Ctrl-C ends it). Try it there, or:", flush=True)
        print(_example(url, name), flush=True)
        _wait_for_signal()
        with contextlib.suppress(TimeoutError):  # what takes longer has its answer: 503
            serve.get_app_handle(APPLICATION).drain.remote().result(timeout_s=DRAIN_S)
    finally:
        # Before the proxy ends, which has answers to pass on.
        if APPLICATION in serve.status().applications:
            serve.delete(APPLICATION)
        if not shared:
            serve.shutdown()
        if ours:
            ray.shutdown()


def _share(resources: dict[str, float], encoders: int) -> dict[str, float]:
    """CPUs and GPUs for each encoder; whole numbers above one, as Ray wants them."""

    def each(total: float) -> float:
        part = total / encoders
        return float(int(part)) if part > 1 else part

    return {
        "num_cpus": each(resources.get("CPU", 1.0)),
        "num_gpus": min(1.0, each(resources.get("GPU", 0.0))),
    }


def _check_free(host: str, port: int) -> None:
    # Serve's proxy retries a taken port in the background, where no one sees it.
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                "--port", f"{host}:{port}: {error.strerror}", "Choose another with --port"
            ) from error


def _example(url: str, name: str) -> str:
    body = json.dumps({"model": name, "input": "how do I sort a list?", "input_type": "query"})
    return f"  curl {url}/v1/embeddings -H 'Content-Type: application/json' -d '{body}'"


def _wait_for_signal() -> None:
    """Until SIGINT or SIGTERM; the next one ends the process as ever."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    stop.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
