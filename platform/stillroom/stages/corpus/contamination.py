"""Drops rows that reveal queries or answers of evaluation sets."""

import functools
import hashlib
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from stillroom.data.cleaning.contamination_index import ContaminationIndex
from stillroom.data.cleaning.decontaminate import Hit, decontaminate
from stillroom.data.readers.records import Pair
from stillroom.errors import UserError
from stillroom.stages.corpus.shards import CleaningWorkspace, Shard, Verdict

HELD_OUT_SET = "held-out"  # name of the evaluation set that is split off a source
INDEX_FILE = "contamination-index.pickle"


def drop_contaminated(
    workspace: CleaningWorkspace,
    shards: Sequence[Shard],
    index: ContaminationIndex,
    *,
    action: Literal["drop", "report"],
) -> Iterator[tuple[Shard, int, list[Hit]]]:
    """Drops contaminated pairs, conversations and passages, and evaluation texts as negatives.

    Args:
        shards: of any kind.
        action: `report` keeps contaminated pairs, except copies of held-out ones.

    Returns:
        Of each shard of pairs, how many pairs were checked, and the hits among them.
    """
    content = pickle.dumps(index)
    (workspace.folder / INDEX_FILE).write_bytes(content)
    drop = functools.partial(
        _drop_from_shard, digest=hashlib.sha256(content).hexdigest(), action=action
    )
    for shard, checked in zip(shards, workspace.map(drop, shards), strict=True):
        if checked is not None:
            yield shard, *checked


@functools.lru_cache(maxsize=1)
def load_contamination_index(path: Path, digest: str) -> ContaminationIndex:
    """Unpickles the index, once a process.

    Args:
        digest: SHA-256 of the file as it was written. Nothing else is unpickled, because others
            may be able to write to the folder.

    Raises:
        UserError: when the file was altered.
    """
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(str(path), "was altered after it was written", "Run the recipe again")
    index: ContaminationIndex = pickle.loads(content)
    return index


def _drop_from_shard(
    workspace: CleaningWorkspace, shard: Shard, *, digest: str, action: str
) -> tuple[int, list[Hit]] | None:
    index = load_contamination_index(workspace.folder / INDEX_FILE, digest)
    if shard.kind == "pairs":
        return _drop_pairs(workspace, shard, index, action)
    if shard.kind == "passages":
        _drop_passages(workspace, shard, index)
    else:
        _drop_conversations(workspace, shard, index)
    return None


def _drop_passages(workspace: CleaningWorkspace, shard: Shard, index: ContaminationIndex) -> None:
    passages = pq.read_table(shard.path)["passage"].to_pylist()
    workspace.verdicts("passages")[shard.span][index.contains_many(passages)] = Verdict.TESTED


def _drop_conversations(
    workspace: CleaningWorkspace, shard: Shard, index: ContaminationIndex
) -> None:
    table = pq.read_table(shard.path, columns=["question", "completion"])
    texts = zip(table["question"].to_pylist(), table["completion"].to_pylist(), strict=True)
    pairs = [Pair(question, completion) for question, completion in texts]
    verdicts = workspace.verdicts("conversations")[shard.span]
    for hit in decontaminate(pairs, index)[1]:
        verdicts[hit.pair] = Verdict.TESTED


def _drop_pairs(
    workspace: CleaningWorkspace, shard: Shard, index: ContaminationIndex, action: str
) -> tuple[int, list[Hit]]:
    """Returns how many pairs were checked, and the hits with given evaluation sets."""
    verdicts = workspace.verdicts("pairs")[shard.span]
    kept = np.flatnonzero(verdicts == Verdict.KEPT)
    table = pq.read_table(shard.path)
    first_negative = np.asarray(table["negatives"].combine_chunks().offsets)[kept]
    table = table.take(kept)
    columns = (table[name].to_pylist() for name in ("query", "passage", "negatives"))
    pairs = [
        Pair(query, passage, tuple(negatives))
        for query, passage, negatives in zip(*columns, strict=True)
    ]
    clean, hits = decontaminate(pairs, index, drop=False)
    for hit in hits:
        if hit.set == HELD_OUT_SET:
            verdicts[kept[hit.pair]] = Verdict.HELD_OUT
        elif action == "drop":
            verdicts[kept[hit.pair]] = Verdict.CONTAMINATED
    negative_verdicts = workspace.verdicts("negatives")[shard.negative_span]
    for before, after, first in zip(pairs, clean, first_negative, strict=True):
        if len(after.negatives) < len(before.negatives):
            for number, text in enumerate(before.negatives, start=first):
                if text not in after.negatives and negative_verdicts[number] == Verdict.KEPT:
                    negative_verdicts[number] = Verdict.TESTED
    return len(pairs), [hit for hit in hits if hit.set != HELD_OUT_SET]
