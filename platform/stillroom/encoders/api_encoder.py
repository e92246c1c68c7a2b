"""An encoder behind an embeddings API of OpenAI's schema; needs no torch."""

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.encoders.contract import ApiContract, Role
from stillroom.encoders.interface import truncate_vectors
from stillroom.encoders.usable_vectors import UnusableVectorError, require_usable
from stillroom.errors import UserError, quote
from stillroom.openai_client.client import OpenAIClient, RateLimiter
from stillroom.openai_client.requests import Request, Usage, affordable_calls, estimate_text_tokens
from stillroom.openai_client.response_cache import ResponseCache

BYTES_PER_TOKEN = 3  # as `estimate_text_tokens` counts
DEFAULT_REQUEST_TOKENS = 8192


@dataclass(frozen=True)
class ApiAccess:
    """Permission to use an API, and settings of its use; none of them changes the vectors.

    Attributes:
        key: sent as a bearer token; None sends none.
        cache: a file of answers, so that no text is paid for twice; None keeps none.
        texts_per_request: the most texts of a request.
        tokens, cost: the budget of one encoder, including vectors from the cache; None: no limit.
        price_in: of a million tokens.
    """

    key: str | None = field(default=None, repr=False)
    cache: Path | None = None
    texts_per_request: int = 64
    max_concurrency: int = 8
    attempts: int = 8
    timeout_s: float = 120.0
    first_pause_s: float = 1.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    tokens: int | None = None
    cost: float | None = None
    price_in: float = 0.0


@dataclass(frozen=True)
class ApiVector:
    """One text's vector from the API, and the tokens that it was billed for."""

    text: str
    tokens: int
    vector: np.ndarray


class ApiEncoder:
    """Vectors from an API, of unit length for cosine. Each distinct text is sent once."""

    parameters_total = 0  # unknown

    def __init__(self, contract: ApiContract, access: ApiAccess):
        self.contract, self.access = contract, access
        self.answers = None if access.cache is None else ResponseCache(access.cache)
        self.client = OpenAIClient(
            contract.base_url,
            self._read,
            access.key,
            attempts=access.attempts,
            timeout_s=access.timeout_s,
            first_pause_s=access.first_pause_s,
            rate_limiter=RateLimiter(access.requests_per_minute, access.tokens_per_minute),
        )
        self.spent = Usage()

    def to(self, device: str) -> "ApiEncoder":
        """Does nothing, because the model runs elsewhere."""
        return self

    def encode(
        self,
        texts: Sequence[str],
        role: Role,
        *,
        batch_tokens: int | None = None,
        dims: int | None = None,
        prompt: str | None = None,
    ) -> np.ndarray:
        """Vectors of texts, in their order: float32 (n, dims). Long texts are cut.

        Args:
            batch_tokens: the most estimated tokens of a request; None: DEFAULT_REQUEST_TOKENS.
            dims: the contract's size, or None.
            prompt: replaces the contract's prompt.

        Raises:
            UserError: when the API fails or answers wrongly, or the budget is used up; earlier
                answers stay in the cache.
        """
        vectors_nd = np.empty((len(texts), self.contract.resolve_dims(dims)), dtype=np.float32)
        rows: dict[str, list[int]] = {}
        for row, text in enumerate(texts):
            rows.setdefault(_sent_text(self.contract, text, role, prompt), []).append(row)
        max_tokens = batch_tokens or DEFAULT_REQUEST_TOKENS
        for answer in self._vectors(list(rows), role, max_tokens):
            self.spent += Usage(answer.tokens)
            vectors_nd[rows[answer.text]] = answer.vector
        return truncate_vectors(vectors_nd, vectors_nd.shape[1], self.contract.normalise)

    def _vectors(self, texts: list[str], role: Role, max_tokens: int) -> Iterator[ApiVector]:
        """Vectors of distinct texts, first those in the cache."""
        missing = []
        for text in texts:
            cached = self.answers.get(self._cache_key(text, role)) if self.answers else None
            if cached is None:
                missing.append(text)
            else:
                tokens, content = cached.split(" ")
                vector = np.frombuffer(base64.b64decode(content), "<f4")
                yield ApiVector(text, int(tokens), vector)
        if missing:
            self._check_budget(missing)
            yield from self._request_vectors(missing, role, max_tokens)

    def _request_vectors(
        self, texts: Sequence[str], role: Role, max_tokens: int
    ) -> Iterator[ApiVector]:
        """Requests vectors in parallel; after an error, only running requests are finished."""
        batches = split_requests(texts, self.access.texts_per_request, max_tokens)
        pending: dict[Future[str], list[str]] = {}
        error: UserError | None = None
        with ThreadPoolExecutor(self.access.max_concurrency, thread_name_prefix="api") as pool:
            while True:
                # No queue in the pool: its requests would be sent, and paid for, after an error.
                while error is None and len(pending) < self.access.max_concurrency:
                    batch = next(batches, None)
                    if batch is None:
                        break
                    pending[pool.submit(self.client.send, self._request(batch, role))] = batch
                if not pending:
                    break
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    batch = pending.pop(future)
                    try:
                        answers = self._read_answer(future.result(), batch, role)
                    except UserError as failure:
                        error = error or failure
                    else:
                        yield from answers
        if error is not None:
            raise error

    def _read_answer(self, content: str, texts: list[str], role: Role) -> list[ApiVector]:
        """The vectors in an answer, which are in the cache when this returns.

        Raises:
            UserError: when the request was refused, or the vectors have another size.
        """
        body = json.loads(content)
        where = f"{self.contract.base_url}/embeddings"
        if "refused" in body:
            raise UserError(
                where,
                f"refuses {len(texts)} texts, {quote(texts[0])} first: "
                f"{body['refused']} {body['reason']}",
                "Lower max_tokens or texts_per_request, or correct extra_body",
            )
        vectors = parse_vectors(body, texts)
        if vectors.shape[1] != self.contract.dims[0]:
            raise UserError(
                where,
                f"gives vectors of {vectors.shape[1]} dims, and its contract says "
                f"{self.contract.dims[0]}",
                "Correct teacher.api.dims, or set send_dimensions if the model can cut its vectors",
            )
        # A request's tokens are divided among its texts in proportion to their estimates.
        tokens = np.array([estimate_text_tokens(text) for text in texts])
        billed = (body.get("usage") or {}).get("prompt_tokens")
        if billed is not None:
            tokens = np.ceil(tokens * (billed / tokens.sum()))
        answers = [
            ApiVector(text, int(count), vector)
            for text, count, vector in zip(texts, tokens, vectors, strict=True)
        ]
        if self.answers is not None:
            self.answers.put_all(
                {
                    self._cache_key(answer.text, role): f"{answer.tokens} "
                    f"{base64.b64encode(answer.vector.tobytes()).decode()}"
                    for answer in answers
                }
            )
        return answers

    def _check_budget(self, texts: Sequence[str]) -> None:
        usage = Usage(sum(map(estimate_text_tokens, texts)))
        access = self.access
        calls = affordable_calls(
            self.spent,
            usage,
            tokens=access.tokens,
            cost=access.cost,
            price_in=access.price_in,
            price_out=0.0,
        )
        if calls < 1:
            raise UserError(
                "scale.teacher_api.budget",
                f"{len(texts):,} texts would take up to {usage.tokens_in:,} tokens more, and "
                f"{self.spent.tokens_in:,} are spent",
                "Raise it, or take fewer texts; the vectors so far are kept",
            )

    def _request(self, texts: Sequence[str], role: Role) -> Request:
        body = {**self._fixed_fields(role), "input": list(texts)}
        return Request.create("embeddings", body)

    def _fixed_fields(self, role: Role) -> dict[str, Any]:
        """The fields that all requests of a role share."""
        contract = self.contract
        dims = {"dimensions": contract.dims[0]} if contract.send_dimensions else {}
        extra = contract.extra_body.get(role, {})
        return {"model": contract.model, "encoding_format": "float", **dims, **extra}

    def _cache_key(self, text: str, role: Role) -> str:
        """The cache's key of a text's vector. It includes the address: another server of the same
        model may give other vectors, and one space must not mix them."""
        fields = json.dumps(
            [self._fixed_fields(role), self.contract.base_url, text], sort_keys=True
        )
        return hashlib.sha256(f"vector as sent {fields}".encode()).hexdigest()

    def _read(self, content: str, request: Request) -> object:
        """Checks an answer for the client, which repeats requests with broken answers."""
        return parse_vectors(json.loads(content), json.loads(request.body)["input"])


