"""Draws pairs at random: for a held-out test set, and from sources with too many pairs."""

from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from stillroom.data.cleaning.external_sort import KeyRange
from stillroom.data.cleaning.sampling import random_ranks, rank_cutoff
from stillroom.data.cleaning.text_keys import equals_previous
from stillroom.data.readers.records import Pair
from stillroom.errors import UserError
from stillroom.stages.corpus.shards import CleaningWorkspace, Shard, Verdict


def hold_out(
    workspace: CleaningWorkspace, shards: Sequence[Shard], passages: int, seed: int
) -> list[Pair]:
    """Draws passages for a test set, and drops every pair whose passage begins like one of them.

    Args:
        shards: of the source's pairs.
        passages: how many to draw.

    Returns:
        The drawn pairs, in random order.

    Raises:
        UserError: when no passage would be left to train on.
    """
    selected = workspace.map_hash_ranges(_draw, "beginnings", count=passages, seed=seed)
    distinct = sum(count for count, _ in selected)
    if distinct <= passages:
        raise UserError(
            "corpus.held_out.passages",
            f"{passages} are requested, and the source has {distinct} distinct passages, which "
            "leaves none to train on",
            "Hold out fewer, or give more pairs",
        )
    ranks, beginnings, rows = np.concatenate([lowest for _, lowest in selected], axis=1)
    order = np.argsort(ranks)[:passages]
    # Passages that begin alike count as copies, so no beginning is on both sides of the split.
    tested = np.sort(beginnings[order])
    workspace.map_hash_ranges(_drop_beginnings, "beginnings", tested=tested)
    return _read_pairs(shards, rows[order].astype(np.int64))


def sample_pairs(
    workspace: CleaningWorkspace, shards: Sequence[Shard], max_pairs: int, seed: int
) -> None:
    """Drops pairs of a source at random until `max_pairs` are left."""
    verdicts = workspace.verdicts("pairs")
    kept = [verdicts[shard.span] == Verdict.KEPT for shard in shards]
    if sum(int(rows.sum()) for rows in kept) <= max_pairs:
        return

    def ranks(shard: Shard) -> np.ndarray:
        query_hashes = np.load(workspace.folder / f"hashes-{shard.name}.npy")[0]
        return random_ranks(query_hashes, seed)

    cutoff = rank_cutoff(
        lambda: (ranks(shard)[rows] for shard, rows in zip(shards, kept, strict=True)), max_pairs
    )
    for shard, rows in zip(shards, kept, strict=True):
        verdicts[shard.span][rows & (ranks(shard) > cutoff)] = Verdict.BEYOND_MAX_PAIRS


def _draw(
    workspace: CleaningWorkspace, key_range: KeyRange, *, runs_name: str, count: int, seed: int
) -> tuple[int, np.ndarray]:
    """How many distinct beginnings a range has, and the `count` of the lowest random ranks.

    These are columns of rank, beginning and row, (3, at most count).
    """
    beginnings, rows = workspace.sorted_runs(runs_name).read(key_range)[:2]
    kept = workspace.verdicts("pairs")[rows] == Verdict.KEPT
    beginnings, rows = beginnings[kept], rows[kept]
    first = ~equals_previous(beginnings)
    beginnings, rows = beginnings[first], rows[first]
    ranked = np.stack([random_ranks(beginnings, seed), beginnings, rows])
    return ranked.shape[1], ranked[:, np.argsort(ranked[0])[:count]]


def _drop_beginnings(
    workspace: CleaningWorkspace, key_range: KeyRange, *, runs_name: str, tested: np.ndarray
) -> None:
    beginnings, rows = workspace.sorted_runs(runs_name).read(key_range)[:2]
    verdicts = workspace.verdicts("pairs")
    rows = rows[np.isin(beginnings, tested)]
    verdicts[rows[verdicts[rows] == Verdict.KEPT]] = Verdict.HELD_OUT


def _read_pairs(shards: Sequence[Shard], rows: np.ndarray) -> list[Pair]:
    """The pairs of these rows, in their order."""
    pairs: dict[int, Pair] = {}
    for shard in shards:
        shard_rows = rows[(rows >= shard.first) & (rows < shard.first + shard.rows)]
        if len(shard_rows):
            table = pq.read_table(shard.path, columns=["query", "passage"])
            table = table.take(shard_rows - shard.first)
            texts = zip(table["query"].to_pylist(), table["passage"].to_pylist(), strict=True)
            for row, (query, passage) in zip(shard_rows.tolist(), texts, strict=True):
                pairs[row] = Pair(query, passage)
    return [pairs[row] for row in rows.tolist()]
