"""API keys: kept as digests, compared in constant time, read again when their file changes.

A key's owner may have a rate. It holds for each router replica by itself: with r of them, a
client whose requests are spread over all may have up to r times as much.
"""

import hmac
import ipaddress
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from stillroom.errors import UserError
from stillroom.serving.errors import ApiError

log = logging.getLogger("ray.serve")

ENVIRONMENT = "STILLROOM_API_KEYS"

HASHED = "sha256"  # NAME:sha256:HEX

RATES = ("requests_per_minute", "texts_per_minute")


@dataclass(frozen=True)
class Key:
    """Who a key belongs to, and what they may have a minute; None: as much as they like."""

    owner: str
    digest: bytes  # SHA-256
    requests_per_minute: float | None = None
    texts_per_minute: float | None = None

    @classmethod
    def read(cls, where: str, entry: str) -> "Key":
        """Of `[NAME:]KEY [RATE=NUMBER …]`, the key in the clear or as `sha256:HEX`.

        Raises UserError.
        """
        given, *rates = entry.split()
        name, _, key = given.rpartition(":")
        owner, _, form = name.rpartition(":")
        if not key:
            raise UserError(where, f"the key named {name!r} is empty", "Write name:key")
        digest = sha256(key.encode()).digest()
        if form == HASHED:
            name = owner
            try:
                digest = bytes.fromhex(key)
            except ValueError:
                digest = b""
            if len(digest) != 32:
                raise UserError(
                    where,
                    f"the key of {name or 'unnamed'!r} is not a SHA-256 in hexadecimals",
                    "Write what `printf %s KEY | sha256sum` prints",
                )
        numbers = {}
        for rate in rates:
            unit, _, number = rate.partition("=")
            try:
                numbers[unit] = float(number)
            except ValueError:
                numbers[unit] = 0.0
            if unit not in RATES or not 0 < numbers[unit] < float("inf"):
                raise UserError(
                    where,
                    f"{rate!r} of {name or 'unnamed'!r} is no rate",
                    f"Write {' or '.join(RATES)}=NUMBER",
                )
        return cls(name or "unnamed", digest, **numbers)


@dataclass(frozen=True)
class Keys:
    """Who may call. Without keys and without a file of them, none is configured.

    Digests, not keys: these travel to the router through Ray, whose state others can read.
    """

    keys: tuple[Key, ...] = ()
    file: str | None = None  # on the router's machine; its keys come on top

    @classmethod
    def read(cls, environment: Mapping[str, str], keys_file: str | None = None) -> "Keys":
        """Keys of STILLROOM_API_KEYS (comma separated) and of a file (one a line, # comments).

        Raises UserError for a faulty key, and when the file is missing or holds none.
        """
        entries = [one for one in environment.get(ENVIRONMENT, "").split(",") if one.strip()]
        if keys_file is not None and not read_file(keys_file):
            # An empty file must not quietly mean "open to all".
            raise UserError("keys_file", f"{keys_file} holds no key", "Write one key a line")
        return cls(tuple(Key.read(ENVIRONMENT, entry) for entry in entries), keys_file)

    @property
    def configured(self) -> bool:
        return bool(self.keys) or self.file is not None


def read_file(path: str) -> tuple[Key, ...]:
    """The keys of a file. Raises UserError when it is missing or faulty."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError("keys_file", f"cannot read {path}: {reason}", "Check the path") from error
    return tuple(
        Key.read(f"keys_file {path}:{number}", line)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    )


@dataclass
class Bucket:
    """A token bucket that holds a minute's allowance. Taking more than that needs a full one and
    leaves a debt, so that a large request passes and those after it wait the longer."""

    per_minute: float
    level: float
    at: float  # seconds, of the clock that callers use

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; 0 when it has been."""
        gained = (now - self.at) * self.per_minute / 60
        self.level, self.at = min(self.per_minute, self.level + gained), now
        missing = min(amount, self.per_minute) - self.level
        if missing > 0:
            return missing * 60 / self.per_minute
        self.level -= amount
        return 0.0


@dataclass
class Guard:
    """One router's knowledge of keys and of what each has used."""

    keys: Keys
    clock: Callable[[], float] = time.monotonic
    _of_file: tuple[Key, ...] = ()
    _seen: tuple[int, ...] | None = None  # what the file looked like when it was read last
    _buckets: dict[tuple[str, str], Bucket] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Read the file again if it has changed. What cannot be read leaves the keys as they
        were; a file without keys revokes all that it had."""
        if self.keys.file is None:
            return
        seen: tuple[int, ...]
        try:
            now = os.stat(self.keys.file)
            seen = (now.st_mtime_ns, now.st_ino, now.st_size)
        except OSError:
            seen = ()
        if seen == self._seen:
            return
        self._seen = seen  # first: a faulty file is complained of once
        try:
            self._of_file = read_file(self.keys.file)
        except UserError as error:
            log.error("API keys stay as they were: %s", error)

    def key(self, authorization: str | None) -> Key | None:
        """Whose bearer key an Authorization header holds; None for a wrong one."""
        self.refresh()
        scheme, _, given = (authorization or "").partition(" ")
        digest = sha256(given.strip().encode()).digest()
        found = None
        # Every key is compared, whichever matches: the time says nothing about the keys.
        for key in (*self.keys.keys, *self._of_file):
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found if scheme.lower() == "bearer" else None

    def spend(self, key: Key, unit: str, amount: float) -> None:
        """Count `amount` requests or texts against the key's owner.

        Raises ApiError (429) that says when the next may come.
        """
        rate = getattr(key, f"{unit}_per_minute")
        if rate is None:
            return
        now = self.clock()
        bucket = self._buckets.get((key.owner, unit))
        if bucket is None or bucket.per_minute != rate:
            bucket = self._buckets[key.owner, unit] = Bucket(rate, rate, now)
        wait = bucket.wait(amount, now)
        if wait > 0:
            message = f"{key.owner!r} may have {rate:g} {unit} a minute; try again later"
            raise ApiError(429, message, code="rate_limit_exceeded", retry_after_s=math.ceil(wait))


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
