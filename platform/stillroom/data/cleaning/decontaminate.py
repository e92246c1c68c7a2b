"""Removes training pairs that reveal queries or answers of evaluation sets.

`contamination_index` defines what counts and what matches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from stillroom.data.cleaning.contamination_index import (
    MATCH_KINDS,
    ContaminationIndex,
    EmbedFunction,
    MatchKind,
    embed_by_role,
)
from stillroom.data.readers.records import Pair

CHUNK_PAIRS = 4096  # checked at a time


@dataclass(frozen=True)
class Hit:
    """A contaminated pair; contamination.json has the same fields.

    Attributes:
        pair: index of the pair.
        what: the name of the matching text.
        text: that text.
        kind: how it matches, see `contamination_index`.
        score: the shared fraction, 0 to 1.
        set, role, id: the evaluation text that it matches.
    """

    pair: int
    what: Literal["query", "passage"]
    text: str
    kind: MatchKind
    score: float
    set: str
    role: Literal["query", "answer"]
    id: str


def decontaminate(
    pairs: Sequence[Pair],
    index: ContaminationIndex,
    *,
    drop: bool = True,
    embed: EmbedFunction | None = None,
    similarity: float = 0.95,
) -> tuple[list[Pair], list[Hit]]:
    """Drops contaminated pairs, or only reports them.

    Evaluation passages are removed from the negatives either way: a student must not be trained
    *against* them.

    Args:
        drop: False reports contaminated pairs without dropping them.
        embed: as given to `ContaminationIndex.build`, to match by meaning too.
        similarity: the least cosine of such a match.

    Returns:
        The pairs that are left, in order, and the best match of each contaminated pair.
    """
    clean: list[Pair] = []
    hits: list[Hit] = []
    for start in range(0, len(pairs), CHUNK_PAIRS):
        chunk = pairs[start : start + CHUNK_PAIRS]
        chunk_hits = list(_find_hits(chunk, index, embed, similarity))
        hits += [replace(hit, pair=start + hit.pair) for hit in chunk_hits]
        dropped = {hit.pair for hit in chunk_hits} if drop else set()
        left = [pair for i, pair in enumerate(chunk) if i not in dropped]
        clean += _without_tested_negatives(left, index)
    return clean, hits


def _without_tested_negatives(pairs: list[Pair], index: ContaminationIndex) -> Iterator[Pair]:
    negatives = [text for pair in pairs for text in pair.negatives]
    is_tested = iter(index.contains_many(negatives).tolist())
    for pair in pairs:
        free = tuple(text for text in pair.negatives if not next(is_tested))
        yield pair if len(free) == len(pair.negatives) else replace(pair, negatives=free)


def _find_hits(
    pairs: Sequence[Pair],
    index: ContaminationIndex,
    embed: EmbedFunction | None,
    similarity: float,
) -> Iterator[Hit]:
    """The better match of each contaminated pair's two texts, in the order of the pairs."""
    texts = [pair.query for pair in pairs] + [pair.passage for pair in pairs]
    is_query = np.arange(len(texts)) < len(pairs)
    vectors = None if embed is None else embed_by_role(embed, texts, is_query)
    matches = index.best_matches(texts, vectors, similarity)
    pair = matches.text % max(1, len(pairs))
    order = np.lexsort((matches.text, matches.kind, -matches.score, pair))
    first = np.unique(pair[order], return_index=True)[1]
    for i in order[first]:
        text, row = int(matches.text[i]), int(matches.row[i])
        yield Hit(
            pair=int(pair[i]),
            what="query" if is_query[text] else "passage",
            text=texts[text],
            kind=MATCH_KINDS[matches.kind[i]],
            score=round(float(matches.score[i]), 4),
            set=index.set_names[index.row_sets[row]],
            role="query" if index.is_query[row] else "answer",
            id=index.ids[row],
        )
