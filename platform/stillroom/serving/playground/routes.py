"""The playground's page at GET /, and the routes that it calls; not in the API's schema."""

from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stillroom.serving.errors import ErrorKind, ServingError
from stillroom.serving.http.auth import AuthenticatedRequest
from stillroom.serving.http.server import HttpApi
from stillroom.serving.playground.service import (
    CompareRequest,
    EncodeFunction,
    Playground,
    PlaygroundRequest,
    SearchRequest,
)

R = TypeVar("R", bound=PlaygroundRequest)

# The page may load its own files and this server's answers only; no script may write markup.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

PAGE_FILES: dict[str, bytes] = {
    file.name: file.read_bytes()
    for file in files("stillroom.serving.playground").joinpath("page").iterdir()
}


def playground_routes(
    playground: Playground | None, api: HttpApi, encode: EncodeFunction
) -> list[Route]:
    """The routes of the page.

    Args:
        playground: None: switched off; every route answers 404.
        api: authenticates and counts the page's requests like the API's own.
        encode: runs a job on one encoder.
    """
    read_body = api.handlers.read_body

    def enabled() -> Playground:
        if playground is None:
            raise HTTPException(404, "the playground is switched off")
        return playground

    async def index_html(request: Request) -> Response:
        needs_key = b"required" if enabled().needs_key else b"none"
        html = PAGE_FILES["index.html"].replace(b'data-keys=""', b'data-keys="%s"' % needs_key)
        return Response(html, headers=HEADERS, media_type=MEDIA_TYPES["html"])

    async def page_file(request: Request) -> Response:
        enabled()
        name = request.path_params["name"]
        if name not in PAGE_FILES or name == "index.html":
            raise HTTPException(404, "Not Found")
        media_type = MEDIA_TYPES[Path(name).suffix[1:]]
        return Response(PAGE_FILES[name], headers=HEADERS, media_type=media_type)

    async def about(call: AuthenticatedRequest) -> bytes:
        return await enabled().about()

    async def corpus_map(call: AuthenticatedRequest) -> bytes:
        query = call.request.query_params
        return await enabled().map(query.get("release", ""), query.get("corpus", ""))

    async def search(call: AuthenticatedRequest) -> bytes:
        page = enabled()  # first: when it is switched off, bodies are not checked
        return await page.search(_parse(SearchRequest, await read_body(call)), encode)

    async def compare(call: AuthenticatedRequest) -> bytes:
        page = enabled()
        return await page.compare(_parse(CompareRequest, await read_body(call)), encode)

    return [
        Route("/", index_html, methods=["GET"]),
        Route("/playground/page/{name}", page_file, methods=["GET"]),
        _json_route(api, "GET", "/playground/about", about),
        _json_route(api, "GET", "/playground/map", corpus_map),
        _json_route(api, "POST", "/playground/search", search),
        _json_route(api, "POST", "/playground/compare", compare),
    ]


def _json_route(
    api: HttpApi, method: str, path: str, work: Callable[[AuthenticatedRequest], Awaitable[bytes]]
) -> Route:
    async def handler(call: AuthenticatedRequest) -> Response:
        return Response(await work(call), headers=HEADERS, media_type="application/json")

    endpoint = api.endpoint(path, "openai", handler, open_to_all=False)
    return Route(path, endpoint, methods=[method])


def _parse(schema: type[R], body: bytes) -> R:
    """Check a request's body. Raises ServingError (invalid) that names the invalid field."""
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise ServingError(ErrorKind.INVALID, f"{where}: {first['msg']}", where) from error
