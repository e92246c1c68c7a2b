"""An encoder behind an embeddings API of OpenAI's schema. No torch."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.encoders.contract import Remote, Role
from stillroom.errors import UserError
from stillroom.openai_client.client import (
    Answers,
    Client,
    Pace,
    Request,
    Usage,
    affordable,
    token_estimate,
)

BYTES_A_TOKEN = 3  # as `token_estimate` counts


@dataclass(frozen=True)
class Access:
    """How an API may be used; what it answers does not depend on it.

    Attributes:
        key: sent as a bearer token; None sends none.
        cache: a file of answers, which are then paid for once; None keeps none.
        texts: the most of a request.
        tokens, cost: what one encoder may use in all, vectors from the cache counted too.
        price_in: of a million tokens.
    """

    key: str | None = field(default=None, repr=False)
    cache: Path | None = None
    texts: int = 64
    at_once: int = 8
    attempts: int = 8
    timeout_s: float = 120.0
    first_pause_s: float = 1.0
    requests_a_minute: float | None = None
    tokens_a_minute: float | None = None
    tokens: int | None = None
    cost: float | None = None
    price_in: float = 0.0


class RemoteEncoder:
    """Vectors from an API, of unit length. Each text is asked for once."""

    parameters_total = 0  # nobody tells

    def __init__(self, contract: Remote, access: Access):
        self.contract, self.access = contract, access
        self.answers = None if access.cache is None else Answers(access.cache)
        self.client = Client(
            contract.base_url,
            self._read,
            access.key,
            attempts=access.attempts,
            timeout_s=access.timeout_s,
            first_pause_s=access.first_pause_s,
            pace=Pace(access.requests_a_minute, access.tokens_a_minute),
        )
        self.spent = Usage()

    def to(self, device: str) -> "RemoteEncoder":
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
        """Vectors of texts, in their order: float32, (n, dims). Long texts are cut.

        Args:
            batch_tokens: the most tokens of one request, as they are estimated; None: 8,192.
            dims: the contract's own size, or None.
            prompt: in place of the contract's own.

        Raises:
            UserError: when the API fails, answers with something else, or the budget is spent;
                all that came before is kept.
        """
        size = self.contract.size(dims)
        before = getattr(self.contract.prompts, role) if prompt is None else prompt
        cut = [shortened(before + text, self.contract.max_tokens) for text in texts]
        found = np.empty((len(texts), size), dtype=np.float32)
        places: dict[str, list[int]] = {}
        for place, text in enumerate(cut):
            places.setdefault(text, []).append(place)
        for text, tokens, vector in self._vectors(list(places), role, batch_tokens or 8192):
            self.spent += Usage(tokens)
            found[places[text]] = vector
        return found

    def _vectors(
        self, texts: list[str], role: Role, batch_tokens: int
    ) -> Iterator[tuple[str, int, np.ndarray]]:
        """(text, its tokens, its vector) of distinct texts: first those that are kept."""
        missing = []
        for text in texts:
            kept = self.answers.get(self._key(text, role)) if self.answers else None
            if kept is None:
                missing.append(text)
            else:
                tokens, content = kept.split(" ")
                yield text, int(tokens), np.frombuffer(base64.b64decode(content), "<f4")
        if not missing:
            return
        self._afford(missing)
        todo = batches(missing, self.access.texts, batch_tokens)
        pending: dict[Future[str], list[str]] = {}
        fault: UserError | None = None
        with ThreadPoolExecutor(self.access.at_once, thread_name_prefix="api") as pool:
            while True:
                # No more than are on their way: what is queued would still be asked, and paid for,
                # after a fault.
                while fault is None and len(pending) < self.access.at_once:
                    own = next(todo, None)
                    if own is None:
                        break
                    pending[pool.submit(self.client.ask, self._request(own, role))] = own
                if not pending:
                    break
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    own = pending.pop(future)
                    try:
                        answered = self._answered(future.result(), own, role)
                    except UserError as failed:
                        fault = fault or failed
                    else:
                        yield from answered
        if fault is not None:
            raise fault

    def _answered(
        self, content: str, texts: list[str], role: Role
    ) -> list[tuple[str, int, np.ndarray]]:
        """What a request's answer holds, which is kept when this returns.

        Raises:
            UserError: when the request was refused, or the vectors are of another size.
        """
        body = json.loads(content)
        where = f"{self.contract.base_url}/embeddings"
        if "refused" in body:
            raise UserError(
                where,
                f"refuses {len(texts)} texts, {texts[0][:60]!r} first: "
                f"{body['refused']} {body['told']}",
                "Lower max_tokens, the texts of a request, or mend extra_body",
            )
        vectors = vectors_of(body, len(texts))
        if vectors.shape[1] != self.contract.dims[0]:
            raise UserError(
                where,
                f"gives vectors of {vectors.shape[1]} dims, and its contract says "
                f"{self.contract.dims[0]}",
                "Correct teacher.api.dims, or set asks_dims where the model can cut its vectors",
            )
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        # What a request took is shared out among its texts by their estimates.
        estimates = np.array([token_estimate(text) for text in texts])
        told = (body.get("usage") or {}).get("prompt_tokens")
        took = estimates if told is None else np.ceil(estimates * (told / estimates.sum()))
        answered = [
            (text, int(tokens), vector)
            for text, tokens, vector in zip(texts, took, vectors, strict=True)
        ]
        if self.answers is not None:
            self.answers.keep_all(
                {
                    self._key(text, role): f"{tokens} {base64.b64encode(vector.tobytes()).decode()}"
                    for text, tokens, vector in answered
                }
            )
        return answered

    def _afford(self, texts: Sequence[str]) -> None:
        each = Usage(sum(map(token_estimate, texts)))
        own = self.access
        enough = affordable(
            self.spent, each, tokens=own.tokens, cost=own.cost, price_in=own.price_in, price_out=0.0
        )
        if enough < 1:
            raise UserError(
                "scale.teacher_api.budget",
                f"{len(texts):,} texts would take up to {each.tokens_in:,} tokens more, and "
                f"{self.spent.tokens_in:,} are spent",
                "Raise it, or take fewer texts; vectors that are there are kept",
            )

    def _request(self, texts: Sequence[str], role: Role) -> Request:
        body = {**self._fixed(role), "input": list(texts)}
        return Request.of("embeddings", body)

    def _fixed(self, role: Role) -> dict[str, Any]:
        """What all requests of a role have."""
        own = self.contract
        dims = {"dimensions": own.dims[0]} if own.asks_dims else {}
        extra = own.extra_body.get(role, {})
        return {"model": own.model, "encoding_format": "float", **dims, **extra}

    def _key(self, text: str, role: Role) -> str:
        """What a text's vector is kept under. The address counts: another server of the same model
        may compute it otherwise, and one space must not mix them."""
        told = json.dumps([self._fixed(role), self.contract.base_url, text], sort_keys=True)
        return hashlib.sha256(f"vector {told}".encode()).hexdigest()

    def _read(self, content: str, request: Request) -> object:
        return vectors_of(json.loads(content), len(json.loads(request.body)["input"]))


def vectors_of(body: Mapping[str, Any], count: int) -> np.ndarray:
    """The vectors of an answer in the order of its request: float32, (count, dims).

    Raises:
        ValueError, KeyError, TypeError: when there are fewer or more of them, an index comes twice
            or a number is not finite.
    """
    rows = {}
    for item in body["data"]:
        own = item["embedding"]
        if isinstance(own, str):
            own = np.frombuffer(base64.b64decode(own, validate=True), dtype="<f4")
        rows[int(item["index"])] = np.asarray(own, dtype=np.float32)
    if sorted(rows) != list(range(count)) or len(body["data"]) != count:
        raise ValueError(f"{len(body['data'])} vectors for {count} texts")
    vectors = np.stack([rows[i] for i in range(count)])  # ValueError where their sizes differ
    if vectors.ndim != 2 or not np.isfinite(vectors).all() or not vectors.any(axis=1).all():
        raise ValueError("vectors that are not finite, or nought")
    return vectors


def batches(texts: Sequence[str], most: int, tokens: int) -> Iterator[list[str]]:
    """Texts in order, so many at a time and of so many estimated tokens; one at least."""
    batch: list[str] = []
    total = 0
    for text in texts:
        own = token_estimate(text)
        if batch and (len(batch) == most or total + own > tokens):
            yield batch
            batch, total = [], 0
        batch.append(text)
        total += own
    if batch:
        yield batch


def shortened(text: str, max_tokens: int) -> str:
    """The text, or as much of its beginning as has so many tokens at most, nearly. A lone
    surrogate becomes a question mark; an empty text, which APIs refuse, a space."""
    encoded = text.encode("utf-8", "replace")[: BYTES_A_TOKEN * max_tokens]
    return encoded.decode("utf-8", "ignore") or " "


def estimated(contract: Remote, texts: Sequence[tuple[str, Role, str | None]]) -> int:
    """Tokens that distinct (text, role, prompt) take at most, nearly; a prompt of None is the
    contract's own."""
    sent = {
        (
            shortened(
                (getattr(contract.prompts, role) if own is None else own) + text,
                contract.max_tokens,
            ),
            role,
        )
        for text, role, own in texts
    }
    return sum(token_estimate(text) for text, _ in sent)
