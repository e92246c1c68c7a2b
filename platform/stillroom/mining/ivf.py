"""Approximate search with an inverted file (IVF; Sivic and Zisserman, 2003), by FAISS.

Only the lists whose centres are nearest to a query are read. Centres are directions: a passage is
in the list of its own direction, whatever its length. Where lengths decide more than directions,
more lists must be read, which the measured recall shows.

Passages may be divided among several files with the same centres: together they find what one file
would find.

Shapes: l lists, n vectors, q queries, p lists that a query reads, k results, d dims.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from faiss.contrib.ivf_tools import add_preassigned, search_preassigned
from faiss.contrib.ondisk import merge_ondisk

from stillroom.mining.exact import Block, TopK, resize_blocks

LIST_LENGTH = 256  # mean passages of a list, of a million passages and more
MOST_LISTS = 65_536
SAMPLES_PER_LIST = 40  # vectors that its centre is learned from
ITERATIONS = 10  # of k-means
ROUNDING = 1e-5  # by which a score may differ, relative to itself
BUFFERED_BYTES = 32 * 2**20  # of passages in memory while lists are filled

FLAT_CENTRES = 4096  # up to it, comparing with every centre is as fast as a graph of them
GRAPH_LINKS = 32  # of a centre
GRAPH_SEARCH = 32  # centres that a search of the graph keeps in view


def number_of_lists(passages: int) -> int:
    """Four times the square root of the passages; of more than a million, lists of the same mean
    length instead, so that a query reads as many passages, up to `MOST_LISTS`."""
    of_length = min(passages // LIST_LENGTH, MOST_LISTS)
    return min(passages, max(round(4 * passages**0.5), of_length))


def learn_centres(blocks: Iterable[Block], passages: int, lists: int) -> np.ndarray:
    """Centres of about so many lists, by spherical k-means in two levels: of few coarse clusters,
    then within each, so that time grows with l^1.5.

    Args:
        blocks: all passages, of which every n-th is taken.
        passages: how many there are.

    Returns:
        float32 (l, d), of unit length.
    """
    stride = max(1, passages // (SAMPLES_PER_LIST * lists))
    sample_nd = np.concatenate([vectors[::stride] for _, vectors in blocks], dtype=np.float32)
    coarse_ld = _k_means(sample_nd, round(lists**0.5))
    cluster_n = Centres(coarse_ld).nearest(sample_nd, 1)[:, 0]
    centres = []
    for cluster in np.unique(cluster_n):
        members_nd = sample_nd[cluster_n == cluster]
        count = round(lists * len(members_nd) / len(sample_nd))
        centres.append(_k_means(members_nd, max(1, count)))
    return np.concatenate(centres)


def _k_means(vectors_nd: np.ndarray, count: int) -> np.ndarray:
    k_means = faiss.Kmeans(
        vectors_nd.shape[1],
        min(count, len(vectors_nd)),
        niter=ITERATIONS,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=len(vectors_nd),  # all: the sample is small enough already
    )
    k_means.train(vectors_nd)
    assert k_means.centroids is not None, "it is trained"
    return k_means.centroids


class Centres:
    """Finds the lists that are nearest to a vector.

    Args:
        centres_ld: as `learn_centres` returns them.
    """

    def __init__(self, centres_ld: np.ndarray):
        self.count, self.dims = centres_ld.shape
        self._is_graph = self.count > FLAT_CENTRES
        self._index: Any = faiss.IndexFlatIP(self.dims)
        if self._is_graph:
            self._index = faiss.IndexHNSWFlat(self.dims, GRAPH_LINKS, faiss.METRIC_INNER_PRODUCT)
        # One thread adds the centres in their order: every process has the same graph.
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        self._index.add(centres_ld)
        faiss.omp_set_num_threads(threads)

    def nearest(self, vectors_nd: np.ndarray, probes: int) -> np.ndarray:
        """Numbers of lists, int64 (n, p), the nearest first; -1 where none was found.

        Args:
            vectors_nd: float32.
            probes: p.
        """
        if probes >= self.count:
            return np.tile(np.arange(self.count), (len(vectors_nd), 1))
        if self._is_graph:
            self._index.hnsw.efSearch = max(GRAPH_SEARCH, 2 * probes)
        _, lists_np = self._index.search(np.ascontiguousarray(vectors_nd), probes)
        return lists_np


class InvertedFile:
    """Passages in lists around centres, as float16: 2 bytes a number.

    The lists are in a file that is mapped and that ends with this process, so that memory holds
    the centres, and whatever lists the system keeps.

    Args:
        blocks: passages.
        centres: of the lists.
    """

    def __init__(self, blocks: Iterable[Block], centres: Centres):
        self.centres = centres
        self.index = self._empty()
        # The files go at once: the lists stay mapped without their name.
        with tempfile.TemporaryDirectory() as folder:
            parts = list(self._write_parts(blocks, Path(folder)))
            merge_ondisk(self.index, parts, str(Path(folder) / "lists"))

    def _empty(self) -> Any:
        """Empty lists. FAISS gets no centres: whoever adds and searches says which lists."""
        dims = self.centres.dims
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(dims),
            dims,
            self.centres.count,
            faiss.ScalarQuantizer.QT_fp16,
            faiss.METRIC_INNER_PRODUCT,
            False,  # the vectors themselves, not their differences from the centre
        )
        index.is_trained = True  # float16 needs no training
        return index

    def _write_parts(self, blocks: Iterable[Block], folder: Path) -> Iterator[str]:
        """Files of lists, each of some passages."""
        rows_at_once = max(1, BUFFERED_BYTES // self.index.code_size)
        for number, (rows, vectors) in enumerate(resize_blocks(blocks, rows_at_once)):
            vectors_nd = vectors.astype(np.float32)
            lists_n = self.centres.nearest(vectors_nd, 1)[:, 0]
            part = self._empty()
            add_preassigned(part, vectors_nd, lists_n, rows)
            file = str(folder / f"part-{number}")
            faiss.write_index(part, file)
            yield file

    def search(self, queries_qd: np.ndarray, lists_qp: np.ndarray, k: int) -> TopK:
        """As `stillroom.mining.exact.search`, of the passages in these lists."""
        self.index.nprobe = lists_qp.shape[1]
        queries = np.ascontiguousarray(queries_qd, dtype=np.float32)
        scores, rows = search_preassigned(self.index, queries, k, lists_qp)
        return np.where(rows >= 0, scores, -np.inf).astype(np.float32), rows.astype(np.int64)


def memory_to_learn(passages: int, dims: int, lists: int) -> int:
    """Bytes of the sample that the centres are learned from."""
    return 4 * dims * min(passages, SAMPLES_PER_LIST * lists)


def memory_to_fill(passages: int, dims: int, lists: int) -> int:
    """Bytes of the centres, and of the passages that are written at once: as float16 and float32,
    in lists, which grow by doubling, and what is left over from these.

    Args:
        passages: of one file.
    """
    return 4 * dims * lists + 6 * min(BUFFERED_BYTES, 2 * dims * passages)


def recall_of_exact(approximate: TopK, exact: TopK) -> float:
    """The share of the exact results that are among the approximate ones.

    A result that scores no higher than the last approximate one counts as found: where scores are
    equal, either is as good.
    """
    (scores_qk, rows_qk), (exact_scores_qk, exact_rows_qk) = approximate, exact
    is_found = (exact_rows_qk[:, :, None] == rows_qk[:, None, :]).any(2)
    last_q1 = scores_qk.min(axis=1, keepdims=True)
    is_found |= exact_scores_qk - ROUNDING * np.abs(exact_scores_qk) <= last_q1
    exists = exact_rows_qk >= 0
    return float(is_found[exists].mean()) if exists.any() else 1.0
