"""Arguments to application: `build` for Serve's YAML files, `serve_release` for one machine.

No `from __future__ import annotations` here: Ray Serve reads the type of `build`'s argument.
"""

import json
import os
import signal
import socket
import threading
from dataclasses import replace
from typing import Any, Literal, cast

import ray
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)
from ray import serve
from ray.serve import Application

from stillroom.errors import UserError
from stillroom.serving.auth import ENVIRONMENT, Keys, is_loopback
from stillroom.serving.engines import Engine, check_engine
from stillroom.serving.openai import did_you_mean
from stillroom.serving.policies import Policy, Target, auto_policy, check_policy
from stillroom.serving.release import Release
from stillroom.serving.replica import Replica
from stillroom.serving.router import Model, Router

APPLICATION = "stillroom"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelOptions(Section):
    """How one of a release's encoders is run."""

    replicas: NonNegativeInt = 1  # 0: not served
    engine: Engine = "auto"  # what runs it: on a CPU the release's fastest export, else torch
    num_cpus: NonNegativeFloat = 1  # a replica; also the threads of a forward
    num_gpus: NonNegativeFloat = 0  # a replica; over 0, it encodes on the GPU
    max_ongoing: PositiveInt = 64  # requests in one replica, which it batches
    max_queued: PositiveInt = 64  # requests that wait for a replica; more get 429


class ServeArgs(Section):
    """The `args` of an application in serve/*.yaml."""

    releases: tuple[str, ...]  # folders, or references such as release/quickstart
    root: str | None = None  # where artifacts live; default STILLROOM_ROOT, else runs/
    policy: Literal["auto"] | Policy = "auto"  # who answers to a release's bare name
    # Padded tokens in one forward; None: what a CPU or a GPU does best, see replica.BATCH_TOKENS.
    max_batch_tokens: PositiveInt | None = None
    max_wait_ms: NonNegativeFloat = 2  # how long an idle replica waits to fill a forward
    max_body_bytes: PositiveInt = 16 * 2**20
    timeout_s: PositiveFloat = 60  # a request unanswered by then gets 503
    keys_file: str | None = None  # API keys, beside those in STILLROOM_API_KEYS
    no_auth: bool = False  # without keys: let other machines call, too
    teacher: ModelOptions = ModelOptions()
    student: ModelOptions = ModelOptions()

    @classmethod
    def read(cls, args: dict[str, Any]) -> "ServeArgs":
        """Check a YAML's args. Raises one UserError that names every fault."""
        try:
            # Through JSON: strict validation of Python values refuses YAML's lists for tuples.
            return cls.model_validate_json(json.dumps(args))
        except (ValidationError, TypeError) as error:
            raise UserError("serve args", _faults(error), "Mend the application's args") from error


