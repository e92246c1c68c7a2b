"""Approximate search with an inverted file (IVF; Sivic and Zisserman, 2003), by FAISS.

Only the lists whose centres are nearest to a query are read. Centres are directions: a passage is
in the list of its own direction, whatever its length. Where lengths decide more than directions,
more lists must be read, which the measured recall shows.
"""

from collections.abc import Callable, Iterable
from typing import Any

import faiss
import numpy as np

from stillroom.mining.exact import Block, TopK

SAMPLES_PER_LIST = 64  # training vectors per list, to learn its centre


class InvertedFile:
    """Passages in lists around centres, as float16: 2 bytes a number in memory.

    Args:
        blocks: each call returns the passages from the start, as blocks of (rows, vectors).
        lists: None: four times the square root of the number of passages.
        probes: lists that a query searches.
        device: "cuda" puts the index on this process's GPU where FAISS is built for one.
    """

    def __init__(
        self,
        blocks: Callable[[], Iterable[Block]],
        *,
        lists: int | None,
        probes: int,
        device: str = "cpu",
    ):
        rows = np.concatenate([rows for rows, _ in blocks()])
        lists = min(lists or round(4 * len(rows) ** 0.5), len(rows))
        stride = max(1, len(rows) // (SAMPLES_PER_LIST * lists))
        sample = np.concatenate([vectors[::stride] for _, vectors in blocks()]).astype(np.float32)
        dims = sample.shape[1]
        self.index: Any = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(dims),
            dims,
            lists,
            faiss.ScalarQuantizer.QT_fp16,
            faiss.METRIC_INNER_PRODUCT,
        )
        self.index.train(sample)
        for block_rows, vectors in blocks():
            self.index.add_with_ids(vectors.astype(np.float32), block_rows)
        self.index.nprobe = min(probes, lists)
        if device == "cuda" and getattr(faiss, "get_num_gpus", int)():
            self.index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, self.index)

    def search(self, queries_qd: np.ndarray, k: int) -> TopK:
        """As `stillroom.mining.exact.search`, without passages in lists that are not read."""
        scores, rows = self.index.search(np.ascontiguousarray(queries_qd, dtype=np.float32), k)
        return np.where(rows >= 0, scores, -np.inf).astype(np.float32), rows.astype(np.int64)


def recall_of_exact(approximate: np.ndarray, exact: np.ndarray) -> float:
    """The share of the rows in `exact` (q, k) that are in `approximate` (q, any)."""
    is_found = (exact[:, :, None] == approximate[:, None, :]).any(2)
    return float(is_found[exact >= 0].mean()) if (exact >= 0).any() else 1.0
