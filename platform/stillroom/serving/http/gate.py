"""TODO docstring: serving/http/gate.py."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse

from stillroom.serving.errors import ApiError, openai_body, tei_body
from stillroom.serving.http.auth import Key, is_loopback
from stillroom.serving.http.openapi import Words
from stillroom.serving.telemetry.metrics import Seen

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Call:
    """One request, from the moment that its sender is known."""

    request: Request
    key: Key | None  # None: everyone may call
    seen: Seen


def in_words(words: Words, error: ApiError) -> JSONResponse:
    if words == "tei":
        # It knows no 400: what it cannot read or does not offer is 422.
        status = 422 if error.status == 400 else error.status
        return JSONResponse(tei_body(status, error.message), status, error.headers())
    return JSONResponse(openai_body(error), error.status, error.headers())


def is_local(request: Request) -> bool:
    """Whether a request surely began on this machine: by its peer, and by the name that it
    called us by, for what a proxy or a page of a hostile name server sends comes from here, too.
    """
    # HAProxy, where Serve runs one, is everyone's peer.
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" or "x-forwarded-for" in request.headers:
        return False
    called = request.url.hostname or ""
    return bool(request.client and is_loopback(request.client.host) and is_loopback(called))
