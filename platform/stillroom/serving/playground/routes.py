"""TODO docstring: serving/playground/routes.py."""

from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stillroom.serving.errors import ApiError
from stillroom.serving.playground.service import A, Compare, Playground, Search, Send

if TYPE_CHECKING:
    from stillroom.serving.http.gate import Call
    from stillroom.serving.http.server import Door


# Nothing but the page's own files and this server's answers; no script may write markup.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

PAGE: dict[str, bytes] = {
    file.name: file.read_bytes()
    for file in files("stillroom.serving.playground").joinpath("page").iterdir()
}


def mounted(playground: Playground | None, door: "Door", send: Send) -> list[Route]:
    """The page at GET / and what it asks for, of the page alone and no part of the API's schema.

    Args:
        playground: None = switched off.
        door: lets callers in and counts them, as it does for the API.
        send: to an encoder's replicas.
    """

    def shown() -> Playground:
        if playground is None:
            raise HTTPException(404, "the playground is switched off")
        return playground

    async def page(request: Request) -> Response:
        keys = b"required" if shown().keys else b"none"
        html = PAGE["index.html"].replace(b'data-keys=""', b'data-keys="%s"' % keys)
        return Response(html, headers=HEADERS, media_type=TYPES["html"])

    async def page_file(request: Request) -> Response:
        shown()
        name = request.path_params["name"]
        if name not in PAGE or name == "index.html":
            raise HTTPException(404, "Not Found")
        return Response(PAGE[name], headers=HEADERS, media_type=TYPES[Path(name).suffix[1:]])

    async def about(call: "Call") -> bytes:
        return await shown().about()

    async def corpus_map(call: "Call") -> bytes:
        asked = call.request.query_params
        return await shown().map(asked.get("release", ""), asked.get("corpus", ""))

    async def search(call: "Call") -> bytes:
        return await shown().search(_read(Search, await door.body(call)), send)

    async def compare(call: "Call") -> bytes:
        return await shown().compare(_read(Compare, await door.body(call)), send)

    def asked(path: str, work: Callable[["Call"], Awaitable[bytes]], method: str) -> Route:
        async def answer(call: "Call") -> Response:
            return Response(await work(call), headers=HEADERS, media_type="application/json")

        answering = door.answering(path, "openai", answer, open_to_all=False)
        return Route(path, answering, methods=[method])

    return [
        Route("/", page, methods=["GET"]),
        Route("/playground/page/{name}", page_file, methods=["GET"]),
        asked("/playground/about", about, "GET"),
        asked("/playground/map", corpus_map, "GET"),
        asked("/playground/search", search, "POST"),
        asked("/playground/compare", compare, "POST"),
    ]


def _read(schema: type[A], body: bytes) -> A:
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"])) or "the body"
        raise ApiError(400, f"{where}: {fault['msg']}", where, "invalid_value") from error
