"""Chooses a query's positive and hard negative among graded passages."""

from collections.abc import Sequence

import numpy as np

from stillroom.data.cleaning.text_keys import text_key
from stillroom.data.synthetic.prompts import RejectedAnswer


def query_likelihood(
    echoed: str, tokens: Sequence[str], logprobs: Sequence[float | None], prompt: str, query: str
) -> float:
    """Mean log-likelihood of the query's tokens after the prompt.

    Args:
        echoed: prompt, query, and the model's continuation.
        tokens, logprobs: of `echoed`. Joined, the tokens need not equal it: of a character that is
            split over several tokens, each shows something.

    Raises:
        RejectedAnswer: when prompt and query were not echoed.
    """
    before, match, completion = echoed.partition(prompt + query)
    if not match or before.strip():
        raise RejectedAnswer("the prompt was not echoed")
    # From the end, because inexact tokens of the passage would shift positions from the start. A
    # token across the border of prompt and query counts: it has the beginning of the query.
    query_logprobs: list[float] = []
    completion_left, query_left = len(completion), len(query)
    for token, logprob in zip(reversed(tokens), reversed(logprobs), strict=False):
        if query_left <= 0:
            return float(np.mean(query_logprobs))
        if completion_left > 0:
            completion_left -= len(token)
        elif logprob is None:
            break
        else:
            query_logprobs.append(logprob)
            query_left -= len(token)
    raise RejectedAnswer("no likelihood of the query")


def reciprocal_rank_fusion(scorings: Sequence[Sequence[float]], k: int = 60) -> list[int]:
    """Reciprocal rank fusion (Cormack et al., 2009): items by the sum of 1 / (k + rank).

    Items with equal scores share a rank: among the few grades, an arbitrary order would outvote
    the other scoring. Of equal sums the lower index comes first.

    Args:
        scorings: several scorings of the same items; a higher score is better.

    Returns:
        Indices of the items, best first.
    """
    sums = np.zeros(len(scorings[0]))
    for scoring in scorings:
        scores = np.asarray(scoring, dtype=np.float64)
        rank = 1 + (scores[None, :] > scores[:, None]).sum(1)  # 1 + how many are better
        sums += 1 / (k + rank)
    # Rounded, so that rounding errors of the additions settle no tie.
    return [int(item) for item in np.argsort(-sums.round(12), kind="stable")]


def choose_positive_and_negative(
    passages: Sequence[str],
    grades: Sequence[int | None],
    likelihoods: Sequence[float] | None,
    *,
    min_grade: int,
    rng: np.random.Generator | None = None,
) -> tuple[int, int | None]:
    """Chooses the positive of a query and its hard negative.

    Passages are ranked by grade and, if known, by the query's likelihood; the rankings are fused.
    A passage without a grade is left out.

    Args:
        passages: in the retriever's order, which settles ties.
        grades: of each passage, or None.
        likelihoods: of the query after each passage; None if unknown.
        min_grade: of a positive.
        rng: draws the negative from the worse half of the candidates; None takes the worst.

    Returns:
        Indices. The negative has a lower grade than the positive and another text; None if there
        is no such passage.

    Raises:
        RejectedAnswer: when no passage is good enough.
    """
    graded = [i for i, grade in enumerate(grades) if grade is not None]
    if not graded:
        raise RejectedAnswer("no passage was graded")
    scorings = [[float(grades[i] or 0) for i in graded]]
    if likelihoods is not None:
        scorings.append([likelihoods[i] for i in graded])
    order = [graded[i] for i in reciprocal_rank_fusion(scorings)]
    best = order[0]
    best_grade = grades[best] or 0
    if best_grade < min_grade:
        raise RejectedAnswer("no passage answers the query")
    best_key = text_key(passages[best])
    candidates = [
        i for i in order[1:] if (grades[i] or 0) < best_grade and text_key(passages[i]) != best_key
    ]
    if not candidates:
        return best, None
    if rng is None:
        return best, candidates[-1]
    return best, candidates[int(rng.integers(len(candidates) // 2, len(candidates)))]
