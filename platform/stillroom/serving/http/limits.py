"""Refuses requests over the operator's limits before they cost anything."""

import zlib
from collections.abc import AsyncIterable, Mapping

from stillroom.serving.config import RequestLimits
from stillroom.serving.errors import ErrorKind, ServingError
from stillroom.serving.messages import EmbedRequest

HINT = "send several requests"


def check_limits(limits: RequestLimits, request: EmbedRequest) -> None:
    """Raises ServingError (too large) for a request that is over a limit.

    Tokens are counted here only where the client sent their ids: those of texts are known, and
    checked, in the replica.
    """
    ids = request.token_ids or []
    for unit, count, most in (
        ("texts", len(request), limits.texts),
        ("characters", sum(map(len, request.texts)), limits.characters),
        ("tokens", sum(map(len, ids)), limits.tokens),
    ):
        if count > most:
            message = f"the input has {count} {unit} and may have {most}; {HINT}"
            raise ServingError(ErrorKind.TOO_LARGE, message, "input")


async def read_body(headers: Mapping[str, str], chunks: AsyncIterable[bytes], limit: int) -> bytes:
    """A body of at most `limit` bytes, unpacked if it came as gzip.

    Raises ServingError: too large as soon as the body is known to be over the limit, packed or
    unpacked; unsupported encoding for anything but gzip; invalid for a body that is not gzip.
    """
    too_large = ServingError(ErrorKind.TOO_LARGE, f"the body is over {limit} bytes; {HINT}")
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip"):
        message = f"Content-Encoding {coding!r} is not understood; send gzip or none"
        raise ServingError(ErrorKind.UNSUPPORTED_ENCODING, message)
    # Ignore a malformed Content-Length: the HTTP server rejects it.
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) > limit:
        raise too_large
    unpacker = zlib.decompressobj(wbits=31) if coding == "gzip" else None
    body = bytearray()
    received = 0
    async for chunk in chunks:
        received += len(chunk)
        try:
            # One byte over the limit is enough to know; a bomb is unpacked no further.
            body += unpacker.decompress(chunk, limit + 1 - len(body)) if unpacker else chunk
        except zlib.error as error:
            raise _not_gzip(f"the body is not gzip: {error}") from error
        if len(body) > limit or received > limit:
            raise too_large
    if unpacker and not unpacker.eof:
        raise _not_gzip("the body ends before its gzip does")
    return bytes(body)


def _not_gzip(message: str) -> ServingError:
    return ServingError(ErrorKind.INVALID, message, code="invalid_gzip")
