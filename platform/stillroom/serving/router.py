"""HTTP in, HTTP out: checks a request, asks the policy, sends it to a replica.

No `from __future__ import annotations` here: Ray Serve reads the types of a deployment.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from stillroom.errors import UserError
from stillroom.serving.auth import Keys, is_loopback
from stillroom.serving.metrics import CONTENT_TYPE_LATEST, Metrics
from stillroom.serving.openai import ROLES, ApiError, EmbeddingRequest, embeddings_body, parse
from stillroom.serving.playground import Playground, routes
from stillroom.serving.policies import ROUTES, Facts, Policy, Refuse, choose, policy_dims
from stillroom.serving.release import Release
from stillroom.serving.request import Encoded, Work

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


@dataclass
class Seen:
    """What is known of a request when it is counted; "none" until a name is found to be ours."""

    model: str = "none"
    policy: str = "none"


http = FastAPI(title="stillroom", docs_url=None, redoc_url=None)
http.include_router(routes)


@http.exception_handler(HTTPException)
async def unknown_route(request: Request, error: HTTPException) -> Response:
    """Starlette's 404 and 405 in OpenAI's words."""
    message = f"{request.method} {request.url.path}: {error.detail}"
    return answer_error(ApiError(error.status_code, message, code="unknown_url"))


def answer_error(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers())


# `ingress` copies the class with the names that it uses, as they are at that moment: what it
# calls must stand above it.


def describe(model: Model) -> dict[str, Any]:
    """A model as GET /v1/models shows it; of two encoders, what holds for both."""
    contracts = model.release.contracts
    behind = [contracts[target] for target in set(ROUTES[model.policy].values())]
    return {
        "id": model.id,
        "object": "model",
        "owned_by": "stillroom",
        "created": model.release.created,
        "release": model.release.ref,
        "policy": model.policy,
        "space": behind[0].space,
        "dims": policy_dims(model.policy, contracts),
        "max_tokens": min(contract.max_tokens for contract in behind),
    }


async def read(request: Request, limit: int) -> bytes:
    """The body. Raises ApiError (413) as soon as it is known to be over `limit` bytes."""
    too_large = ApiError(413, f"the body is over {limit} bytes; send several requests")
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


@serve.deployment
@serve.ingress(http)
class Router:
    """The app's ingress.

    Args:
        models: what GET /v1/models lists.
        handles: "NAME/teacher" or "NAME/student" → its replicas.
        keys: who may call; empty = only this machine, unless `no_auth`.
        max_body_bytes: larger bodies are refused (413) before they are read to the end.
        timeout_s: a request that no replica has answered by then gets 503.
        playground: what GET / shows; None = nothing.
    """

    def __init__(
        self,
        models: list[Model],
        handles: dict[str, DeploymentHandle],
        keys: Keys,
        no_auth: bool,
        max_body_bytes: int,
        timeout_s: float,
        playground: Playground | None = None,
    ):
        self.models = {model.id: model for model in models}
        self.handles = handles
        self.keys, self.no_auth = keys, no_auth
        self.max_body_bytes, self.timeout_s = max_body_bytes, timeout_s
        self.playground = playground
        self.metrics = Metrics()

    @http.post(
        "/v1/embeddings",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": EmbeddingRequest.model_json_schema()}},
            }
        },
    )
    async def embeddings(self, request: Request) -> Response:
        return await self.counted(request, self.embed)

    @http.get("/v1/models")
    async def list_models(self, request: Request) -> Response:
        return await self.counted(request, self.describe_models)

    @http.get("/metrics")
    async def prometheus(self, request: Request) -> Response:
        return await self.counted(request, self.render_metrics)

    @http.get("/healthz")
    async def healthz(self) -> Response:
        return JSONResponse({"status": "ok"})

    async def counted(
        self, request: Request, work: Callable[[Request, str, Seen], Awaitable[Response]]
    ) -> Response:
        """Let `work` answer a client that may call, turn what it raises into an answer, count."""
        started, seen = time.perf_counter(), Seen()
        try:
            response = await work(request, self.client(request), seen)
        except ApiError as error:
            response = answer_error(error)
        except Exception:
            log.exception("unexpected fault")  # the client is told nothing of our insides
            response = answer_error(ApiError(500, "internal error; see the server's log"))
        self.metrics.answered(
            request.url.path,
            seen.model,
            seen.policy,
            response.status_code,
            time.perf_counter() - started,
        )
        return response

    def client(self, request: Request) -> str:
        """The caller's name for the metrics. Raises ApiError (401) for one who may not call."""
        if not self.keys.digests:
            if self.no_auth or (request.client and is_loopback(request.client.host)):
                return "anonymous"
            message = "no API key is configured, so only the server's own machine may call"
            raise ApiError(401, message, code="invalid_api_key")
        owner = self.keys.owner(request.headers.get("authorization"))
        if owner is None:
            message = "missing or wrong API key; send Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key")
        return owner

    async def embed(self, request: Request, client: str, seen: Seen) -> Response:
        body = await read(request, self.max_body_bytes)
        asked = parse(body)
        model = self.models.get(asked.model)
        if model is None:
            message = f"model {asked.model!r} is not served; served are {', '.join(self.models)}"
            raise ApiError(404, message, "model", "model_not_found")
        seen.policy = model.policy
        release, role = model.release, ROLES[asked.input_type]
        decision = choose(model.policy, Facts(role, asked.dimensions), release.contracts)
        if isinstance(decision, Refuse):
            raise ApiError(decision.status, decision.message, decision.param, "invalid_value")
        seen.model = release.model(decision.target)
        encoded = await self.send(
            self.handles[seen.model],
            Work(asked.texts(), asked.token_ids(), role, decision.dims, asked.instruction),
        )
        self.metrics.encoded(seen.model, client, len(encoded.vectors), encoded.tokens)
        return Response(
            embeddings_body(
                encoded.vectors,
                encoded.tokens,
                model=seen.model,
                encoding=asked.encoding_format,
            ),
            media_type="application/json",
            headers={
                "x-stillroom-model": seen.model,
                "x-stillroom-space": release.contracts[decision.target].space,
                "x-stillroom-release": release.ref,
            },
        )

    async def send(self, handle: DeploymentHandle, work: Work) -> Encoded:
        """Have one of the replicas encode `work`; another if that one dies.

        Encoding changes nothing, so sending twice is safe. Raises ApiError: 400 for input that
        the model refuses, 429 when the queue is full, 503 when no replica answered.
        """
        deadline = time.monotonic() + self.timeout_s
        for attempt in range(1, ATTEMPTS + 1):
            response = handle.encode.remote(work)
            try:
                return await asyncio.wait_for(response, deadline - time.monotonic())
            except BackPressureError as error:
                message = "the model's queue is full; try again later"
                raise ApiError(
                    429, message, code="rate_limit_exceeded", retry_after_s=RETRY_AFTER_S
                ) from error
            except UserError as error:
                fault = getattr(error, "cause", error)  # Ray wraps what a replica raised
                raise ApiError(400, str(fault), "input", "invalid_value") from error
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

    async def describe_models(self, request: Request, client: str, seen: Seen) -> Response:
        return JSONResponse({"object": "list", "data": [describe(m) for m in self.models.values()]})

    async def render_metrics(self, request: Request, client: str, seen: Seen) -> Response:
        return Response(self.metrics.render(), media_type=CONTENT_TYPE_LATEST)
