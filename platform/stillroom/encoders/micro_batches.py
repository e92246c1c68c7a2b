"""Splits texts into micro-batches of similar length, and runs a forward over each."""

from collections.abc import Callable, Sequence

import numpy as np

from stillroom.encoders.contract import BaseContract
from stillroom.encoders.interface import truncate_vectors
from stillroom.encoders.tokens.batch import Batch, Tokens, pad
from stillroom.encoders.usable_vectors import require_usable

# Tokens of one forward: more leave a CPU's caches, fewer leave a GPU idle.
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 8192

Forward = Callable[[Batch], np.ndarray]  # → vectors at full size, float32 (b, dims[0])


def encode_in_batches(
    forward: Forward,
    tokens: Sequence[Tokens],
    contract: BaseContract,
    pad_id: int,
    *,
    max_tokens: int,
    dims: int | None = None,
    packed: bool = False,
) -> np.ndarray:
    """Vectors of texts in their order, float32 (n, dims).

    Args:
        max_tokens: the most tokens of one forward, padding counted unless `packed`.
        dims: one of the contract's sizes; None: the full one.

    Raises:
        UnusableVectorError: after the forward that gives a vector which is not finite or has no
            length.
    """
    size, normalise = contract.resolve_dims(dims), contract.normalise
    vectors_nd = np.empty((len(tokens), size), dtype=np.float32)
    lengths = [len(text.ids) for text in tokens]
    for rows in micro_batches(lengths, max_tokens, packed=packed):
        vectors = forward(pad([tokens[row] for row in rows], pad_id))
        if size != contract.dims[0]:
            vectors = truncate_vectors(vectors, size, normalise)
        require_usable(vectors, normalised=normalise, rows=rows)
        vectors_nd[rows] = vectors
    return vectors_nd


def micro_batches(
    lengths: Sequence[int], max_tokens: int, min_count: int = 1, *, packed: bool = False
) -> list[np.ndarray]:
    """Rows of texts of similar length, the longest first, each batch within a budget of tokens.

    Args:
        lengths: tokens of each text.
        max_tokens: of a micro-batch; a longer text gets a separate one.
        min_count: at least this many micro-batches, if there are enough rows.
        packed: padding costs nothing and is not counted.
    """
    order = np.argsort(lengths, kind="stable")[::-1].copy()  # torch takes no negative stride
    tokens_before = np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64)[order])])
    batches: list[np.ndarray] = []
    start = 0
    while start < len(order):
        size = max_tokens // max(1, lengths[order[start]])
        if packed:
            budget = tokens_before[start] + max_tokens
            size = int(np.searchsorted(tokens_before, budget, side="right")) - 1 - start
        size = max(1, size)
        batches.append(order[start : start + size])
        start += size
    while len(batches) < min(min_count, len(order)):
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        half = len(batches[largest]) // 2
        batches[largest : largest + 1] = [batches[largest][:half], batches[largest][half:]]
    return batches
