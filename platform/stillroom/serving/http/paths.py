"""Paths as clients write them: too many slashes, and near misses."""

from difflib import get_close_matches

from starlette.types import ASGIApp, Receive, Scope, Send

from stillroom.serving.errors import MAX_QUOTED
from stillroom.serving.http.openapi import ROUTES


class PlainPaths:
    """ASGI middleware: removes empty parts of a path, such as the one after a trailing slash."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http":
            path = "/" + "/".join(part for part in route_path(scope).split("/") if part)
            scope = {**scope, "path": scope.get("root_path", "") + path}
        await self.app(scope, receive, send)


def route_path(scope: Scope) -> str:
    """A request's path without the prefix under which the application is served."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def url_hint(method: str, path: str) -> str:
    """What to ask instead of a path, or a method, that is not served."""
    served = {route.path: route.method for route in ROUTES if "{" not in route.path}
    if path in served:
        return f"Send {served[path]} {path}"
    short = path[:MAX_QUOTED]
    end = "/" + short.rsplit("/", 1)[-1]
    near = [route for route in served if len(end) > 1 and route.endswith(end)]
    near = near or get_close_matches(short, served, n=1)
    if near:
        return f"Did you mean {served[near[0]]} {near[0]}?"
    return f"Served are {', '.join(sorted(served))}; OpenAI's clients need a base URL with /v1"
