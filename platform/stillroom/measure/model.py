"""One encoder on evaluation sets: the entry that a report holds of it."""

import time
from collections.abc import Mapping
from typing import Any

from stillroom.encoders.encode import Encoder
from stillroom.encoders.runtimes import Exported
from stillroom.measure.bm25 import Bm25
from stillroom.measure.retrieval import rank, retrieval_scores
from stillroom.text.formats import EvaluationSet

DEPTH = 100  # how far down a ranking is looked at; Recall@100 needs no more


def measure(
    encoder: Encoder | Exported, role: str, sets: Mapping[str, EvaluationSet]
) -> dict[str, Any]:
    """Quality on every set, and how many of their passages a second on this machine.

    Teachers are told a set's task where it has prompts; others go by their own.
    """
    scores: dict[str, dict[str, float]] = {}
    texts, seconds = 0, 0.0
    for name, kept in sets.items():
        prompts = kept.prompts if role.startswith("teacher") else {}
        # Queries first, which warms up.
        encoded = encoder.encode(kept.judged_queries(), "query", prompt=prompts.get("query"))
        texts_of = list(kept.passages.values())
        began = time.perf_counter()
        passages = encoder.encode(texts_of, "passage", prompt=prompts.get("passage"))
        seconds += time.perf_counter() - began
        texts += len(passages)
        scores[name] = scored(rank(encoded, passages, DEPTH), kept)
    return {
        "role": role,
        "parameters": encoder.parameters_total,
        "dims": encoder.contract.dims[0],
        "texts_per_second": texts / seconds,
        "scores": scores,
    }


def measure_bm25(sets: Mapping[str, EvaluationSet]) -> dict[str, Any]:
    """The same entry for BM25, which has no parameters and no vectors."""
    scores = {}
    for name, kept in sets.items():
        found, _ = Bm25(list(kept.passages.values())).search(kept.judged_queries(), DEPTH)
        scores[name] = scored(found, kept)
    return {
        "role": "bm25",
        "parameters": 0,
        "dims": 0,
        "texts_per_second": None,
        "scores": scores,
    }


def scored(found: Any, kept: EvaluationSet) -> dict[str, float]:
    """Scores of a ranking: places of passages, (judged queries, depth), in the set's order."""
    ids = list(kept.passages)
    judged = [qid for qid in kept.queries if qid in kept.qrels]
    ranked = {
        qid: [ids[place] for place in row if place >= 0]
        for qid, row in zip(judged, found, strict=True)
    }
    return retrieval_scores(ranked, kept.qrels)


def retention(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> dict[str, float | None]:
    """Student / teacher of nDCG@10 for every set, and their mean; None where the teacher has 0."""
    kept: dict[str, float | None] = {}
    for name, scores in teacher["scores"].items():
        of = scores["ndcg@10"]
        kept[name] = student["scores"][name]["ndcg@10"] / of if of else None
    known = [value for value in kept.values() if value is not None]
    return {**kept, "mean": sum(known) / len(known) if known else None}
