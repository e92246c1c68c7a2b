"""The HTTP API of a router: every request is admitted, handled, counted and logged here."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ray.exceptions import TaskCancelledError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from stillroom.errors import beginning, quote
from stillroom.serving.config import RequestLimits
from stillroom.serving.errors import MAX_QUOTED, ErrorKind, ServingError
from stillroom.serving.http.access_log import AccessLog
from stillroom.serving.http.api_keys import ApiKeys
from stillroom.serving.http.auth import AuthenticatedRequest, Authenticator
from stillroom.serving.http.body import BodyReaders
from stillroom.serving.http.errors import ErrorFormat, error_response, unknown_url_response
from stillroom.serving.http.handlers import Handlers
from stillroom.serving.http.openapi import ROUTES
from stillroom.serving.http.paths import PlainPaths, route_path, url_hint
from stillroom.serving.service import EmbeddingService
from stillroom.serving.telemetry import tracing
from stillroom.serving.telemetry.metrics import RouterMetrics
from stillroom.serving.telemetry.request_record import RequestRecord

log = logging.getLogger("ray.serve")
CLIENT_LEFT = 499  # nginx's number; only metrics and the log show it
UNKNOWN_ROUTE = "none"  # in metrics and the log, which must not contain paths that clients invent

# Headers of answers that pages of `cors_origins` may read.
EXPOSED_HEADERS = [
    "retry-after",
    "x-request-id",
    "x-stillroom-model",
    "x-stillroom-space",
    "x-stillroom-release",
]

Handler = Callable[[AuthenticatedRequest], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class HttpSettings:
    """An operator's settings of a router's HTTP API.

    Attributes:
        keys: who may call; none configured: only this machine, unless `no_auth`.
        limits: of one request.
        cors_origins: whose pages may read answers in a browser.
        access_log: a file, "-" for standard output, None for nowhere.
        max_concurrent, max_batch_tokens: shown by GET /info.
    """

    keys: ApiKeys
    no_auth: bool
    limits: RequestLimits
    cors_origins: tuple[str, ...]
    access_log: str | None
    max_concurrent: int
    max_batch_tokens: int


class HttpApi:
    """Answers a router's HTTP requests.

    Args:
        service: answers the requests.
    """

    def __init__(self, service: EmbeddingService, settings: HttpSettings, metrics: RouterMetrics):
        self.metrics, self.access_log = metrics, AccessLog(settings.access_log)
        self.cors_origins = settings.cors_origins
        self.authenticator = Authenticator(settings.keys, settings.no_auth)
        self.handlers = Handlers(
            service,
            self.authenticator,
            settings.limits,
            BodyReaders(settings.limits),
            lambda: metrics.render(service.loads()),
            settings.max_concurrent,
            settings.max_batch_tokens,
        )

    def asgi_app(self, more_routes: Sequence[Route]) -> Starlette:
        """The ASGI application: the API's routes, then `more_routes`.

        Slashes too many, as a base URL that ends with one gives, are ignored: a redirect would name
        an address that a client behind TLS or another name cannot use.
        """
        routes = [
            Route(
                route.path.replace("{model}", "{model:path}"),
                self.endpoint(
                    route.path, route.error_format, getattr(self.handlers, route.name), route.open
                ),
                methods=[route.method],
            )
            for route in ROUTES
        ]
        middleware = [Middleware(PlainPaths)]
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(self.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
        app = Starlette(
            routes=[*routes, *more_routes],
            middleware=[*middleware, *([cors] if self.cors_origins else [])],
            exception_handlers={HTTPException: self._unknown_url},
        )
        app.router.redirect_slashes = False
        return app

    def endpoint(
        self, path: str, error_format: ErrorFormat, handler: Handler, open_to_all: bool
    ) -> Endpoint:
        """A handler as Starlette calls it: admits the sender, answers errors, counts and logs.

        Args:
            path: of the route, for metrics and the log.
            open_to_all: needs no key.
        """

        async def answer(request: Request) -> Response:
            started = time.perf_counter()
            span = tracing.start_request_span(request.method, path, request.headers)
            record = RequestRecord(span=span)
            try:
                key = None if open_to_all else self.authenticator.admit(request, record)
                response = await handler(AuthenticatedRequest(request, key, record))
            except ServingError as error:
                response = error_response(error_format, error)
            except HTTPException:
                raise  # counted where it is answered
            except asyncio.CancelledError:
                self._count(request, path, record, CLIENT_LEFT, started)
                raise
            except (ClientDisconnect, TaskCancelledError):  # while it sent, in uvicorn or Serve
                response = Response(status_code=CLIENT_LEFT)  # for metrics and the log
            except Exception:
                log.exception("unexpected error")  # hides internals from clients
                message = "internal error; see the server's log"
                response = error_response(error_format, ServingError(ErrorKind.INTERNAL, message))
            self._count(request, path, record, response.status_code, started)
            return response

        return answer

    async def _unknown_url(self, request: Request, error: Exception) -> Response:
        """Starlette's 404 and 405, with OpenAI's body."""
        assert isinstance(error, HTTPException)
        path, method = route_path(request.scope), beginning(request.method, MAX_QUOTED)
        message = f"{method} {quote(path)}: {error.detail}. {url_hint(method, path)}"
        response = unknown_url_response(error.status_code, message)
        response.headers.update(error.headers or {})
        self._count(request, UNKNOWN_ROUTE, RequestRecord(), error.status_code, time.perf_counter())
        return response

    def _count(
        self, request: Request, route: str, record: RequestRecord, status: int, started: float
    ) -> None:
        seconds = time.perf_counter() - started
        self.metrics.count_request(route, record, status, seconds)
        self.access_log.write(request, route, record, status, seconds)
        if record.span is not None:
            attributes: dict[str, str | int] = {
                "client": record.client,
                "model": record.model,
                "policy": record.policy,
                "texts": record.texts,
                "tokens": record.tokens,
            }
            tracing.end_request_span(record.span, status, attributes)
