"""Training texts that would give an evaluation set's answers away."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from stillroom.text.dedupe import near_key, text_key
from stillroom.text.formats import EvaluationSet, Pair


@dataclass(frozen=True)
class Hit:
    """A pair that was dropped: its place, the set that it is in, and what of it."""

    pair: int
    set: str
    what: str


@dataclass(frozen=True)
class Judged:
    """What evaluation sets ask and answer, by the texts' keys.

    Attributes:
        queries, answers, beginnings: key → set; answers' near-copies share their beginning.
        searched: every passage, whether it answers anything or not.
    """

    queries: dict[str, str]
    answers: dict[str, str]
    beginnings: dict[str, str]
    searched: set[str]

    @staticmethod
    def of(evaluation: Mapping[str, EvaluationSet], *, whole: Collection[str] = ()) -> "Judged":
        """Judged queries and their answers.

        Args:
            whole: sets of which every passage counts as an answer. Of others one that answers
                no judged query may be trained on: a collection that is searched is often the one
                that is trained on.
        """
        judged = Judged({}, {}, {}, set())
        for name, kept in evaluation.items():
            judged.searched.update(text_key(text) for text in kept.passages.values())
            judged.queries.update((text_key(kept.queries[query]), name) for query in kept.qrels)
            grades = [item for one in kept.qrels.values() for item in one.items()]
            relevant = {passage for passage, grade in grades if grade > 0}
            for passage in kept.passages if name in whole else relevant:
                text = kept.passages[passage]
                judged.answers[text_key(text)] = name
                judged.beginnings[near_key(text)] = name
        return judged

    def holds(self, text: str) -> bool:
        """Whether a text is a passage of a set, or a near-copy of an answer."""
        return text_key(text) in self.searched or near_key(text) in self.beginnings


def decontaminate(pairs: Sequence[Pair], judged: Judged) -> tuple[list[Pair], list[Hit]]:
    """Drops pairs that hold a judged query or its answer; takes what is tested out of the
    negatives.

    Returns:
        The pairs left, in order, and what was dropped.
    """
    clean, hits = [], []
    for place, pair in enumerate(pairs):
        for key, known, what in (
            (text_key(pair.query), judged.queries, "query"),
            (text_key(pair.passage), judged.answers, "passage"),
            (near_key(pair.passage), judged.beginnings, "beginning of the passage"),
        ):
            if key in known:
                hits.append(Hit(place, known[key], what))
                break
        else:
            negatives = tuple(text for text in pair.negatives if not judged.holds(text))
            clean.append(replace(pair, negatives=negatives))
    return clean, hits
