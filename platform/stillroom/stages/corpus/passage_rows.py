"""Assigns rows of passages/ to texts: equal texts share the row of their first occurrence.

All texts have a *position*: first the kept pairs' positives, then all negatives and then all
passages that were read. A row of passages/ is given to each text that differs from all
texts at lower positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillroom.data.cleaning.external_sort import RunSlice, SortedRun, SortedRuns, row_borders
from stillroom.data.cleaning.text_keys import equals_previous, hash_texts, normalise
from stillroom.stages.corpus.duplicates import keep_first
from stillroom.stages.corpus.shards import Shard, negative_owners
from stillroom.stages.corpus.verdicts import Verdict
from stillroom.stages.corpus.workspace import (
    CleaningWorkspace,
    GroupTask,
    WorkFiles,
    join_runs,
)

NUMBERS = "passage-rows"


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
    def first_passage(self) -> int:
        """Position of the first passage; that of the first negative is `positives`."""
        return self.positives + self.negatives

    @property
    def end(self) -> int:
        """The last position plus 1."""
        return self.first_passage + self.passages


def assign_passage_rows(workspace: CleaningWorkspace) -> None:
    """Assigns rows to the kept texts, and drops passages that repeat an earlier text.

    Negatives of dropped pairs are dropped too. `rows_of_negatives` then reads the rows.
    """
    kept = [*workspace.map_groups("pairs", _count_kept)]
    first_rows = np.cumsum([0, *kept]).tolist()
    positions = TextPositions(first_rows.pop(), workspace.negatives, workspace.rows("passages"))
    if not positions.negatives and not positions.passages:
        return
    borders = workspace.hash_borders(positions.end)
    hashed = [
        *workspace.map_groups(
            "pairs", _hash_texts_of_pairs, first_rows, positions=positions, borders=borders
        ),
        *workspace.map_groups(
            "passages", _hash_passages, first=positions.first_passage, borders=borders
        ),
    ]
    rows = _assign_rows(workspace, join_runs(hashed), borders, positions)
    pairs = len(workspace.groups["pairs"])
    of_negatives = [rows.slices(number) for number in range(pairs)]
    of_passages = [rows.slices(pairs + group.number) for group in workspace.groups["passages"]]
    for _ in workspace.map_groups(
        "pairs", _write_negative_rows, of_negatives, first=positions.positives
    ):
        pass
    for _ in workspace.map_groups(
        "passages", _drop_repeated_passages, of_passages, first=positions.first_passage
    ):
        pass


def rows_of_negatives(files: WorkFiles, shard: Shard) -> np.ndarray:
    """The kept negatives of a shard.

    Returns:
        int64, (3, kept): index within the shard, row in passages/, and 1 for a text's first
        occurrence.
    """
    return files.folder.read_array(f"{NUMBERS}/{shard.name}.npy")


def _count_kept(task: GroupTask) -> int:
    return int((task.verdicts == Verdict.KEPT).sum())


def _hash_texts_of_pairs(
    task: GroupTask, first_row: int, *, positions: TextPositions, borders: np.ndarray
) -> list[SortedRun]:
    """Writes (hash, position) of a group's kept positives, and of the first of equal negatives."""
    writer = task.writer("texts", borders)
    for shard, verdicts, negative_verdicts in task.shards():
        kept = verdicts == Verdict.KEPT
        passages = task.files.hashes(shard)[1, kept]
        writer.add(passages, np.arange(first_row, first_row + len(passages)))
        first_row += len(passages)
        if shard.negatives:
            owner = negative_owners(task.files.table(shard, "negatives"))
            of_dropped = (negative_verdicts == Verdict.KEPT) & ~kept[owner]
            negative_verdicts[of_dropped] = Verdict.OF_DROPPED_PAIRS
    numbers, hashes = _kept_negatives(task)
    first = np.unique(hashes, return_index=True)[1]
    writer.add(hashes[first], positions.positives + numbers[first])
    return writer.finish()


def _kept_negatives(task: GroupTask) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of a group's kept negatives among all, and their hashes."""
    kept = np.flatnonzero(task.negative_verdicts == Verdict.KEPT)
    if not len(kept):
        return kept, np.empty(0, dtype=np.uint64)
    of_shards = [task.files.negative_hashes(s) for s in task.group.shards if s.negatives]
    return task.group.first_negative + kept, np.concatenate(of_shards)[kept]


def _hash_passages(task: GroupTask, *, first: int, borders: np.ndarray) -> list[SortedRun]:
    """Writes (hash, position) of the first of equal passages of a group; drops the others.

    Args:
        first: position of the first passage.
    """
    rows = np.flatnonzero(task.verdicts == Verdict.KEPT)
    hashes = [np.empty(0, dtype=np.uint64)]
    for shard, verdicts, _ in task.shards():
        kept = np.flatnonzero(verdicts == Verdict.KEPT)
        texts = task.files.table(shard)["passage"].take(kept).to_pylist()
        hashes.append(hash_texts(map(normalise, texts)))
    keys = np.concatenate(hashes)
    stay = keep_first(task.verdicts, rows, keys, Verdict.REPEATED)
    writer = task.writer("texts-of-passages", borders)
    writer.add(keys[np.searchsorted(rows, stay)], first + task.group.first + stay)
    return writer.finish()


