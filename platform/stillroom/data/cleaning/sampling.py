"""Drawing lots among texts: a test set split off the pairs, and a sample of them.

Who is drawn is a function of the seed and the text alone, so it depends neither on the order of
files nor on how many processes read them, and a text added later changes nothing for the others.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from stillroom.data.cleaning.text_keys import mix
from stillroom.data.readers.records import EvaluationSet, Pair


def lots(keys: np.ndarray, seed: int) -> np.ndarray:
    """A number for each text's hash, uint64: those with the lowest are drawn. None is twice."""
    return mix(keys ^ mix(np.array([seed], dtype=np.uint64)))


def last_drawn(blocks: Callable[[], Iterable[np.ndarray]], count: int) -> np.uint64:
    """The lot of the last when `count` are drawn, of at least as many.

    Args:
        blocks: gives the lots, any number at a time, and the same again when called again: only
            one block is in memory.
    """
    shift = np.uint64(48)
    sizes = np.zeros(1 << 16, dtype=np.int64)
    for block in blocks():
        sizes += np.bincount((block >> shift).astype(np.int64), minlength=1 << 16)
    upto = np.cumsum(sizes)
    bin = int(np.searchsorted(upto, count))
    inside = np.concatenate([block[block >> shift == np.uint64(bin)] for block in blocks()])
    place = count - 1 - int(upto[bin] - sizes[bin])
    return np.uint64(np.partition(inside, place)[place])


def evenly(count: int, most: int) -> np.ndarray:
    """At most so many of `count` rows, evenly spaced from the first to the last: int64."""
    if count == 0 or most <= 0:
        return np.empty(0, dtype=np.int64)
    return np.unique(np.linspace(0, count - 1, most).astype(np.int64))


def held_out_set(pairs: Sequence[Pair], *, queries: int) -> EvaluationSet:
    """The passages of some pairs, searched with the first of their queries."""
    width = len(str(len(pairs)))
    ids = [f"p{number:0{width}d}" for number in range(len(pairs))]
    asked = range(queries)
    return EvaluationSet(
        passages={own_id: pair.passage for own_id, pair in zip(ids, pairs, strict=True)},
        queries={f"q{i:0{width}d}": pairs[i].query for i in asked},
        qrels={f"q{i:0{width}d}": {ids[i]: 1} for i in asked},
    )