def parse_vectors(body: Mapping[str, Any], texts: Sequence[str]) -> np.ndarray:
    """The vectors of an answer in the order of its request's texts: float32 (texts, dims).

    Raises:
        ValueError, KeyError, TypeError: when the number of vectors is wrong, an index comes twice,
            or a vector is not finite or has no length.
    """
    rows = {}
    for item in body["data"]:
        vector = item["embedding"]
        if isinstance(vector, str):
            vector = np.frombuffer(base64.b64decode(vector, validate=True), dtype="<f4")
        with np.errstate(over="ignore"):  # it is refused below
            rows[int(item["index"])] = np.asarray(vector, dtype=np.float32)
    if sorted(rows) != list(range(len(texts))) or len(body["data"]) != len(texts):
        raise ValueError(f"{len(body['data'])} vectors for {len(texts)} texts")
    if len({vector.shape for vector in rows.values()}) != 1 or rows[0].ndim != 1:
        raise ValueError("vectors that differ in size, or are no lists of numbers")
    vectors = np.stack([rows[i] for i in range(len(texts))])
    try:
        require_usable(vectors, normalised=False, texts=texts)
    except UnusableVectorError as error:
        raise ValueError(f"{error.where}: {error.problem}") from None
    return vectors


def split_requests(texts: Sequence[str], max_texts: int, max_tokens: int) -> Iterator[list[str]]:
    """Splits texts, in order, into requests with limits on texts and estimated tokens.

    A text with more tokens gets a separate request.
    """
    batch: list[str] = []
    batch_tokens = 0
    for text in texts:
        tokens = estimate_text_tokens(text)
        if batch and (len(batch) == max_texts or batch_tokens + tokens > max_tokens):
            yield batch
            batch, batch_tokens = [], 0
        batch.append(text)
        batch_tokens += tokens
    if batch:
        yield batch


def truncate_text(text: str, max_tokens: int) -> str:
    """The beginning of a text, with at most this many estimated tokens.

    A lone surrogate becomes a question mark; an empty text, which APIs refuse, a space.
    """
    encoded = text.encode("utf-8", "replace")[: BYTES_PER_TOKEN * max_tokens]
    return encoded.decode("utf-8", "ignore") or " "


def estimate_tokens(contract: ApiContract, texts: Iterable[tuple[str, Role, str | None]]) -> int:
    """Estimated tokens of the distinct requests for (text, role, prompt); a prompt of None is the
    contract's."""
    sent = {(_sent_text(contract, text, role, prompt), role) for text, role, prompt in texts}
    return sum(estimate_text_tokens(text) for text, _ in sent)


def _sent_text(contract: ApiContract, text: str, role: Role, prompt: str | None) -> str:
    """The string to send for a text: prompt and text, cut to the model's length."""
    prompt = getattr(contract.prompts, role) if prompt is None else prompt
    return truncate_text(prompt + text, contract.max_tokens)