def _assign_rows(
    workspace: CleaningWorkspace,
    texts: SortedRuns,
    borders: np.ndarray,
    positions: TextPositions,
) -> SortedRuns:
    """Finds each text's first occurrence by hash, then numbers first occurrences by position.

    Returns:
        Runs of (position, row, is first) of the negatives and passages; their ranges are the
        groups of pairs, and then those of passages.
    """
    width = workspace.files.sizes.records
    # Ranges of first positions: of positives, whose rows are known, and of all other texts.
    of_positives = np.arange(0, positions.positives, width)
    of_others = row_borders(positions.positives, positions.end, width)
    by_first = np.concatenate([of_positives, of_others]).astype(np.uint64)
    found = workspace.map_ranges(
        _find_first, borders, texts, positions=positions, width=width, borders=by_first
    )
    counts = np.cumsum(np.sum([count for _, count in found], axis=0, dtype=np.int64))
    first_rows = positions.positives + np.concatenate([[0], counts[:-1]])
    groups = np.concatenate(
        [
            [positions.positives + group.first_negative for group in workspace.groups["pairs"]],
            [positions.first_passage + group.first for group in workspace.groups["passages"]],
        ]
    ).astype(np.uint64)
    numbered = workspace.map_ranges(
        _number_texts,
        by_first,
        join_runs(runs for runs, _ in found),
        first_rows=[None] * len(of_positives) + first_rows.tolist(),
        borders=groups,
    )
    workspace.delete("texts", "texts-of-passages", "first-occurrences")
    return join_runs(numbered)


def _find_first(
    files: WorkFiles,
    number: int,
    records: np.ndarray,
    *,
    positions: TextPositions,
    width: int,
    borders: np.ndarray,
) -> tuple[list[SortedRun], np.ndarray]:
    """Writes (first position, position) of the negatives and passages in a range of hashes.

    Returns:
        The runs, and how many first occurrences that are no positives each range of the other
        texts' positions has.
    """
    hashes, text_positions = records[:2]
    is_first = ~equals_previous(hashes)
    first_positions = text_positions[is_first][np.cumsum(is_first) - 1]
    is_other = text_positions >= np.uint64(positions.positives)
    writer = files.writer("first-occurrences", number, borders)
    writer.add(first_positions[is_other], text_positions[is_other])
    new = text_positions[is_first & is_other].astype(np.int64) - positions.positives
    ranges = len(row_borders(positions.positives, positions.end, width))
    return writer.finish(), np.bincount(new // width, minlength=ranges)


def _number_texts(
    files: WorkFiles,
    number: int,
    records: np.ndarray,
    *,
    first_rows: Sequence[int | None],
    borders: np.ndarray,
) -> list[SortedRun]:
    """Writes (position, row, is first) of the texts that first occur in a range of positions.

    Args:
        first_rows: the row of each range's first new text; None in a range of positives, where a
            first position is a row.
    """
    first_positions, text_positions = records[:2]
    first_row = first_rows[number]
    rows = first_positions
    if first_row is not None:
        rows = first_row + np.unique(first_positions, return_inverse=True)[1]
    writer = files.writer("numbered", number, borders)
    writer.add(text_positions, rows, first_positions == text_positions)
    return writer.finish()


def _write_negative_rows(task: GroupTask, slices: Sequence[RunSlice], *, first: int) -> None:
    """Writes what `rows_of_negatives` reads, for each shard of a group.

    Args:
        slices: of (position, row, is first), for the first of equal negatives of the group.
        first: position of the first negative.
    """
    positions, rows, is_first = task.files.records(slices)[:3].astype(np.int64)
    numbers, hashes = _kept_negatives(task)
    _, firsts, text = np.unique(hashes, return_index=True, return_inverse=True)
    found = np.searchsorted(positions, first + numbers[firsts])[text]
    new = (first + numbers == positions[found]) & (is_first[found] == 1)
    for shard in task.group.shards:
        if shard.negatives:
            end = shard.first_negative + shard.negatives
            part = slice(*np.searchsorted(numbers, [shard.first_negative, end]))
            of_shard = np.stack(
                [numbers[part] - shard.first_negative, rows[found[part]], new[part]]
            )
            task.files.folder.write_array(f"{NUMBERS}/{shard.name}.npy", of_shard)


def _drop_repeated_passages(task: GroupTask, slices: Sequence[RunSlice], *, first: int) -> None:
    positions, _, is_first = task.files.records(slices)[:3].astype(np.int64)
    task.verdicts[positions[is_first == 0] - first - task.group.first] = Verdict.REPEATED
