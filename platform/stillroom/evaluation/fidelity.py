"""Compares an exported encoder with the original, on real texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import Role
from stillroom.encoders.export.int8 import row_agreement
from stillroom.errors import UserError, quote
from stillroom.evaluation.encode_progress import EncodeTexts
from stillroom.evaluation.evaluate import RANKING_DEPTH, score_ranking
from stillroom.evaluation.gate import METRIC
from stillroom.evaluation.metrics import rank_passages


def texts_with_roles(sets: Mapping[str, EvaluationSet]) -> list[tuple[str, Role]]:
    """Every text of the sets, with its role."""
    texts: list[tuple[str, Role]] = []
    for part in sets.values():
        texts += [(text, "query") for text in part.queries.values()]
        texts += [(text, "passage") for text in part.passages.values()]
    return texts


def compare_encoders(
    original: EncodeTexts,
    exported: EncodeTexts,
    sets: Mapping[str, EvaluationSet],
    *,
    floor: float,
    name: str,
) -> dict[str, Any]:
    """The similarity of the vectors of all texts, and the effect of the difference on nDCG@10.

    Args:
        floor: the lowest cosine that any text may have; for vectors of different lengths, see
            `row_agreement`.
        name: of the format, for the error.

    Returns:
        `texts`; `cosine` with `mean` and `min`; `ndcg@10` with `original`, `exported` and `change`
        of every set that judges queries.

    Raises:
        UserError: when a text is below the floor.
    """
    similarities: list[float] = []
    texts: list[str] = []
    quality = {}
    for set_name, part in sets.items():
        queries, passages = list(part.queries.values()), list(part.passages.values())
        query_vectors = original(queries, "query"), exported(queries, "query")
        passage_vectors = original(passages, "passage"), exported(passages, "passage")
        for vectors in (query_vectors, passage_vectors):
            similarities += row_agreement(*vectors).tolist()
        texts += queries + passages
        if part.qrels:
            judged = [row for row, query in enumerate(part.queries) if query in part.qrels]
            before, after = (
                score_ranking(rank_passages(q[judged], p, RANKING_DEPTH), part)[METRIC]
                for q, p in zip(query_vectors, passage_vectors, strict=True)
            )
            quality[set_name] = {"original": before, "exported": after, "change": after - before}
    _require_floor(similarities, texts, floor, name)
    return {
        "texts": len(similarities),
        "cosine": {"mean": float(np.mean(similarities)), "min": float(np.min(similarities))},
        METRIC: quality,
    }


def _require_floor(
    similarities: Sequence[float], texts: Sequence[str], floor: float, name: str
) -> None:
    worst = int(np.argmin(similarities))
    if similarities[worst] >= floor:
        return
    below = sum(similarity < floor for similarity in similarities)
    raise UserError(
        f"--format {name}",
        f"{below:,} of {len(similarities):,} texts have a cosine under {floor} to the original's "
        f"vectors: {similarities[worst]:.5f} at worst ({quote(texts[worst])}), "
        f"{np.mean(similarities):.5f} on average",
        "Export as onnx, which keeps float32, or give more texts of your own to calibrate with",
    )
