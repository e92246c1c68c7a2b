"""Drops repeated rows: the first of equal rows stays."""

import functools
from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from stillroom.data.cleaning.external_sort import KeyRange
from stillroom.data.cleaning.splitmix import splitmix64
from stillroom.data.cleaning.text_keys import (
    BEGINNING_CHARACTERS,
    equals_previous,
    hash_texts,
    normalise,
)
from stillroom.stages.corpus.shards import (
    CleaningWorkspace,
    Shard,
    Verdict,
    flat_negatives,
    negative_owners,
)


def drop_duplicates(
    workspace: CleaningWorkspace, shards: Sequence[Shard], *, beginnings_of: int
) -> None:
    """Keeps the first pair of each passage, then the first of those pairs for each query.

    A query with two passages would make a right answer count as a negative. For the same reason a
    negative is dropped if it is a positive of the same query, in its own pair or in another.

    Args:
        shards: of pairs.
        beginnings_of: number of the source for which `hold_out` needs the beginnings of passages.
    """
    with_negatives = any(shard.negatives for shard in shards)
    hash_pairs = functools.partial(
        _hash_pairs, with_negatives=with_negatives, beginnings_of=beginnings_of
    )
    workspace.map(hash_pairs, shards)
    for runs_name, verdict in (
        ("passages-of-pairs", Verdict.REPEATED_PASSAGES),
        ("queries-of-pairs", Verdict.REPEATED_QUERIES),
    ):
        workspace.map_hash_ranges(_drop_repeated, runs_name, verdict=verdict)
    if with_negatives:
        workspace.map_hash_ranges(_drop_conflicts, "positives-by-query")


def drop_repeated_conversations(workspace: CleaningWorkspace, shards: Sequence[Shard]) -> None:
    """Keeps the first of equal conversations."""
    workspace.map(_hash_conversations, shards)
    workspace.map_hash_ranges(
        _drop_repeated, "conversations", verdict=Verdict.REPEATED, kind="conversations"
    )


def _hash_conversations(workspace: CleaningWorkspace, shard: Shard) -> None:
    table = pq.read_table(shard.path, columns=["prompt", "completion"])
    texts = zip(table["prompt"].to_pylist(), table["completion"].to_pylist(), strict=True)
    hashes = hash_texts(normalise(f"{prompt}\n{completion}") for prompt, completion in texts)
    rows = np.arange(shard.span.start, shard.span.stop, dtype=np.uint64)
    workspace.sorted_runs("conversations").write(shard.name, hashes, rows)


def _hash_pairs(
    workspace: CleaningWorkspace, shard: Shard, *, with_negatives: bool, beginnings_of: int
) -> None:
    table = pq.read_table(shard.path)
    passages = [normalise(text) for text in table["passage"].to_pylist()]
    query = hash_texts(normalise(text) for text in table["query"].to_pylist())
    passage = hash_texts(passages)
    rows = np.arange(shard.first, shard.first + shard.rows, dtype=np.uint64)
    np.save(workspace.folder / f"hashes-{shard.name}.npy", np.stack([query, passage]))
    same = query == passage
    workspace.verdicts("pairs")[shard.span][same] = Verdict.QUERY_IS_PASSAGE
    workspace.sorted_runs("passages-of-pairs").write(shard.name, passage[~same], rows[~same])
    workspace.sorted_runs("queries-of-pairs").write(shard.name, query[~same], rows[~same])
    if shard.source == beginnings_of:
        beginnings = hash_texts(text[:BEGINNING_CHARACTERS] for text in passages)
        workspace.sorted_runs("beginnings").write(shard.name, beginnings, rows)
    if with_negatives:
        workspace.sorted_runs("positives-by-query").write(shard.name, query, rows, passage)
        negative = hash_texts(map(normalise, flat_negatives(table).to_pylist()))
        _drop_negatives_within_pairs(
            workspace, shard, negative_owners(table), negative, query, passage
        )


def _drop_negatives_within_pairs(
    workspace: CleaningWorkspace,
    shard: Shard,
    owner: np.ndarray,
    negative: np.ndarray,
    query: np.ndarray,
    passage: np.ndarray,
) -> None:
    """Drops negatives that repeat another one or the positive of their pair, and hashes the rest.

    Args:
        owner, negative: the pair and the hash of each negative, (negatives,).
        query, passage: hashes of the pairs, (pairs,).
    """
    np.save(workspace.folder / f"negatives-{shard.name}.npy", negative)
    verdicts = workspace.verdicts("negatives")[shard.negative_span]
    verdicts[_repeated_within(owner, negative)] = Verdict.REPEATED
    verdicts[negative == passage[owner]] = Verdict.POSITIVE
    numbers = np.arange(shard.negative_span.start, shard.negative_span.stop, dtype=np.uint64)
    kept = verdicts == Verdict.KEPT
    workspace.sorted_runs("negatives-by-query").write(
        shard.name, query[owner][kept], numbers[kept], negative[kept]
    )


def _repeated_within(owner: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Indices of the keys that the same owner has earlier too."""
    order = np.lexsort((np.arange(len(keys)), keys, owner))
    owner, keys = owner[order], keys[order]
    return order[equals_previous(owner) & equals_previous(keys)]


def _drop_repeated(
    workspace: CleaningWorkspace,
    key_range: KeyRange,
    *,
    runs_name: str,
    verdict: Verdict,
    kind: str = "pairs",
) -> None:
    verdicts = workspace.verdicts(kind)
    hashes, rows = workspace.sorted_runs(runs_name).read(key_range)[:2]
    kept = verdicts[rows] == Verdict.KEPT
    hashes, rows = hashes[kept], rows[kept]
    verdicts[rows[equals_previous(hashes)]] = verdict


def _drop_conflicts(workspace: CleaningWorkspace, key_range: KeyRange, *, runs_name: str) -> None:
    """Drops negatives that are a positive of the same query in another pair."""
    query, _, positive = workspace.sorted_runs(runs_name).read(key_range)[:3]
    negatives = workspace.sorted_runs("negatives-by-query").read(key_range)[:3]
    negative_query, numbers, negative = negatives
    conflict = np.isin(splitmix64(negative_query) ^ negative, splitmix64(query) ^ positive)
    workspace.verdicts("negatives")[numbers[conflict]] = Verdict.CONFLICTS
