"""Encodes rows of texts, and finds those that cannot be encoded."""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from stillroom.encoders.contract import Role
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.interface import Embedder, TokenEncoder
from stillroom.encoders.usable_vectors import UnusableVectorError, require_usable
from stillroom.errors import UserError, one_line
from stillroom.observability.log_context import LogContext, configure_worker_logging
from stillroom.stages.vectors.texts import OpenTexts, TextsToEmbed

TokensByPrompt = Mapping[str | None, Sequence[Any]]


@dataclass(frozen=True)
class EncodedTexts:
    """Vectors of some rows.

    Attributes:
        vectors: float16, (n, dims), zeros for texts that failed.
        failed: number of the text among the n → reason.
    """

    vectors: np.ndarray
    failed: dict[int, str]


class RowEncoder:
    """Encodes rows of opened texts.

    Two threads may call it: while the forward of one runs, the other reads and tokenises.
    """

    def __init__(self, parts: Sequence[TextsToEmbed], encoder: Embedder):
        self.parts, self.encoder = parts, encoder
        # A tokenizer of its own: the encoder's may be in use by the other thread.
        self.prompter = encoder.prompter.copy() if isinstance(encoder, TokenEncoder) else None
        self.reading, self.computing = threading.Lock(), threading.Lock()

    def __call__(self, number: int, rows: np.ndarray, others_have_vectors: bool) -> EncodedTexts:
        """Vectors of some texts of the folder with this number.

        Args:
            others_have_vectors: these are what an earlier encode left over.

        Raises:
            UserError: where no text is at fault.
        """
        part = self.parts[number]
        with self.reading:
            texts = [part.texts[row] for row in rows]
            prompts = [part.prompts[row] for row in rows]
            tokens = self._tokens(part.role, texts, prompts)

        def encode(chosen: np.ndarray) -> np.ndarray:
            ready = tokens if len(chosen) == len(texts) else None
            return encode_with_prompts(
                self.encoder,
                [texts[number] for number in chosen],
                [prompts[number] for number in chosen],
                part.role,
                ready,
            )

        with self.computing:
            dims = self.encoder.contract.dims[0]
            vectors, failed = encode_isolating_failures(
                encode, len(texts), dims, others_have_vectors=others_have_vectors
            )
        return EncodedTexts(vectors, failed)

    def _tokens(
        self, role: Role, texts: Sequence[str], prompts: Sequence[str | None]
    ) -> TokensByPrompt | None:
        """The texts of each prompt, tokenised; None where the encoder does that itself, or must
        find the text that cannot be."""
        if self.prompter is None:
            return None
        try:
            return {
                prompt: self.prompter([texts[row] for row in rows], role, prompt=prompt)
                for prompt, rows in _rows_by_prompt(prompts).items()
            }
        except Exception:
            return None


class EncodingActor:
    """One actor of the pool. The model is loaded once."""

    def __init__(
        self,
        open_texts: OpenTexts,
        model: os.PathLike[str],
        trust_remote_code: bool,
        context: LogContext,
    ):
        configure_worker_logging(context)
        self.open_texts, self.model = open_texts, Path(model)
        self.trust_remote_code = trust_remote_code
        self.loading = threading.Lock()
        self.encoder: RowEncoder | None = None

    def ready(self) -> None:
        """Returns when the model is loaded."""
        self._loaded()

    def encode(self, number: int, rows: np.ndarray, others_have_vectors: bool) -> EncodedTexts:
        """As `RowEncoder`."""
        return self._loaded()(number, rows, others_have_vectors)

    def _loaded(self) -> RowEncoder:
        with self.loading:
            if self.encoder is None:
                device = "cuda" if ray.get_gpu_ids() else "cpu"
                encoder = load_encoder(
                    self.model, device=device, trust_remote_code=self.trust_remote_code
                )
                self.encoder = RowEncoder(self.open_texts(), encoder)
            return self.encoder


def encode_isolating_failures(
    encode: Callable[[np.ndarray], np.ndarray],
    count: int,
    dims: int,
    *,
    others_have_vectors: bool = False,
) -> tuple[np.ndarray, dict[int, str]]:
    """Encodes texts, some of which may make the encoder fail; halving finds these.

    Args:
        encode: rows of texts → their vectors, float16 (rows, dims).
        count: texts.
        others_have_vectors: these are what an earlier encode left over, so that all may fail.

    Returns:
        Vectors, float16 (count, dims), zeros for texts that failed; and row → reason.

    Raises:
        UserError: an API's, or a broken model's: no text caused it.
        Exception: the encoder's error, if every one of several texts fails, and none was left over.
    """
    result = np.zeros((count, dims), dtype=np.float16)
    failed: dict[int, str] = {}
    last_error: Exception | None = None
    pending = [np.arange(count)]
    while pending:
        rows = pending.pop()
        try:
            result[rows] = encode(rows)
        except Exception as error:
            if isinstance(error, UserError) and not isinstance(error, UnusableVectorError):
                raise
            last_error = error
            # Encoded alone, a text cannot be affected by others in its batch.
            if len(rows) > 1:
                pending += np.array_split(rows, 2)
            elif isinstance(error, UnusableVectorError):
                failed[int(rows[0])] = error.problem
            else:
                failed[int(rows[0])] = f"{type(error).__name__}: {one_line(error, 200)}"
    if last_error is not None and len(failed) == count > 1 and not others_have_vectors:
        raise last_error
    return result, dict(sorted(failed.items()))


def encode_with_prompts(
    encoder: Embedder,
    texts: Sequence[str],
    prompts: Sequence[str | None],
    role: Role,
    tokens: TokensByPrompt | None = None,
) -> np.ndarray:
    """Vectors of texts with a prompt each, None for the encoder's own: float16, (n, dims).

    Args:
        tokens: of the texts of each prompt, where they are made already.

    Raises:
        UnusableVectorError: naming a text whose vector is not finite or has no length, or that
            float16 cannot hold.
    """
    vectors = np.empty((len(texts), encoder.contract.dims[0]), dtype=np.float16)
    for prompt, rows in _rows_by_prompt(prompts).items():
        chosen = [texts[row] for row in rows]
        if tokens is not None and isinstance(encoder, TokenEncoder):
            encoded = encoder.encode(chosen, role, prompt=prompt, tokens=tokens[prompt])
        else:
            encoded = encoder.encode(chosen, role, prompt=prompt)
        with np.errstate(over="ignore"):
            vectors[rows] = encoded
    try:
        require_usable(vectors, normalised=encoder.contract.normalise, texts=texts)
    except UnusableVectorError as error:  # it was usable before it was rounded
        problem = f"{error.problem} in float16, in which vectors are stored"
        raise error.of_text(error.row, problem, texts[error.row]) from None
    return vectors


def _rows_by_prompt(prompts: Sequence[str | None]) -> dict[str | None, list[int]]:
    rows: dict[str | None, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    return rows
