"""`build` makes a Ray Serve application from a YAML's `args`: a router, and replicas of each
encoder.

No `from __future__ import annotations` here: Ray Serve reads the type of `build`'s argument.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from stillroom.encoders.contract import BaseContract
from stillroom.errors import UserError
from stillroom.release.reader import Release, Target
from stillroom.serving.config import EncoderOptions, ServeArgs
from stillroom.serving.http.api_keys import ApiKeys
from stillroom.serving.http.body import MAX_READERS
from stillroom.serving.http.server import HttpSettings
from stillroom.serving.playground.service import build_playground
from stillroom.serving.replica.engine_choice import check_engine
from stillroom.serving.replica.in_process import InProcessReplica
from stillroom.serving.replica.replica import DEFAULT_BATCH_TOKENS, Replica
from stillroom.serving.router import Router, ServedEncoder
from stillroom.serving.routing.policies import Policy, auto_policy, check_policy, find_fallbacks
from stillroom.serving.routing.request_router import ObservedRequestRouter
from stillroom.serving.routing.rules import SingleEncoder, parse_policy
from stillroom.serving.routing.served_model import ServedModel
from stillroom.serving.routing.shadow import Shadow
from stillroom.serving.telemetry import tracing
from stillroom.storage.root import default_root

HEALTH_PERIOD_S = 2  # within which Serve notices a dead replica, and starts another

# Requests that a router accepts beyond the capacity of all replicas, so that the router answers 429
# with Retry-After before Serve's proxy refuses requests.
SPARE_REQUESTS = 100


def build(args: dict[str, Any]) -> Application:
    """The Serve application for `args` (see ServeArgs).

    Raises:
        UserError: for faulty args, a release that is missing or failed its gate, a model that is
            missing or cannot encode, a policy that would mix spaces, and keys that cannot be read.
    """
    checked = ServeArgs.read(args)
    return application(checked, open_releases(checked))


def application(checked: ServeArgs, releases: Mapping[str, Release]) -> Application:
    """The Serve application for releases and models that are open; raises as `build` does.

    Args:
        releases: from `open_releases`.
    """
    tracing.check_exporter()
    encoders = _served_encoders(checked, releases)
    concurrent = SPARE_REQUESTS + sum(
        _options(checked, release, target).capacity
        for release in releases.values()
        for target in release.contracts
    )
    http = HttpSettings(
        keys=ApiKeys.read(os.environ, checked.keys_file),
        no_auth=checked.no_auth,
        limits=checked.limits,
        cors_origins=checked.cors_origins,
        access_log=checked.access_log,
        max_concurrent=concurrent,
        max_batch_tokens=min(encoder.batch_tokens for encoder in encoders.values()),
    )
    return (
        cast(Any, Router)
        .options(
            **_scaling(_router_options(checked)),
            # Those whose bodies are still arriving do not take the others' places.
            max_ongoing_requests=concurrent + MAX_READERS,
            graceful_shutdown_timeout_s=checked.timeout_s,
        )
        .bind(
            served_models(checked, releases),
            encoders,
            checked.shadow,
            build_playground(releases, http.keys.configured) if checked.playground else None,
            http,
            checked.timeout_s,
        )
    )


def open_releases(args: ServeArgs) -> dict[str, Release]:
    """Name → release or model, with the contracts of the encoders that are to be served only.

    Raises:
        UserError: for one that is missing or cannot be served, and for a name given twice.
    """
    root = args.root or default_root()
    releases: dict[str, Release] = {}
    opened = [Release.open(ref, root) for ref in args.releases]
    for release in [*opened, *_models(args, root)]:
        if release.name in releases:
            raise UserError(
                "serve args: releases",
                f"two releases or models are named {release.name!r}",
                f"Give one another name: next={release.ref}",
            )
        contracts = {
            target: contract
            for target, contract in release.contracts.items()
            if _options(args, release, target).max_replicas
        }
        if not contracts:
            raise UserError(
                "serve args",
                f"no encoder of {release.name!r} is served",
                "Give an encoder replicas",
            )
        releases[release.name] = replace(release, contracts=contracts)
    with_policy = [name for name in releases if name not in args.models]
    if unknown := set(args.policies) - set(with_policy):
        raise UserError(
            f"serve args: policies.{min(unknown)}",
            "is not the name of a release that is served",
            f"Use one of {', '.join(with_policy)}",
        )
    return releases


def _models(args: ServeArgs, root: str) -> Iterator[Release]:
    if not args.models:
        return
    from stillroom.release.open_model import open_single_model  # needs torch

    for name, options in args.models.items():
        yield open_single_model(
            name,
            options.model,
            root,
            pooling=options.pooling,
            trust_remote_code=args.trust_remote_code,
        )


def _options(args: ServeArgs, release: Release, target: Target) -> EncoderOptions:
    """How an encoder runs."""
    return args.sections()[args.section(release.name, target)]


def _router_options(args: ServeArgs) -> EncoderOptions:
    """Serve options of the routers: those of the encoder inside them, if any.

    A router without an encoder mostly waits: its share of a core is small, since the encoders need
    a laptop's two cores.
    """
    in_router = [options for options in args.sections().values() if options.in_router]
    if in_router:
        return in_router[0]
    return EncoderOptions(replicas=args.routers, num_cpus=0, node_labels=args.router_node_labels)


def _served_encoders(args: ServeArgs, releases: Mapping[str, Release]) -> dict[str, ServedEncoder]:
    """NAME/teacher and NAME/student of every release, those that are served."""
    encoders = {}
    for release in releases.values():
        for target in release.contracts:
            encoders[release.encoder_name(target)] = _served_encoder(args, release, target)
        if args.shadow is not None and len(release.contracts) == 2:
            teacher = encoders[release.encoder_name("teacher")].replicas
            assert teacher is not None  # args with a shadow and the teacher in_router are refused
            student = release.encoder_name("student")
            encoders[student] = replace(
                encoders[student], shadow=_shadow_deployment(release, teacher, args)
            )
    return encoders


def _served_encoder(args: ServeArgs, release: Release, target: Target) -> ServedEncoder:
    name, options = release.encoder_name(target), _options(args, release, target)
    gpu = options.num_gpus > 0
    where = f"serve args: {args.section(release.name, target)}.engine"
    check_engine(where, options.engine, release, target, gpu)
    batch_tokens = args.max_batch_tokens or DEFAULT_BATCH_TOKENS["gpu" if gpu else "cpu"]
    arguments = (
        release,
        target,
        options.engine,
        batch_tokens,
        args.batch_wait_ms,
        args.trust_remote_code,
    )
    if options.in_router:
        in_process = InProcessReplica(
            arguments, options.max_ongoing_requests + options.max_queued_requests
        )
        return ServedEncoder(release, batch_tokens, in_process=in_process)
    replicas = _replica_deployment(name, options, arguments, args)
    return ServedEncoder(release, batch_tokens, replicas)


def served_models(args: ServeArgs, releases: Mapping[str, Release]) -> list[ServedModel]:
    """Every name that clients may request: each release's name, and its encoders' names."""
    contracts = {
        release.encoder_name(target): contract
        for release in releases.values()
        for target, contract in release.contracts.items()
    }
    scaled_to_zero = frozenset(
        release.encoder_name(target)
        for release in releases.values()
        for target in release.contracts
        if _options(args, release, target).min_replicas == 0
    )
    models = []
    for release in releases.values():
        policy = _release_policy(args, release, contracts, scaled_to_zero)
        models.append(ServedModel(release.name, release, policy))
        for target in release.contracts:
            encoder = release.encoder_name(target)
            if encoder == release.name:  # a single model, which `policy` names already
                continue
            # A request for one encoder is never answered by another: no fallbacks.
            policy = Policy(SingleEncoder(model=encoder), args.target_latency_s, scaled_to_zero)
            models.append(ServedModel(encoder, release, policy))
    names = [model.id for model in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"serve args: models.{twice[0]}",
            "is also the name of a release's encoder",
            "Give the model another name",
        )
    return models


def _release_policy(
    args: ServeArgs,
    release: Release,
    contracts: Mapping[str, BaseContract],
    scaled_to_zero: frozenset[str],
) -> Policy:
    """The policy for a release's bare name. Raises UserError if it would mix spaces."""
    name = release.name
    if "model" in release.contracts:
        return Policy(SingleEncoder(model=name), args.target_latency_s, scaled_to_zero)
    where = f"serve args: policies.{name}" if name in args.policies else "serve args: policy"
    value = args.policies.get(name, args.policy)
    if value == "auto":
        value = auto_policy(release.contracts.get("teacher"), release.contracts.get("student"))
    rule = parse_policy(where, value, name)
    check_policy(where, rule, contracts)
    return Policy(rule, args.target_latency_s, scaled_to_zero, find_fallbacks(rule, contracts))


