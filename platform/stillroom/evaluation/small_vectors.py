"""Retrieval quality when passages are stored in fewer bytes: every precision × every size.

Only stored passages are made small. Queries stay float32, except for `binary`, which compares signs
with signs, and so ignores the lengths of raw vectors. `binary+rescoring` finds the best
RESCORE_FACTOR × k that way and orders them again by the float32 query against their int8 codes, as
described by Cohere and Hugging Face: a search reads only the bits of all passages, and the codes
may be on disk.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.interface import truncate_vectors
from stillroom.encoders.usable_vectors import require_usable
from stillroom.encoders.vectors.quantise import (
    RESCORE_FACTOR,
    VECTOR_PRECISIONS,
    Calibration,
    VectorPrecision,
    pack_signs,
    search_bytes,
    unpack_signs,
)
from stillroom.errors import UserError
from stillroom.evaluation.evaluate import RANKING_DEPTH, EncodedSets, score_ranking
from stillroom.evaluation.metrics import rank_passages
from stillroom.mining.exact import search

DECODED_BLOCK = 4096  # passages decoded at once


def rank_quantised(
    precision: VectorPrecision,
    queries_qd: np.ndarray,
    passages_pd: np.ndarray,
    depth: int,
    calibration: Calibration,
) -> np.ndarray:
    """`rank_passages` on passages as a precision stores them: exact for the decoded codes."""
    if precision == "float32":
        return rank_passages(queries_qd, passages_pd, depth)
    if precision == "float16":
        with np.errstate(over="ignore"):
            halves = passages_pd.astype(np.float16)
        require_usable(halves, normalised=False)  # raw vectors may have numbers above 65,504
        return rank_passages(queries_qd, halves, depth)
    if precision == "int8":
        codes = calibration.encode(passages_pd)
        return _rank_decoded(queries_qd, codes, calibration.decode, depth)

    def decode(bits: np.ndarray) -> np.ndarray:
        return unpack_signs(bits, queries_qd.shape[1])

    rescores = precision == "binary+rescoring"
    by_signs = _rank_decoded(
        decode(pack_signs(queries_qd)),
        pack_signs(passages_pd),
        decode,
        RESCORE_FACTOR * depth if rescores else depth,
    )
    if not rescores:
        return by_signs
    codes = calibration.encode(passages_pd)
    candidates = np.sort(by_signs, axis=1)  # so that equal scores are still ordered by row
    return np.stack(
        [
            rows[rank_passages(query[None], calibration.decode(codes[rows]), depth)[0]]
            for query, rows in zip(queries_qd, candidates, strict=True)
        ]
    )


def _rank_decoded(
    queries_qd: np.ndarray,
    codes: np.ndarray,
    decode: Callable[[np.ndarray], np.ndarray],
    depth: int,
) -> np.ndarray:
    """`rank_passages` that decodes block by block, to save memory."""

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(codes), DECODED_BLOCK):
            block = codes[start : start + DECODED_BLOCK]
            yield np.arange(start, start + len(block)), decode(block)

    return search(queries_qd, blocks(), min(depth, len(codes)), passages_per_product=DECODED_BLOCK)[
        1
    ]


def sizes_to_evaluate(trained: Sequence[int], others: Sequence[int]) -> list[int]:
    """The Matryoshka sizes of the vectors, and others, the largest first.

    Raises:
        UserError: when a size is larger than the vectors.
    """
    if wrong := [size for size in others if not 0 < size <= trained[0]]:
        raise UserError(
            "dims",
            f"{wrong[0]} is not a size of vectors of {trained[0]} dims",
            f"Use sizes from 1 to {trained[0]}",
        )
    return sorted({*trained, *others}, reverse=True)


def evaluate_precisions(
    encoded: EncodedSets,
    sets: Mapping[str, EvaluationSet],
    sizes: Sequence[int] | None = None,
    calibrations: Mapping[int, Calibration] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Each set's scores at every precision and size.

    Args:
        sizes: None: the Matryoshka sizes of the vectors.
        calibrations: by size; None: each set's own passages calibrate, as when they are indexed.

    Returns:
        set → entries of `precision`, `dims`, `trained` (for that size), `bytes` per vector that a
        search reads, `rescored_bytes` per vector that are read only for candidates, and the scores.
    """
    entries: dict[str, list[dict[str, Any]]] = {name: [] for name in sets}
    normalise = encoded.comparison.normalise
    for name, part in sets.items():
        for dims in sizes or encoded.dims:
            queries_qd, passages_pd = (
                truncate_vectors(vectors, dims, normalise)
                for vectors in (encoded.queries[name], encoded.passages[name])
            )
            require_usable(queries_qd, normalised=normalise, texts=part.judged_queries())
            passages = list(part.passages.values())
            require_usable(passages_pd, normalised=normalise, texts=passages)
            calibration = calibrations[dims] if calibrations else Calibration.fit(passages_pd)
            for precision in VECTOR_PRECISIONS:
                ranking = rank_quantised(
                    precision, queries_qd, passages_pd, RANKING_DEPTH, calibration
                )
                entries[name].append(
                    {
                        "precision": precision,
                        "dims": dims,
                        "trained": dims in encoded.dims,
                        "bytes": search_bytes(precision, dims),
                        "rescored_bytes": dims if precision == "binary+rescoring" else 0,
                        **score_ranking(ranking, part),
                    }
                )
    return entries
