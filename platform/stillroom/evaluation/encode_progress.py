"""Encoding that reports its progress.

Shapes: n texts, d dims.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stillroom.encoders.contract import BaseContract, Role
from stillroom.encoders.interface import Embedder

CHUNK = 512  # texts between two reports
EncodeTexts = Callable[[list[str], Role], np.ndarray]  # texts → float32, (n, d)
OnTexts = Callable[[int], None]  # called with a number of texts, once these are encoded


def encode_in_chunks(
    encode: Callable[[list[str]], np.ndarray], texts: Sequence[str], on_texts: OnTexts
) -> np.ndarray:
    """Vectors of texts in their order, (n, d). Chunks hold texts of similar length, so that there
    is no more padding than in one call."""
    if len(texts) <= CHUNK:
        vectors_nd = encode(list(texts))
        on_texts(len(texts))
        return vectors_nd
    by_length = np.argsort([len(text) for text in texts], kind="stable")
    chunks = np.array_split(by_length, -(-len(texts) // CHUNK))
    parts = []
    for rows in chunks:
        parts.append(encode([texts[row] for row in rows]))
        on_texts(len(rows))
    vectors_nd = np.empty((len(texts), parts[0].shape[1]), dtype=parts[0].dtype)
    for rows, part in zip(chunks, parts, strict=True):
        vectors_nd[rows] = part
    return vectors_nd


class ProgressEmbedder:
    """Wraps an embedder, and reports its progress."""

    def __init__(self, embedder: Embedder, on_texts: OnTexts):
        self.embedder, self.on_texts = embedder, on_texts

    @property
    def contract(self) -> BaseContract:
        return self.embedder.contract

    @property
    def parameters_total(self) -> int:
        return self.embedder.parameters_total

    def to(self, device: Any) -> Any:
        return ProgressEmbedder(self.embedder.to(device), self.on_texts)

    def encode(
        self,
        texts: Sequence[str],
        role: Role,
        *,
        batch_tokens: int | None = None,
        dims: int | None = None,
        prompt: str | None = None,
    ) -> np.ndarray:
        def encode(chunk: list[str]) -> np.ndarray:
            return self.embedder.encode(
                chunk, role, batch_tokens=batch_tokens, dims=dims, prompt=prompt
            )

        return encode_in_chunks(encode, texts, self.on_texts)
