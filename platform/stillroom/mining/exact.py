"""Exact search by inner product, over any number of passages in bounded memory.

A block of passages is filtered, then refined. A matrix product, in bfloat16 where the machine
computes in it, scores all of them to within a bound that is worked out from the vectors
themselves; only what may be among the best by that bound is scored again, in float32 and one
passage after the other. A score therefore depends on its two vectors alone, bit for bit: not on
the blocks, nor on how passages were parted, nor on what the filter computed in. Ties are ordered
by the lower row.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

Found = tuple[np.ndarray, np.ndarray]  # scores float32, rows int64, both (q, k), best first

Block = tuple[np.ndarray, np.ndarray]  # rows int64 (n,), vectors float16 or float32 (n, d)

TOGETHER = 256  # queries of one matrix product

REFINED = 1 << 18  # numbers gathered at once to refine: what a core's own cache holds

BFLOAT16_STEP = 2.0**-8  # between neighbouring bfloat16 around 1

LAST = np.uint64(2**32 - 1)


def search(
    queries_qd: np.ndarray,
    passages: Iterable[Block],
    k: int,
    *,
    together: int = 16384,
    device: str = "cpu",
) -> Found:
    """The best k passages of each query; -inf and row -1 where there are fewer.

    Args:
        queries_qd: float32, unit rows for cosine.
        passages: blocks of any size, each row in one of them. Rows are below 2**32 - 1.
        together: passages of one matrix product, which is what memory grows with.
    """
    queries = np.ascontiguousarray(queries_qd, dtype=np.float32)
    best_qk = np.zeros((len(queries), k), dtype=np.uint64)
    filters = [
        _Filter(queries[start : start + TOGETHER], device)
        for start in range(0, len(queries), TOGETHER)
    ]
    for rows, vectors in rebatched(passages, together):
        block = _Approximated(vectors, device)
        for number, one in enumerate(filters):
            start = number * TOGETHER
            here = best_qk[start : start + TOGETHER]
            here[:] = _improved(one, block, rows, here, k)
    return _unpacked(best_qk[:, ::-1])


def sizes(memory_bytes: float, dims: int, k: int) -> tuple[int, int]:
    """(queries of one search, passages of one matrix product) whose arrays fit in the memory."""
    # Of a query: float32 and what the filter sees, its best and what they are sorted with. Of a
    # passage: as read, in float32, as the filter sees it, their difference, and its scores.
    of_query, of_passage = 6 * dims + 40 * k, 16 * dims + 8 * TOGETHER
    queries, passages = (int(memory_bytes / 2 / one) for one in (of_query, of_passage))
    return min(max(queries, 1), 16384), min(max(passages, 1), 32768)


def merge(parts: Iterable[Found], k: int) -> Found:
    """The best k of several searches for the same queries; a row that several found counts once."""
    packed = np.concatenate([_packed(*part) for part in parts], axis=1)
    packed.sort(axis=1)
    packed[:, 1:][packed[:, 1:] == packed[:, :-1]] = 0
    missing = max(0, k - packed.shape[1])
    packed = np.pad(packed, ((0, 0), (missing, 0)))
    packed.sort(axis=1)
    return _unpacked(packed[:, ::-1][:, :k])


def dot(queries_nd: np.ndarray, passages_nd: np.ndarray) -> np.ndarray:
    """Inner products row by row, float32 (n,): the one way in which scores are computed."""
    queries = np.ascontiguousarray(queries_nd, dtype=np.float32)
    passages = np.ascontiguousarray(passages_nd, dtype=np.float32)
    # Over the last axis alone, whose order of summation the number of rows does not touch.
    return np.einsum("nd,nd->n", queries, passages)


def rebatched(blocks: Iterable[Block], size: int) -> Iterator[Block]:
    """The same rows in blocks of `size`; the last may be smaller."""
    held: list[Block] = []
    count = 0
    for rows, vectors in blocks:
        start = 0
        while start < len(rows):
            taken = min(size - count, len(rows) - start)
            held.append((rows[start : start + taken], vectors[start : start + taken]))
            start, count = start + taken, count + taken
            if count == size:
                yield _joined(held)
                held, count = [], 0
    if held:
        yield _joined(held)


def _joined(held: list[Block]) -> Block:
    if len(held) == 1:
        return held[0]
    return np.concatenate([rows for rows, _ in held]), np.concatenate([v for _, v in held])


def _computes_in(device: str) -> torch.dtype:
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float32
    # Where a CPU only emulates bfloat16, float32 is faster. Older torch cannot tell.
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    native = able.get("avx512_bf16") or able.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


class _Approximated:
    """A block's vectors as the filter sees them, and how far they are off at most."""

    def __init__(self, vectors: np.ndarray, device: str):
        # torch widens float16 many times faster than NumPy. A copy: it takes no read-only arrays.
        read = torch.from_numpy(np.array(vectors)).float()
        self.exact = read.numpy()
        whole = read.to(device)
        self.seen = whole.to(_computes_in(device))
        self.longest = float(torch.linalg.vector_norm(whole, dim=1).max())
        self.off = float(torch.linalg.vector_norm(whole - self.seen.float(), dim=1).max())


