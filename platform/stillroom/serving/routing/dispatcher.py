"""Sends requests to the encoders' replicas: applies the policy, retries, falls back.

No `from __future__ import annotations` here: Ray Serve reads the types of a deployment.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentHandle

from stillroom.encoders.usable_vectors import BrokenModelError, UnusableVectorError
from stillroom.errors import UserError
from stillroom.release.reader import Release
from stillroom.serving.errors import RESTART_RETRY_S, ErrorKind, ServingError, TooManyTokens
from stillroom.serving.messages import EmbedRequest, EncodeJob, EncodeResult, EncoderLoad
from stillroom.serving.replica.in_process import LocalHandle
from stillroom.serving.routing.observed_replicas import ObservedReplicas
from stillroom.serving.routing.policies import (
    Policy,
    Refuse,
    Send,
    choose_encoder,
    not_running_reason,
    running_fallback,
)
from stillroom.serving.routing.rules import CHARACTERS_PER_TOKEN, RequestFeatures
from stillroom.serving.routing.served_model import ServedModel
from stillroom.serving.routing.shadow import ShadowSampler
from stillroom.serving.routing.wait_estimator import WaitEstimator

log = logging.getLogger("ray.serve")
MAX_ATTEMPTS = 3  # replicas that a request is sent to before the client is asked to retry
QUEUE_FULL_RETRY_S = 1  # a full queue moves within a second or so
FALLBACK_POLL_S = 0.25  # how often a waiting request checks whether its encoder is lost


class NoReplicaAnswered(ServingError):
    """Every replica that was tried died, was taken out of service or has broken weights, before the
    timeout."""


class Dispatcher:
    """One router process's view of the encoders; sends requests to them.

    Args:
        handles: encoder (NAME/teacher or NAME/student) → its replicas.
        releases: encoder → its release.
        batch_tokens: encoder → tokens that fill one of its forwards.
        timeout_s: a request that no replica has answered by then fails (unavailable).
        samplers: student → compares a sample of its answers with its teacher's.
    """

    def __init__(
        self,
        handles: Mapping[str, DeploymentHandle | LocalHandle],
        releases: Mapping[str, Release],
        batch_tokens: Mapping[str, int],
        timeout_s: float,
        samplers: Mapping[str, ShadowSampler] | None = None,
    ):
        # `options` makes each handle watch its replicas from now on, not from the first request.
        self.handles = {name: handle.options() for name, handle in handles.items()}
        self.contracts = {name: releases[name].contract(name) for name in handles}
        self.timeout_s = timeout_s
        self.samplers = dict(samplers or {})
        self.wait_estimators = {
            name: WaitEstimator(CHARACTERS_PER_TOKEN * batch_tokens[name]) for name in handles
        }
        self.starting: dict[str, asyncio.Task[None]] = {}
        self.idle = asyncio.Event()  # no request is ongoing
        self.idle.set()

    def loads(self) -> dict[str, EncoderLoad]:
        """Each encoder's load now."""
        now = time.monotonic()
        return {name: self._load(name, now) for name in self.handles}

    def _load(self, name: str, now: float) -> EncoderLoad:
        estimator = self.wait_estimators[name]
        observed = ObservedReplicas.by_encoder.get(name)  # from the handle's first request on
        had_replicas = self.handles[name].running_replicas_populated()
        ready = observed.ready() if observed else int(had_replicas)
        # Serve's queue lengths lag by a turn of its loop, which is when a burst arrives. Our own
        # count does not lag, but covers this router's requests only.
        ongoing = max(estimator.ongoing, observed.ongoing() if observed else 0)
        return EncoderLoad(
            ready=ready,
            lost=had_replicas and not ready,
            ongoing=ongoing,
            wait_s=estimator.wait_s(now),
        )

    def decide(self, model: ServedModel, request: RequestFeatures) -> Send:
        """Choose the encoder that answers, and start its replicas if it has none.

        Raises:
            ServingError: invalid, overloaded or unavailable, with the policy's message.
        """
        decision = choose_encoder(model.policy, request, self.loads(), self.contracts)
        if decision.wake is not None:
            self.wake(decision.wake)
        if isinstance(decision, Refuse):
            raise ServingError(
                decision.kind,
                decision.message,
                decision.param,
                retry_after_s=decision.retry_after_s,
            )
        return decision

    def wake(self, name: str) -> None:
        """Make Serve start a replica: it does so when a request waits for one."""
        if name not in self.starting:
            self.starting[name] = asyncio.create_task(self._wake(name))

    async def _wake(self, name: str) -> None:
        try:
            await self.handles[name].check_health.remote()
        except (RayActorError, RayServeException) as error:
            log.warning("%s did not start: %s", name, error)
        finally:
            del self.starting[name]

    async def encode_with_fallback(
        self, policy: Policy, decision: Send, job: EncodeJob
    ) -> tuple[Send, EncodeResult]:
        """Encode as decided. If the encoder has lost its last replica, its fallback encodes, also
        the requests that waited for it.

        Returns:
            The decision that was carried out, and the result.

        Raises:
            ServingError: see `encode`.
        """
        if decision.model not in policy.fallbacks:
            return decision, await self.encode(decision.model, job)
        attempt = asyncio.create_task(self.encode(decision.model, job))
        try:
            fallback = await self._fallback_if_lost(attempt, policy, decision)
        finally:
            attempt.cancel()  # no effect if it has ended
        if fallback is None:
            return decision, attempt.result()
        reason = not_running_reason(decision.model)
        decision = replace(decision, model=fallback, reason=reason)
        return decision, await self.encode(fallback, job)

    async def _fallback_if_lost(
        self, attempt: "asyncio.Task[EncodeResult]", policy: Policy, decision: Send
    ) -> str | None:
        """Wait until the attempt ends or its encoder is lost; the fallback to try instead."""
        model, dims = decision.model, decision.dims
        while not (await asyncio.wait({attempt}, timeout=FALLBACK_POLL_S))[0]:
            if other := running_fallback(policy, model, dims, self.loads(), self.contracts):
                return other
        if not isinstance(attempt.exception(), NoReplicaAnswered):
            return None
        loads = self.loads()
        loads[model] = replace(loads[model], lost=True)  # Serve may not have reported it yet
        return running_fallback(policy, model, dims, loads, self.contracts)

    async def encode(self, name: str, job: EncodeJob) -> EncodeResult:
        """Run a job on one of an encoder's replicas; on another one if that dies.

        Encoding changes no state, so sending a job twice is safe.

        Raises:
            ServingError: invalid for input that the model refuses, too large for too many tokens,
                overloaded when the queue is full, unavailable when no replica answered, internal
                for a text without a usable vector and for broken weights.
        """
        estimator, completed = self.wait_estimators[name], False
        cost = estimated_cost(job.request, self.contracts[name].max_tokens)
        running = estimator.start(cost, time.monotonic())
        self.idle.clear()
        try:
            result: EncodeResult = await self.call_replica(name, "encode", job)
            completed = True
        finally:
            estimator.finish(running, time.monotonic(), completed=completed)
            if not any(estimator.ongoing for estimator in self.wait_estimators.values()):
                self.idle.set()
        if sampler := self.samplers.get(name):
            sampler.maybe_compare(job, result.vectors, self.loads()[sampler.teacher])
        return result

    async def call_replica(self, name: str, method: str, *args: Any) -> Any:
        """Call a method of one of an encoder's replicas; raises as `encode` does."""
        deadline = time.monotonic() + self.timeout_s
        unanswered = _unanswered(NoReplicaAnswered)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            response: Any = getattr(self.handles[name], method).remote(*args)
            try:
                return await asyncio.wait_for(response, deadline - time.monotonic())
            except BackPressureError as error:
                message = "the model's queue is full; try again later"
                raise ServingError(
                    ErrorKind.OVERLOADED, message, retry_after_s=QUEUE_FULL_RETRY_S
                ) from error
            except BrokenModelError as error:  # another replica's weights may be whole
                log.error("attempt %d of %d: %s", attempt, MAX_ATTEMPTS, error)
                unanswered = NoReplicaAnswered(ErrorKind.INTERNAL, str(_cause(error)))
            except UserError as error:
                raise _refused_input(error) from error
            except TimeoutError:
                response.cancel()
                raise _unanswered(ServingError) from None
            except asyncio.CancelledError:
                response.cancel()  # the client disconnected
                raise
            except RequestCancelledError:  # the same, as Serve tells it
                raise
            except (RayActorError, RayServeException) as error:
                log.warning("attempt %d of %d: %s", attempt, MAX_ATTEMPTS, error)
        raise unanswered


