"""Sampling of texts: a held-out test set, and a sample of the pairs.

Whether a text is drawn is a function of the seed and the text alone. So it depends neither on the
order of files nor on the number of processes, and a text added later does not affect others.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from stillroom.data.cleaning.splitmix import splitmix64
from stillroom.data.readers.records import EvaluationSet, Pair


def random_ranks(keys: np.ndarray, seed: int) -> np.ndarray:
    """A random rank for each text hash, uint64: the lowest are drawn. Distinct keys never tie."""
    return splitmix64(keys ^ splitmix64(np.array([seed], dtype=np.uint64)))


def rank_cutoff(blocks: Callable[[], Iterable[np.ndarray]], count: int) -> np.uint64:
    """The highest rank that is drawn: the `count`-th lowest, of at least `count` ranks.

    Args:
        blocks: yields the ranks, any number at a time, and the same ones at every call; only one
            block is in memory.
        count: how many texts are drawn.
    """
    # First a histogram by the top 16 bits, then a selection within the bin of the cutoff.
    shift = np.uint64(48)
    bin_sizes = np.zeros(1 << 16, dtype=np.int64)
    for block in blocks():
        bin_sizes += np.bincount((block >> shift).astype(np.int64), minlength=1 << 16)
    cumulative = np.cumsum(bin_sizes)
    cutoff_bin = int(np.searchsorted(cumulative, count))
    in_bin = np.concatenate([block[block >> shift == np.uint64(cutoff_bin)] for block in blocks()])
    index = count - 1 - int(cumulative[cutoff_bin] - bin_sizes[cutoff_bin])
    return np.uint64(np.partition(in_bin, index)[index])


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