class _Filter:
    """Some queries as the filter sees them."""

    def __init__(self, queries: np.ndarray, device: str):
        self.exact = queries
        given = torch.from_numpy(np.array(queries)).to(device)
        self.seen = given.to(_computes_in(device))
        self.length = torch.linalg.vector_norm(given, dim=1)
        self.off = torch.linalg.vector_norm(given - self.seen.float(), dim=1)

    def scores(self, block: _Approximated) -> torch.Tensor:
        return self.seen @ block.seen.T

    def bound(self, block: _Approximated) -> torch.Tensor:
        """How far a sum behind `scores` may be from the exact one, (q,).

        |qp - q'p'| <= |q - q'||p| + |q'||p - p'|, and as much again as float32 loses adding up.
        """
        reach = (self.length + self.off) * (block.longest + block.off)
        summing = 2.0 * self.exact.shape[1] * torch.finfo(torch.float32).eps * reach
        return self.off * block.longest + (self.length + self.off) * block.off + summing


def _improved(
    queries: _Filter, block: _Approximated, rows: np.ndarray, best_qk: np.ndarray, k: int
) -> np.ndarray:
    """The best so far, packed and ascending, with a block's passages taken in."""
    scores_qn = queries.scores(block)
    bound_q = queries.bound(block)
    kth_q = torch.from_numpy(_unpacked(best_qk[:, :1])[0][:, 0]).to(scores_qn.device)
    hits = None if bool(kth_q.isneginf().any()) else _at_least(scores_qn, kth_q - bound_q)
    if hits is None or len(hits) > 4 * k * len(bound_q):
        # k of this block score at least so much, which narrows it down.
        if k <= scores_qn.shape[1]:
            cut_q = torch.topk(scores_qn, k, dim=1).values[:, -1].float()
            kth_q = torch.maximum(kth_q, cut_q - BFLOAT16_STEP * cut_q.abs() - bound_q)
        hits = _at_least(scores_qn, kth_q - bound_q)
    query, place = np.divmod(hits, scores_qn.shape[1])
    packed = np.empty(len(hits), dtype=np.uint64)
    step = max(1, REFINED // queries.exact.shape[1])
    for start in range(0, len(hits), step):
        q, p = query[start : start + step], place[start : start + step]
        found = dot(queries.exact[q], block.exact[p])
        packed[start : start + step] = _packed(found, rows[p])
    return _best_of(best_qk, query, packed)


def _at_least(scores_qn: torch.Tensor, limit_q: torch.Tensor) -> np.ndarray:
    """Flat places of the scores that may stand for sums of at least a limit each query, ascending.

    Rounding keeps order: what is at least a limit rounds to at least the limit rounded.
    """
    limit_q1 = limit_q.to(scores_qn.dtype)[:, None]
    if scores_qn.device.type == "cpu" and bool((limit_q1 > 0).all()):
        # As whole numbers, positive floats keep their order and negative ones are below.
        # NumPy compares those many times faster than torch its floats.
        whole = torch.int16 if scores_qn.dtype == torch.bfloat16 else torch.int32
        return np.flatnonzero(scores_qn.view(whole).numpy() >= limit_q1.view(whole).numpy())
    mask = scores_qn >= limit_q1
    if mask.device.type == "cpu":
        return np.flatnonzero(mask.numpy())
    return torch.nonzero(mask.flatten())[:, 0].cpu().numpy()


def _packed(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """uint64 that order as (score, then lower row) does; 0 where the row is -1."""
    # + 0 makes -0.0 the 0.0 that it equals.
    bits = (np.ascontiguousarray(scores, dtype=np.float32) + np.float32(0)).view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    packed = (ordered << np.uint64(32)) | (LAST - rows.astype(np.uint64))
    return np.where(rows >= 0, packed, np.uint64(0))


def _unpacked(packed: np.ndarray) -> Found:
    ordered = (packed >> np.uint64(32)).astype(np.uint32)
    bits = np.where(ordered >> 31, ordered ^ np.uint32(1 << 31), ~ordered)
    none = packed == 0
    rows = (LAST - (packed & LAST)).astype(np.int64)
    scores = np.where(none, np.float32(-np.inf), bits.view(np.float32))
    return scores.astype(np.float32), np.where(none, -1, rows)


def _best_of(best_qk: np.ndarray, query: np.ndarray, packed: np.ndarray) -> np.ndarray:
    """Ascending best of (q, k), with flat candidates, ordered by query, taken in."""
    if not len(packed):
        return best_qk
    counts = np.bincount(query, minlength=len(best_qk))
    place = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    wide = np.zeros((len(best_qk), best_qk.shape[1] + int(counts.max())), dtype=np.uint64)
    wide[:, : best_qk.shape[1]] = best_qk
    wide[query, best_qk.shape[1] + place] = packed
    wide.sort(axis=1)
    return wide[:, wide.shape[1] - best_qk.shape[1] :]
