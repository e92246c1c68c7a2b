"""Approximate search with an inverted file (IVF; Sivic and Zisserman, 2003), by FAISS.

Only the lists whose centres are nearest to a query are read. Centres are directions: a passage is
in the list of its own direction, whatever its length. Where lengths decide more than directions,
more lists must be read, which the measured recall shows.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from faiss.contrib.ondisk import merge_ondisk

from stillroom.mining.exact import Block, TopK, resize_blocks

SAMPLES_PER_LIST = 64  # training vectors per list, to learn its centre
BUFFERED_BYTES = 128 * 2**20  # of passages in memory while lists are filled


class InvertedFile:
    """Passages in lists around centres, as float16: 2 bytes a number.

    The lists are in a file that is mapped and that ends with this process, so that memory holds
    the centres, and whatever lists the system keeps.

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
        count = sum(len(rows) for rows, _ in blocks())
        lists = _number_of_lists(lists, count)
        stride = max(1, count // (SAMPLES_PER_LIST * lists))
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
        del sample
        # The files go at once: the lists stay mapped without their name.
        with tempfile.TemporaryDirectory() as folder:
            parts = list(self._write_parts(blocks(), Path(folder)))
            merge_ondisk(self.index, parts, str(Path(folder) / "lists"))
        self.index.nprobe = min(probes, lists)
        if device == "cuda" and getattr(faiss, "get_num_gpus", int)():
            self.index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, self.index)

    def _write_parts(self, blocks: Iterable[Block], folder: Path) -> Iterator[str]:
        """Files of indexes with the same centres, each of some passages; empties the index."""
        rows_at_once = max(1, BUFFERED_BYTES // self.index.code_size)
        for number, (rows, vectors) in enumerate(resize_blocks(blocks, rows_at_once)):
            self.index.add_with_ids(vectors.astype(np.float32), rows)
            file = str(folder / f"part-{number}")
            faiss.write_index(self.index, file)
            self.index.reset()
            yield file

    def search(self, queries_qd: np.ndarray, k: int) -> TopK:
        """As `stillroom.mining.exact.search`, without passages in lists that are not read."""
        scores, rows = self.index.search(np.ascontiguousarray(queries_qd, dtype=np.float32), k)
        return np.where(rows >= 0, scores, -np.inf).astype(np.float32), rows.astype(np.int64)


def memory_to_build(count: int, dims: int, lists: int | None) -> int:
    """Bytes that building an index takes: the sample that its centres are learned from, or the
    passages that are written at once, as float16 and as float32.

    Args:
        count: passages.
        lists: as `InvertedFile` takes it.
    """
    sample = min(count, SAMPLES_PER_LIST * _number_of_lists(lists, count))
    return max(4 * dims * sample, 3 * min(BUFFERED_BYTES, 2 * dims * count))


def _number_of_lists(lists: int | None, count: int) -> int:
    return min(lists or round(4 * count**0.5), count)


def recall_of_exact(approximate: np.ndarray, exact: np.ndarray) -> float:
    """The share of the rows in `exact` (q, k) that are in `approximate` (q, any)."""
    is_found = (exact[:, :, None] == approximate[:, None, :]).any(2)
    return float(is_found[exact >= 0].mean()) if (exact >= 0).any() else 1.0
