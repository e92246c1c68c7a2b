"""Drops rows whose passage is a near-copy of an earlier one."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from stillroom.data.cleaning import minhash
from stillroom.data.cleaning.external_sort import (
    RunSlice,
    SortedRun,
    SortedRuns,
    row_borders,
)
from stillroom.stages.corpus.verdicts import Verdict
from stillroom.stages.corpus.workspace import CleaningWorkspace, GroupTask, WorkFiles, join_runs

Bands = list[list[SortedRun]]  # of each group: band key, row, and two columns of bit sketches


def drop_near_copies_of_pairs(workspace: CleaningWorkspace, min_jaccard: float) -> Bands:
    """Drops pairs whose passage is a near-copy of the passage of an earlier pair, which stays.

    Args:
        min_jaccard: least similarity of near-copies.

    Returns:
        The bands of all pairs, for `drop_near_copies_of_passages`.
    """
    borders = _band_borders(workspace, workspace.rows("pairs"), min_jaccard)
    sketches = workspace.map_groups(
        "pairs", _sketch, first=0, borders=borders, min_jaccard=min_jaccard
    )
    bands = [*sketches]
    _drop_near_copies(workspace, "pairs", join_runs(bands), 0, borders, min_jaccard)
    return bands


def drop_near_copies_of_passages(
    workspace: CleaningWorkspace, min_jaccard: float, pair_bands: Bands
) -> None:
    """Drops passages that are near-copies of the passage of a kept pair, or of an earlier one."""
    pairs = workspace.rows("pairs")
    borders = _band_borders(workspace, pairs + workspace.rows("passages"), min_jaccard)
    bands = [
        *workspace.map_groups("pairs", _keep_bands, pair_bands, borders=borders),
        *workspace.map_groups(
            "passages", _sketch, first=pairs, borders=borders, min_jaccard=min_jaccard
        ),
    ]
    _drop_near_copies(workspace, "passages", join_runs(bands), pairs, borders, min_jaccard)
    workspace.delete("bands-pairs", "bands-of-kept-pairs", "bands-passages")


def _band_borders(workspace: CleaningWorkspace, rows: int, min_jaccard: float) -> np.ndarray:
    return workspace.hash_borders(rows * minhash.bands(min_jaccard))


def _sketch(
    task: GroupTask, *, first: int, borders: np.ndarray, min_jaccard: float
) -> list[SortedRun]:
    """Writes band keys and bit sketches of the kept rows.

    Args:
        first: number of the kind's first row: rows of pairs and passages are numbered together.
    """
    writer = task.writer(f"bands-{task.group.kind}", borders)
    for shard, verdicts, _ in task.shards():
        kept = np.flatnonzero(verdicts == Verdict.KEPT)
        passages = task.files.table(shard, "passage")["passage"].take(kept)
        signatures = minhash.minhash_signatures(passages.to_pylist())
        keys = minhash.band_keys(signatures, min_jaccard)
        rows = (first + shard.first + kept).repeat(keys.shape[1])
        sketches = minhash.bit_sketches(signatures).repeat(keys.shape[1], axis=0)
        writer.add(keys.reshape(-1), rows, *sketches.T)
    return writer.finish()


def _keep_bands(task: GroupTask, runs: list[SortedRun], *, borders: np.ndarray) -> list[SortedRun]:
    """Writes those bands of a group of pairs again whose rows are still kept."""
    writer = task.writer("bands-of-kept-pairs", borders)
    for run in runs:
        records = task.files.records([run.whole()])
        kept = task.verdicts[records[1].astype(np.int64) - task.group.first] == Verdict.KEPT
        writer.add(*records[:, kept])
    return writer.finish()


def _drop_near_copies(
    workspace: CleaningWorkspace,
    kind: Literal["pairs", "passages"],
    bands: SortedRuns,
    first: int,
    band_borders: np.ndarray,
    min_jaccard: float,
) -> None:
    rows = workspace.rows(kind)
    if not rows:
        return
    borders = row_borders(first, first + rows, workspace.files.sizes.records)
    found = workspace.map_ranges(
        _find_copies,
        band_borders,
        bands,
        name=f"copies-of-{kind}",
        first=first,
        borders=borders,
        min_jaccard=min_jaccard,
    )
    copies = join_runs(found)
    in_order = [copies.slices(number) for number in range(len(borders))]
    dropped = workspace.map(
        _choose_copies, [in_order], kind=kind, first=first, rows=rows,
        borders=workspace.row_borders(kind),
    )  # fmt: skip
    workspace.drop(kind, Verdict.NEAR_COPIES, dropped)


def _find_copies(
    files: WorkFiles,
    number: int,
    bands: np.ndarray,
    *,
    name: str,
    first: int,
    borders: np.ndarray,
    min_jaccard: float,
) -> list[SortedRun]:
    """Writes (row, row of its original) for the near-copies in a range of band keys."""
    writer = files.writer(name, number, borders)
    if bands.shape[1]:
        keys, rows, *sketch = bands
        later, earlier = minhash.near_duplicates(keys, rows, np.stack(sketch, axis=1), min_jaccard)
        selected = later >= first
        writer.add(later[selected], earlier[selected])
    return writer.finish()


def _choose_copies(
    files: WorkFiles,
    in_order: Sequence[Sequence[RunSlice]],
    *,
    kind: str,
    first: int,
    rows: int,
    borders: np.ndarray,
) -> list[SortedRun]:
    """Writes the rows to drop. One task goes over all copies in their order, because whether a row
    is dropped depends on the rows before it; of these it knows a bit each.

    Args:
        in_order: the parts of each range of rows.
        rows: of the kind.
    """
    writer = files.writer(f"near-copies-{kind}", 0, borders)
    dropped = bytearray(-(-rows // 8))
    for slices in in_order:
        later, earlier = files.records(slices)[:2].astype(np.int64) - first
        here = []
        for row, original in zip(later.tolist(), earlier.tolist(), strict=True):
            # A dropped row is no original: copies of copies may differ much. Originals below 0 are
            # pairs that are kept.
            if not dropped[row >> 3] >> (row & 7) & 1 and (
                original < 0 or not dropped[original >> 3] >> (original & 7) & 1
            ):
                dropped[row >> 3] |= 1 << (row & 7)
                here.append(row)
        writer.add(np.array(here, dtype=np.uint64))
    return writer.finish()
