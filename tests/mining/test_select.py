import numpy as np
import pytest

from stillroom.mining.select import Rule, select


def rule(**changes):
    fields = {
        "max_share_of_positive": 0.95,
        "skip_first": 0,
        "sample_from": 4,
        "per_query": 2,
        "strategy": "top",
    }
    return Rule(**{**fields, **changes})


def one(scores, rows, *, positive=0, positive_score=1.0, given=(), seed=0, **changes):
    return select(
        np.array([scores], np.float32),
        np.array([rows]),
        positive_score_q=np.array([positive_score]),
        positives=np.array([positive]),
        given=[list(given)],
        rule=rule(**changes),
        seed=seed,
    )


def test_the_positive_and_what_scores_too_close_to_it_are_never_negatives():
    found = one([1.0, 0.97, 0.951, 0.9, 0.8], [0, 1, 2, 3, 4])
    assert found.negatives.tolist() == [[3, 4]]
    assert found.counts["the positive"] == 1
    assert found.counts["too close to the positive"] == 2
    np.testing.assert_allclose(found.scores, [[0.9, 0.8]], rtol=1e-6)


def test_the_first_that_remain_are_skipped_where_the_rule_says_so():
    found = one([0.99, 0.9, 0.8, 0.7, 0.6], [1, 2, 3, 4, 5], skip_first=1)
    assert found.negatives.tolist() == [[3, 4]]
    assert found.counts["skipped"] == 1


def test_random_ones_come_from_the_best_alone_and_without_repetition():
    seen = set()
    for seed in range(30):
        found = one(
            [0.9, 0.8, 0.7, 0.6, 0.5], [1, 2, 3, 4, 5], sample_from=3, strategy="random", seed=seed
        )
        drawn = found.negatives[0].tolist()
        assert len(set(drawn)) == 2
        seen |= set(drawn)
    assert seen == {1, 2, 3}


def test_a_query_s_draw_does_not_depend_on_its_company():
    rng = np.random.default_rng(0)
    scores, rows = (
        np.sort(rng.random((6, 9)))[:, ::-1],
        rng.permuted(np.tile(range(9), (6, 1)), axis=1),
    )
    arguments = {"rule": rule(strategy="random", max_share_of_positive=1.0), "seed": 7}
    whole = select(
        scores,
        rows,
        positive_score_q=np.ones(6),
        positives=np.zeros(6),
        given=[[]] * 6,
        **arguments,
    )
    part = select(
        scores[:3],
        rows[:3],
        positive_score_q=np.ones(3),
        positives=np.zeros(3),
        given=[[]] * 3,
        **arguments,
    )
    np.testing.assert_array_equal(whole.negatives[:3], part.negatives)


def test_given_negatives_come_first_and_only_once_and_never_the_positive():
    found = one([0.9, 0.8, 0.7], [5, 6, 7], given=[6, 0, 6], per_query=3)
    assert found.negatives.tolist() == [[6, 5, 7]]
    assert found.counts["given already"] == 1


def test_too_few_candidates_leave_places_empty():
    found = one([0.5, -np.inf], [3, -1])
    assert found.negatives.tolist() == [[3, -1]]


@pytest.mark.parametrize("positive_score", [0.0, -0.2])
def test_a_positive_that_scores_nothing_rejects_all_above_itself(positive_score):
    found = one([0.1, -0.3], [1, 2], positive_score=positive_score)
    assert found.negatives.tolist() == [[2, -1]]
