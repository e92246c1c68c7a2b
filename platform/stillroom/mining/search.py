"""Exact search by inner product, in parts that merge to the whole.

Ties are ordered by the lower row, so that a result does not depend on how the passages were
parted. Scores are float32, descending; columns that nothing fills hold -inf and row -1.
"""

from collections.abc import Sequence

import faiss
import numpy as np

Found = tuple[np.ndarray, np.ndarray]  # scores float32, rows int64, both (q, k)
BLOCK = 65536  # passages in float32 at once: 256 MiB at 1,024 dims


def search(queries_qd: np.ndarray, passages_pd: np.ndarray, k: int) -> Found:
    """The best k passages of each query.

    Args:
        queries_qd: float32, unit rows for cosine.
        passages_pd: float16 or float32, perhaps memory-mapped.
    """
    queries = np.ascontiguousarray(queries_qd, dtype=np.float32)
    parts = []
    for start in range(0, len(passages_pd), BLOCK):
        block = np.ascontiguousarray(passages_pd[start : start + BLOCK], dtype=np.float32)
        # One more than asked: whether the last place is tied can only be seen from beyond it.
        scores, rows = faiss.knn(
            queries, block, min(k + 1, len(block)), metric=faiss.METRIC_INNER_PRODUCT
        )
        _settle_ties(scores, rows, queries, block, k)
        scores, rows = scores[:, :k], rows[:, :k]
        parts.append((scores, np.where(rows >= 0, rows + start, -1)))
    return merge(parts, k) if parts else _nothing(len(queries), k)


def _settle_ties(
    scores: np.ndarray, rows: np.ndarray, queries: np.ndarray, block: np.ndarray, k: int
) -> None:
    """Where the k-th place is tied with what was cut off, takes the tied of lowest row."""
    if scores.shape[1] <= k:
        return
    for q in np.flatnonzero(scores[:, k] == scores[:, k - 1]):
        clear = int((scores[q] > scores[q, k - 1]).sum())
        everything, order = faiss.knn(
            queries[q : q + 1], block, len(block), metric=faiss.METRIC_INNER_PRODUCT
        )
        by_row = everything[0][np.argsort(order[0])]
        # Compared within this one search: another batch size may round the last bit otherwise.
        tied = np.flatnonzero(by_row == by_row[rows[q, k - 1]])
        rows[q, clear:k] = tied[: k - clear]


def merge(parts: Sequence[Found], k: int) -> Found:
    """The best k of several searches for the same queries, whose rows are distinct."""
    scores = np.concatenate([part[0] for part in parts], axis=1)
    rows = np.concatenate([part[1] for part in parts], axis=1)
    missing = k - scores.shape[1]
    if missing > 0:
        empty_scores, empty_rows = _nothing(len(scores), missing)
        scores, rows = np.hstack([scores, empty_scores]), np.hstack([rows, empty_rows])
    scores = np.where(rows >= 0, scores, -np.inf).astype(np.float32)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def _nothing(queries: int, k: int) -> Found:
    return (
        np.full((queries, k), -np.inf, dtype=np.float32),
        np.full((queries, k), -1, dtype=np.int64),
    )
