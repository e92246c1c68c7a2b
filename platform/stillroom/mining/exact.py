"""Exact search by inner product, over any number of passages in bounded memory.

Each block of passages is filtered, then refined. A matrix product, in bfloat16 where the machine
supports it, scores all passages to within a bound that is computed from the vectors. Only passages
that may be among the best by that bound are scored again, in float32 and row by row. A score
therefore depends on its two vectors only, bit for bit: not on the blocks, the partition of the
passages, or the filter's precision. Ties are ordered by the lower row.

Shapes: q queries, k results of each, n passages of a block, d dims. "Packed" results are one uint64
each, see `_pack`.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

TopK = tuple[np.ndarray, np.ndarray]  # scores float32, rows int64, both (q, k), best first
Block = tuple[np.ndarray, np.ndarray]  # rows int64 (n,), vectors float16 or float32 (n, d)
QUERIES_PER_PRODUCT = 256  # queries of one matrix product
REFINED_NUMBERS = 1 << 18  # numbers gathered at once to refine: they fit in one core's cache
BFLOAT16_STEP = 2.0**-8  # between neighbouring bfloat16 around 1
MAX_ROW = np.uint64(2**32 - 1)


def search(
    queries_qd: np.ndarray,
    passages: Iterable[Block],
    k: int,
    *,
    passages_per_product: int = 16384,
    device: str = "cpu",
) -> TopK:
    """The best k passages of each query; -inf and row -1 where there are fewer.

    Args:
        queries_qd: float32; of unit length for cosine, as the passages are, else of any length.
        passages: blocks of any size, each row in one of them. Rows are below 2**32 - 1.
        passages_per_product: of one matrix product; memory grows with it.
    """
    queries = np.ascontiguousarray(queries_qd, dtype=np.float32)
    best_qk = np.zeros((len(queries), k), dtype=np.uint64)
    filters = [
        _Filter(queries[start : start + QUERIES_PER_PRODUCT], device)
        for start in range(0, len(queries), QUERIES_PER_PRODUCT)
    ]
    for rows, vectors in resize_blocks(passages, passages_per_product):
        block = _ApproximateBlock(vectors, device)
        for number, query_filter in enumerate(filters):
            start = number * QUERIES_PER_PRODUCT
            part_qk = best_qk[start : start + QUERIES_PER_PRODUCT]
            part_qk[:] = _merge_block(query_filter, block, rows, part_qk, k)
    return _unpack(best_qk[:, ::-1])


def chunk_sizes(memory_bytes: float, dims: int, k: int) -> tuple[int, int]:
    """(queries of one search, passages of one matrix product) whose arrays fit in the memory."""
    # Per query: in float32 and the filter's precision, its best results and their sorting buffer.
    # Per passage: as read, in float32, in the filter's precision, their difference, and its scores.
    query_bytes, passage_bytes = 6 * dims + 40 * k, 16 * dims + 8 * QUERIES_PER_PRODUCT
    queries, passages = (int(memory_bytes / 2 / size) for size in (query_bytes, passage_bytes))
    return min(max(queries, 1), 16384), min(max(passages, 1), 32768)


def merge_top_k(parts: Iterable[TopK], k: int) -> TopK:
    """The best k of several searches for the same queries; a row in several results counts once."""
    packed = np.concatenate([_pack(*part) for part in parts], axis=1)
    packed.sort(axis=1)
    packed[:, 1:][packed[:, 1:] == packed[:, :-1]] = 0
    missing = max(0, k - packed.shape[1])
    packed = np.pad(packed, ((0, 0), (missing, 0)))
    packed.sort(axis=1)
    return _unpack(packed[:, ::-1][:, :k])


def row_dots(queries_nd: np.ndarray, passages_nd: np.ndarray) -> np.ndarray:
    """Inner products row by row, float32 (n,). Every score is computed this way."""
    queries = np.ascontiguousarray(queries_nd, dtype=np.float32)
    passages = np.ascontiguousarray(passages_nd, dtype=np.float32)
    # Only over the last axis, whose order of summation does not depend on the number of rows.
    return np.einsum("nd,nd->n", queries, passages)


def resize_blocks(blocks: Iterable[Block], size: int) -> Iterator[Block]:
    """The same rows in blocks of `size`; the last may be smaller."""
    pending: list[Block] = []
    count = 0
    for rows, vectors in blocks:
        start = 0
        while start < len(rows):
            taken = min(size - count, len(rows) - start)
            pending.append((rows[start : start + taken], vectors[start : start + taken]))
            start, count = start + taken, count + taken
            if count == size:
                yield _concatenate(pending)
                pending, count = [], 0
    if pending:
        yield _concatenate(pending)


def _concatenate(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate([rows for rows, _ in blocks]), np.concatenate([v for _, v in blocks])


def _filter_dtype(device: str) -> torch.dtype:
    """bfloat16 where the device computes in it natively."""
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float32
    # Where a CPU only emulates bfloat16, float32 is faster. Older torch does not report it.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


class _ApproximateBlock:
    """A block's vectors in the filter's precision.

    Attributes:
        exact: float32, (n, d), on the CPU.
        approximate: (n, d), on the device.
        longest: the largest norm.
        largest_error: the largest norm of a rounding error.
    """

    def __init__(self, vectors: np.ndarray, device: str):
        # torch widens float16 many times faster than NumPy. A copy: it takes no read-only arrays.
        widened = torch.from_numpy(np.array(vectors)).float()
        self.exact = widened.numpy()
        on_device = widened.to(device)
        self.approximate = on_device.to(_filter_dtype(device))
        error_nd = on_device - self.approximate.float()
        self.longest = float(torch.linalg.vector_norm(on_device, dim=1).max())
        self.largest_error = float(torch.linalg.vector_norm(error_nd, dim=1).max())


class _Filter:
    """Some queries in the filter's precision.

    Attributes:
        exact: float32, (q, d), on the CPU.
        approximate: (q, d), on the device.
        length_q, error_q: norms of the queries and of their rounding errors.
    """

    def __init__(self, queries: np.ndarray, device: str):
        self.exact = queries
        on_device = torch.from_numpy(np.array(queries)).to(device)
        self.approximate = on_device.to(_filter_dtype(device))
        self.length_q = torch.linalg.vector_norm(on_device, dim=1)
        self.error_q = torch.linalg.vector_norm(on_device - self.approximate.float(), dim=1)

    def scores(self, block: _ApproximateBlock) -> torch.Tensor:
        """Approximate scores, (q, n)."""
        return self.approximate @ block.approximate.T

    def bound(self, block: _ApproximateBlock) -> torch.Tensor:
        """How far a sum behind `scores` may be from the exact one, (q,).

        |qp - q'p'| <= |q - q'||p| + |q'||p - p'|, plus what float32 may lose in the summation.
        """
        reach_q = (self.length_q + self.error_q) * (block.longest + block.largest_error)
        summing_q = 2.0 * self.exact.shape[1] * torch.finfo(torch.float32).eps * reach_q
        rounding_q = (
            self.error_q * block.longest + (self.length_q + self.error_q) * block.largest_error
        )
        return rounding_q + summing_q


def _merge_block(
    queries: _Filter, block: _ApproximateBlock, rows: np.ndarray, best_qk: np.ndarray, k: int
) -> np.ndarray:
    """The best results so far, packed and ascending, with a block's passages merged in."""
    scores_qn = queries.scores(block)
    bound_q = queries.bound(block)
    kth_q = torch.from_numpy(_unpack(best_qk[:, :1])[0][:, 0]).to(scores_qn.device)
    hits = None if bool(kth_q.isneginf().any()) else _at_least(scores_qn, kth_q - bound_q)
    if hits is None or len(hits) > 4 * k * len(bound_q):
        # k passages of this block score at least `cut_q`, which raises the limit.
        if k <= scores_qn.shape[1]:
            cut_q = torch.topk(scores_qn, k, dim=1).values[:, -1].float()
            kth_q = torch.maximum(kth_q, cut_q - BFLOAT16_STEP * cut_q.abs() - bound_q)
        hits = _at_least(scores_qn, kth_q - bound_q)
    query, column = np.divmod(hits, scores_qn.shape[1])
    packed = np.empty(len(hits), dtype=np.uint64)
    step = max(1, REFINED_NUMBERS // queries.exact.shape[1])
    for start in range(0, len(hits), step):
        q, p = query[start : start + step], column[start : start + step]
        scores = row_dots(queries.exact[q], block.exact[p])
        packed[start : start + step] = _pack(scores, rows[p])
    return _merge_packed(best_qk, query, packed)


def _at_least(scores_qn: torch.Tensor, limit_q: torch.Tensor) -> np.ndarray:
    """Flat indices, ascending, of scores whose exact sum may reach the query's limit.

    Rounding keeps order: a sum of at least the limit rounds to at least the rounded limit.
    """
    limit_q1 = limit_q.to(scores_qn.dtype)[:, None]
    if scores_qn.device.type == "cpu" and bool((limit_q1 > 0).all()):
        # Read as integers, positive floats keep their order and negative ones are below them.
        # NumPy compares integers many times faster than torch compares floats.
        integer = torch.int16 if scores_qn.dtype == torch.bfloat16 else torch.int32
        return np.flatnonzero(scores_qn.view(integer).numpy() >= limit_q1.view(integer).numpy())
    mask = scores_qn >= limit_q1
    if mask.device.type == "cpu":
        return np.flatnonzero(mask.numpy())
    return torch.nonzero(mask.flatten())[:, 0].cpu().numpy()


def _pack(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """uint64 that sort by score, then by lower row; 0 where the row is -1."""
    # + 0 turns -0.0 into 0.0.
    bits = (np.ascontiguousarray(scores, dtype=np.float32) + np.float32(0)).view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    packed = (ordered << np.uint64(32)) | (MAX_ROW - rows.astype(np.uint64))
    return np.where(rows >= 0, packed, np.uint64(0))


def _unpack(packed: np.ndarray) -> TopK:
    ordered = (packed >> np.uint64(32)).astype(np.uint32)
    bits = np.where(ordered >> 31, ordered ^ np.uint32(1 << 31), ~ordered)
    none = packed == 0
    rows = (MAX_ROW - (packed & MAX_ROW)).astype(np.int64)
    scores = np.where(none, np.float32(-np.inf), bits.view(np.float32))
    return scores.astype(np.float32), np.where(none, -1, rows)


def _merge_packed(best_qk: np.ndarray, query: np.ndarray, packed: np.ndarray) -> np.ndarray:
    """Packed results (q, k), ascending, with further packed ones merged in.

    Args:
        query: of each further result, ascending.
    """
    if not len(packed):
        return best_qk
    counts = np.bincount(query, minlength=len(best_qk))
    column = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    wide = np.zeros((len(best_qk), best_qk.shape[1] + int(counts.max())), dtype=np.uint64)
    wide[:, : best_qk.shape[1]] = best_qk
    wide[query, best_qk.shape[1] + column] = packed
    wide.sort(axis=1)
    return wide[:, wide.shape[1] - best_qk.shape[1] :]
