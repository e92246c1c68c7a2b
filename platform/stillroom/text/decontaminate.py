"""Training pairs that would give an evaluation set's answers away."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stillroom.text.dedupe import NEAR, near_key, text_key
from stillroom.text.formats import EvaluationSet, Pair


@dataclass(frozen=True)
class Hit:
    """A pair that was dropped: its place, the set that it is in, and what of it."""

    pair: int
    set: str
    what: str


def decontaminate(
    pairs: Sequence[Pair], evaluation: Mapping[str, EvaluationSet]
) -> tuple[list[Pair], list[Hit]]:
    """Drops pairs that hold a judged query or its answer; takes all evaluation passages out of
    the negatives.

    A passage of the collection that answers no judged query may be trained on: a collection
    that is searched is often the one that is trained on.

    Returns:
        The pairs left, in order, and what was dropped.
    """
    queries: dict[str, str] = {}
    answers: dict[str, str] = {}
    beginnings: dict[str, str] = {}
    searched: set[str] = set()
    for name, kept in evaluation.items():
        searched.update(text_key(text) for text in kept.passages.values())
        for query, grades in kept.qrels.items():
            queries[text_key(kept.queries[query])] = name
            for passage in (p for p, grade in grades.items() if grade > 0):
                text = kept.passages[passage]
                answers[text_key(text)] = name
                if len(text) >= NEAR:
                    beginnings[near_key(text)] = name
    clean, hits = [], []
    for place, pair in enumerate(pairs):
        for key, known, what in (
            (text_key(pair.query), queries, "query"),
            (text_key(pair.passage), answers, "passage"),
            (near_key(pair.passage), beginnings, "beginning of the passage"),
        ):
            if key in known:
                hits.append(Hit(place, known[key], what))
                break
        else:
            negatives = tuple(text for text in pair.negatives if text_key(text) not in searched)
            clean.append(replace(pair, negatives=negatives))
    return clean, hits
