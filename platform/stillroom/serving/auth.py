"""API keys: read once at deployment, kept as digests, compared in constant time."""

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from stillroom.errors import UserError

ENVIRONMENT = "STILLROOM_API_KEYS"


@dataclass(frozen=True)
class Keys:
    """Who may call: (owner's name, SHA-256 of the key). Empty means that no key is configured.

    Digests, not keys: these travel to the router through Ray, whose state others can read.
    """

    digests: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def read(cls, environment: Mapping[str, str], keys_file: str | None = None) -> "Keys":
        """Keys of STILLROOM_API_KEYS (comma separated) and of a file (one a line, # comments).

        Each may be `name:key`; the name labels that client's usage in the metrics.
        Raises UserError when the file is missing or holds no key.
        """
        entries = [(ENVIRONMENT, entry) for entry in environment.get(ENVIRONMENT, "").split(",")]
        if keys_file is not None:
            try:
                lines = Path(keys_file).read_text(encoding="utf-8").splitlines()
            except OSError as error:
                raise UserError(
                    "keys_file", f"cannot read {keys_file}: {error.strerror}", "Check the path"
                ) from error
            lines = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
            if not lines:
                # An empty file must not quietly mean "open to all".
                raise UserError("keys_file", f"{keys_file} holds no key", "Write one key a line")
            entries += [("keys_file", line) for line in lines]
        digests = []
        for where, entry in entries:
            name, _, key = entry.strip().rpartition(":")
            if key:
                digests.append((name or "unnamed", sha256(key.encode()).digest()))
            elif name:
                raise UserError(where, f"the key named {name!r} is empty", "Write name:key")
        return cls(tuple(digests))

    def owner(self, authorization: str | None) -> str | None:
        """The name that goes with an Authorization header's bearer key; None for a wrong one."""
        scheme, _, key = (authorization or "").partition(" ")
        given = sha256(key.strip().encode()).digest()
        owner = None
        # Every key is compared, whichever matches: the time says nothing about the keys.
        for name, digest in self.digests:
            if hmac.compare_digest(given, digest):
                owner = name
        return owner if scheme.lower() == "bearer" else None


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
