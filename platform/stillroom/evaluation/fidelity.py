"""An exported encoder held against the original, on real texts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import Role
from stillroom.encoders.export.int8 import cosines
from stillroom.errors import UserError
from stillroom.evaluation.evaluate import DEPTH, scored
from stillroom.evaluation.gate import METRIC
from stillroom.evaluation.metrics import rank

Encode = Callable[[list[str], Role], np.ndarray]  # texts → float32, (n, dims)

SHOWN = 60  # characters of a text in an error


def roles(sets: Mapping[str, EvaluationSet]) -> list[tuple[str, Role]]:
    """Every text of the sets, with what it is there."""
    found: list[tuple[str, Role]] = []
    for kept in sets.values():
        found += [(text, "query") for text in kept.queries.values()]
        found += [(text, "passage") for text in kept.passages.values()]
    return found


def fidelity(
    original: Encode,
    exported: Encode,
    sets: Mapping[str, EvaluationSet],
    *,
    floor: float,
    name: str,
) -> dict[str, Any]:
    """How like the vectors of all texts are, and what the difference does to nDCG@10.

    Args:
        floor: the least cosine that any text may have.
        name: of the format, for the error.

    Returns:
        `texts`; `cosine` with `mean` and `min`; `ndcg@10` with `original`, `exported` and `change`
        of every set that judges queries.

    Raises:
        UserError: when a text misses the floor.
    """
    alike: list[float] = []
    texts: list[str] = []
    quality = {}
    for set_name, kept in sets.items():
        vectors = {}
        of_role: list[tuple[Role, Mapping[str, str]]] = [
            ("query", kept.queries),
            ("passage", kept.passages),
        ]
        for role, by_id in of_role:
            own = list(by_id.values())
            vectors[role] = (original(own, role), exported(own, role))
            alike += cosines(*vectors[role]).tolist()
            texts += own
        if kept.qrels:
            judged = [place for place, own_id in enumerate(kept.queries) if own_id in kept.qrels]
            before, after = (
                scored(rank(queries[judged], passages, DEPTH), kept)[METRIC]
                for queries, passages in zip(vectors["query"], vectors["passage"], strict=True)
            )
            quality[set_name] = {"original": before, "exported": after, "change": after - before}
    _hold(alike, texts, floor, name)
    return {
        "texts": len(alike),
        "cosine": {"mean": float(np.mean(alike)), "min": float(np.min(alike))},
        METRIC: quality,
    }


def _hold(alike: Sequence[float], texts: Sequence[str], floor: float, name: str) -> None:
    worst = int(np.argmin(alike))
    if alike[worst] >= floor:
        return
    text = texts[worst]
    shown = text if len(text) <= SHOWN else text[:SHOWN] + "…"
    below = sum(value < floor for value in alike)
    raise UserError(
        f"--format {name}",
        f"{below:,} of {len(alike):,} texts have a cosine under {floor} to the original's vectors: "
        f"{alike[worst]:.5f} at worst ({shown!r}), {np.mean(alike):.5f} on average",
        "Export as onnx, which keeps float32, or give more texts of your own to calibrate with",
    )
