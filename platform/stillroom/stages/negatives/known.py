"""Finds what is known of the texts before mining, on all nodes."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from stillroom.cluster.parallel_map import parallel_map
from stillroom.cluster.placement import Place, find_places
from stillroom.data.readers.records import EvaluationSet
from stillroom.mining.known_texts import (
    KnownTexts,
    QueryHashes,
    excluded_groups,
    hash_groups,
    hash_queries,
    write_known_texts,
)
from stillroom.stages.negatives.texts import OpenMiningTexts
from stillroom.storage.columns import Ragged

WINDOW_ROWS = 1 << 16  # texts that a task reads
Hashes = TypeVar("Hashes", np.ndarray, QueryHashes)


def find_known_texts(
    open_texts: OpenMiningTexts,
    positive: np.ndarray,
    provided: Ragged,
    evaluation: Iterable[EvaluationSet],
    *,
    include_evaluation_passages: bool,
    folder: Path,
    excluded_rows: Sequence[int] = (),
) -> KnownTexts:
    """Finds which passages are copies, which answer a query, and which must never be negatives.

    Tasks read the texts; this process gets 8 bytes a passage and 16 a query, and keeps them in
    files.

    Args:
        positive: the passage row of each query's positive.
        provided: the passage rows that came with each query as negatives.
        evaluation: sets whose passages must not be negatives.
        include_evaluation_passages: only the answers of those sets are excluded, not all passages.
        folder: of the files.
        excluded_rows: further passages that must not be negatives.
    """
    texts = open_texts()
    return write_known_texts(
        folder,
        _in_windows(functools.partial(_hash_passages, open_texts), len(texts.passages)),
        _in_windows(functools.partial(_hash_queries, open_texts), len(texts.queries)),
        positive,
        provided,
        excluded=excluded_groups(evaluation, answers_only=include_evaluation_passages),
        excluded_rows=np.array(excluded_rows, dtype=np.int64),
    )


def _in_windows(function: Callable[[slice], Hashes], rows: int) -> Iterator[Hashes]:
    """The function's result for neighbouring rows, in order."""
    spans = [slice(start, start + WINDOW_ROWS) for start in range(0, rows, WINDOW_ROWS)]
    [place] = find_places([()]) if len(spans) > 1 else [Place.DRIVER]
    return parallel_map(function, spans, [place] * len(spans))


def _hash_passages(open_texts: OpenMiningTexts, rows: slice) -> np.ndarray:
    return hash_groups(open_texts().passages[rows])


def _hash_queries(open_texts: OpenMiningTexts, rows: slice) -> QueryHashes:
    return hash_queries(open_texts().queries[rows])
