"""API keys as operators configure them: `[NAME:]KEY [RATE=NUMBER …]`, kept as digests."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from stillroom.errors import UserError

KEYS_VARIABLE = "STILLROOM_API_KEYS"
HASHED = "sha256"  # NAME:sha256:HEX
UNNAMED = "unnamed"  # the owner of a key without a name
RATES = ("requests_per_minute", "texts_per_minute")


@dataclass(frozen=True)
class ApiKey:
    """A key's owner and rates.

    Attributes:
        digest: SHA-256 of the key.
        requests_per_minute, texts_per_minute: None: without limit.
    """

    owner: str
    digest: bytes
    requests_per_minute: float | None = None
    texts_per_minute: float | None = None

    @classmethod
    def parse(cls, where: str, entry: str) -> "ApiKey":
        """Parse `[NAME:]KEY [RATE=NUMBER …]`, the key in plain text or as `sha256:HEX`.

        Raises UserError at `where` for a faulty entry. The message never contains the key.
        """
        named_key, *rates = entry.split()
        name, _, key = named_key.rpartition(":")
        owner, _, form = name.rpartition(":")
        if not key:
            raise UserError(where, f"the key named {name!r} is empty", "Write name:key")
        if form == HASHED:
            owner = owner or UNNAMED
            digest = _parse_digest(where, owner, key)
        else:
            owner = name or UNNAMED
            digest = sha256(key.encode()).digest()
        return cls(owner, digest, **dict(_parse_rate(where, owner, rate) for rate in rates))


def _parse_digest(where: str, owner: str, hexadecimals: str) -> bytes:
    try:
        digest = bytes.fromhex(hexadecimals)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise UserError(
            where,
            f"the key of {owner!r} is not a SHA-256 in hexadecimals",
            "Write what `printf %s KEY | sha256sum` prints",
        )
    return digest


def _parse_rate(where: str, owner: str, rate: str) -> tuple[str, float]:
    unit, _, number = rate.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if unit not in RATES or not 0 < value < float("inf"):
        raise UserError(
            where, f"{rate!r} of {owner!r} is not a rate", f"Write {' or '.join(RATES)}=NUMBER"
        )
    return unit, value


@dataclass(frozen=True)
class ApiKeys:
    """The valid API keys. Without keys and without a file, none is configured.

    Digests, not keys: these travel to the router through Ray, whose state others can read.

    Attributes:
        file: on the router's machine; its keys are valid in addition to `keys`.
    """

    keys: tuple[ApiKey, ...] = ()
    file: str | None = None

    @classmethod
    def read(cls, environment: Mapping[str, str], keys_file: str | None = None) -> "ApiKeys":
        """Keys of STILLROOM_API_KEYS (comma separated) and of a file (one a line, # comments).

        Raises UserError for a faulty key, and when the file is missing or holds no key.
        """
        entries = [
            entry for entry in environment.get(KEYS_VARIABLE, "").split(",") if entry.strip()
        ]
        if keys_file is not None and not read_keys_file(keys_file):
            # An empty file must not quietly mean "open to all".
            raise UserError("keys_file", f"{keys_file} holds no key", "Write one key a line")
        return cls(tuple(ApiKey.parse(KEYS_VARIABLE, entry) for entry in entries), keys_file)

    @property
    def configured(self) -> bool:
        """Whether callers need a key."""
        return bool(self.keys) or self.file is not None


def read_keys_file(path: str) -> tuple[ApiKey, ...]:
    """The keys of a file. Raises UserError when it is missing or faulty."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError("keys_file", f"cannot read {path}: {reason}", "Check the path") from error
    return tuple(
        ApiKey.parse(f"keys_file {path}:{number}", line)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    )
