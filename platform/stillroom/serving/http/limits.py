"""Refuses requests over the operator's limits before they cost anything."""

from stillroom.serving.config import RequestLimits
from stillroom.serving.errors import ErrorKind, ServingError
from stillroom.serving.messages import EmbedRequest

HINT = "send several requests"
MAX_INSTRUCTION = 8192  # characters


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
