"""`stillroom serve`: a release or a model on this machine, or on a running cluster, until it is
stopped."""

import contextlib
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import serve

from stillroom.cluster.join import join_cluster
from stillroom.cluster.library_messages import ignore_library_messages
from stillroom.cluster.start import start_ray
from stillroom.cluster.token_file import exposed_token_file
from stillroom.errors import UserError
from stillroom.release.reader import Release, is_release, split_alias
from stillroom.serving.app import application, open_releases
from stillroom.serving.config import MODEL_NAME, ServeArgs
from stillroom.serving.http.api_keys import KEYS_VARIABLE, ApiKeys
from stillroom.serving.http.auth import is_loopback
from stillroom.serving.http.protocol import SERVE_CALLBACK, SERVE_CALLBACK_VARIABLE
from stillroom.storage.root import default_root

APPLICATION = "stillroom"
DRAIN_S = 60  # for ongoing requests when the server is stopped
log = logging.getLogger(__name__)


def serve_until_stopped(
    named: str,
    *,
    pooling: str | None = None,
    port: int = 8000,
    host: str = "127.0.0.1",
    root: str | None = None,
    keys_file: str | None = None,
    no_auth: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Serve until SIGINT or SIGTERM, on the cluster of RAY_ADDRESS or on this machine.

    The CPUs, and the GPUs if any, are divided evenly among a release's encoders.

    Args:
        named: a release, or else a model; `NAME=…` gives it another name in requests.
        pooling: of a plain model.

    Raises:
        UserError: as `build` does, when the port is taken, and when other machines could call
            without a key.
    """
    _check_access(host, no_auth, keys_file)
    _check_port_is_free(host, port)
    if (token := exposed_token_file()) is not None:
        log.warning("other users of this machine can read Ray's token: chmod 600 %s", token)
    args = {
        **_served(named, pooling),
        "root": root or default_root(),
        "keys_file": keys_file,
        "no_auth": no_auth,
        "trust_remote_code": trust_remote_code,
    }
    releases = open_releases(ServeArgs.read(args))
    [opened] = releases.values()
    with _ray_and_serve():
        encoders = _encoder_options(opened, ray.cluster_resources())
        models = {name: {**options, **encoders} for name, options in args.get("models", {}).items()}
        placed = {"models": models} if models else encoders
        app = application(ServeArgs.read({**args, **placed}), releases)
        serve.start(http_options={"host": host, "port": port})
        serve.run(app, name=APPLICATION, route_prefix="/")
        url = f"http://{host}:{port}"
        print(f"Ready: {opened.name} at {url} (Ctrl-C ends it). Try it there, or:", flush=True)
        print(_example_command(url, opened.name), flush=True)
        _wait_for_signal()
        with contextlib.suppress(TimeoutError):  # later requests get 503
            serve.get_app_handle(APPLICATION).drain.remote().result(timeout_s=DRAIN_S)


def _served(named: str, pooling: str | None) -> dict[str, Any]:
    """The `releases` or the `models` of ServeArgs.

    Raises:
        UserError: for a pooling of a release, and a model that requests cannot name.
    """
    alias, rest = split_alias(named)
    if is_release(rest):
        if pooling is not None:
            raise UserError("--pooling", "is for a plain model, not for a release", "Leave it out")
        return {"releases": [named]}
    path = Path(rest).expanduser()
    is_path = path.is_dir() or rest.startswith(("/", ".", "~"))
    name = alias or (path.resolve().name if is_path else rest)
    if not MODEL_NAME.fullmatch(name):
        raise UserError(rest, "cannot be a model's name in requests", f"Write NAME={rest}")
    return {"models": {name: {"model": rest, "pooling": pooling}}}


def _encoder_options(opened: Release, resources: dict[str, float]) -> dict[str, Any]:
    """The options of a single model, or of each encoder of a release by its name."""
    encoders = list(opened.contracts)
    share = _share_per_encoder(resources, len(encoders))
    # An encoder in the router saves a process and a round trip.
    in_router = "student" if "student" in encoders else encoders[0]
    options: dict[str, Any] = {
        target: {
            "num_cpus": share["num_cpus"],
            "num_gpus": share["num_gpus"] if opened.own_format(target) is None else 0.0,
            "in_router": target == in_router,
        }
        for target in encoders
    }
    single: dict[str, Any] | None = options.get("model")
    return options if single is None else single


@contextlib.contextmanager
def _ray_and_serve() -> Iterator[None]:
    """Connect to the Ray of RAY_ADDRESS, or start one here; afterwards stop what was started."""
    owns_ray = not ray.is_initialized()
    os.environ.setdefault(SERVE_CALLBACK_VARIABLE, SERVE_CALLBACK)
    if owns_ray:
        if address := os.environ.get("RAY_ADDRESS"):
            join_cluster(address, log_to_driver=False)
        else:
            start_ray(log_to_driver=False)
    ignore_library_messages()
    serve_is_shared = bool(serve.status().applications)
    try:
        yield
    finally:
        # The application stops before the proxy, which still has answers to forward.
        if APPLICATION in serve.status().applications:
            serve.delete(APPLICATION)
        if not serve_is_shared:
            serve.shutdown()
        if owns_ray:
            ray.shutdown()


def _check_access(host: str, no_auth: bool, keys_file: str | None) -> None:
    if not (is_loopback(host) or no_auth or ApiKeys.read(os.environ, keys_file).configured):
        raise UserError(
            "--host",
            f"{host} lets other machines call, and no API key is configured",
            f"Set {KEYS_VARIABLE} or a keys file, or say that you want no authentication",
        )


def _share_per_encoder(resources: dict[str, float], encoders: int) -> dict[str, float]:
    """CPUs and GPUs for each encoder; above 1 whole numbers, as Ray requires."""

    def share(total: float) -> float:
        part = total / encoders
        return float(int(part)) if part > 1 else part

    return {
        "num_cpus": share(resources.get("CPU", 1.0)),
        "num_gpus": min(1.0, share(resources.get("GPU", 0.0))),
    }


def _check_port_is_free(host: str, port: int) -> None:
    # Serve's proxy retries a taken port in the background and reports nothing.
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                "--port", f"{host}:{port}: {error.strerror}", "Choose another with --port"
            ) from error


def _example_command(url: str, name: str) -> str:
    body = json.dumps({"model": name, "input": "how do I sort a list?", "input_type": "query"})
    return f"  curl {url}/v1/embeddings -H 'Content-Type: application/json' -d '{body}'"


def _wait_for_signal() -> None:
    """Return at SIGINT or SIGTERM; a second one ends the process as usual."""
    stop = threading.Event()
    handlers_before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    stop.wait()
    for number, handler in handlers_before.items():
        signal.signal(number, handler)
