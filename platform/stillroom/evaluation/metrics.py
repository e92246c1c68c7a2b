"""Rankings by exact search, and what they are worth."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytrec_eval

from stillroom.errors import UserError
from stillroom.mining.exact import search

# Ours → trec_eval's.
METRICS = {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100", "mrr@10": "recip_rank"}


def rank(queries_qd: np.ndarray, passages_pd: np.ndarray, depth: int) -> np.ndarray:
    """Places of the best passages by inner product, best first: int64, (q, min(depth, p)).

    Equal scores are ordered by place.

    Args:
        passages_pd: float32 or float16.
    """
    everything = (np.arange(len(passages_pd)), passages_pd)
    return search(queries_qd, [everything], min(depth, len(passages_pd)))[1]


def retrieval_scores(
    ranked: Mapping[str, Sequence[str]], qrels: Mapping[str, Mapping[str, int]]
) -> dict[str, float]:
    """nDCG@10, Recall@100 and MRR@10 as trec_eval defines them, means over the judged queries.

    Args:
        ranked: query id → passage ids, best first.
        qrels: query id → passage id → grade, relevant above 0.

    Raises:
        UserError: when a query has no relevant passage, for then nothing can be said of it.
    """
    for query, grades in qrels.items():
        if not any(grade > 0 for grade in grades.values()):
            raise UserError(
                f"qrels: {query}", "has no relevant passage", "Give it one, or leave it out"
            )
    judged = {query: dict(grades) for query, grades in qrels.items()}
    # trec_eval orders by score, so a place becomes a score that falls.
    run = {
        query: {passage: float(-place) for place, passage in enumerate(ranked.get(query, ()))}
        for query in judged
    }
    top = {query: dict(list(places.items())[:10]) for query, places in run.items()}
    deep = _evaluate(judged, run, {"ndcg_cut.10", "recall.100"})
    first = _evaluate(judged, top, {"recip_rank"})
    by_query = {query: {**deep.get(query, {}), **first.get(query, {})} for query in judged}
    return {
        name: float(np.mean([scores.get(theirs, 0.0) for scores in by_query.values()]))
        for name, theirs in METRICS.items()
    }


def _evaluate(
    qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]], measures: set[str]
) -> dict[str, dict[str, float]]:
    return dict(pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run))
