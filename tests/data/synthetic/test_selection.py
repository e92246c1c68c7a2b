"""How positives and negatives are chosen."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.data.synthetic.prompts import (
    RejectedAnswer,
)
from stillroom.data.synthetic.selection import (
    choose_positive_and_negative,
    query_likelihood,
    reciprocal_rank_fusion,
)

scorings = st.integers(1, 8).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=1, max_size=3)
)


@settings(max_examples=100, deadline=None)
@given(scorings)
def test_rank_fusion_equals_exact_sums(scorings):
    def rank(scores, row):
        return 1 + sum(score > scores[row] for score in scores)

    rows = range(len(scorings[0]))
    exact = {p: sum(Fraction(1, 60 + rank(scores, p)) for scores in scorings) for p in rows}
    assert reciprocal_rank_fusion(scorings) == sorted(rows, key=lambda p: (-exact[p], p))


def test_ties_of_one_scoring_are_broken_by_the_other():
    assert reciprocal_rank_fusion([[3, 3, 1], [-2.0, -1.0, -3.0]]) == [1, 0, 2]


PASSAGES = ("seed", "better", "related", "off", "Better ")


@pytest.mark.parametrize(
    ("grades", "likelihoods", "expected"),
    [
        ((2, 3, 1, 0, None), None, (1, 3)),
        # Equal grades: the likelihood decides, and without it the retriever's order.
        ((3, 3, 1, 0, None), (-2.0, -1.0, -3.0, -4.0, 0.0), (1, 3)),
        ((3, 3, 1, 0, None), None, (0, 3)),
        # No passage, or only a copy of the positive, has a lower grade.
        ((3, 3, 3, None, None), None, (0, None)),
        ((None, 3, None, None, 0), None, (1, None)),
        ((1, 0, None, None, None), None, "no passage answers the query"),
        ((None,) * 5, None, "no passage was graded"),
    ],
)
def test_the_best_ranked_is_the_positive_and_a_worse_graded_the_negative(
    grades, likelihoods, expected
):
    if isinstance(expected, str):
        with pytest.raises(RejectedAnswer, match=expected):
            choose_positive_and_negative(PASSAGES, grades, likelihoods, min_grade=2)
    else:
        assert choose_positive_and_negative(PASSAGES, grades, likelihoods, min_grade=2) == expected


def test_a_sampled_negative_is_from_the_worse_half_and_not_always_the_worst():
    grades = [3, 2, 2, 1, 1, 0, 0]
    texts = [f"text {i}" for i in range(7)]
    rng = np.random.default_rng(0)
    negatives = {
        choose_positive_and_negative(texts, grades, None, min_grade=2, rng=rng)[1]
        for _ in range(50)
    }
    assert negatives == {4, 5, 6}


PROMPT, QUERY = "<text>\nñandú\n</text>\nQuery:", " fast bird"


@pytest.mark.parametrize(
    ("tokens", "written"),
    [
        (["<text>\n", "ñandú", "\n</text>\n", "Query:", " fast", " bird", "!"], "!"),
        # A server that stops at once, and one whose tokens are single bytes of a character.
        (["<text>\n", "ñandú", "\n</text>\n", "Query:", " fast", " bird"], ""),
        (["<text>\n", "\\xc3", "\\xb1", "andú", "\n</text>\n", "Query:", " fast", " bird"], ""),
    ],
)
def test_the_likelihood_covers_only_the_query_s_tokens(tokens, written):
    logprobs = [None, *(-100.0 for _ in tokens[1:])]
    for position, token in enumerate(tokens):
        logprobs[position] = {" fast": -3.0, " bird": -1.0}.get(token, logprobs[position])
    likelihood = query_likelihood(PROMPT + QUERY + written, tokens, logprobs, PROMPT, QUERY)
    assert likelihood == -2.0


@pytest.mark.parametrize(
    ("echoed", "tokens"),
    [("!", ["!"]), (PROMPT + QUERY, [" bird"]), (PROMPT + QUERY, []), (PROMPT, [PROMPT])],
)
def test_without_an_echo_there_is_no_likelihood(echoed, tokens):
    with pytest.raises(RejectedAnswer):
        query_likelihood(echoed, tokens, [-1.0] * len(tokens), PROMPT, QUERY)
