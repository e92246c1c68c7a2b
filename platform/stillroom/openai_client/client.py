"""A model behind an OpenAI-compatible endpoint: requests, their pace, answers, what they cost.

The one place that speaks to it: language models through `stages.llm`, embedders through
`encoders.remote`.
"""

import hashlib
import json
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import tenacity

from stillroom.errors import UserError

LONGEST_PAUSE_S = 600.0  # however long an endpoint tells us to wait

AGAIN = {408, 409, 425, 429}  # and whatever is 500 or more

HOPELESS = {401, 402, 403, 404}  # no other request would fare better


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        route: `chat/completions`, `completions` or `embeddings`.
        body: the JSON to send, as text: a request is hashed by it.
        sample: which of several answers to the same body.
    """

    route: str
    body: str
    sample: int = 0

    @property
    def key(self) -> str:
        """What its answer is kept under. The endpoint's address is no part of it: the same model
        served elsewhere answers the same."""
        return hashlib.sha256(f"{self.route}\n{self.sample}\n{self.body}".encode()).hexdigest()

    @staticmethod
    def of(route: str, body: Mapping[str, Any], sample: int = 0) -> "Request":
        text = json.dumps(body, sort_keys=True, ensure_ascii=False)
        # A lone surrogate, which broken texts hold, has no UTF-8 form.
        return Request(route, text.encode("utf-8", "replace").decode(), sample)


@dataclass(frozen=True)
class Usage:
    """Tokens paid for."""

    tokens_in: int = 0
    tokens_out: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.tokens_in + other.tokens_in, self.tokens_out + other.tokens_out)

    def cost(self, price_in: float, price_out: float) -> float:
        """At prices for a million tokens."""
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


def token_estimate(text: str) -> int:
    """How many tokens a text has at most, nearly: a token of English holds some 4 bytes of
    UTF-8, one of Chinese 3, and few texts have below 3 a token."""
    return math.ceil(len(text.encode("utf-8", "replace")) / 3)


def affordable(
    spent: Usage,
    each: Usage,
    *,
    tokens: int | None,
    cost: float | None,
    price_in: float,
    price_out: float,
) -> float:
    """How many more times `each` a budget pays for; inf without a budget."""
    found = math.inf
    if tokens is not None:
        left = tokens - spent.tokens_in - spent.tokens_out
        found = min(found, left // max(1, each.tokens_in + each.tokens_out))
    if cost is not None:
        own = each.cost(price_in, price_out)
        if own > 0:
            left_over = cost - spent.cost(price_in, price_out)
            found = min(found, math.floor(left_over / own + 1e-9))  # a sum of decimals is inexact
    return max(0, found)


class Answers:
    """Answers by request, kept in a file: what was paid for once is never paid for again.

    Several processes may use one file at once. Each answer is on disk when `keep` returns.
    """

    def __init__(self, file: Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        # Not SQLite's write-ahead log: it needs memory that is shared, and roots may be on NFS.
        self.db = sqlite3.connect(file, timeout=60, isolation_level=None)
        self.db.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, content TEXT)")

    def get(self, key: str) -> str | None:
        row = self.db.execute("SELECT content FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def keep(self, key: str, content: str) -> None:
        """Of two answers to one request the first stays."""
        self.keep_all({key: content})

    def keep_all(self, contents: Mapping[str, str]) -> None:
        """Several at once, all of them or none."""
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", contents.items())
        self.db.execute("COMMIT")


class Pace:
    """When a request may go, so that no minute holds more requests or tokens than are allowed,
    but for its last request's own tokens.

    There are no bursts: after each comes a pause for what it took.
    """

    def __init__(self, requests_a_minute: float | None, tokens_a_minute: float | None):
        self.of_request = 60 / requests_a_minute if requests_a_minute else 0.0
        self.of_token = 60 / tokens_a_minute if tokens_a_minute else 0.0
        self.free_at = -math.inf
        self.lock = threading.Lock()

    def wait_s(self, tokens: int, now: float) -> float:
        """Seconds to wait before a request of so many tokens, which then counts as sent."""
        with self.lock:
            begins = max(now, self.free_at)
            self.free_at = begins + max(self.of_request, tokens * self.of_token)
            return begins - now


class _Again(Exception):
    """Worth another try, perhaps after as many seconds as the endpoint says."""

    def __init__(self, problem: str, pause_s: float | None = None):
        super().__init__(problem, pause_s)
        self.problem, self.pause_s = problem, pause_s


class Client:
    """Asks an endpoint, again where that may help. Threads may share one.

    Args:
        read: of an answer's body and its request; raises ValueError, KeyError, TypeError,
            IndexError or AttributeError where that is no answer, and it is asked for again.
        key: sent as a bearer token; None sends none.
        attempts: of one request.
        timeout_s: for one of them.
        first_pause_s: between attempts at random up to this, then twice as long each time, where
            the endpoint does not say how long.
        pace: of all attempts together; None sets none.
    """

    def __init__(
        self,
        base_url: str,
        read: Callable[[str, Request], object],
        key: str | None = None,
        *,
        attempts: int = 8,
        timeout_s: float = 120.0,
        first_pause_s: float = 1.0,
        pace: Pace | None = None,
    ):
        self.base_url = base_url.rstrip("/")
        self.read, self.pace = read, pace
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self.http = httpx.Client(
            headers=headers,
            timeout=timeout_s,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )
        backoff = tenacity.wait_random_exponential(
            multiplier=first_pause_s, max=max(60.0, first_pause_s)
        )

        def pause(state: tenacity.RetryCallState) -> float:
            fault = state.outcome.exception() if state.outcome else None
            told = fault.pause_s if isinstance(fault, _Again) else None
            return backoff(state) if told is None else told

        self.retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Again),
            stop=tenacity.stop_after_attempt(attempts),
            wait=pause,
            reraise=True,
        )
        self.attempts = attempts

    def ask(self, request: Request) -> str:
        """The response's body, or {"refused": STATUS, "told": WHY} where this very request was
        refused.

        Raises:
            UserError: when the endpoint is not there, not ours to use, or keeps failing.
        """
        try:
            return self.retrying(self._ask, request)
        except _Again as fault:
            raise UserError(
                f"{self.base_url}/{request.route}",
                f"failed {self.attempts} times, at last with: {fault.problem}",
                "See to the endpoint and run again: every answer so far is kept",
            ) from fault

    def _ask(self, request: Request) -> str:
        url = f"{self.base_url}/{request.route}"
        if self.pace is not None:
            time.sleep(self.pace.wait_s(token_estimate(request.body), time.monotonic()))
        try:
            response = self.http.post(
                url,
                content=request.body.encode(),
                headers={"Content-Type": "application/json"},
            )
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as fault:
            raise UserError(url, f"is no address: {fault}", "Write it as https://HOST/v1") from None
        except httpx.TransportError as fault:
            raise _Again(f"{type(fault).__name__}: {fault}") from fault
        status = response.status_code
        told = " ".join(response.text.split())[:300]
        if status in AGAIN or status >= 500:
            wait = pause_s(response.headers.get("Retry-After"), time.time())
            raise _Again(f"{status} {told}", wait)
        if status in HOPELESS or 300 <= status < 400:
            raise UserError(
                url, f"answers {status}: {told}", "Correct the address, the model or the key"
            )
        if status >= 400:
            return json.dumps({"refused": status, "told": told})
        try:
            self.read(response.text, request)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as fault:
            raise _Again(f"an answer that is not OpenAI's: {told}") from fault
        return response.text


def pause_s(retry_after: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for, in seconds or as a date; None for neither.

    Args:
        now: seconds since the epoch.
    """
    if retry_after is None:
        return None
    try:
        wanted = float(retry_after)
    except ValueError:
        try:
            wanted = parsedate_to_datetime(retry_after).timestamp() - now
        except ValueError:
            return None
    return min(max(0.0, wanted), LONGEST_PAUSE_S) if math.isfinite(wanted) else None


def key_in(variable: str | None, field: str) -> str | None:
    """An endpoint's key: what the environment has under a name, or a file that NAME_FILE names
    there; None where the field names no variable.

    Raises:
        UserError: when there is neither.
    """
    if variable is None:
        return None
    if key := os.environ.get(variable):
        return key
    path = os.environ.get(f"{variable}_FILE")
    if not path:
        raise UserError(
            field,
            f"the environment has no {variable}",
            f"Set it (`export {variable}=…`), set {variable}_FILE to the file that holds it, or "
            "name another variable",
        )
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as fault:
        reason = getattr(fault, "strerror", None) or "it is not UTF-8"
        raise UserError(
            f"{variable}_FILE", f"cannot read {path}: {reason}", "Correct the path"
        ) from fault
