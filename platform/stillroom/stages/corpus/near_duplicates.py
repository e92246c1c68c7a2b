"""Drops rows whose passage is a near-copy of an earlier one."""

import functools
from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from stillroom.data.cleaning import minhash
from stillroom.data.cleaning.external_sort import KeyRange, split_range
from stillroom.stages.corpus.shards import CleaningWorkspace, Shard, Verdict


def drop_near_duplicates(
    workspace: CleaningWorkspace, shards: Sequence[Shard], min_jaccard: float, *, pairs: int
) -> None:
    """Drops rows whose passage is a near-copy of the passage of an earlier row, which stays.

    Args:
        shards: all pairs; or, in a later call, all passages, which come after every pair.
        min_jaccard: least similarity of near-copies.
        pairs: how many pairs were read.
    """
    if not shards:
        return
    kind = shards[0].kind
    first = 0 if kind == "pairs" else pairs  # rows of pairs and passages are numbered together
    sketch = functools.partial(_sketch, first=first, min_jaccard=min_jaccard)
    workspace.map(sketch, shards)
    copies_name = f"near-copies-of-{kind}"
    workspace.map_hash_ranges(
        _find_copies,
        "bands",
        copies_name=copies_name,
        first=first,
        pairs=pairs,
        min_jaccard=min_jaccard,
    )
    copies = workspace.sorted_runs(copies_name)
    verdicts = memoryview(workspace.verdicts(kind))
    for rows in split_range(first, first + len(verdicts), workspace.sizes.records):
        later, earlier = copies.read(rows)[:2].astype(np.int64) - first
        for row, original in zip(later.tolist(), earlier.tolist(), strict=True):
            # A dropped row is no original: copies of copies may differ much. Originals below 0
            # are pairs, which were cleaned in an earlier call.
            if not verdicts[row] and (original < 0 or not verdicts[original]):
                verdicts[row] = Verdict.NEAR_COPIES


def _sketch(workspace: CleaningWorkspace, shard: Shard, *, first: int, min_jaccard: float) -> None:
    """Writes band keys and bit sketches of the kept rows."""
    kept = np.flatnonzero(workspace.verdicts(shard.kind)[shard.span] == Verdict.KEPT)
    passages = pq.read_table(shard.path, columns=["passage"])["passage"].take(kept)
    signatures = minhash.minhash_signatures(passages.to_pylist())
    keys = minhash.band_keys(signatures, min_jaccard)
    rows = (first + shard.first + kept).repeat(keys.shape[1])
    sketches = minhash.bit_sketches(signatures).repeat(keys.shape[1], axis=0)
    run_name = f"{shard.kind}-{shard.name}"
    workspace.sorted_runs("bands").write(run_name, keys.reshape(-1), rows, *sketches.T)


def _find_copies(
    workspace: CleaningWorkspace,
    key_range: KeyRange,
    *,
    runs_name: str,
    copies_name: str,
    first: int,
    pairs: int,
    min_jaccard: float,
) -> None:
    """Writes (row, row of its original) for the near-copies in a range of band keys."""
    band, rows, *sketch = workspace.sorted_runs(runs_name).read(key_range)
    is_passage = rows >= pairs
    kept = np.empty(len(rows), dtype=bool)
    kept[~is_passage] = workspace.verdicts("pairs")[rows[~is_passage]] == Verdict.KEPT
    passage_rows = rows[is_passage] - np.uint64(pairs)
    kept[is_passage] = workspace.verdicts("passages")[passage_rows] == Verdict.KEPT
    later, earlier = minhash.near_duplicates(
        band[kept], rows[kept], np.stack(sketch, axis=1)[kept], min_jaccard
    )
    selected = later >= first
    copies = workspace.sorted_runs(copies_name)
    copies.write(f"{key_range[0]:020d}", later[selected], earlier[selected])
