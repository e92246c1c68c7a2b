"""A client of an OpenAI-compatible endpoint: retries, rate limits, and errors for users.

The only place that sends requests: to language models for `stages.synthetic`, to embedders for
`encoders.api_encoder`.
"""

import json
import math
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

import httpx
import tenacity

from stillroom.errors import UserError, one_line
from stillroom.openai_client.requests import Request, estimate_text_tokens

MAX_PAUSE_S = 600.0  # upper limit of waits that an endpoint requests
RETRYABLE_STATUSES = {408, 409, 425, 429}  # and 500 or more
FATAL_STATUSES = {401, 402, 403, 404}  # no other request would succeed


class RateLimiter:
    """Spaces requests out, so that no minute has more requests or tokens than allowed.

    There are no bursts: a pause follows each request. Only the tokens of a minute's last request
    may exceed the limit.
    """

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None):
        self.seconds_per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self.seconds_per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self.free_at = -math.inf
        self.lock = threading.Lock()

    def reserve(self, tokens: int, now: float) -> float:
        """Reserves the next slot for a request with these tokens; returns the seconds until it."""
        with self.lock:
            start = max(now, self.free_at)
            pause_s = max(self.seconds_per_request, tokens * self.seconds_per_token)
            self.free_at = start + pause_s
            return start - now


class _RetryableError(Exception):
    """A failure that another attempt may not have.

    Args:
        pause_s: how long the endpoint asks clients to wait; None if unknown.
    """

    def __init__(self, problem: str, pause_s: float | None = None):
        super().__init__(problem, pause_s)
        self.problem, self.pause_s = problem, pause_s


class OpenAIClient:
    """Sends requests to an endpoint, with retries where they may help. Threads may share one.

    Args:
        base_url: such as https://HOST/v1.
        parse: called with a response's body and its request. If it raises ValueError, KeyError,
            TypeError, IndexError or AttributeError, the response is invalid and the request is
            sent again.
        api_key: sent as a bearer token; None sends none.
        attempts: for each request.
        timeout_s: of each attempt.
        first_pause_s: the pause before the second attempt is random up to this, and its limit
            doubles with each further attempt; unless the endpoint says how long to wait.
        rate_limiter: for all attempts together; None sets no limit.
    """

    def __init__(
        self,
        base_url: str,
        parse: Callable[[str, Request], object],
        api_key: str | None = None,
        *,
        attempts: int = 8,
        timeout_s: float = 120.0,
        first_pause_s: float = 1.0,
        rate_limiter: RateLimiter | None = None,
    ):
        self.base_url = base_url.rstrip("/")
        self.parse, self.rate_limiter = parse, rate_limiter
        self.http = httpx.Client(
            headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            timeout=timeout_s,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )
        backoff = tenacity.wait_random_exponential(
            multiplier=first_pause_s, max=max(60.0, first_pause_s)
        )

        def pause(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked_s = error.pause_s if isinstance(error, _RetryableError) else None
            return backoff(state) if asked_s is None else asked_s

        self.retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_RetryableError),
            stop=tenacity.stop_after_attempt(attempts),
            wait=pause,
            reraise=True,
        )
        self.attempts = attempts

    def send(self, request: Request) -> str:
        """The body of the response, or {"refused": STATUS, "reason": TEXT} as JSON if the endpoint
        refused this very request.

        Raises:
            UserError: when the endpoint is unreachable, denies access or keeps failing.
        """
        try:
            return self.retrying(self._send_once, request)
        except _RetryableError as error:
            raise UserError(
                f"{self.base_url}/{request.route}",
                f"failed {self.attempts} times, at last with: {error.problem}",
                "Check the endpoint and run again: every answer so far is kept",
            ) from error

    def _send_once(self, request: Request) -> str:
        url = f"{self.base_url}/{request.route}"
        if self.rate_limiter is not None:
            tokens = estimate_text_tokens(request.body)
            time.sleep(self.rate_limiter.reserve(tokens, time.monotonic()))
        try:
            response = self.http.post(
                url,
                content=request.body.encode(),
                headers={"Content-Type": "application/json"},
            )
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise UserError(url, f"is not a URL: {error}", "Write it as https://HOST/v1") from None
        except httpx.TransportError as error:
            raise _RetryableError(f"{type(error).__name__}: {error}") from error
        status = response.status_code
        excerpt = one_line(response.text, 300)
        if status in RETRYABLE_STATUSES or status >= 500:
            wait_s = retry_after_s(response.headers.get("Retry-After"), time.time())
            raise _RetryableError(f"{status} {excerpt}", wait_s)
        if status in FATAL_STATUSES or 300 <= status < 400:
            raise UserError(
                url, f"answers {status}: {excerpt}", "Correct the address, the model or the key"
            )
        if status >= 400:
            return json.dumps({"refused": status, "reason": excerpt})
        try:
            self.parse(response.text, request)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            reason = f"{type(error).__name__}: {one_line(error, 150)}"
            raise _RetryableError(f"an answer that cannot be used ({reason}): {excerpt}") from error
        return response.text


def retry_after_s(header: str | None, now: float) -> float | None:
    """Seconds to wait by a Retry-After header, which has seconds or a date; None for neither.

    Args:
        now: seconds since the epoch.
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - now
        except ValueError:
            return None
    return min(max(0.0, seconds), MAX_PAUSE_S) if math.isfinite(seconds) else None
