"""TODO docstring: mining/known.py."""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from stillroom.data.cleaning.text_keys import near_key, text_key
from stillroom.data.readers.records import EvaluationSet
from stillroom.mining.select import Texts


def texts_of(
    queries: Sequence[str],
    passages: Sequence[str],
    positive: np.ndarray,
    given: Sequence[Sequence[int]],
    evaluation: Any,
    *,
    searched: bool,
) -> Texts:
    """What copies what, what answers what, and what is never to be a negative."""
    near_p = _hashes(passages, near_key)
    near_q = _hashes(queries, near_key)
    groups, group_p = np.unique(near_p, return_inverse=True)
    # A query's own text may be a passage, where both are of one kind.
    place = np.minimum(np.searchsorted(groups, near_q), len(groups) - 1)
    itself = np.flatnonzero(groups[place] == near_q)
    some_row = np.empty(len(groups), dtype=np.int64)
    some_row[group_p] = np.arange(len(passages))
    tested = [text for of in evaluation for text in _tested(of, searched)]
    counts = [len(rows) for rows in given]
    return Texts(
        group_p=group_p.astype(np.int64),
        barred_p=np.isin(near_p, _hashes(tested, near_key)),
        positive_q=np.asarray(positive, dtype=np.int64),
        asked_q=np.unique(_hashes(queries, text_key), return_inverse=True)[1].astype(np.int64),
        given=(
            np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64),
            np.array([row for rows in given for row in rows], dtype=np.int64),
        ),
        also_known=(itself, some_row[place[itself]]),
    )


def _tested(of: EvaluationSet, searched: bool) -> Iterator[str]:
    """Passages that are not to be negatives: all of a set, or what answers its queries."""
    if not searched:
        yield from of.passages.values()
        return
    for grades in of.qrels.values():
        yield from (of.passages[own_id] for own_id, grade in grades.items() if grade > 0)


def _hashes(texts: Sequence[str], key: Any) -> np.ndarray:
    """A uint64 of each text's key: two of a million texts collide once in 40 million corpora."""
    digests = (
        blake2b(key(text).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for text in texts
    )
    return np.frombuffer(b"".join(digests), dtype=np.uint64)
