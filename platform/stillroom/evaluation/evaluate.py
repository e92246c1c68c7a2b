"""Evaluates one encoder, or a student and its teacher together, on evaluation sets.

The result is an entry of a report: role, size, speed and scores.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import BaseContract, Comparison, Role, index_conflict
from stillroom.encoders.interface import Embedder, truncate_vectors
from stillroom.encoders.usable_vectors import require_usable
from stillroom.errors import UserError
from stillroom.evaluation.metrics import mean_scores, rank_passages, scores_by_query
from stillroom.mining.bm25 import Bm25

# Passages of a ranking that are kept: Recall@100 needs 100, and one may be the query itself.
RANKING_DEPTH = 101
QueryScores = dict[str, np.ndarray]  # metric → of each judged query, float64, (queries,)


@dataclass(frozen=True)
class EncodedSets:
    """Vectors of evaluation sets, by the set's name.

    Attributes:
        queries: of the judged queries, float32, (q, dims[0]).
        passages: float32, (p, dims[0]).
        dims: the Matryoshka sizes of the vectors, the full one first.
        comparison: how vectors, and their prefixes, are compared, and if they have unit length.
        texts_per_second: passages encoded per second, on this machine.
    """

    queries: dict[str, np.ndarray]
    passages: dict[str, np.ndarray]
    dims: tuple[int, ...]
    comparison: Comparison
    texts_per_second: float


def encode_sets(
    encoder: Embedder,
    role: str,
    sets: Mapping[str, EvaluationSet],
    *,
    query_prompt: str | None = None,
) -> EncodedSets:
    """Vectors of the sets. A teacher uses a set's prompts if it has some; other encoders use their
    own.

    Args:
        query_prompt: replaces all prompts of queries.
    """
    queries = _queries(
        encoder, role, sets, query_prompt
    )  # first: warms up before speed is measured
    passages, speed = _passages(encoder, role, sets)
    contract = encoder.contract
    return EncodedSets(queries, passages, contract.dims, contract.comparison, speed)


def encode_asymmetric(
    student: Embedder,
    teacher: Embedder,
    sets: Mapping[str, EvaluationSet],
    *,
    query_prompt: str | None = None,
) -> EncodedSets:
    """The student's queries and the teacher's passages.

    Args:
        query_prompt: replaces all prompts of queries.

    Raises:
        UserError: as `shared_dims`, before anything is encoded.
    """
    dims = shared_dims(student.contract, teacher.contract)
    queries = _queries(student, "student", sets, query_prompt)
    passages, speed = _passages(teacher, "teacher", sets)
    return _combine(queries, passages, dims, student.contract.comparison, speed)


def combine_asymmetric(
    student: EncodedSets, teacher: EncodedSets, dims: tuple[int, ...]
) -> EncodedSets:
    """As `encode_asymmetric`, from sets that both have encoded.

    Args:
        dims: from `shared_dims`.
    """
    return _combine(
        student.queries, teacher.passages, dims, student.comparison, teacher.texts_per_second
    )


def shared_dims(student: BaseContract, teacher: BaseContract) -> tuple[int, ...]:
    """The sizes at which the student's queries can search the teacher's passages, largest first.

    Raises:
        UserError: when the two cannot share an index.
    """
    if why := index_conflict(student, teacher):
        raise UserError(
            "passages by another model",
            f"cannot be ranked for these queries: {why}",
            "Use a student trained with space: teacher, and the teacher that it was distilled from",
        )
    return tuple(size for size in student.dims if size in teacher.dims)


def _queries(
    encoder: Embedder, role: str, sets: Mapping[str, EvaluationSet], prompt: str | None
) -> dict[str, np.ndarray]:
    return {
        name: encoder.encode(
            part.judged_queries(),
            "query",
            prompt=_prompt(part, role, "query") if prompt is None else prompt,
        )
        for name, part in sets.items()
    }


def _passages(
    encoder: Embedder, role: str, sets: Mapping[str, EvaluationSet]
) -> tuple[dict[str, np.ndarray], float]:
    """Vectors of each set's passages, and passages per second."""
    started = time.perf_counter()
    vectors = {
        name: encoder.encode(
            list(part.passages.values()), "passage", prompt=_prompt(part, role, "passage")
        )
        for name, part in sets.items()
    }
    return vectors, sum(map(len, vectors.values())) / (time.perf_counter() - started)


def _prompt(evaluation_set: EvaluationSet, model_role: str, text_role: Role) -> str | None:
    """The set's own prompt for a teacher; None for the encoder's."""
    return evaluation_set.prompts.get(text_role) if model_role.startswith("teacher") else None


