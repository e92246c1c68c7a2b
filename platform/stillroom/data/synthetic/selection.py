"""TODO docstring: data/synthetic/selection.py."""

from collections.abc import Sequence

import numpy as np

from stillroom.data.cleaning.text_keys import text_key
from stillroom.data.synthetic.prompts import Rejected


def query_likelihood(
    echoed: str, tokens: Sequence[str], logprobs: Sequence[float | None], prompt: str, query: str
) -> float:
    """Mean log-likelihood of the query's tokens after the prompt.

    Args:
        echoed: prompt, query, and what the model wrote after them.
        tokens, logprobs: its tokens, whose texts need not be `echoed`'s own: of a character in
            several tokens, each shows something.

    Raises:
        Rejected: when prompt and query were not echoed.
    """
    before, found, written = echoed.partition(prompt + query)
    if not found or before.strip():
        raise Rejected("the prompt was not echoed")
    # From the end, where the texts of a passage's tokens cannot shift anything. A token across
    # the border counts: it holds the query's beginning.
    told: list[float] = []
    beyond, left = len(written), len(query)
    for token, logprob in zip(reversed(tokens), reversed(logprobs), strict=False):
        if left <= 0:
            return float(np.mean(told))
        if beyond > 0:
            beyond -= len(token)
        elif logprob is None:
            break
        else:
            told.append(logprob)
            left -= len(token)
    raise Rejected("no likelihood of the query")


def fuse(scorings: Sequence[Sequence[float]], k: int = 60) -> list[int]:
    """Reciprocal rank fusion (Cormack et al., 2009): places by the sum of 1 / (k + rank).

    Equal scores share a rank, or the few grades there are would outvote what tells their bearers
    apart. Of equal sums the lower place comes first.

    Args:
        scorings: each a score for every place.
    """
    sums = np.zeros(len(scorings[0]))
    for scores in scorings:
        given = np.asarray(scores, dtype=np.float64)
        rank = 1 + (given[None, :] > given[:, None]).sum(1)  # 1 + how many are better
        sums += 1 / (k + rank)
    # Rounded, so that the order of the additions settles no tie.
    return [int(place) for place in np.argsort(-sums.round(12), kind="stable")]


def choose(
    passages: Sequence[str],
    grades: Sequence[int | None],
    likelihoods: Sequence[float] | None,
    *,
    least_grade: int,
    sampled: np.random.Generator | None = None,
) -> tuple[int, int | None]:
    """Which passage becomes the positive of a query, and which its hard negative.

    Both are ranked by grade and, where it is known, by the query's likelihood, and the rankings
    fused. A passage without a grade takes no part.

    Args:
        passages: in the retriever's order, which settles ties.
        least_grade: of a positive.
        sampled: draws the negative from the lower half of what could be one; None takes the
            last.

    Returns:
        Places. The negative's grade is below the positive's and its text another; None where
        there is no such passage.

    Raises:
        Rejected: when no passage is good enough.
    """
    judged = [place for place, grade in enumerate(grades) if grade is not None]
    if not judged:
        raise Rejected("no passage was graded")
    scorings = [[float(grades[place] or 0) for place in judged]]
    if likelihoods is not None:
        scorings.append([likelihoods[place] for place in judged])
    order = [judged[at] for at in fuse(scorings)]
    best = order[0]
    of_best = grades[best] or 0
    if of_best < least_grade:
        raise Rejected("no passage answers the query")
    own = text_key(passages[best])
    lower = [p for p in order[1:] if (grades[p] or 0) < of_best and text_key(passages[p]) != own]
    if not lower:
        return best, None
    if sampled is None:
        return best, lower[-1]
    return best, lower[int(sampled.integers(len(lower) // 2, len(lower)))]
