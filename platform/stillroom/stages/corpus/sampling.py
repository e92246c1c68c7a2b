"""Draws pairs at random: for a held-out test set, and from sources with too many pairs."""

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping

import numpy as np

from stillroom.data.cleaning.external_sort import SortedRun
from stillroom.data.cleaning.sampling import RANK_BINS, cutoff_bin, random_ranks, rank_bins
from stillroom.data.cleaning.text_keys import equals_previous
from stillroom.data.readers.records import Pair
from stillroom.errors import UserError
from stillroom.stages.corpus.verdicts import Verdict
from stillroom.stages.corpus.workspace import CleaningWorkspace, GroupTask, WorkFiles, join_runs

Ranks = tuple[int, np.ndarray]


def hold_out(workspace: CleaningWorkspace, source: int, passages: int, seed: int) -> list[Pair]:
    """Draws passages for a test set, and drops every pair whose passage begins like one of them.

    Args:
        source: whose pairs are drawn.
        passages: how many to draw.

    Returns:
        The drawn pairs, in random order.

    Raises:
        UserError: when no passage would be left to train on.
    """
    borders = workspace.hash_borders(workspace.rows("pairs"))
    hashed = workspace.map_groups("pairs", _hash_beginnings, source=source, borders=borders)
    selected = workspace.map_ranges(_draw, borders, join_runs(hashed), count=passages, seed=seed)
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
    pairs: dict[int, Pair] = {}
    for of_group in workspace.map_groups(
        "pairs",
        _take_pairs,
        source=source,
        beginnings=np.sort(beginnings[order]),
        drawn=np.sort(rows[order]).astype(np.int64),
    ):
        pairs |= of_group
    return [pairs[row] for row in rows[order].tolist()]


def sample_pairs(workspace: CleaningWorkspace, limits: Mapping[int, int], seed: int) -> None:
    """Drops pairs at random until each source has at most its limit.

    Args:
        limits: number of a source → pairs.
    """
    sizes = {source: np.zeros(RANK_BINS, dtype=np.int64) for source in limits}
    for of_group in workspace.map_groups("pairs", _bin_sizes, sources=frozenset(limits), seed=seed):
        for source, of_bins in of_group.items():
            sizes[source] += of_bins
    cut = {
        source: cutoff_bin(sizes[source], limit)
        for source, limit in limits.items()
        if sizes[source].sum() > limit
    }
    if not cut:
        return
    bins = {source: number for source, (number, _) in cut.items()}
    ranks: dict[int, list[np.ndarray]] = defaultdict(list)
    for ranks_of_group in workspace.map_groups("pairs", _ranks_in_bins, bins=bins, seed=seed):
        for source, in_bin in ranks_of_group.items():
            ranks[source] += in_bin
    cutoffs = {
        source: np.partition(np.concatenate(ranks[source]), index)[index]
        for source, (_, index) in cut.items()
    }
    for _ in workspace.map_groups("pairs", _drop_beyond, cutoffs=cutoffs, seed=seed):
        pass


def _hash_beginnings(task: GroupTask, *, source: int, borders: np.ndarray) -> list[SortedRun]:
    """Writes (hash of the passage's beginning, row) of the source's kept pairs, for the first of a
    shard with that beginning.
    """
    writer = task.writer("beginnings", borders)
    for shard, verdicts, _ in task.shards():
        if shard.source == source:
            kept = np.flatnonzero(verdicts == Verdict.KEPT)
            beginnings, first = np.unique(task.files.hashes(shard)[2, kept], return_index=True)
            writer.add(beginnings, shard.first + kept[first])
    return writer.finish()


def _draw(
    files: WorkFiles, number: int, records: np.ndarray, *, count: int, seed: int
) -> tuple[int, np.ndarray]:
    """How many distinct beginnings a range has, and the `count` of the lowest random ranks.

    These are columns of rank, beginning and row, (3, at most count).
    """
    beginnings, rows = records[:2, ~equals_previous(records[0])]
    ranked = np.stack([random_ranks(beginnings, seed), beginnings, rows])
    return ranked.shape[1], ranked[:, np.argsort(ranked[0])[:count]]


def _take_pairs(
    task: GroupTask, *, source: int, beginnings: np.ndarray, drawn: np.ndarray
) -> dict[int, Pair]:
    """Drops the source's kept pairs with these beginnings; returns the drawn ones by row."""
    pairs: dict[int, Pair] = {}
    for shard, verdicts, _ in task.shards():
        if shard.source != source:
            continue
        tested = np.isin(task.files.hashes(shard)[2], beginnings)
        verdicts[tested & (verdicts == Verdict.KEPT)] = Verdict.HELD_OUT
        rows = drawn[np.searchsorted(drawn, shard.first) : np.searchsorted(drawn, shard.span.stop)]
        if len(rows):
            table = task.files.table(shard, "query", "passage").take(rows - shard.first)
            texts = zip(table["query"].to_pylist(), table["passage"].to_pylist(), strict=True)
            pairs |= {row: Pair(*of_row) for row, of_row in zip(rows.tolist(), texts, strict=True)}
    return pairs


def _kept_ranks(task: GroupTask, sources: Container[int], seed: int) -> Iterator[Ranks]:
    """Source and random ranks of the kept pairs of each shard of these sources."""
    for shard, verdicts, _ in task.shards():
        if shard.source in sources:
            queries = task.files.hashes(shard)[0, verdicts == Verdict.KEPT]
            yield shard.source, random_ranks(queries, seed)


def _bin_sizes(task: GroupTask, *, sources: frozenset[int], seed: int) -> dict[int, np.ndarray]:
    sizes: dict[int, np.ndarray] = {}
    for source, ranks in _kept_ranks(task, sources, seed):
        of_shard = np.bincount(rank_bins(ranks), minlength=RANK_BINS).astype(np.uint32)
        sizes[source] = sizes.get(source, 0) + of_shard
    return sizes


def _ranks_in_bins(
    task: GroupTask, *, bins: Mapping[int, int], seed: int
) -> dict[int, list[np.ndarray]]:
    found: dict[int, list[np.ndarray]] = defaultdict(list)
    for source, ranks in _kept_ranks(task, bins, seed):
        found[source].append(ranks[rank_bins(ranks) == bins[source]])
    return dict(found)


def _drop_beyond(task: GroupTask, *, cutoffs: Mapping[int, np.uint64], seed: int) -> None:
    for shard, verdicts, _ in task.shards():
        if shard.source in cutoffs:
            beyond = random_ranks(task.files.hashes(shard)[0], seed) > cutoffs[shard.source]
            verdicts[beyond & (verdicts == Verdict.KEPT)] = Verdict.BEYOND_MAX_PAIRS
