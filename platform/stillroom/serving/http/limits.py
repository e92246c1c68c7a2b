"""Refuses requests over the operator's limits before they cost anything."""

import re

from stillroom.serving.config import RequestLimits
from stillroom.serving.errors import ErrorKind, ServingError
from stillroom.serving.messages import EmbedRequest

HINT = "send several requests"
MAX_INSTRUCTION = 8192  # characters
OTHER_PARTS = 1000  # of a body, beside its texts and token ids
STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
PART = rb'(?>[^",]*+(?:%s[^",]*+)*+,)' % STRING  # up to the next comma that is in no string


def check_parts(limits: RequestLimits, body: bytes) -> None:
    """Raises ServingError (too large) for JSON of far more values than a request may hold.

    Millions of empty lists would take seconds to parse, in which the router does nothing else.
    """
    most = limits.tokens + limits.texts + OTHER_PARTS
    if body.count(b",") > most and re.match(rb"(?:%s){%d}" % (PART, most + 1), body, re.DOTALL):
        message = f"the body has more than {most} values, as many as all texts and tokens may be"
        raise ServingError(ErrorKind.TOO_LARGE, f"{message}; {HINT}")


def check_limits(limits: RequestLimits, request: EmbedRequest) -> None:
    """Raises ServingError (too large) for a request that is over a limit.

    An instruction counts with every text, since it is put before each of them. Tokens are counted
    here only where the client sent their ids: those of texts are known, and checked, in the
    replica.
    """
    ids = request.token_ids or []
    if (length := len(request.instruction or "")) > MAX_INSTRUCTION:
        message = f"the instruction has {length} characters and may have {MAX_INSTRUCTION}"
        raise ServingError(ErrorKind.TOO_LARGE, message, "instruction")
    instructions = len(request) * len(request.instruction or "")
    for unit, count, most in (
        ("texts", len(request), limits.texts),
        ("characters", sum(map(len, request.texts)) + instructions, limits.characters),
        ("tokens", sum(map(len, ids)), limits.tokens),
    ):
        if count > most:
            message = f"the input has {count} {unit} and may have {most}; {HINT}"
            raise ServingError(ErrorKind.TOO_LARGE, message, "input")
