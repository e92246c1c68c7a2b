"""Arguments to application: `build` for Serve's YAML files, `serve_release` for one machine.

No `from __future__ import annotations` here: Ray Serve reads the type of `build`'s argument.
"""

import contextlib
import json
import os
import signal
import socket
import threading
from dataclasses import replace
from typing import Any, cast

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from stillroom.cluster import join
from stillroom.encoders.contract import Terms
from stillroom.errors import UserError
from stillroom.serving import tracing
from stillroom.serving.args import ModelOptions, ServeArgs
from stillroom.serving.auth import ENVIRONMENT, Keys, is_loopback
from stillroom.serving.dispatch import Model, Watched
from stillroom.serving.engines import check_engine
from stillroom.serving.local import Local
from stillroom.serving.playground import playground
from stillroom.serving.policies import (
    Policy,
    Target,
    To,
    auto_policy,
    check_policy,
    parse_policy,
    stand_ins,
)
from stillroom.serving.release import Release
from stillroom.serving.replica import BATCH_TOKENS, Replica
from stillroom.serving.router import Router
from stillroom.serving.shadow import Shadow

APPLICATION = "stillroom"
DRAIN_S = 60  # for what is ongoing when a server is stopped
HEALTH_PERIOD_S = 2  # within which Serve sees that a replica is dead, and starts another


def build(args: dict[str, Any]) -> Application:
    """The Serve application for `args` (see ServeArgs): a router before each encoder's replicas.

    Raises UserError for faulty args, a release that is missing or failed its gate, a policy that
    would mix spaces, and keys that cannot be read.
    """
    checked = ServeArgs.read(args)
    tracing.check()
    root = checked.root or os.environ.get("STILLROOM_ROOT", "runs")
    if not checked.releases:
        raise UserError("serve args: releases", "is empty", "Name at least one release")
    releases = _open_all(checked, root)
    options = checked.encoders()
    encoders = {
        release.model(target): (release, target)
        for release in releases.values()
        for target in release.contracts
    }
    contracts = {name: release.contracts[target] for name, (release, target) in encoders.items()}
    batch_tokens = {
        name: checked.max_batch_tokens or BATCH_TOKENS["gpu" if options[target].num_gpus else "cpu"]
        for name, (_, target) in encoders.items()
    }
    # By itself a router only waits: its share of a core is small, and a laptop's two are the
    # encoders'.
    handles, local, routers = {}, {}, ModelOptions(replicas=checked.routers, num_cpus=0)
    for name, (release, target) in encoders.items():
        option = options[target]
        arguments = _arguments(release, target, option, batch_tokens[name], checked)
        if option.in_router:
            local[name] = Local(arguments, option.max_ongoing + option.max_queued)
            routers = option
        else:
            handles[name] = _replicas(name, option, arguments, checked)
    shadows = {
        release.model("student"): _shadow(release, handles[release.model("teacher")], checked)
        for release in releases.values()
        if checked.shadow is not None and len(release.contracts) == 2
    }
    # Above what all replicas take and queue, so that the router is who says 429.
    concurrent = 100 + sum(_capacity(options[target]) for _, target in encoders.values())
    keys = Keys.read(os.environ, checked.keys_file)
    return (
        cast(Any, Router)
        .options(
            **_scaled(routers),
            max_ongoing_requests=concurrent,
            graceful_shutdown_timeout_s=checked.timeout_s,
        )
        .bind(
            _models(checked, releases, contracts),
            handles,
            local,
            {name: release for name, (release, _) in encoders.items()},
            batch_tokens,
            shadows,
            checked.shadow,
            playground(releases, keys.configured) if checked.playground else None,
            keys=keys,
            no_auth=checked.no_auth,
            limits=checked.limits,
            timeout_s=checked.timeout_s,
            cors_origins=checked.cors_origins,
            access_log=checked.access_log,
            max_concurrent=concurrent,
        )
    )


