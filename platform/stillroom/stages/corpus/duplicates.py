"""Drops repeated rows: the first of equal rows stays."""

import numpy as np

from stillroom.config.base import DataKind
from stillroom.data.cleaning.external_sort import SortedRun, SortedRuns
from stillroom.data.cleaning.splitmix import splitmix64
from stillroom.data.cleaning.text_keys import (
    BEGINNING_CHARACTERS,
    equals_previous,
    hash_texts,
    normalise,
)
from stillroom.stages.corpus.shards import flat_negatives, negative_owners
from stillroom.stages.corpus.verdicts import Verdict
from stillroom.stages.corpus.workspace import (
    CleaningWorkspace,
    GroupTask,
    Runs,
    WorkFiles,
    join_named_runs,
    join_runs,
)


def drop_duplicates(workspace: CleaningWorkspace, *, beginnings_of: int) -> None:
    """Keeps the first pair of each passage, then the first of those pairs for each query.

    A query with two passages would make a right answer count as a negative. For the same reason a
    negative is dropped if it is a positive of the same query, in its own pair or in another.

    Args:
        beginnings_of: number of the source for which `hold_out` needs the beginnings of passages.
    """
    borders = workspace.hash_borders(workspace.rows("pairs"))
    hashed = workspace.map_groups(
        "pairs", _hash_pairs, borders=borders, beginnings_of=beginnings_of
    )
    runs = join_runs(hashed)
    _drop_repeated(workspace, "pairs", "passages", runs, Verdict.REPEATED_PASSAGES)
    if workspace.negatives:
        _drop_negatives(workspace)
    runs = join_runs(workspace.map_groups("pairs", _hash_queries, borders=borders))
    _drop_repeated(workspace, "pairs", "queries", runs, Verdict.REPEATED_QUERIES)


def drop_repeated_conversations(workspace: CleaningWorkspace) -> None:
    """Keeps the first of equal conversations."""
    borders = workspace.hash_borders(workspace.rows("conversations"))
    runs = join_runs(workspace.map_groups("conversations", _hash_conversations, borders=borders))
    _drop_repeated(workspace, "conversations", "conversations", runs, Verdict.REPEATED)


def _drop_repeated(
    workspace: CleaningWorkspace, kind: DataKind, name: str, runs: SortedRuns, verdict: Verdict
) -> None:
    """Drops the rows of a kind that are not the first with their key.

    Args:
        name: of the runs, whose records are of key and row; they are deleted.
    """
    repeated = workspace.map_ranges(
        _find_repeated,
        workspace.hash_borders(workspace.rows(kind)),
        runs,
        name=f"repeated-{name}",
        borders=workspace.row_borders(kind),
    )
    workspace.drop(kind, verdict, repeated)
    workspace.delete(name)


def _find_repeated(
    files: WorkFiles, number: int, records: np.ndarray, *, name: str, borders: np.ndarray
) -> list[SortedRun]:
    writer = files.writer(name, number, borders)
    writer.add(records[1, equals_previous(records[0])])
    return writer.finish()


def _drop_negatives(workspace: CleaningWorkspace) -> None:
    """Drops negatives that repeat one of their pair, or are a positive of the same query."""
    borders = workspace.hash_borders(max(workspace.rows("pairs"), workspace.negatives))
    runs = join_named_runs(workspace.map_groups("pairs", _hash_negatives, borders=borders))
    conflicts = workspace.map_ranges(
        _find_conflicts,
        borders,
        runs["negatives"],
        runs["positives"],
        borders=workspace.row_borders("negatives"),
    )
    workspace.drop("negatives", Verdict.CONFLICTS, conflicts)
    workspace.delete(*runs)


def keep_first(
    verdicts: np.ndarray, rows: np.ndarray, keys: np.ndarray, verdict: Verdict
) -> np.ndarray:
    """Drops the rows of a group that are not the group's first with their key.

    So a key that half of the corpus has is in one record of each group, not in one of each row.

    Args:
        verdicts: of all rows of the group.
        rows: in the group, ascending, (n,).
        keys: of these rows, (n,).

    Returns:
        The rows that stay, ascending.
    """
    first = rows[np.sort(np.unique(keys, return_index=True)[1])]
    verdicts[np.setdiff1d(rows, first, assume_unique=True)] = verdict
    return first


