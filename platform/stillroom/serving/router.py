"""Asks the policy, and sends a request to a replica.

No `from __future__ import annotations` here: Ray Serve reads the types of a deployment.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from stillroom.encoders.contract import Contract, Role
from stillroom.errors import UserError
from stillroom.serving.access import AccessLog
from stillroom.serving.auth import Guard, Keys
from stillroom.serving.errors import ApiError
from stillroom.serving.limits import Limits
from stillroom.serving.metrics import Metrics, Seen
from stillroom.serving.policies import ROUTES, Facts, Policy, Refuse, choose, policy_dims
from stillroom.serving.release import Release
from stillroom.serving.request import Ask, Encoded, Token, TooLarge
from stillroom.serving.routes import Door

log = logging.getLogger("ray.serve")

ATTEMPTS = 3  # a request is sent to so many replicas before the client is told to come back
RETRY_AFTER_S = 1  # a full queue moves within a second or so; a new replica needs several
RESTART_AFTER_S = 5


@dataclass(frozen=True)
class Model:
    """A name that clients may ask for, and who answers to it."""

    id: str
    release: Release
    policy: Policy


@dataclass(frozen=True)
class Answer:
    """A replica's vectors, and who made them."""

    encoded: Encoded
    model: str  # the encoder
    space: str
    release: str

    def headers(self) -> dict[str, str]:
        return {
            "x-stillroom-model": self.model,
            "x-stillroom-space": self.space,
            "x-stillroom-release": self.release,
        }


@serve.deployment
@serve.ingress()
class Router:
    """The app's ingress.

    Args:
        models: what GET /v1/models lists; the first answers where no name is given.
        handles: "NAME/teacher" or "NAME/student" → its replicas.
        keys: who may call; none configured = only this machine, unless `no_auth`.
        limits: of one request; larger ones are refused (413).
        timeout_s: a request that no replica has answered by then gets 503.
        cors_origins: whose pages may read answers in a browser.
        access_log: a file, "-" for standard output, None for nowhere.
        max_concurrent, max_batch_tokens: what GET /info tells.
    """

    def __init__(
        self,
        models: list[Model],
        handles: dict[str, DeploymentHandle],
        *,
        keys: Keys,
        no_auth: bool,
        limits: Limits,
        timeout_s: float,
        cors_origins: tuple[str, ...],
        access_log: str | None,
        max_concurrent: int,
        max_batch_tokens: int,
    ):
        self.models = {model.id: model for model in models}
        self.default = models[0].id
        self.handles = handles
        self.limits, self.timeout_s = limits, timeout_s
        self.metrics = Metrics()
        self.http = Door(
            self,
            Guard(keys),
            self.metrics,
            AccessLog(access_log),
            no_auth=no_auth,
            limits=limits,
            max_concurrent=max_concurrent,
            max_batch_tokens=max_batch_tokens,
        ).app(cors_origins)

    def __serve_build_asgi_app__(self) -> Starlette:
        return self.http

    def find(self, name: str) -> Model:
        """Raises ApiError (404) for a name that is not served."""
        if name not in self.models:
            message = f"model {name!r} is not served; served are {', '.join(self.models)}"
            raise ApiError(404, message, "model", "model_not_found")
        return self.models[name]

    def behind(self, model: Model) -> list[Contract]:
        """The contracts of the encoders that may answer to a name, the documents' first."""
        targets = dict.fromkeys(ROUTES[model.policy][role] for role in ("passage", "query"))
        return [model.release.contracts[target] for target in targets]

    def describe(self, model: Model) -> dict[str, Any]:
        """A model as GET /v1/models shows it; of two encoders, what holds for both."""
        behind = self.behind(model)
        return {
            "id": model.id,
            "object": "model",
            "owned_by": "stillroom",
            "created": model.release.created,
            "release": model.release.ref,
            "policy": model.policy,
            "space": behind[0].space,
            "dims": policy_dims(model.policy, model.release.contracts),
            "max_tokens": min(contract.max_tokens for contract in behind),
        }

    def health(self) -> dict[str, Any]:
        return {"status": "ok"}

    async def embed(self, asked: Ask, seen: Seen) -> Answer:
        model = self.find(asked.model)
        seen.policy = model.policy
        release = model.release
        decision = choose(model.policy, Facts(asked.role, asked.dimensions), release.contracts)
        if isinstance(decision, Refuse):
            raise ApiError(decision.status, decision.message, decision.param, "invalid_value")
        seen.model = release.model(decision.target)
        started = time.perf_counter()
        encoded = await self.send(
            self.handles[seen.model].encode, asked.work(decision.dims, self.limits.tokens)
        )
        seen.encoded(encoded, time.perf_counter() - started)
        space = release.contracts[decision.target].space
        return Answer(encoded, seen.model, space, release.ref)

    async def pieces(
        self, name: str, texts: list[str], role: Role | None, special: bool
    ) -> list[list[Token]]:
        """Texts as the tokens of the model that answers in a role."""
        return await self.send(self._tokenizer(name, role).pieces, texts, role, special)

    async def decode(self, name: str, ids: list[list[int]], skip_special: bool) -> list[str]:
        """Texts of the token ids of the model that answers for documents."""
        return await self.send(self._tokenizer(name, None).decode, ids, skip_special)

    def _tokenizer(self, name: str, role: Role | None) -> DeploymentHandle:
        model = self.find(name)
        target = ROUTES[model.policy][role or "passage"]
        return self.handles[model.release.model(target)]

    async def send(self, ask: DeploymentHandle, *args: Any) -> Any:
        """Have one of the replicas answer a method's call; another if that one dies.

        Nothing that they do changes anything, so sending twice is safe. Raises ApiError: 400 for
        input that the model refuses, 413 for too much of it, 429 when the queue is full, 503
        when no replica answered.
        """
        deadline = time.monotonic() + self.timeout_s
        for attempt in range(1, ATTEMPTS + 1):
            response = ask.remote(*args)
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
                break
            except (RayActorError, RayServeException) as error:
                log.warning("attempt %d of %d: %s", attempt, ATTEMPTS, error)
        raise ApiError(
            503,
            "no replica could answer; try again later",
            code="overloaded",
            retry_after_s=RESTART_AFTER_S,
        )
