"""How long a recipe's texts are, and of which kinds: from a sample of its sources' files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from stillroom.config.base import DataKind
from stillroom.config.corpus import Source
from stillroom.config.recipe import Recipe
from stillroom.data.cleaning.sampling import evenly_spaced
from stillroom.errors import UserError
from stillroom.estimates.stage_sizes import CorpusTexts
from stillroom.stages.corpus import sources

SAMPLE_FILES, SAMPLE_ROWS = 8, 500  # files of a source, and rows of each, from its beginning
ASSUMED_QUERY_BYTES, ASSUMED_PASSAGE_BYTES = 60.0, 600.0


@dataclass(frozen=True)
class TextSample:
    """What a corpus is made of.

    Attributes:
        pairs, passages: in which proportion there are pairs, and passages without a query.
        negatives: of each pair, mean.
        query_bytes, passage_bytes: of a text, mean.
        basis: what this is known from.
    """

    pairs: float
    passages: float
    negatives: float
    query_bytes: float
    passage_bytes: float
    basis: str

    def of_texts(self, texts: int) -> CorpusTexts:
        """A corpus of so many queries and passages, none of which is a copy of another."""
        rows = texts / (self.pairs * (2 + self.negatives) + self.passages)
        pairs = round(rows * self.pairs)
        return CorpusTexts(
            pairs=pairs,
            negatives=round(pairs * self.negatives),
            passages=texts - pairs,
            query_bytes=self.query_bytes,
            passage_bytes=self.passage_bytes,
        )


def sample_texts(recipe: Recipe) -> TextSample:
    """Reads the first rows of some files of each source, or assumes where one cannot be read."""
    try:
        kinds = [*_of_sources(recipe)]
    except UserError as error:
        return TextSample(
            1.0, 0.0, 0.0, ASSUMED_QUERY_BYTES, ASSUMED_PASSAGE_BYTES,
            f"assumed, because no sample could be read: {error.where}: {error.problem}",
        )  # fmt: skip
    pairs = [kind for kind in kinds if kind.is_pairs]
    others = [kind for kind in kinds if not kind.is_pairs]
    count = sum(kind.count for kind in pairs)
    passages = [(kind.count * (1 + kind.negatives), kind.passage_bytes) for kind in kinds]
    return TextSample(
        pairs=count,
        passages=sum(kind.count for kind in others),
        negatives=_mean([(kind.count, kind.negatives) for kind in pairs]),
        query_bytes=_mean([(kind.count, kind.query_bytes) for kind in pairs]),
        passage_bytes=_mean(passages),
        basis=f"a sample of {sum(kind.rows for kind in kinds):,} rows of the sources",
    )


@dataclass(frozen=True)
class _Rows:
    """Sampled rows of a source, means of a row, and about how many rows the source has."""

    is_pairs: bool
    rows: int
    count: float
    query_bytes: float
    passage_bytes: float
    negatives: float


def _of_sources(recipe: Recipe) -> Iterator[_Rows]:
    for source in recipe.corpus.sources.values():
        found = [_of_kind(source, "pairs"), _of_kind(source, "passages")]
        yield from (rows for rows in found if rows is not None)


def _of_kind(source: Source, kind: DataKind) -> _Rows | None:
    parts = [part for part in sources.split_source(source) if part.kind == kind]
    read: Callable[..., Iterator[Any]] = (
        sources.iter_pairs if kind == "pairs" else sources.iter_passages
    )
    rows = [
        row
        for number in evenly_spaced(len(parts), SAMPLE_FILES)
        for row in islice(read(parts[number]), SAMPLE_ROWS)
    ]
    if not rows:
        return None
    size = sum(part.size_bytes for part in parts)
    if kind == "passages":
        passage = float(np.mean([len(text.encode()) for text in rows]))
        return _Rows(False, len(rows), max(len(rows), size / passage), 0.0, passage, 0.0)
    queries = [len(row.query.encode()) for row in rows]
    passages = [[len(text.encode()) for text in (row.passage, *row.negatives)] for row in rows]
    of_pair = float(np.mean(queries) + np.mean([sum(lengths) for lengths in passages]))
    return _Rows(
        True,
        len(rows),
        max(len(rows), size / of_pair),
        float(np.mean(queries)),
        float(np.mean([length for lengths in passages for length in lengths])),
        float(np.mean([len(lengths) - 1 for lengths in passages])),
    )


def _mean(weighted: list[tuple[float, float]]) -> float:
    """The mean of (weight, value); 0 of none."""
    total = sum(weight for weight, _ in weighted)
    return sum(weight * value for weight, value in weighted) / total if total else 0.0