def _hash_conversations(task: GroupTask, *, borders: np.ndarray) -> list[SortedRun]:
    hashes = []
    for shard, _, _ in task.shards():
        table = task.files.table(shard, "prompt", "completion")
        texts = zip(table["prompt"].to_pylist(), table["completion"].to_pylist(), strict=True)
        hashes.append(hash_texts(normalise(f"{prompt}\n{answer}") for prompt, answer in texts))
    return _write_first(task, "conversations", borders, np.concatenate(hashes), Verdict.REPEATED)


def _hash_pairs(task: GroupTask, *, borders: np.ndarray, beginnings_of: int) -> list[SortedRun]:
    """Writes the hashes of each shard, and runs of (hash of the passage, row)."""
    passages = []
    for shard, verdicts, _ in task.shards():
        table = task.files.table(shard, "query", "passage")
        texts = [normalise(text) for text in table["passage"].to_pylist()]
        query = hash_texts(normalise(text) for text in table["query"].to_pylist())
        hashes = [query, hash_texts(texts)]
        if shard.source == beginnings_of:
            hashes.append(hash_texts(text[:BEGINNING_CHARACTERS] for text in texts))
        task.files.write_hashes(shard, np.stack(hashes))
        verdicts[query == hashes[1]] = Verdict.QUERY_IS_PASSAGE
        passages.append(hashes[1])
    return _write_first(
        task, "passages", borders, np.concatenate(passages), Verdict.REPEATED_PASSAGES
    )


def _hash_queries(task: GroupTask, *, borders: np.ndarray) -> list[SortedRun]:
    """Writes runs of (hash of the query, row)."""
    queries = np.concatenate([task.files.hashes(shard)[0] for shard, _, _ in task.shards()])
    return _write_first(task, "queries", borders, queries, Verdict.REPEATED_QUERIES)


def _write_first(
    task: GroupTask, name: str, borders: np.ndarray, keys: np.ndarray, verdict: Verdict
) -> list[SortedRun]:
    """Writes (key, row) of the first of the group's kept rows with each key, and drops the others.

    Args:
        keys: of all rows of the group.
    """
    rows = np.flatnonzero(task.verdicts == Verdict.KEPT)
    first = keep_first(task.verdicts, rows, keys[rows], verdict)
    writer = task.writer(name, borders)
    writer.add(keys[first], task.group.first + first)
    return writer.finish()


def _hash_negatives(task: GroupTask, *, borders: np.ndarray) -> Runs:
    """Writes runs of the keys of positives, and of (key, number) of the negatives that stay.

    A key is of a query and an answer.
    """
    positives, negatives = task.writer("positives", borders), task.writer("negatives", borders)
    for shard, _, verdicts in task.shards():
        query, passage = task.files.hashes(shard)[:2]
        positives.add(_answer_keys(query, passage))
        if shard.negatives:
            table = task.files.table(shard, "negatives")
            owner = negative_owners(table)
            hashes = hash_texts(map(normalise, flat_negatives(table).to_pylist()))
            task.files.write_negative_hashes(shard, hashes)
            verdicts[_repeated_within(owner, hashes)] = Verdict.REPEATED
            verdicts[hashes == passage[owner]] = Verdict.POSITIVE
            kept = np.flatnonzero(verdicts == Verdict.KEPT)
            keys = _answer_keys(query[owner[kept]], hashes[kept])
            negatives.add(keys, shard.first_negative + kept)
    return {"positives": positives.finish(), "negatives": negatives.finish()}


def _answer_keys(query: np.ndarray, answer: np.ndarray) -> np.ndarray:
    return splitmix64(query) ^ answer


def _repeated_within(owner: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Indices of the keys that the same owner has earlier too."""
    order = np.lexsort((np.arange(len(keys)), keys, owner))
    owner, keys = owner[order], keys[order]
    return order[equals_previous(owner) & equals_previous(keys)]


def _find_conflicts(
    files: WorkFiles,
    number: int,
    negatives: np.ndarray,
    positives: np.ndarray,
    *,
    borders: np.ndarray,
) -> list[SortedRun]:
    """Negatives that are a positive of the same query, in another pair."""
    writer = files.writer("conflicts", number, borders)
    writer.add(negatives[1, np.isin(negatives[0], positives[0])])
    return writer.finish()
