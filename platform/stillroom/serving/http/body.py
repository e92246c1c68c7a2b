"""Reads the bodies of requests, within an operator's limits of bytes and of time."""

import asyncio
import codecs
import zlib
from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass, field

from stillroom.errors import quote
from stillroom.serving.config import RequestLimits
from stillroom.serving.errors import ErrorKind, ServingError
from stillroom.serving.http.limits import HINT

MAX_READERS = 256  # bodies that one router reads at once …
MAX_LARGEST_BODIES = 16  # … and how many of the largest size the bytes read so far may amount to


@dataclass(eq=False)
class _Reader:
    """A body that is being read.

    Attributes:
        deadline: ends the reading when it expires.
        received: bytes so far, as sent or unpacked, whichever are more.
    """

    deadline: asyncio.Timeout
    received: int = 0


@dataclass
class BodyReaders:
    """Reads one router's requests.

    Too many bodies at once never make a new request wait: the one that takes longest is given up
    instead, so that clients who send nothing, or slowly, only cost themselves.
    """

    limits: RequestLimits
    _readers: dict[_Reader, None] = field(default_factory=dict)  # oldest first

    async def read(self, headers: Mapping[str, str], chunks: AsyncIterable[bytes]) -> bytes:
        """A body of at most `limits.body_bytes`, unpacked if it came as gzip, without a BOM.

        Raises ServingError: too large as soon as the body is known to be over the limit, packed or
        unpacked; too slow after `limits.body_seconds`; unsupported encoding for anything but gzip;
        invalid for a body that is not one gzip.
        """
        packed = _is_packed(headers)
        # Ignore a malformed Content-Length: the HTTP server rejects it.
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > self.limits.body_bytes:
            raise self._too_large()
        seconds = self.limits.body_seconds
        try:
            async with asyncio.timeout(seconds) as deadline:
                reader = _Reader(deadline)
                self._readers[reader] = None
                try:
                    body = await self._receive(reader, chunks, packed)
                finally:
                    self._readers.pop(reader, None)
        except TimeoutError as error:
            message = (
                f"the body did not arrive in {seconds:g} s, or other requests needed its place"
            )
            raise ServingError(ErrorKind.TOO_SLOW, message) from error
        return bytes(body.removeprefix(codecs.BOM_UTF8))

    async def _receive(
        self, reader: _Reader, chunks: AsyncIterable[bytes], packed: bool
    ) -> bytearray:
        limit = self.limits.body_bytes
        unpacker = zlib.decompressobj(wbits=31) if packed else None
        body = bytearray()
        received = 0
        self._make_room()
        async for chunk in chunks:
            received += len(chunk)
            try:
                # One byte over the limit is enough to know; a bomb is unpacked no further.
                body += unpacker.decompress(chunk, limit + 1 - len(body)) if unpacker else chunk
            except zlib.error as error:
                raise _not_gzip(f"the body is not gzip: {error}") from error
            if len(body) > limit or received > limit:
                raise self._too_large()
            if unpacker and unpacker.unused_data:
                raise _not_gzip("more follows after the end of the gzip; send one member")
            reader.received = max(received, len(body))
            self._make_room()
        if unpacker and not unpacker.eof:
            raise _not_gzip("the body ends before its gzip does")
        return body

    def _make_room(self) -> None:
        """Give up the oldest readers while there are too many, or while they hold too much."""
        received = sum(reader.received for reader in self._readers)
        while (
            len(self._readers) > MAX_READERS
            or received > MAX_LARGEST_BODIES * self.limits.body_bytes
        ):
            oldest = next(iter(self._readers))
            del self._readers[oldest]
            received -= oldest.received
            oldest.deadline.reschedule(asyncio.get_running_loop().time())

    def _too_large(self) -> ServingError:
        message = f"the body is over {self.limits.body_bytes} bytes; {HINT}"
        return ServingError(ErrorKind.TOO_LARGE, message)


def _is_packed(headers: Mapping[str, str]) -> bool:
    coding = headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity", "gzip", "x-gzip"):
        message = f"Content-Encoding {quote(coding)} is not understood; send gzip or none"
        raise ServingError(ErrorKind.UNSUPPORTED_ENCODING, message)
    return coding in ("gzip", "x-gzip")


def _not_gzip(message: str) -> ServingError:
    return ServingError(ErrorKind.INVALID, message, code="invalid_gzip")
