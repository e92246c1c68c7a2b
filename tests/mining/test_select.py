"""Selection of hard negatives, in cases by hand and against a plain loop."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.mining import select as reasons
from stillroom.mining.known_texts import Answers, KnownTexts
from stillroom.mining.select import SelectionRule, select_negatives

PLAIN = SelectionRule(
    max_share_of_positive=0.95,
    absolute_margin=None,
    max_score=None,
    skip_first=0,
    sample_from=4,
    per_query=2,
    strategy="top",
)


def known_texts(group_p, positive_q, query_text_q, provided, excluded_p=None):
    """What is known of texts whose only answers are the positives."""
    return KnownTexts(
        group_p=group_p,
        excluded_p=np.zeros(len(group_p), dtype=bool) if excluded_p is None else excluded_p,
        positive_q=positive_q,
        query_text_q=query_text_q,
        answers=Answers.of(query_text_q, group_p[positive_q]),
        provided=provided,
    )


def select_for_one_query(
    scores, rows, *, positive=0, positive_score=1.0, provided=(), seed=0, groups=None, **changes
):
    """Selects for one query among ten passages, or as many as `groups` has."""
    texts = known_texts(
        group_p=np.arange(10) if groups is None else np.array(groups),
        positive_q=np.array([positive]),
        query_text_q=np.array([0]),
        provided=(np.array([0, len(provided)]), np.array(provided, dtype=np.int64)),
    )
    return select_negatives(
        np.array([scores], np.float32),
        np.array([rows]),
        positive_score_q=np.array([positive_score], np.float32),
        texts=texts,
        rule=dataclasses.replace(PLAIN, **changes),
        seed=seed,
    )


@pytest.mark.promise("mining")
def test_the_positive_and_candidates_too_close_to_its_score_are_never_negatives():
    selected = select_for_one_query([1.0, 0.97, 0.951, 0.9, 0.8], [0, 1, 2, 3, 4])
    assert selected.negatives.tolist() == [[3, 4]]
    assert selected.rejected[reasons.POSITIVE] == 1
    assert selected.rejected[reasons.NEAR_POSITIVE] == 2
    np.testing.assert_allclose(selected.scores, [[0.9, 0.8]], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_share_of_positive": None}, [1, 2]),
        ({"max_share_of_positive": None, "absolute_margin": 0.15}, [4, 5]),
        ({"absolute_margin": 0.01}, [3, 4]),
        ({"max_score": 0.8}, [4, 5]),
        ({"skip_first": 1}, [4, 5]),
    ],
)
def test_the_lowest_of_several_limits_applies(changes, expected):
    selected = select_for_one_query(
        [1.0, 0.97, 0.951, 0.9, 0.8, 0.7], [0, 1, 2, 3, 4, 5], **changes
    )
    assert selected.negatives.tolist() == [expected]


@pytest.mark.parametrize(
    ("positive_score", "expected"), [(0.0, [2, -1]), (-0.2, [2, -1]), (-0.29, [-1, -1])]
)
def test_the_limit_is_below_a_positive_score_of_any_sign(positive_score, expected):
    assert select_for_one_query(
        [0.1, -0.3], [1, 2], positive_score=positive_score
    ).negatives.tolist() == [expected]


@pytest.mark.parametrize("scale", [1, 8, 80])
@pytest.mark.parametrize("offset", [0.0, -2.0])
def test_a_share_of_the_positive_selects_the_same_at_every_scale_of_scores(scale, offset):
    """Inner products of raw vectors may be 80, or below 0, where cosines are near 1."""
    scores = np.array([1.0, 0.97, 0.951, 0.94, 0.8, 0.7]) + offset
    expected = select_for_one_query(scores, range(6), positive_score=1.0 + offset)
    selected = select_for_one_query(scale * scores, range(6), positive_score=scale * (1.0 + offset))
    assert selected.negatives.tolist() == expected.negatives.tolist()
    assert selected.rejected == expected.rejected


def test_a_margin_and_a_highest_score_have_the_scores_own_unit():
    of_raw = {"max_share_of_positive": None, "absolute_margin": 5.0, "max_score": 70.0}
    selected = select_for_one_query([79.0, 76.0, 72.0, 69.0], range(1, 5), positive_score=80.0,
                                    **of_raw)  # fmt: skip
    assert selected.negatives.tolist() == [[4, -1]]
    assert selected.rejected[reasons.NEAR_POSITIVE] == 2
    assert selected.rejected[reasons.ABOVE_MAX_SCORE] == 1


def test_random_negatives_are_a_uniform_sample_of_the_best():
    counts = np.zeros(6)
    for seed in range(600):
        selected = select_for_one_query(
            [0.9, 0.8, 0.7, 0.6, 0.5], [1, 2, 3, 4, 5], sample_from=3, strategy="random", seed=seed
        )
        np.add.at(counts, selected.negatives[0], 1)
    assert counts[[0, 4, 5]].tolist() == [0, 0, 0]
    assert (abs(counts[1:4] - 400) < 60).all()  # 58 is five standard deviations


def test_provided_negatives_come_first_without_repetitions_or_copies_of_the_positive():
    groups = [0, 1, 2, 3, 4, 5, 6, 7, 0, 6]  # 8 copies the positive, 9 copies 6
    selected = select_for_one_query(
        [0.9, 0.8, 0.7], [5, 9, 7], provided=[6, 8, 0, 6], per_query=3, groups=groups
    )
    assert selected.negatives.tolist() == [[6, 5, 7]]
    assert selected.rejected[reasons.PROVIDED] == 1
    assert np.isnan(selected.scores[0, 0])


def test_too_few_candidates_are_filled_with_minus_one():
    selected = select_for_one_query([0.5, -np.inf], [3, -1], per_query=3)
    assert selected.negatives.tolist() == [[3, -1, -1]]


# --- against a loop -------------------------------------------------------------------------


def select_slowly(scores, rows, positive_scores, texts, provided, known_groups, rule):
    """Pools and counts of reasons, candidate by candidate."""
    pools, counts = [], dict.fromkeys(reasons.REASONS, 0)
    for q in range(len(rows)):
        positive = float(positive_scores[q])
        limits = [np.inf]
        if rule.max_share_of_positive is not None:
            limits.append(positive - abs(positive) * (1 - rule.max_share_of_positive))
        if rule.absolute_margin is not None:
            limits.append(positive - rule.absolute_margin)
        seen_groups, pool = set(), []
        for score, row in zip(scores[q], rows[q], strict=True):
            if row < 0:
                continue
            group = texts.group_p[row]
            if row == texts.positive_q[q]:
                reason = reasons.POSITIVE
            elif group in known_groups[texts.query_text_q[q]]:
                reason = reasons.KNOWN
            elif texts.excluded_p[row]:
                reason = reasons.EVALUATION
            elif group in {texts.group_p[negative] for negative in provided[q] if negative >= 0}:
                reason = reasons.PROVIDED
            elif score > min(limits):
                reason = reasons.NEAR_POSITIVE
            elif rule.max_score is not None and score > rule.max_score:
                reason = reasons.ABOVE_MAX_SCORE
            elif group in seen_groups:
                reason = reasons.REPEATED
            else:
                seen_groups.add(group)
                pool.append(row)
                continue
            counts[reason] += 1
        counts[reasons.SKIPPED] += min(len(pool), rule.skip_first)
        pools.append(pool[rule.skip_first :][: rule.sample_from])
    return pools, counts


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    share=st.sampled_from([None, 0.75, 1.0]),
    margin=st.sampled_from([None, 0.125]),
    ceiling=st.sampled_from([None, 0.5]),
    skip=st.integers(0, 2),
    wide=st.integers(0, 5),
    per_query=st.integers(1, 4),
    strategy=st.sampled_from(["top", "random"]),
)
@pytest.mark.promise("mining")
def test_every_rule_selects_what_a_plain_loop_selects(
    seed, share, margin, ceiling, skip, wide, per_query, strategy
):
    rng = np.random.default_rng(seed)
    q, p, k = 12, 30, 14
    rule = SelectionRule(share, margin, ceiling, skip, per_query + wide, per_query, strategy)
    # Multiples of 1/8: limits are exact, and there are many ties.
    scores = -np.sort(-rng.integers(-4, 9, size=(q, k)).astype(np.float32) / 8, axis=1)
    rows = np.array([rng.permutation(p)[:k] for _ in range(q)])
    rows[:, k - 2 :][rng.random((q, 2)) < 0.5] = -1
    sizes = rng.integers(0, 3, q)
    given_rows = rng.integers(0, p, sizes.sum())
    texts = known_texts(
        group_p=rng.integers(0, 20, p),
        positive_q=rng.integers(0, p, q),
        query_text_q=rng.integers(0, 8, q),
        excluded_p=rng.random(p) < 0.1,
        provided=(np.concatenate([[0], np.cumsum(sizes)]), given_rows),
    )
    known_groups = {text: set() for text in range(8)}
    for text, row in zip(texts.query_text_q, texts.positive_q, strict=True):
        known_groups[text].add(texts.group_p[row])
    positive_scores = rng.integers(-3, 9, size=q).astype(np.float32) / 8
    arguments = {"texts": texts, "rule": rule, "seed": seed}
    selected = select_negatives(scores, rows, positive_score_q=positive_scores, **arguments)
    provided_rows = texts.provided_negatives(np.arange(q), per_query)
    pools, counts = select_slowly(
        scores, rows, positive_scores, texts, provided_rows, known_groups, rule
    )
    assert selected.rejected == counts
    for query, pool in enumerate(pools):
        negatives = [row for row in selected.negatives[query].tolist() if row >= 0]
        provided = [row for row in provided_rows[query].tolist() if row >= 0]
        mined = negatives[len(provided) :]
        expected_count = min(len(pool), per_query - len(provided))
        assert negatives[: len(provided)] == provided
        assert len(mined) == len(set(mined)) == expected_count
        assert mined == (
            [row for row in pool if row in mined] if strategy == "random" else pool[:expected_count]
        )
        assert set(mined) <= set(pool)
    # A block of the queries gives the same result as all of them.
    half = select_negatives(
        scores[5:9], rows[5:9], positive_score_q=positive_scores[5:9], first=5, **arguments
    )
    np.testing.assert_array_equal(half.negatives, selected.negatives[5:9])
    np.testing.assert_array_equal(half.scores, selected.scores[5:9])
