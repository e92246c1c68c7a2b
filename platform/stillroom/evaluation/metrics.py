"""Rankings by exact search, and their retrieval scores."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytrec_eval

from stillroom.errors import UserError
from stillroom.mining.exact import search

# Our names → trec_eval's.
METRICS = {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100", "mrr@10": "recip_rank"}


def rank_passages(queries_qd: np.ndarray, passages_pd: np.ndarray, depth: int) -> np.ndarray:
    """Rows of the best passages by inner product, best first: int64, (q, min(depth, p)).

    Equal scores are ordered by row.

    Args:
        passages_pd: float32 or float16.
    """
    block = (np.arange(len(passages_pd)), passages_pd)
    return search(queries_qd, [block], min(depth, len(passages_pd)))[1]


def retrieval_scores(
    ranked: Mapping[str, Sequence[str]], qrels: Mapping[str, Mapping[str, int]]
) -> dict[str, float]:
    """The means over the judged queries of what `scores_by_query` returns."""
    return mean_scores(scores_by_query(ranked, qrels))


def mean_scores(by_query: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean of each metric over the queries."""
    return {metric: float(np.mean(scores)) for metric, scores in by_query.items()}


def scores_by_query(
    ranked: Mapping[str, Sequence[str]], qrels: Mapping[str, Mapping[str, int]]
) -> dict[str, np.ndarray]:
    """nDCG@10, Recall@100 and MRR@10 as trec_eval defines them: metric → float64, (queries,).

    Args:
        ranked: query id → passage ids, best first.
        qrels: query id → passage id → grade, relevant above 0.

    Raises:
        UserError: when a query has no relevant passage: its scores would be undefined.
    """
    for query, grades in qrels.items():
        if not any(grade > 0 for grade in grades.values()):
            raise UserError(
                f"qrels: {query}", "has no relevant passage", "Give it one, or leave it out"
            )
    judged = {query: dict(grades) for query, grades in qrels.items()}
    # trec_eval orders by score, so ranks become falling scores.
    run = {
        query: {passage: float(-rank) for rank, passage in enumerate(ranked.get(query, ()))}
        for query in judged
    }
    top_10 = {query: dict(list(scores.items())[:10]) for query, scores in run.items()}
    whole = _evaluate(judged, run, {"ndcg_cut.10", "recall.100"})
    cut = _evaluate(judged, top_10, {"recip_rank"})
    by_query = {query: {**whole.get(query, {}), **cut.get(query, {})} for query in judged}
    return {
        name: np.array([scores.get(trec_name, 0.0) for scores in by_query.values()])
        for name, trec_name in METRICS.items()
    }


def _evaluate(
    qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]], measures: set[str]
) -> dict[str, dict[str, float]]:
    return dict(pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run))
