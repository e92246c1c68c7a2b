"""Assigns rows of passages/ to texts: equal texts share the row of their first occurrence.

All texts have a *position*: first the kept pairs' positives, then all negatives and then all
passages that were read. A row of passages/ is given to each text that differs from all
texts at lower positions.
"""

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from stillroom.data.cleaning.external_sort import KeyRange, SortedRuns, split_range
from stillroom.data.cleaning.text_keys import equals_previous, hash_texts, normalise
from stillroom.stages.corpus.shards import (
    CleaningWorkspace,
    Shard,
    Shards,
    Verdict,
    negative_owners,
)


@dataclass(frozen=True)
class TextPositions:
    """How many texts of each kind there are.

    Attributes:
        positives: kept pairs; their positives differ from each other, so position and row agree.
        negatives, passages: all that were read, dropped ones too.
    """

    positives: int
    negatives: int
    passages: int

    @property
    def first_negative(self) -> int:
        """Position of the first negative."""
        return self.positives

    @property
    def first_passage(self) -> int:
        """Position of the first passage."""
        return self.positives + self.negatives

    @property
    def end(self) -> int:
        """The last position plus 1."""
        return self.positives + self.negatives + self.passages


@dataclass(frozen=True)
class PassageRows:
    """The row in passages/ of each text; the positive of pair i has row i."""

    runs: SortedRuns
    positions: TextPositions

    def of_negatives(self, span: slice) -> np.ndarray:
        """Rows of kept negatives.

        Args:
            span: of all negatives.

        Returns:
            int64, (3, kept): index within the span, row, and 1 for a text's first occurrence.
        """
        return self._read(span, self.positions.first_negative)

    def of_passages(self, span: slice) -> np.ndarray:
        """Rows of kept passages; the same as `of_negatives`."""
        return self._read(span, self.positions.first_passage)

    def _read(self, span: slice, offset: int) -> np.ndarray:
        rows = self.runs.read((span.start + offset, span.stop + offset))[:3].astype(np.int64)
        rows[0] -= span.start + offset
        return rows


def assign_passage_rows(workspace: CleaningWorkspace, shards: Shards) -> PassageRows:
    """Assigns rows to the kept texts, and drops passages that repeat an earlier text.

    Negatives of dropped pairs are dropped too.
    """
    verdicts = workspace.verdicts("pairs")
    positives = 0
    first_rows = []  # of the pairs of each shard
    for shard in shards["pairs"]:
        first_rows.append((shard, positives))
        positives += int((verdicts[shard.span] == Verdict.KEPT).sum())
    positions = TextPositions(
        positives=positives,
        negatives=sum(shard.negatives for shard in shards["pairs"]),
        passages=sum(shard.rows for shard in shards["passages"]),
    )
    if positions.negatives or positions.passages:
        workspace.map(functools.partial(_hash_pairs, positions=positions), first_rows)
        workspace.map(functools.partial(_hash_passages, positions=positions), shards["passages"])
        _assign_rows(workspace, positions)
    return PassageRows(workspace.sorted_runs("passage-rows"), positions)


def _hash_pairs(
    workspace: CleaningWorkspace, item: tuple[Shard, int], *, positions: TextPositions
) -> None:
    """Writes (hash, position) of the kept positives and negatives of a shard."""
    shard, first_row = item
    kept = workspace.verdicts("pairs")[shard.span] == Verdict.KEPT
    passage_hashes = np.load(workspace.folder / f"hashes-{shard.name}.npy")[1][kept]
    hashes, text_positions = [passage_hashes], [first_row + np.arange(len(passage_hashes))]
    if shard.negatives:
        owner = negative_owners(pq.read_table(shard.path, columns=["negatives"]))
        verdicts = workspace.verdicts("negatives")[shard.negative_span]
        verdicts[(verdicts == Verdict.KEPT) & ~kept[owner]] = Verdict.OF_DROPPED_PAIRS
        left = verdicts == Verdict.KEPT
        hashes.append(np.load(workspace.folder / f"negatives-{shard.name}.npy")[left])
        first = positions.first_negative + shard.first_negative
        text_positions.append(first + np.flatnonzero(left))
    workspace.sorted_runs("texts").write(
        f"pairs-{shard.name}", np.concatenate(hashes), np.concatenate(text_positions)
    )


def _hash_passages(workspace: CleaningWorkspace, shard: Shard, *, positions: TextPositions) -> None:
    """Writes (hash, position) of the kept passages of a shard."""
    kept = np.flatnonzero(workspace.verdicts("passages")[shard.span] == Verdict.KEPT)
    texts = pq.read_table(shard.path)["passage"].take(kept).to_pylist()
    hashes = hash_texts(normalise(text) for text in texts)
    text_positions = positions.first_passage + shard.first + kept
    workspace.sorted_runs("texts").write(f"passages-{shard.name}", hashes, text_positions)


def _assign_rows(workspace: CleaningWorkspace, positions: TextPositions) -> None:
    """Finds each text's first occurrence by hash, then numbers first occurrences by position."""
    width = workspace.sizes.records
    new_texts = workspace.map_hash_ranges(_find_first_occurrences, "texts", positions=positions)
    counts = np.cumsum(np.sum(new_texts, axis=0))
    first_rows = positions.positives + np.concatenate([[0], counts]).astype(np.int64)
    # Ranges of first positions: of positives, whose rows are known, and of all other texts.
    of_positives = split_range(0, positions.positives, width)
    of_others = split_range(positions.positives, positions.end, width)
    items: list[tuple[KeyRange, int | None]] = [(key_range, None) for key_range in of_positives]
    items += zip(of_others, first_rows[:-1].tolist(), strict=True)
    workspace.map(functools.partial(_number_texts, positions=positions), items)


def _find_first_occurrences(
    workspace: CleaningWorkspace, key_range: KeyRange, *, runs_name: str, positions: TextPositions
) -> np.ndarray:
    """Writes (first position, position) of the negatives and passages in a range of hashes.

    Returns:
        How many first occurrences that are no positives each range of positions has.
    """
    width = workspace.sizes.records
    hashes, text_positions = workspace.sorted_runs(runs_name).read(key_range)[:2]
    is_first = ~equals_previous(hashes)
    first_positions = text_positions[is_first][np.cumsum(is_first) - 1]
    is_other = text_positions >= np.uint64(positions.positives)
    workspace.sorted_runs("first-occurrences").write(
        f"{key_range[0]:020d}", first_positions[is_other], text_positions[is_other]
    )
    new = text_positions[is_first & is_other].astype(np.int64) - positions.positives
    ranges = len(split_range(positions.positives, positions.end, width))
    return np.bincount(new // width, minlength=ranges)


def _number_texts(
    workspace: CleaningWorkspace,
    item: tuple[KeyRange, int | None],
    *,
    positions: TextPositions,
) -> None:
    """Writes (position, row, is first) of the texts that first occur in a range of positions.

    Args:
        item: the range, and the row of its first new text; None in the range of positives, where
            a first position is a row.
    """
    key_range, first_row = item
    first_positions, text_positions = workspace.sorted_runs("first-occurrences").read(key_range)[:2]
    is_first = first_positions == text_positions
    rows = first_positions
    if first_row is not None:
        rows = first_row + np.unique(first_positions, return_inverse=True)[1]
    workspace.sorted_runs("passage-rows").write(
        f"{key_range[0]:015d}", text_positions, rows, is_first
    )
    is_repeated_passage = ~is_first & (text_positions >= positions.first_passage)
    repeated = text_positions[is_repeated_passage].astype(np.int64) - positions.first_passage
    workspace.verdicts("passages")[repeated] = Verdict.REPEATED