def _open_all(args: ServeArgs, root: str) -> dict[str, Release]:
    """Name → release, with the contracts of those encoders only that are to be served."""
    releases: dict[str, Release] = {}
    served = [target for target, option in args.encoders().items() if _most(option)]
    for ref in args.releases:
        release = Release.open(ref, root)
        if release.name in releases:
            raise UserError(
                "serve args: releases",
                f"two releases are named {release.name!r}",
                f"Give one another name: next={ref}",
            )
        contracts = {t: release.contracts[t] for t in served if t in release.contracts}
        if not contracts:
            raise UserError(
                "serve args", f"nothing of {release.name!r} is served", "Give an encoder replicas"
            )
        releases[release.name] = replace(release, contracts=contracts)
    if strangers := set(args.policies) - set(releases):
        raise UserError(
            f"serve args: policies.{min(strangers)}",
            "is the name of no release that is served",
            f"Use one of {', '.join(releases)}",
        )
    return releases


def _models(
    args: ServeArgs, releases: dict[str, Release], contracts: dict[str, Terms]
) -> list[Model]:
    """Every name that clients may ask for: each release's own, and its encoders'."""
    models = []
    sleepers = frozenset(
        release.model(target)
        for release in releases.values()
        for target, option in args.encoders().items()
        if option.autoscale and option.autoscale.min == 0
    )
    for name, release in releases.items():
        where = f"policies.{name}" if name in args.policies else "policy"
        asked = args.policies.get(name, args.policy)
        if asked == "auto":
            asked = auto_policy(release.contracts.get("teacher"), release.contracts.get("student"))
        rule = parse_policy(f"serve args: {where}", asked, name)
        check_policy(f"serve args: {where}", rule, contracts)
        policy = Policy(rule, args.target_latency_s, sleepers, stand_ins(rule, contracts))
        models.append(Model(name, release, policy))
        for target in release.contracts:
            model = release.model(target)
            # Who asks for one encoder gets it or none: nothing stands in.
            alone = Policy(To(model=model), args.target_latency_s, sleepers)
            models.append(Model(model, release, alone))
    return models


def _arguments(
    release: Release, target: Target, option: ModelOptions, batch_tokens: int, args: ServeArgs
) -> tuple[Any, ...]:
    """Replica's."""
    where = f"serve args: {target}.engine"
    check_engine(where, option.engine, release, target, option.num_gpus > 0)
    return release, target, option.engine, batch_tokens, args.max_wait_ms, args.trust_remote_code


def _replicas(
    name: str, option: ModelOptions, arguments: tuple[Any, ...], args: ServeArgs
) -> Application:
    return cast(
        Application,
        cast(Any, Replica)
        .options(
            name=name.replace("/", "-"),
            **_scaled(option),
            max_ongoing_requests=option.max_ongoing,
            max_queued_requests=option.max_queued,
            request_router_config=RequestRouterConfig(
                request_router_class=Watched, request_router_kwargs={"model": name}
            ),
            health_check_period_s=HEALTH_PERIOD_S,
            graceful_shutdown_timeout_s=args.timeout_s,
        )
        .bind(*arguments),
    )


def _scaled(option: ModelOptions) -> dict[str, Any]:
    """How many replicas, and what each needs, in Serve's words."""
    scale = option.autoscale
    return {
        "num_replicas": None if scale else option.replicas,
        "autoscaling_config": scale
        and AutoscalingConfig(
            min_replicas=scale.min,
            max_replicas=scale.max,
            target_ongoing_requests=scale.target_ongoing,
            upscale_delay_s=scale.up_delay_s,
            downscale_delay_s=scale.down_delay_s,
            look_back_period_s=scale.look_back_s,
            metrics_interval_s=scale.look_back_s / 4,
        ),
        "ray_actor_options": {
            "num_cpus": option.num_cpus,
            "num_gpus": option.num_gpus,
            "resources": option.resources,
            "label_selector": option.node_labels,
        },
    }


def _shadow(release: Release, teacher: Application, args: ServeArgs) -> Application:
    assert args.shadow is not None
    folder = args.shadow.folder
    return cast(
        Application,
        cast(Any, Shadow)
        .options(
            name=f"{release.name}-shadow",
            ray_actor_options={"num_cpus": 0},
            max_ongoing_requests=1,
            max_queued_requests=1,
        )
        .bind(
            teacher,
            release.contracts["teacher"],
            release.contracts["student"],
            None if folder is None else f"{folder}/{release.name}.jsonl",
            args.shadow.keep,
        ),
    )


def _most(option: ModelOptions) -> int:
    return option.autoscale.max if option.autoscale else option.replicas


def _capacity(option: ModelOptions) -> int:
    return _most(option) * option.max_ongoing + option.max_queued


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