def _refused_input(error: UserError) -> ServingError:
    """A replica's refusal of a request's input."""
    cause = _cause(error)
    kind = ErrorKind.TOO_LARGE if isinstance(cause, TooManyTokens) else ErrorKind.INVALID
    if isinstance(cause, UnusableVectorError):
        kind = ErrorKind.INTERNAL
    return ServingError(kind, str(cause), "input")


def _cause(error: UserError) -> Exception:
    """What a replica raised, which Ray wraps."""
    cause: Exception = getattr(error, "cause", error)
    return cause


def _unanswered(error_type: type[ServingError]) -> ServingError:
    message = "no replica could answer; try again later"
    return error_type(ErrorKind.UNAVAILABLE, message, retry_after_s=RESTART_RETRY_S)


def estimated_cost(request: EmbedRequest, max_tokens: int) -> int:
    """Cost of encoding a request, in characters; plus one per text, since even an empty text costs
    something. Of each text only what the model takes counts.
    """
    most = CHARACTERS_PER_TOKEN * max_tokens
    if request.token_ids is not None:
        lengths = (CHARACTERS_PER_TOKEN * len(ids) for ids in request.token_ids)
    else:
        lengths = (len(text) for text in request.texts)
    return sum(1 + min(length, most) for length in lengths)
