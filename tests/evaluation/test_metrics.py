import math

import numpy as np
import pytest

from stillroom.errors import UserError
from stillroom.evaluation.metrics import rank_passages, retrieval_scores


def test_metrics_equal_a_calculation_by_hand():
    qrels = {"a": {"p1": 2, "p2": 1, "p3": 0}, "b": {"p4": 1}}
    ranked = {"a": ["p3", "p1", "x"], "b": [*(f"y{i}" for i in range(10)), "p4"]}
    scores = retrieval_scores(ranked, qrels)
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    assert scores["ndcg@10"] == pytest.approx((2 / math.log2(3) / ideal + 0) / 2)
    assert scores["recall@100"] == pytest.approx((1 / 2 + 1) / 2)
    assert scores["mrr@10"] == pytest.approx((1 / 2 + 0) / 2)  # the 11th rank counts for nothing


def test_a_judged_query_without_a_ranking_scores_zero():
    scores = retrieval_scores({"a": ["p"]}, {"a": {"p": 1}, "b": {"p": 1}})
    assert scores == {"ndcg@10": 0.5, "recall@100": 0.5, "mrr@10": 0.5}


def test_a_query_without_a_relevant_passage_is_refused():
    with pytest.raises(UserError, match="qrels: a: has no relevant passage"):
        retrieval_scores({"a": ["p"]}, {"a": {"p": 0}})


def test_rankings_are_by_inner_product_and_ties_by_row():
    passages = np.array([[0, 1], [1, 0], [1, 0], [0.5, 0.5]], np.float32)
    assert rank_passages(np.array([[1, 0]], np.float32), passages, 3).tolist() == [[1, 2, 3]]
    queries = np.random.default_rng(0).normal(size=(700, 2)).astype(np.float32)
    expected = [np.argsort(-(passages @ query), kind="stable") for query in queries]
    np.testing.assert_array_equal(rank_passages(queries, passages, 9), expected)