def _replica_deployment(
    name: str, options: EncoderOptions, arguments: tuple[Any, ...], args: ServeArgs
) -> DeploymentHandle:
    """An encoder's deployment; the router gets a handle in its place."""
    deployment = (
        cast(Any, Replica)
        .options(
            name=re.sub(r"[^\w.-]", "-", name),
            **_scaling(options),
            max_ongoing_requests=options.max_ongoing_requests,
            max_queued_requests=options.max_queued_requests,
            request_router_config=RequestRouterConfig(
                request_router_class=ObservedRequestRouter, request_router_kwargs={"model": name}
            ),
            health_check_period_s=HEALTH_PERIOD_S,
            graceful_shutdown_timeout_s=args.timeout_s,
        )
        .bind(*arguments)
    )
    return cast(DeploymentHandle, deployment)


def _scaling(options: EncoderOptions) -> dict[str, Any]:
    """How many replicas, and what each needs, as Serve's deployment options."""
    autoscale = options.autoscale
    return {
        "num_replicas": None if autoscale else options.replicas,
        "autoscaling_config": autoscale
        and AutoscalingConfig(
            min_replicas=autoscale.min_replicas,
            max_replicas=autoscale.max_replicas,
            target_ongoing_requests=autoscale.target_ongoing_requests,
            upscale_delay_s=autoscale.upscale_delay_s,
            downscale_delay_s=autoscale.downscale_delay_s,
            look_back_period_s=autoscale.look_back_period_s,
            metrics_interval_s=autoscale.look_back_period_s / 4,
        ),
        "ray_actor_options": {
            "num_cpus": options.num_cpus,
            "num_gpus": options.num_gpus,
            "resources": options.resources,
            "label_selector": options.node_labels,
        },
    }


def _shadow_deployment(
    release: Release, teacher: DeploymentHandle, args: ServeArgs
) -> DeploymentHandle:
    """The deployment that compares a release's student with its teacher."""
    assert args.shadow is not None
    folder = args.shadow.folder
    deployment = (
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
            args.shadow.max_texts,
        )
    )
    return cast(DeploymentHandle, deployment)