def _faults(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return str(error)
    faults = []
    for fault in error.errors(include_url=False):
        *section, key = map(str, fault["loc"])
        where = ".".join([*section, key])
        if fault["type"] == "extra_forbidden":
            fields = (ModelOptions if section else ServeArgs).model_fields
            faults.append(".".join([*section, did_you_mean(key, fields)]))
        else:
            faults.append(f"{where}: {fault['msg']}")
    return "; ".join(faults)


def build(args: dict[str, Any]) -> Application:
    """The Serve application for `args` (see ServeArgs): a router before each encoder's replicas.

    Raises UserError for faulty args, a release that is missing or failed its gate, a policy that
    would mix spaces, and keys that cannot be read.
    """
    checked = ServeArgs.read(args)
    root = checked.root or os.environ.get("STILLROOM_ROOT", "runs")
    if not checked.releases:
        raise UserError("serve args: releases", "is empty", "Name at least one release")
    models: dict[str, Model] = {}
    handles: dict[str, Application] = {}
    for ref in checked.releases:
        release = Release.open(ref, root)
        if release.name in models:
            raise UserError(
                "serve args: releases",
                f"two releases are named {release.name!r}",
                "Serve them as two applications",
            )
        options = {
            target: option
            for target, option in _options(checked).items()
            if target in release.contracts and option.replicas
        }
        release = replace(release, contracts={t: release.contracts[t] for t in options})
        policy = _policy(checked.policy, release)
        models[release.name] = Model(release.name, release, policy)
        for target, option in options.items():
            name = release.model(target)
            check_engine(
                f"serve args: {target}.engine", option.engine, release, target, option.num_gpus > 0
            )
            models[name] = Model(name, release, target)
            handles[name] = (
                cast(Any, Replica)
                .options(
                    name=name.replace("/", "-"),
                    num_replicas=option.replicas,
                    max_ongoing_requests=option.max_ongoing,
                    max_queued_requests=option.max_queued,
                    ray_actor_options={"num_cpus": option.num_cpus, "num_gpus": option.num_gpus},
                )
                .bind(release, target, option.engine, checked.max_batch_tokens, checked.max_wait_ms)
            )
    return (
        cast(Any, Router)
        .options(
            # It only waits: its share of a core is small, and a laptop's two are the encoders'.
            ray_actor_options={"num_cpus": 0},
            # Above what all replicas take and queue, so that the router is who says 429.
            max_ongoing_requests=100
            + sum(map(_capacity, _options(checked).values())) * len(models),
        )
        .bind(
            list(models.values()),
            handles,
            Keys.read(os.environ, checked.keys_file),
            checked.no_auth,
            checked.max_body_bytes,
            checked.timeout_s,
        )
    )


def _options(args: ServeArgs) -> dict[Target, ModelOptions]:
    return {"teacher": args.teacher, "student": args.student}


def _capacity(option: ModelOptions) -> int:
    return option.replicas * option.max_ongoing + option.max_queued


def _policy(asked: Literal["auto"] | Policy, release: Release) -> Policy:
    if not release.contracts:
        raise UserError(
            "serve args", f"nothing of {release.name!r} is served", "Give an encoder replicas"
        )
    if asked == "auto":
        return auto_policy(release.contracts.get("teacher"), release.contracts.get("student"))
    check_policy("serve args: policy", asked, release.contracts)
    return asked


def serve_release(
    release: str,
    *,
    port: int = 8000,
    host: str = "127.0.0.1",
    root: str | None = None,
    policy: str = "auto",
    keys_file: str | None = None,
    no_auth: bool = False,
) -> None:
    """Serve a release on this machine until SIGINT or SIGTERM; starts Ray if none is running.

    The machine's CPUs, and its GPUs if any, are shared out evenly among the release's encoders.
    Raises UserError as `build` does, when the port is taken, and when other machines could call
    without a key.
    """
    root = root or os.environ.get("STILLROOM_ROOT", "runs")
    name, encoders = (opened := Release.open(release, root)).name, list(opened.contracts)
    if not (is_loopback(host) or no_auth or Keys.read(os.environ, keys_file).digests):
        raise UserError(
            "--host",
            f"{host} lets other machines call, and no API key is configured",
            f"Set {ENVIRONMENT} or a keys file, or say that you want no authentication",
        )
    _check_free(host, port)
    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, log_to_driver=False)
    shared = bool(serve.status().applications)
    try:
        per_encoder = _share(ray.cluster_resources(), len(encoders))
        app = build(
            {
                "releases": [release],
                "root": root,
                "policy": policy,
                "keys_file": keys_file,
                "no_auth": no_auth,
                **{target: per_encoder for target in encoders},
            }
        )
        serve.start(http_options={"host": host, "port": port})
        serve.run(app, name=APPLICATION, route_prefix="/")
        url = f"http://{host}:{port}"
        print(f"Ready: {name} at {url} (Ctrl-C ends it). Try:\n{_example(url, name)}", flush=True)
        _wait_for_signal()
    finally:
        serve.delete(APPLICATION) if shared else serve.shutdown()
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
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
