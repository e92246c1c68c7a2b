"""Secrets that do not belong in a recipe, which is copied into manifests and logs."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Names of environment variables whose values must not be shown: MY_TOKEN, OPENAI_APIKEY, DB_PW,
# PGPASSWORD, DATABASE_URL. A tokenizer is no token, and PWD alone is the shell's folder.
SECRET_NAME = re.compile(
    r"""
    KEYS?(?:_|$) | TOKENS?(?!IZ) | SECRET | PASSW | PASSPHRASE | CREDENTIAL
    | (?:^|_)(?:PASS|CREDS?|COOKIE|DSN|SAS|PAT)(?:_|$) | _(?:PW|PWD)(?:_|$) | (?:^|_)AUTH$
    | (?:DATABASE|DB|REDIS|MONGO\w*|POSTGRES\w*|PG|MYSQL|AMQP|BROKER|WEBHOOK|CONN\w*)
      _(?:URL|URI|STR)
    """,
    re.I | re.X,
)

# Values that are a secret by themselves, whatever holds them.
SECRET_VALUE = re.compile(
    r"""
    \w://[^/\s@]*:[^/\s@]+@                                # a URL with a password
    | \bhf_[A-Za-z0-9]{16,}                                # Hugging Face
    | \bsk-(?:[a-z]+[0-9]*-)*[A-Za-z0-9_]{16,}             # OpenAI and those that imitate it
    | \b(?:gh[opsur]_|github_pat_|glpat-)[A-Za-z0-9_-]{16,}
    | \b(?:AKIA|ASIA)[A-Z0-9]{16}\b                        # AWS, the identifier of a key
    | \bAIza[A-Za-z0-9_-]{30,} | \bya29\.[A-Za-z0-9_-]{20,}   # Google
    | \bxox[abeoprs]-[A-Za-z0-9-]{10,}                     # Slack
    | \b(?:npm|dop_v1|lsv2_pt|r8|gsk|nvapi|pypi|jina|pplx|xai)[_-][A-Za-z0-9_-]{24,}
    | \beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}         # a JSON web token
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY
    | \b(?:password|passwd|pwd|accountkey|sharedaccesskey|api[_-]?key|access_token)=[^\s&;]{4,}
    | \bBearer\s+[A-Za-z0-9._~+/-]{16,}
    """,
    re.X,
)
MIN_KNOWN_SECRET = 8  # characters; a shorter value may be an ordinary word
MIN_CONTAINED_SECRET = 12  # characters of a value that is searched for within a text


def secret_fields(content: Any, environment: Mapping[str, str]) -> Iterator[str]:
    """Paths of the fields, at any depth, whose names or values hold a secret.

    A secret is what has the shape of one, such as `hf_…` or a URL with a password, and the value of
    an environment variable whose name contains key, token, password or similar.

    Args:
        content: resolved: references are replaced by their values.
    """
    known = {
        value
        for name, value in environment.items()
        if SECRET_NAME.search(name) and not name.endswith(("_FILE", "_PATH", "_DIR", "_MODE"))
        if len(value) >= MIN_KNOWN_SECRET
    }

    def visit(value: Any, field: str) -> Iterator[str]:
        if isinstance(value, str) and (
            SECRET_VALUE.search(value)
            or value in known
            or any(len(one) >= MIN_CONTAINED_SECRET and one in value for one in known)
        ):
            yield field
        items = value.items() if isinstance(value, dict) else ()
        for key, inner in enumerate(value) if isinstance(value, list) else items:
            if isinstance(key, str):
                yield from visit(key, f"{field}, a name in it" if field else "a section's name")
            yield from visit(inner, f"{field}.{key}".lstrip("."))

    yield from visit(content, "")
