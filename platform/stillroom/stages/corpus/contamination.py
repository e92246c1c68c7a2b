"""Drops rows that reveal queries or answers of evaluation sets."""

import functools
import hashlib
import pickle
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from stillroom.data.cleaning.contamination_index import MATCH_KINDS, ContaminationIndex
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
    guards: Collection[str] = (),
) -> Iterator[tuple[Shard, int, list[Hit]]]:
    """Drops contaminated pairs, conversations and passages, and evaluation texts as negatives.

    Args:
        shards: of any kind.
        action: `report` keeps contaminated pairs, except copies of held-out ones and of guards.
        guards: sets of which nothing may be trained on.

    Returns:
        Of each shard of pairs, how many pairs were checked, and the hits among them; of each other
        shard, 0 and the hits with guards.
    """
    content = pickle.dumps(index)
    (workspace.folder / INDEX_FILE).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    always = frozenset({HELD_OUT_SET, *guards}) if action == "report" else None
    drop = functools.partial(
        _drop_from_shard, digest=digest, always=always, guards=frozenset(guards)
    )
    for shard, checked in zip(shards, workspace.map(drop, shards), strict=True):
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
    workspace: CleaningWorkspace,
    shard: Shard,
    *,
    digest: str,
    always: frozenset[str] | None,
    guards: frozenset[str],
) -> tuple[int, list[Hit]]:
    """Drops rows; returns as `drop_contaminated`.

    Args:
        always: the sets whose hits are dropped; None: all.
    """
    index = load_contamination_index(workspace.folder / INDEX_FILE, digest)
    if shard.kind == "pairs":
        return _drop_pairs(workspace, shard, index, always)
    drop = _drop_passages if shard.kind == "passages" else _drop_conversations
    return 0, [hit for hit in drop(workspace, shard, index, guards) if hit.set in guards]


def _drop_passages(
    workspace: CleaningWorkspace, shard: Shard, index: ContaminationIndex, guards: frozenset[str]
) -> list[Hit]:
    passages = pq.read_table(shard.path)["passage"].to_pylist()
    verdicts = workspace.verdicts("passages")[shard.span]
    contained, parts = index.match_many(passages)
    verdicts[contained] = Verdict.TESTED
    hits = []
    for matches in parts:
        for i in range(len(matches.text)):
            text, row = int(matches.text[i]), int(matches.row[i])
            name = index.set_names[index.row_sets[row]]
            if name in guards:
                verdicts[text] = Verdict.TESTED  # of queries too
                hits.append(
                    Hit(
                        text, "passage", passages[text], MATCH_KINDS[matches.kind[i]],
                        float(matches.score[i]), name,
                        "query" if index.is_query[row] else "answer", index.ids[row],
                    )
                )  # fmt: skip
    return hits


def _drop_conversations(
    workspace: CleaningWorkspace, shard: Shard, index: ContaminationIndex, guards: frozenset[str]
) -> list[Hit]:
    table = pq.read_table(shard.path, columns=["question", "completion"])
    texts = zip(table["question"].to_pylist(), table["completion"].to_pylist(), strict=True)
    pairs = [Pair(question, completion) for question, completion in texts]
    verdicts = workspace.verdicts("conversations")[shard.span]
    hits = decontaminate(pairs, index)[1]
    for hit in hits:
        verdicts[hit.pair] = Verdict.TESTED
    return hits


def _drop_pairs(
    workspace: CleaningWorkspace,
    shard: Shard,
    index: ContaminationIndex,
    always: frozenset[str] | None,
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
        elif always is None or hit.set in always:
            verdicts[kept[hit.pair]] = Verdict.CONTAMINATED
    negative_verdicts = workspace.verdicts("negatives")[shard.negative_span]
    for before, after, first in zip(pairs, clean, first_negative, strict=True):
        if len(after.negatives) < len(before.negatives):
            for number, text in enumerate(before.negatives, start=first):
                if text not in after.negatives and negative_verdicts[number] == Verdict.KEPT:
                    negative_verdicts[number] = Verdict.TESTED
    return len(pairs), [hit for hit in hits if hit.set != HELD_OUT_SET]
