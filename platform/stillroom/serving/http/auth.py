"""Authentication and rate limits: keys compared in constant time, rates by token buckets.

A rate holds for each router process by itself. With r of them, a client whose requests are spread
over all may have up to r times as much.
"""

import hmac
import ipaddress
import logging
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

from starlette.requests import Request

from stillroom.errors import UserError
from stillroom.serving.errors import ErrorKind, ServingError
from stillroom.serving.http.api_keys import ApiKey, ApiKeys, read_keys_file
from stillroom.serving.telemetry.request_record import RequestRecord

log = logging.getLogger("ray.serve")
# By which proxies tell whom they act for; also all that start with `x-forwarded`.
FORWARDING_HEADERS = {
    "cdn-loop", "cf-connecting-ip", "cf-connecting-ipv6", "fastly-client-ip", "fly-client-ip",
    "forwarded", "proxy-client-ip", "true-client-ip", "via", "wl-proxy-client-ip",
    "x-appengine-user-ip", "x-azure-clientip", "x-azure-socketip", "x-client-ip",
    "x-cluster-client-ip", "x-envoy-external-address", "x-original-forwarded-for",
    "x-original-host", "x-original-url", "x-proxyuser-ip", "x-real-ip", "x-remote-addr",
    "x-remote-ip",
}  # fmt: skip

# A Host header: a name or an address, in brackets where that has colons.
HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+))(?::[0-9]*)?")

ANONYMOUS = "anonymous"  # the client's name where no keys are configured


@dataclass(frozen=True)
class AuthenticatedRequest:
    """A request with a known sender.

    Attributes:
        key: None where everyone may call.
        record: collects what metrics and the access log show of the request.
    """

    request: Request
    key: ApiKey | None
    record: RequestRecord


def _authorization(request: Request) -> str | None:
    """The Authorization header, or what clients for Azure and others send in its place."""
    headers = request.headers
    if key := headers.get("api-key") or headers.get("x-api-key"):
        return headers.get("authorization", f"Bearer {key}")
    return headers.get("authorization")


@dataclass
class TokenBucket:
    """Holds up to a minute's allowance.

    Taking more than that needs a full bucket and leaves a debt: a large request passes, and those
    after it wait longer.

    Attributes:
        level: what may be taken now; below 0, a debt.
        updated_s: when the level was right, on the clock that callers use.
    """

    per_minute: float
    level: float
    updated_s: float

    def take(self, amount: float, now: float) -> float:
        """Take `amount` and return 0; or, when there is too little, return the seconds to wait."""
        gained = (now - self.updated_s) * self.per_minute / 60
        self.level, self.updated_s = min(self.per_minute, self.level + gained), now
        missing = min(amount, self.per_minute) - self.level
        if missing > 0:
            return missing * 60 / self.per_minute
        self.level -= amount
        return 0.0


@dataclass
class Authenticator:
    """Admits one router's requests, by their keys and by how much each owner has used.

    Args:
        no_auth: without keys, let other machines call, too.
        clock: seconds that never go back.
    """

    keys: ApiKeys
    no_auth: bool = False
    clock: Callable[[], float] = time.monotonic
    _file_keys: tuple[ApiKey, ...] = ()
    _file_version: tuple[int, ...] | None = None  # the file's stat when it was last read
    _buckets: dict[tuple[str, str], TokenBucket] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Read the keys file again if it has changed.

        An unreadable file leaves the keys as they were; a file without keys revokes all that it
        had.
        """
        if self.keys.file is None:
            return
        version: tuple[int, ...]
        try:
            stat = os.stat(self.keys.file)
            version = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        except OSError:
            version = ()
        if version == self._file_version:
            return
        self._file_version = version  # first: a faulty file is logged once
        try:
            self._file_keys = read_keys_file(self.keys.file)
        except UserError as error:
            log.error("API keys stay as they were: %s", error)

    def find_key(self, authorization: str | None) -> ApiKey | None:
        """The key of an Authorization header (`Bearer KEY`); None for an unknown one."""
        self.refresh()
        scheme, _, bearer = (authorization or "").partition(" ")
        # As sent: headers are decoded as Latin-1, whatever they are.
        digest = sha256(bearer.strip().encode("latin-1")).digest()
        match = None
        # Every key is compared, whichever matches: the time says nothing about the keys.
        for key in (*self.keys.keys, *self._file_keys):
            if hmac.compare_digest(digest, key.digest):
                match = key
        return match if scheme.lower() == "bearer" else None

    def admit(self, request: Request, record: RequestRecord) -> ApiKey | None:
        """The key of a request's sender, counted against its rate; None where none is needed.

        Raises ServingError: unauthorized for a sender who may not call, overloaded for one who has
        called too often.
        """
        if not self.keys.configured:
            if is_cross_site(request):
                message = "pages of other sites may send application/json only, if at all"
                raise ServingError(ErrorKind.UNAUTHORIZED, message)
            if self.no_auth or is_local(request):
                record.client = ANONYMOUS
                return None
            message = "no API key is configured, so only the server's own machine may call"
            raise ServingError(ErrorKind.UNAUTHORIZED, message)
        key = self.find_key(_authorization(request))
        if key is None:
            message = "missing or wrong API key; send Authorization: Bearer KEY"
            raise ServingError(ErrorKind.UNAUTHORIZED, message)
        record.client = key.owner
        self.charge(key, "requests", 1)
        return key

    def charge(self, key: ApiKey, unit: str, amount: float) -> None:
        """Count `amount` of a unit ("requests" or "texts") against the key's owner.

        Raises ServingError (overloaded) that says when the next may come.
        """
        rate = getattr(key, f"{unit}_per_minute")
        if rate is None:
            return
        now = self.clock()
        bucket = self._buckets.get((key.owner, unit))
        if bucket is None or bucket.per_minute != rate:
            bucket = self._buckets[key.owner, unit] = TokenBucket(rate, rate, now)
        wait_s = bucket.take(amount, now)
        if wait_s > 0:
            message = f"{key.owner!r} may have {rate:g} {unit} a minute; try again later"
            raise ServingError(ErrorKind.OVERLOADED, message, retry_after_s=math.ceil(wait_s))


def is_cross_site(request: Request) -> bool:
    """Whether a page of another site may have sent a body without asking first.

    Browsers ask (by a preflight, which `cors_origins` answers) before they send JSON elsewhere, and
    do not before they send plain text or a form.
    """
    origin = request.headers.get("origin")
    if request.method != "POST" or origin is None:
        return False
    if origin.partition("://")[2] == request.headers.get("host"):
        return False
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type != "application/json"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach, or be, `host` (a name or an address)."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def is_local(request: Request) -> bool:
    """Whether a request certainly comes from this machine.

    Both its peer and its host name must be local: requests through a proxy, or
    from a web page whose host name resolves to this machine (DNS rebinding), have a local peer too.
    """
    # HAProxy, where Serve runs one, is everyone's peer.
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        return False
    names = {name.lower() for name in request.headers}
    if names & FORWARDING_HEADERS or any(name.startswith("x-forwarded") for name in names):
        return False
    named = HOST.fullmatch(request.headers.get("host", ""))
    peer = request.client
    return bool(
        peer and is_loopback(peer.host) and named and is_loopback(named[1] or named[2].lower())
    )
