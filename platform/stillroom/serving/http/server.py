"""HTTP in, HTTP out: who may call, how much, and in whose words they are answered."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Mounted

from stillroom.serving.errors import ApiError
from stillroom.serving.http import openai, tei
from stillroom.serving.http.access_log import AccessLog
from stillroom.serving.http.auth import Guard, Key
from stillroom.serving.http.gate import Call, in_words, is_local
from stillroom.serving.http.limits import Limits, read
from stillroom.serving.http.openapi import ROUTES, Words, document
from stillroom.serving.messages import Ask
from stillroom.serving.telemetry import tracing
from stillroom.serving.telemetry.metrics import CONTENT_TYPE_LATEST, Metrics, Seen

if TYPE_CHECKING:
    from stillroom.serving.router import Router
    from stillroom.serving.service import Answer


log = logging.getLogger("ray.serve")

CLIENT_LEFT = 499  # nginx's number for it; nobody reads the answer

VERSION = version("stillroom")

EXPOSED = ("retry-after", "x-request-id", "x-stillroom-model", "x-stillroom-space",
           "x-stillroom-release")  # fmt: skip


class Door:
    """Answers a router's HTTP requests.

    Args:
        router: has the models, and sends what is asked of them to replicas.
        no_auth: without keys, let other machines call, too.
        max_concurrent, max_batch_tokens: what GET /info tells.
    """

    def __init__(
        self,
        router: "Router",
        guard: Guard,
        metrics: Metrics,
        access: AccessLog,
        *,
        no_auth: bool,
        limits: Limits,
        max_concurrent: int,
        max_batch_tokens: int,
    ):
        self.router, self.guard, self.metrics, self.access_log = router, guard, metrics, access
        self.no_auth, self.limits = no_auth, limits
        self.max_concurrent, self.max_batch_tokens = max_concurrent, max_batch_tokens

    def app(self, cors_origins: tuple[str, ...], more: Sequence[Mounted]) -> Starlette:
        """The ASGI application, with `more` routes than the API's; pages of `cors_origins` may read
        its answers in a browser."""
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=list(EXPOSED),
        )
        return Starlette(
            routes=[
                Mounted(
                    route.path.replace("{model}", "{model:path}"),
                    self.answering(route.path, route.words, getattr(self, route.name), route.open),
                    methods=[route.method],
                )
                for route in ROUTES
            ]
            + list(more),
            middleware=[cors] if cors_origins else [],
            exception_handlers={HTTPException: self._unknown},
        )

    def answering(
        self,
        path: str,
        words: Words,
        work: Callable[[Call], Awaitable[Response]],
        open_to_all: bool,
    ) -> Callable[[Request], Awaitable[Response]]:
        """Let `work` answer who may call, turn what it raises into an answer, count and log."""

        async def answer(request: Request) -> Response:
            started, seen = time.perf_counter(), Seen(span=tracing.began(request, path))
            try:
                key = None if open_to_all else self._admitted(request, seen)
                response = await work(Call(request, key, seen))
            except ApiError as error:
                response = in_words(words, error)
            except HTTPException:
                raise  # counted where it is answered
            except asyncio.CancelledError:
                self._count(request, path, seen, CLIENT_LEFT, started)
                raise
            except Exception:
                log.exception("unexpected fault")  # the client is told nothing of our insides
                fault = ApiError(500, "internal error; see the server's log")
                response = in_words(words, fault)
            self._count(request, path, seen, response.status_code, started)
            return response

        return answer

    async def _unknown(self, request: Request, error: Exception) -> Response:
        """Starlette's 404 and 405 in OpenAI's words."""
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        response = in_words("openai", ApiError(error.status_code, message, code="unknown_url"))
        response.headers.update(error.headers or {})
        self._count(request, "none", Seen(), error.status_code, time.perf_counter())
        return response

    def _count(self, request: Request, route: str, seen: Seen, status: int, started: float) -> None:
        seconds = time.perf_counter() - started
        self.metrics.answered(route, seen, status, seconds)
        self.access_log.write(request, route, seen, status, seconds)
        if seen.span is not None:
            told: dict[str, str | int] = {
                "client": seen.client,
                "model": seen.model,
                "policy": seen.policy,
                "texts": seen.texts,
                "tokens": seen.tokens,
            }
            tracing.ended(seen.span, status, told)

    def _admitted(self, request: Request, seen: Seen) -> Key | None:
        """Whose request it is. Raises ApiError: 401 for one who may not call, 429 for one who
        has called too often."""
        if not self.guard.keys.configured:
            if self.no_auth or is_local(request):
                seen.client = "anonymous"
                return None
            message = "no API key is configured, so only the server's own machine may call"
            raise ApiError(401, message, code="invalid_api_key")
        key = self.guard.key(request.headers.get("authorization"))
        if key is None:
            message = "missing or wrong API key; send Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key")
        seen.client = key.owner
        self.guard.spend(key, "requests", 1)
        return key

    async def body(self, call: Call) -> bytes:
        request = call.request
        body = await read(request.headers, request.stream(), self.limits.body_bytes)
        call.seen.bytes_in = len(body)
        return body

    async def _embedded(self, call: Call, ask: Ask) -> "Answer":
        self.limits.check(ask)
        if call.key:
            self.guard.spend(call.key, "texts", len(ask))
        return await self.router.embed(ask, call.seen)

    def _named(self, request: Request) -> str:
        """The model of a request whose schema has none."""
        headers, query = request.headers, request.query_params
        return query.get("model") or headers.get("x-stillroom-model") or self.router.default

    # OpenAI's routes.

    async def embeddings(self, call: Call) -> Response:
        asked = openai.parse(await self.body(call))
        answer = await self._embedded(call, asked.ask())
        encoded = answer.encoded
        body = openai.embeddings_body(
            encoded.vectors, encoded.tokens, model=answer.model, encoding=asked.encoding_format
        )
        return _json(body, answer.headers())

    async def models(self, call: Call) -> Response:
        listed = [self.router.describe(model) for model in self.router.models.values()]
        return JSONResponse({"object": "list", "data": listed})

    async def model(self, call: Call) -> Response:
        model = self.router.find(call.request.path_params["model"])
        return JSONResponse(self.router.describe(model))

    # text-embeddings-inference's.

    async def embed(self, call: Call) -> Response:
        asked = tei.parse(tei.EmbedRequest, await self.body(call))
        answer = await self._embedded(call, asked.ask(self._named(call.request)))
        body = tei.embed_body(answer.encoded.vectors, normalize=asked.normalize is not False)
        return _json(body, answer.headers())

    async def embed_all(self, call: Call) -> Response:
        tei.parse(tei.EmbedRequest, await self.body(call))
        message = "vectors of single tokens are not served; POST /embed gives those of texts"
        raise ApiError(424, message)

    async def similarity(self, call: Call) -> Response:
        asked = tei.parse(tei.SimilarityRequest, await self.body(call))
        answer = await self._embedded(call, asked.ask(self._named(call.request)))
        return _json(tei.similarity_body(answer.encoded.vectors), answer.headers())

    async def tokenize(self, call: Call) -> Response:
        asked = tei.parse(tei.TokenizeRequest, await self.body(call))
        name, texts = self._named(call.request), asked.texts()
        self.limits.check(Ask(name, texts, None, "passage"))
        tokens = await self.router.pieces(name, texts, asked.role(), asked.add_special_tokens)
        return _json(tei.tokens_body(tokens))

    async def decode(self, call: Call) -> Response:
        asked = tei.parse(tei.DecodeRequest, await self.body(call))
        name, ids = self._named(call.request), asked.several()
        self.limits.check(Ask(name, [], ids, "passage"))
        return JSONResponse(await self.router.decode(name, ids, asked.skip_special_tokens))

    async def info(self, call: Call) -> Response:
        model = self.router.find(self._named(call.request))
        told = tei.info(
            model.id,
            model.release.ref,
            self.router.behind(model),
            max_concurrent=self.max_concurrent,
            max_batch_tokens=self.max_batch_tokens,
            max_texts=self.limits.texts,
            version=VERSION,
        )
        return JSONResponse(told.model_dump())

    # Everyone's.

    async def healthz(self, call: Call) -> Response:
        return JSONResponse(self.router.health(), 503 if self.router.draining else 200)

    health = healthz

    async def prometheus(self, call: Call) -> Response:
        told = self.metrics.render(self.router.dispatcher.load())
        return Response(told, media_type=CONTENT_TYPE_LATEST)

    async def openapi(self, call: Call) -> Response:
        model = self.router.find(self.router.default)
        told = document(
            model=model.id,
            dims=self.router.describe(model)["dims"][0],
            limits=self.limits,
            keys=self.guard.keys.configured,
            version=VERSION,
        )
        return _json(orjson.dumps(told))


def _json(body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body, media_type="application/json", headers=headers)