def _combine(
    queries: dict[str, np.ndarray],
    passages: dict[str, np.ndarray],
    dims: tuple[int, ...],
    comparison: Comparison,
    texts_per_second: float,
) -> EncodedSets:
    normalise = comparison.normalise

    def cut(vectors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        prefixes = {name: truncate_vectors(v, dims[0], normalise) for name, v in vectors.items()}
        for vectors_nd in prefixes.values():
            require_usable(vectors_nd, normalised=normalise)
        return prefixes

    return EncodedSets(cut(queries), cut(passages), dims, comparison, texts_per_second)


def evaluate_encoder(
    encoder: Embedder, role: str, sets: Mapping[str, EvaluationSet]
) -> dict[str, Any]:
    """A report's entry for an encoder: its scores on every set, and its speed on this machine.

    Args:
        role: in the report: teacher, student, teacher_base, …
    """
    return report_entry(role, encoder.parameters_total, encode_sets(encoder, role, sets), sets)


def report_entry(
    role: str, parameters: int, encoded: EncodedSets, sets: Mapping[str, EvaluationSet]
) -> dict[str, Any]:
    """A report's entry for sets that are encoded already."""
    return entry_of_scores(role, parameters, encoded, score_queries(encoded, sets))


def score_queries(
    encoded: EncodedSets, sets: Mapping[str, EvaluationSet]
) -> dict[str, QueryScores]:
    """The scores of every judged query of every set."""
    return {
        name: score_ranking_by_query(
            rank_passages(encoded.queries[name], encoded.passages[name], RANKING_DEPTH), part
        )
        for name, part in sets.items()
    }


def entry_of_scores(
    role: str, parameters: int, encoded: EncodedSets, scores: Mapping[str, QueryScores]
) -> dict[str, Any]:
    """A report's entry, with the means of the queries' scores.

    Args:
        scores: of some of the encoded sets.
    """
    return {
        "role": role,
        "parameters": parameters,
        "dims": encoded.dims[0],
        "similarity": encoded.comparison.similarity,
        "texts_per_second": encoded.texts_per_second,
        "scores": {name: mean_scores(by_query) for name, by_query in scores.items()},
    }


def evaluate_bm25(
    sets: Mapping[str, EvaluationSet], languages: Mapping[str, str]
) -> dict[str, Any]:
    """A report's entry for BM25, which has no parameters and no vectors.

    Args:
        languages: of each set.
    """
    scores = {}
    for name, part in sets.items():
        passages, queries = list(part.passages.values()), part.judged_queries()
        index = Bm25(passages, [languages[name]] * len(passages))
        ranking, _ = index.search(queries, [languages[name]] * len(queries), RANKING_DEPTH)
        scores[name] = score_ranking(ranking, part)
    return {
        "role": "bm25",
        "parameters": 0,
        "dims": 0,
        "texts_per_second": None,
        "languages": {name: languages[name] for name in sets},
        "scores": scores,
    }


def score_ranking(ranking: np.ndarray, evaluation_set: EvaluationSet) -> dict[str, float]:
    """The means over the judged queries of what `score_ranking_by_query` returns."""
    return mean_scores(score_ranking_by_query(ranking, evaluation_set))


def score_ranking_by_query(ranking: np.ndarray, evaluation_set: EvaluationSet) -> QueryScores:
    """nDCG@10, Recall@100 and MRR@10 of a ranking, as BEIR and mteb score it.

    A passage that is the query itself, by its id, is left out, as BEIR does by default and mteb
    for its tasks of that kind; judged passages that do not exist count as not found.

    Args:
        ranking: positions of passages in the set, (judged queries, depth), best first, -1 for none.
    """
    passage_ids = list(evaluation_set.passages)
    judged = [query for query in evaluation_set.queries if query in evaluation_set.qrels]
    ranked = {
        query: [
            passage_ids[position]
            for position in row
            if position >= 0 and not evaluation_set.is_own_passage(query, passage_ids[position])
        ]
        for query, row in zip(judged, ranking, strict=True)
    }
    missing = evaluation_set.missing
    qrels = {
        query: {**grades, **missing.get(query, {})}
        for query, grades in evaluation_set.qrels.items()
    }
    return scores_by_query(ranked, qrels)


def retention(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> dict[str, float | None]:
    """The student's nDCG@10 over the teacher's for every set, and the `mean`.

    None where the teacher has 0.
    """
    ratios: dict[str, float | None] = {}
    for name, scores in teacher["scores"].items():
        reference = scores["ndcg@10"]
        ratios[name] = student["scores"][name]["ndcg@10"] / reference if reference else None
    known = [ratio for ratio in ratios.values() if ratio is not None]
    return {**ratios, "mean": sum(known) / len(known) if known else None}
