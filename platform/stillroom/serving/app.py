"""Arguments to application: `build` for Serve's YAML files, `serve_release` for one machine.

No `from __future__ import annotations` here: Ray Serve reads the type of `build`'s argument.
"""

import os
from dataclasses import replace
from typing import Any, cast

from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from stillroom.encoders.contract import Terms
from stillroom.errors import UserError
from stillroom.release.reader import Release, Target
from stillroom.serving.config import ModelOptions, ServeArgs
from stillroom.serving.http.auth import Keys
from stillroom.serving.playground.service import playground
from stillroom.serving.replica.engines import check_engine
from stillroom.serving.replica.in_process import Local
from stillroom.serving.replica.replica import BATCH_TOKENS, Replica
from stillroom.serving.router import Router
from stillroom.serving.routing.catalogue import Model
from stillroom.serving.routing.dispatch import Watched
from stillroom.serving.routing.policies import (
    Policy,
    To,
    auto_policy,
    check_policy,
    parse_policy,
    stand_ins,
)
from stillroom.serving.routing.shadow import Shadow
from stillroom.serving.telemetry import tracing

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
