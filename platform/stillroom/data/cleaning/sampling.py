"""Sampling of texts: a held-out test set, and a sample of the pairs.

Whether a text is drawn is a function of the seed and the text alone. So it depends neither on the
order of files nor on the number of processes, and a text added later does not affect others.
"""

from collections.abc import Sequence

import numpy as np

from stillroom.data.cleaning.splitmix import splitmix64
from stillroom.data.readers.records import EvaluationSet, Pair

RANK_BIN_BITS = 16
RANK_BINS = 1 << RANK_BIN_BITS


def random_ranks(keys: np.ndarray, seed: int) -> np.ndarray:
    """A random rank for each text hash, uint64: the lowest are drawn. Distinct keys never tie."""
    return splitmix64(keys ^ splitmix64(np.array([seed], dtype=np.uint64)))


def rank_bins(ranks: np.ndarray) -> np.ndarray:
    """The bin of each rank, by its top bits: 0 to RANK_BINS - 1, int64."""
    return (ranks >> np.uint64(64 - RANK_BIN_BITS)).astype(np.int64)


def cutoff_bin(bin_sizes: np.ndarray, count: int) -> tuple[int, int]:
    """Where the `count`-th lowest rank is, which is the highest that is drawn.

    So no more than one bin of the ranks must be sorted, wherever they are.

    Args:
        bin_sizes: of at least `count` ranks, how many each bin has.

    Returns:
        Its bin, and its index among the sorted ranks of that bin.
    """
    cumulative = np.cumsum(bin_sizes)
    number = int(np.searchsorted(cumulative, count))
    return number, count - 1 - int(cumulative[number] - bin_sizes[number])


def evenly_spaced(count: int, max_rows: int) -> np.ndarray:
    """At most `max_rows` of `count` rows, evenly spaced from the first to the last: int64."""
    if count == 0 or max_rows <= 0:
        return np.empty(0, dtype=np.int64)
    return np.unique(np.linspace(0, count - 1, max_rows).astype(np.int64))


def held_out_set(pairs: Sequence[Pair], *, queries: int) -> EvaluationSet:
    """An evaluation set of some pairs: all passages, searched with the first `queries` queries."""
    width = len(str(len(pairs)))
    ids = [f"p{number:0{width}d}" for number in range(len(pairs))]
    return EvaluationSet(
        passages={passage_id: pair.passage for passage_id, pair in zip(ids, pairs, strict=True)},
        queries={f"q{i:0{width}d}": pairs[i].query for i in range(queries)},
        qrels={f"q{i:0{width}d}": {ids[i]: 1} for i in range(queries)},
    )
