"""What one request may ask for. Larger ones are refused before they cost anything."""

import zlib
from collections.abc import AsyncIterable, Mapping

from pydantic import BaseModel, ConfigDict, PositiveInt

from stillroom.serving.errors import ApiError
from stillroom.serving.messages import Ask

HINT = "send several requests"


class Limits(BaseModel):
    """Of one request; all but the last are known before a replica sees it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    body_bytes: PositiveInt = 16 * 2**20  # as sent, and unpacked
    texts: PositiveInt = 2048  # OpenAI's own
    characters: PositiveInt = 4 * 2**20  # of all texts together
    tokens: PositiveInt = 300_000  # of all texts together, each cut to what its model takes

    def check(self, ask: Ask) -> None:
        """Raises ApiError (413) for an ask that is too large."""
        ids = ask.token_ids or []
        for name, has, most in (
            ("texts", len(ask), self.texts),
            ("characters", sum(map(len, ask.texts)), self.characters),
            ("tokens", sum(map(len, ids)), self.tokens),
        ):
            if has > most:
                message = f"the input has {has} {name} and may have {most}; {HINT}"
                raise ApiError(413, message, "input", "request_too_large")


async def read(headers: Mapping[str, str], chunks: AsyncIterable[bytes], limit: int) -> bytes:
    """A body of at most `limit` bytes, unpacked if it came as gzip.

    Raises ApiError: 413 as soon as it is known to be larger, packed or not; 415 for another
    encoding; 400 for what is no gzip.
    """
    too_large = ApiError(413, f"the body is over {limit} bytes; {HINT}", code="request_too_large")
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip"):
        message = f"Content-Encoding {coding!r} is not understood; send gzip or none"
        raise ApiError(415, message, code="unsupported_encoding")
    # What cannot be a length is the server's to refuse; here it says nothing.
    told = headers.get("content-length", "")
    if told.isascii() and told.isdigit() and int(told) > limit:
        raise too_large
    unpacker = zlib.decompressobj(wbits=31) if coding == "gzip" else None
    body = bytearray()
    packed = 0
    async for chunk in chunks:
        packed += len(chunk)
        try:
            # One byte more than the limit tells a body that is too large; no bomb goes further.
            body += unpacker.decompress(chunk, limit + 1 - len(body)) if unpacker else chunk
        except zlib.error as error:
            raise ApiError(400, f"the body is not gzip: {error}", code="invalid_gzip") from error
        if len(body) > limit or packed > limit:
            raise too_large
    if unpacker and not unpacker.eof:
        raise ApiError(400, "the body ends before its gzip does", code="invalid_gzip")
    return bytes(body)
