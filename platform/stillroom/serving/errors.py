"""Errors of requests, by kind. `http.errors` turns kinds into statuses and bodies."""

from collections.abc import Iterable
from difflib import get_close_matches
from enum import StrEnum

from stillroom.errors import UserError, beginning, quote

MAX_QUOTED = 100  # characters of a field's name that a client sent, in the answer
MAX_MESSAGE = 1000  # characters; ours are shorter, but some quote what a library says
RESTART_RETRY_S = 5  # how long clients are asked to wait while a replica starts


class ErrorKind(StrEnum):
    """What the caller can do about an error, independent of any protocol."""

    INVALID = "invalid"  # change the request: it is malformed, or the model refuses its input
    UNAUTHORIZED = "unauthorized"  # send a valid key
    NOT_FOUND = "not_found"  # choose another model, release or corpus
    TOO_SLOW = "too_slow"  # send the request faster: its body did not arrive in time
    TOO_LARGE = "too_large"  # split the request: it is over a limit of the operator's
    UNSUPPORTED_ENCODING = "unsupported_encoding"  # send the body plain or as gzip
    UNSUPPORTED_OUTPUT = "unsupported_output"  # ask for another output: this one is not offered
    OVERLOADED = "overloaded"  # try again later: a queue is full, or a rate is used up
    UNAVAILABLE = "unavailable"  # try again later: nothing runs that could answer
    INTERNAL = "internal"  # report it: an internal bug


class ServingError(Exception):
    """A request that is not served.

    Args:
        kind: decides the HTTP status and the type of the error's body.
        message: the problem and its fix, for the person who called.
        param: the invalid field of the request.
        code: a stable word for programs, such as `unknown_parameter`; None: the kind's usual one.
        retry_after_s: seconds after which the same request may pass.
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ):
        # Every argument goes to the base class: unpickling replays them.
        super().__init__(kind, message, param, code, retry_after_s)
        if len(message) > MAX_MESSAGE:
            message = f"{beginning(message, MAX_MESSAGE)}…"
        param = param and beginning(param, MAX_QUOTED)
        self.kind, self.message, self.param, self.code = kind, message, param, code
        self.retry_after_s = retry_after_s


class TooManyTokens(UserError):
    """A replica's refusal of a request with more tokens than the operator allows."""


def unknown_field_message(key: str, allowed: Iterable[str]) -> str:
    """The message for an unknown `key`, with the allowed fields that may have been meant."""
    fields = list(allowed)
    nearest = get_close_matches(key[:MAX_QUOTED], fields, n=1)
    hint = f"Did you mean {nearest[0]!r}?" if nearest else f"Allowed: {', '.join(fields)}"
    return f"unknown field {quote(key)}. {hint}"
