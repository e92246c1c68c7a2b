"""HTTP in, HTTP out: checks a request, has it dispatched, writes the answer.

No `from __future__ import annotations` here: Ray Serve reads the types of a deployment.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from stillroom.encoders.contract import Terms
from stillroom.serving.auth import Keys, is_loopback
from stillroom.serving.dispatch import Dispatcher, Model
from stillroom.serving.metrics import CONTENT_TYPE_LATEST, Metrics
from stillroom.serving.openai import ROLES, ApiError, EmbeddingRequest, embeddings_body, parse
from stillroom.serving.policies import RESTART_AFTER_S, Facts, policy_dims
from stillroom.serving.release import Release
from stillroom.serving.request import Work
from stillroom.serving.shadow import Sampler, ShadowMetrics, ShadowOptions

log = logging.getLogger("ray.serve")


@dataclass
class Seen:
    """What is known of a request when it is counted; "none" until a name is found to be ours."""

    model: str = "none"
    policy: str = "none"


http = FastAPI(title="stillroom", docs_url=None, redoc_url=None)


@http.exception_handler(HTTPException)
async def unknown_route(request: Request, error: HTTPException) -> Response:
    """Starlette's 404 and 405 in OpenAI's words."""
    message = f"{request.method} {request.url.path}: {error.detail}"
    return answer_error(ApiError(error.status_code, message, code="unknown_url"))


def answer_error(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers())


# `ingress` copies the class with the names that it uses, as they are at that moment: what it
# calls must stand above it.


def describe(model: Model, contracts: Mapping[str, Terms]) -> dict[str, Any]:
    """A model as GET /v1/models shows it; of several encoders, what holds for all."""
    rule = model.policy.rule
    behind = [contracts[name] for name in rule.encoders()]
    return {
        "id": model.id,
        "object": "model",
        "owned_by": "stillroom",
        "created": model.release.created,
        "release": model.release.ref,
        "policy": rule.name,
        "space": behind[0].space,
        "dims": policy_dims(rule, contracts),
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
        releases: those same → the release that it is of.
        shadows: student → its Shadow.
        shadow: how often they are asked.
        keys: who may call; empty = only this machine, unless `no_auth`.
        max_body_bytes: larger bodies are refused (413) before they are read to the end.
        timeout_s: a request that no replica has answered by then gets 503.
    """

    def __init__(
        self,
        models: list[Model],
        handles: dict[str, DeploymentHandle],
        releases: dict[str, Release],
        shadows: dict[str, DeploymentHandle],
        shadow: ShadowOptions | None,
        keys: Keys,
        no_auth: bool,
        max_body_bytes: int,
        timeout_s: float,
    ):
        self.models = {model.id: model for model in models}
        self.keys, self.no_auth = keys, no_auth
        self.max_body_bytes = max_body_bytes
        self.metrics = Metrics()
        counts = ShadowMetrics(self.metrics.registry)
        samplers = {
            name: Sampler(name, releases[name].model("teacher"), handle, shadow, counts)
            for name, handle in shadows.items()
            if shadow is not None
        }
        self.dispatcher = Dispatcher(handles, releases, timeout_s, samplers)
        self.draining = False

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
        return JSONResponse(self.health(), 503 if self.draining else 200)

    def health(self) -> dict[str, Any]:
        """What GET /healthz says: how faithful the students are changes it, never the traffic."""
        told: dict[str, Any] = {"status": "draining" if self.draining else "ok"}
        if samplers := self.dispatcher.samplers:
            told["shadow"] = {name: sampler.health() for name, sampler in samplers.items()}
        return told

    async def drain(self) -> None:
        """Take no new request, and return when the last one taken has its answer."""
        self.draining = True
        await self.dispatcher.resting.wait()

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
        if self.draining:
            message = "the server is stopping; try again later"
            raise ApiError(503, message, code="overloaded", retry_after_s=RESTART_AFTER_S)
        asked = parse(body)
        model = self.models.get(asked.model)
        if model is None:
            message = f"model {asked.model!r} is not served; served are {', '.join(self.models)}"
            for release in (one.release for one in self.models.values()):
                for target, address in release.elsewhere.items():
                    if asked.model == release.model(target):
                        message = f"the {target} of this release is a model at {address}: ask there"
            raise ApiError(404, message, "model", "model_not_found")
        role, texts, token_ids = ROLES[asked.input_type], asked.texts(), asked.token_ids()
        seen.policy = model.policy.rule.name
        decision = self.dispatcher.decide(model, Facts.of(texts, token_ids, role, asked.dimensions))
        seen.model = decision.model
        encoded = await self.dispatcher.send(
            decision.model, Work(texts, token_ids, role, decision.dims, asked.instruction)
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
                "x-stillroom-space": encoded.space,
                "x-stillroom-release": encoded.release,
            },
        )

    async def describe_models(self, request: Request, client: str, seen: Seen) -> Response:
        contracts = self.dispatcher.contracts
        data = [describe(model, contracts) for model in self.models.values()]
        return JSONResponse({"object": "list", "data": data})

    async def render_metrics(self, request: Request, client: str, seen: Seen) -> Response:
        return Response(self.metrics.render(), media_type=CONTENT_TYPE_LATEST)
