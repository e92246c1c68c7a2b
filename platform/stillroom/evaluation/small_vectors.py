"""What is left of retrieval when passages are stored in fewer bytes: precisions × sizes.

Only what is stored is made small. Queries stay float32, but for `binary`, which compares signs
with signs. `binary+rescoring` finds the best RESCORED × k that way and orders them anew by the
float32 query against their int8 codes, as Cohere and Hugging Face describe it: a search goes
through the bits alone, and the codes may lie on disk.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.interface import prefix
from stillroom.encoders.vectors.quantise import (
    PRECISIONS,
    RESCORED,
    Calibration,
    Precision,
    from_signs,
    searched_bytes,
    signs,
)
from stillroom.errors import UserError
from stillroom.evaluation.evaluate import DEPTH, Encoded, scored
from stillroom.evaluation.metrics import rank
from stillroom.mining.exact import search

BLOCK = 4096  # passages decoded at once


def rank_stored(
    precision: Precision,
    queries_qd: np.ndarray,
    passages_pd: np.ndarray,
    depth: int,
    calibration: Calibration,
) -> np.ndarray:
    """As `rank`, of passages as a precision stores them: exact for what their codes stand for."""
    if precision == "float32":
        return rank(queries_qd, passages_pd, depth)
    if precision == "float16":
        return rank(queries_qd, passages_pd.astype(np.float16), depth)
    if precision == "int8":
        codes = calibration.encode(passages_pd)
        return _rank_decoded(queries_qd, codes, calibration.decode, depth)

    def ones(bits: np.ndarray) -> np.ndarray:
        return from_signs(bits, queries_qd.shape[1])

    rescores = precision == "binary+rescoring"
    found = _rank_decoded(
        ones(signs(queries_qd)), signs(passages_pd), ones, RESCORED * depth if rescores else depth
    )
    if not rescores:
        return found
    codes = calibration.encode(passages_pd)
    candidates = np.sort(found, axis=1)  # so that equals are still ordered by place
    return np.stack(
        [
            places[rank(query[None], calibration.decode(codes[places]), depth)[0]]
            for query, places in zip(queries_qd, candidates, strict=True)
        ]
    )


def _rank_decoded(
    queries_qd: np.ndarray,
    codes: np.ndarray,
    decode: Callable[[np.ndarray], np.ndarray],
    depth: int,
) -> np.ndarray:
    """`rank` without all the decoded vectors in memory."""

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(codes), BLOCK):
            block = codes[start : start + BLOCK]
            yield np.arange(start, start + len(block)), decode(block)

    return search(queries_qd, blocks(), min(depth, len(codes)), together=BLOCK)[1]


def sizes_to_measure(trained: Sequence[int], others: Sequence[int]) -> list[int]:
    """The sizes that vectors were trained to be cut to, and others, the largest first.

    Raises:
        UserError: when one is larger than the vectors.
    """
    if wrong := [size for size in others if not 0 < size <= trained[0]]:
        raise UserError("dims", f"vectors of {trained[0]} have no {wrong[0]}", "Name smaller ones")
    return sorted({*trained, *others}, reverse=True)


def measure_small(
    encoded: Encoded,
    sets: Mapping[str, EvaluationSet],
    sizes: Sequence[int] | None = None,
    calibrations: Mapping[int, Calibration] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Each set's scores at every precision and size.

    Args:
        sizes: None for those that the vectors were trained to be cut to.
        calibrations: by size; None has each set's own passages calibrate, as whoever indexes
            them would.

    Returns:
        set → entries of `precision`, `dims`, `trained` (whether for that size), `bytes` of a vector
        (that a search goes through), `rescored_bytes` (that are read of candidates alone) and
        the scores.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sets}
    for name, kept in sets.items():
        for dims in sizes or encoded.dims:
            queries_qd, passages_pd = (
                prefix(vectors, dims, encoded.normalise)
                for vectors in (encoded.queries[name], encoded.passages[name])
            )
            own = calibrations[dims] if calibrations else Calibration.of(passages_pd)
            for precision in PRECISIONS:
                places = rank_stored(precision, queries_qd, passages_pd, DEPTH, own)
                found[name].append(
                    {
                        "precision": precision,
                        "dims": dims,
                        "trained": dims in encoded.dims,
                        "bytes": searched_bytes(precision, dims),
                        "rescored_bytes": dims if precision == "binary+rescoring" else 0,
                        **scored(places, kept),
                    }
                )
    return found
