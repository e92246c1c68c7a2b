"""From a checked request to an encoder's answer: asks the policy, sends, tries again.

No `from __future__ import annotations` here: Ray Serve reads the types of a deployment.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray.exceptions import RayActorError
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from stillroom.errors import UserError
from stillroom.release.reader import Release
from stillroom.serving.errors import ApiError
from stillroom.serving.messages import RESTART_AFTER_S, Encoded, Load, TooLarge, Work
from stillroom.serving.routing.catalogue import Model
from stillroom.serving.routing.handles import LocalHandle
from stillroom.serving.routing.load import Meter, Replicas
from stillroom.serving.routing.policies import (
    CHARACTERS,
    Facts,
    Policy,
    Refuse,
    Send,
    absent,
    choose,
    stand_in,
)
from stillroom.serving.routing.shadow import Sampler

log = logging.getLogger("ray.serve")

ATTEMPTS = 3  # a request is sent to so many replicas before the client is told to come back

RETRY_AFTER_S = 1  # a full queue moves within a second or so

LOST_S = 0.25  # how often a request that waits looks whether its encoder is lost


class NoReplica(ApiError):
    """Those that were asked died or were taken out of service, and there was time left."""


class Watched(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc]
    """Serve's own choice among replicas, which lets us read what Serve keeps for it.

    Serve gives a handle's user neither the number of running replicas nor their queues, but its
    public `request_router_config` lets us name the class that holds both.
    """

    def initialize_state(self, model: str) -> None:
        # Serve rebuilds this class from its source, but what it names in other modules is theirs.
        Replicas.here[model] = Replicas(self)


class Dispatcher:
    """What one router process knows of the encoders, and its way to them.

    Args:
        handles: encoder (NAME/teacher or NAME/student) → its replicas.
        releases: encoder → the release that it is of.
        batch_tokens: encoder → what fills one of its forwards.
        timeout_s: a request that no replica has answered by then gets 503.
        samplers: student → who compares its answers with its teacher's.
    """

    def __init__(
        self,
        handles: Mapping[str, DeploymentHandle | LocalHandle],
        releases: Mapping[str, Release],
        batch_tokens: Mapping[str, int],
        timeout_s: float,
        samplers: Mapping[str, Sampler] | None = None,
    ):
        # `options` has each handle begin to watch its replicas now, not at the first request.
        self.handles = {name: handle.options() for name, handle in handles.items()}
        self.contracts = {name: releases[name].contract(name) for name in handles}
        self.timeout_s = timeout_s
        self.samplers = dict(samplers or {})
        self.meters = {name: Meter(CHARACTERS * batch_tokens[name]) for name in handles}
        self.waking: dict[str, asyncio.Task[None]] = {}
        self.resting = asyncio.Event()  # nothing is ongoing
        self.resting.set()

    def load(self) -> dict[str, Load]:
        now = time.monotonic()
        return {name: self._load(name, meter, now) for name, meter in self.meters.items()}

    def _load(self, name: str, meter: Meter, now: float) -> Load:
        # Serve's queues lag by a turn of its loop, which is when a burst comes; our own count
        # does not, but knows this router's requests only.
        known = Replicas.here.get(name)  # from a handle's first request on
        had = self.handles[name].running_replicas_populated()  # some, at some time
        ready = known.ready() if known else int(had)
        return Load(
            ready=ready,
            lost=had and not ready,
            ongoing=max(meter.ongoing, known.ongoing() if known else 0),
            wait_s=meter.wait_s(now),
        )

    def decide(self, model: Model, request: Facts) -> Send:
        """Who answers. Raises ApiError: 400, 429 or 503, with the policy's reason."""
        decision = choose(model.policy, request, self.load(), self.contracts)
        if decision.wake is not None:
            self.wake(decision.wake)
        if isinstance(decision, Refuse):
            code = {429: "rate_limit_exceeded", 503: "overloaded"}
            raise ApiError(
                decision.status,
                decision.message,
                decision.param,
                code.get(decision.status, "invalid_value"),
                retry_after_s=decision.retry_after_s,
            )
        return decision

    def wake(self, name: str) -> None:
        """Have Serve start a replica: it does when one request waits for it."""
        if name not in self.waking:
            self.waking[name] = asyncio.create_task(self._wake(name))

    async def _wake(self, name: str) -> None:
        try:
            await self.handles[name].check_health.remote()
        except (RayActorError, RayServeException) as error:
            log.warning("%s did not start: %s", name, error)
        finally:
            del self.waking[name]

    async def answer(self, policy: Policy, decision: Send, work: Work) -> tuple[Send, Encoded]:
        """`send`, and whom it was sent to: another that may stand in answers what an encoder had,
        or what waited for it, when its last replica died or was taken out of service."""
        wanted = decision.model
        if wanted not in policy.stand_ins:
            return decision, await self.send(wanted, work)
        sent, other = asyncio.create_task(self.send(wanted, work)), None
        try:
            while other is None and not (await asyncio.wait({sent}, timeout=LOST_S))[0]:
                other = stand_in(policy, wanted, work.dims, self.load(), self.contracts)
            if other is None:
                return decision, sent.result()
        except NoReplica:
            load = self.load()
            load[wanted] = replace(load[wanted], lost=True)  # whatever Serve has told us so far
            other = stand_in(policy, wanted, work.dims, load, self.contracts)
            if other is None:
                raise
        finally:
            sent.cancel()
        return replace(decision, model=other, why=absent(wanted)), await self.send(other, work)

    async def send(self, name: str, work: Work) -> Encoded:
        """Have one of an encoder's replicas do `work`; another if that one dies.

        Encoding changes nothing, so sending twice is safe. Raises ApiError: 400 for input that
        the model refuses, 413 for too much of it, 429 when the queue is full, 503 when no replica
        answered.
        """
        meter, done = self.meters[name], False
        begun = meter.begin(_cost(work), time.monotonic())
        self.resting.clear()
        try:
            encoded: Encoded = await self.ask(name, "encode", work)
            done = True
        finally:
            meter.end(begun, time.monotonic(), done=done)
            if not any(meter.ongoing for meter in self.meters.values()):
                self.resting.set()
        if sampler := self.samplers.get(name):
            sampler.offer(work, encoded.vectors, self.load()[sampler.teacher])
        return encoded

    async def ask(self, name: str, method: str, *args: Any) -> Any:
        """Have one of an encoder's replicas answer a method's call; see `send`."""
        deadline = time.monotonic() + self.timeout_s
        for attempt in range(1, ATTEMPTS + 1):
            response: Any = getattr(self.handles[name], method).remote(*args)
            try:
                return await asyncio.wait_for(response, deadline - time.monotonic())
            except BackPressureError as error:
                message = "the model's queue is full; try again later"
                raise ApiError(
                    429, message, code="rate_limit_exceeded", retry_after_s=RETRY_AFTER_S
                ) from error
            except UserError as error:
                fault = getattr(error, "cause", error)  # Ray wraps what a replica raised
                large = isinstance(fault, TooLarge)
                status, code = (413, "request_too_large") if large else (400, "invalid_value")
                raise ApiError(status, str(fault), "input", code) from error
            except TimeoutError:
                response.cancel()
                raise _unanswered(ApiError) from None
            except asyncio.CancelledError:
                response.cancel()  # the client has left
                raise
            except (RayActorError, RayServeException) as error:
                log.warning("attempt %d of %d: %s", attempt, ATTEMPTS, error)
        raise _unanswered(NoReplica)


def _unanswered(kind: type[ApiError]) -> ApiError:
    message = "no replica could answer; try again later"
    return kind(503, message, code="overloaded", retry_after_s=RESTART_AFTER_S)


def _cost(work: Work) -> int:
    """Characters, or what they would be; one more for each text, which is never free."""
    if work.token_ids is not None:
        return sum(1 + CHARACTERS * len(ids) for ids in work.token_ids)
    return sum(1 + len(text) for text in work.texts)
