"""One encoder on evaluation sets, or two together: the entry that a report holds of it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import Role, Terms, cannot_share_index
from stillroom.encoders.interface import Embedder, prefix
from stillroom.errors import UserError
from stillroom.evaluation.metrics import rank, retrieval_scores
from stillroom.mining.bm25 import Bm25

DEPTH = 100  # how far down a ranking is looked at; Recall@100 needs no more


@dataclass(frozen=True)
class Encoded:
    """Vectors of evaluation sets, by the set's name.

    Attributes:
        queries: of the judged queries, float32, (q, dims[0]).
        passages: float32, (p, dims[0]).
        dims: the sizes that they were trained to be cut to, the full one first.
        normalise: whether they, and what is cut off them, are of unit length.
        texts_per_second: how many of the passages, on this machine.
    """

    queries: dict[str, np.ndarray]
    passages: dict[str, np.ndarray]
    dims: tuple[int, ...]
    normalise: bool
    texts_per_second: float


def encode_sets(encoder: Embedder, role: str, sets: Mapping[str, EvaluationSet]) -> Encoded:
    """Teachers are told a set's task where it has prompts; others go by their own."""
    queries = _queries(encoder, role, sets)  # first, which warms up
    passages, speed = _passages(encoder, role, sets)
    return Encoded(queries, passages, encoder.contract.dims, encoder.contract.normalise, speed)


def encode_asymmetric(
    student: Embedder, teacher: Embedder, sets: Mapping[str, EvaluationSet]
) -> Encoded:
    """The student's queries and the teacher's passages.

    Raises:
        UserError: as `shared_dims`, before anything is encoded.
    """
    dims = shared_dims(student.contract, teacher.contract)
    queries = _queries(student, "student", sets)
    passages, speed = _passages(teacher, "teacher", sets)
    return _of_two(queries, passages, dims, student.contract.normalise, speed)


def asymmetric(student: Encoded, teacher: Encoded, dims: tuple[int, ...]) -> Encoded:
    """As `encode_asymmetric`, of what each has encoded; `dims` as `shared_dims` has them."""
    return _of_two(
        student.queries, teacher.passages, dims, student.normalise, teacher.texts_per_second
    )


def shared_dims(student: Terms, teacher: Terms) -> tuple[int, ...]:
    """The sizes at which one's queries can be ranked among the other's passages, largest first.

    Raises:
        UserError: when there are none.
    """
    if why := cannot_share_index(student, teacher):
        raise UserError(
            "passages by another model",
            f"cannot be ranked for these queries: {why}",
            "Take a student of space: teacher, and the teacher that it was distilled from",
        )
    return tuple(size for size in student.dims if size in teacher.dims)


def _queries(
    encoder: Embedder, role: str, sets: Mapping[str, EvaluationSet]
) -> dict[str, np.ndarray]:
    return {
        name: encoder.encode(kept.judged_queries(), "query", prompt=_told(kept, role, "query"))
        for name, kept in sets.items()
    }


def _passages(
    encoder: Embedder, role: str, sets: Mapping[str, EvaluationSet]
) -> tuple[dict[str, np.ndarray], float]:
    """And how many a second."""
    began = time.perf_counter()
    found = {
        name: encoder.encode(
            list(kept.passages.values()), "passage", prompt=_told(kept, role, "passage")
        )
        for name, kept in sets.items()
    }
    return found, sum(map(len, found.values())) / (time.perf_counter() - began)


def _told(kept: EvaluationSet, role: str, of: Role) -> str | None:
    return kept.prompts.get(of) if role.startswith("teacher") else None


def _of_two(
    queries: dict[str, np.ndarray],
    passages: dict[str, np.ndarray],
    dims: tuple[int, ...],
    normalise: bool,
    texts_per_second: float,
) -> Encoded:
    def cut(vectors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: prefix(v, dims[0], normalise) for name, v in vectors.items()}

    return Encoded(cut(queries), cut(passages), dims, normalise, texts_per_second)


def measure(encoder: Embedder, role: str, sets: Mapping[str, EvaluationSet]) -> dict[str, Any]:
    """Quality on every set, and how many of their passages a second on this machine."""
    return entry(role, encoder.parameters_total, encode_sets(encoder, role, sets), sets)


def entry(
    role: str, parameters: int, encoded: Encoded, sets: Mapping[str, EvaluationSet]
) -> dict[str, Any]:
    """As `measure`, of what is encoded already."""
    return {
        "role": role,
        "parameters": parameters,
        "dims": encoded.dims[0],
        "texts_per_second": encoded.texts_per_second,
        "scores": {
            name: scored(rank(encoded.queries[name], encoded.passages[name], DEPTH), kept)
            for name, kept in sets.items()
        },
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
