"""Drops rows that reveal queries or answers of evaluation sets."""

import functools
import hashlib
import pickle
from collections.abc import Collection, Iterator
from typing import Literal

import numpy as np
import pyarrow as pa

from stillroom.data.cleaning.contamination_index import MATCH_KINDS, ContaminationIndex
from stillroom.data.cleaning.decontaminate import Hit, decontaminate
from stillroom.data.readers.records import Pair
from stillroom.errors import UserError
from stillroom.stages.corpus.shards import KINDS, Shard
from stillroom.stages.corpus.verdicts import Verdict
from stillroom.stages.corpus.workspace import CleaningWorkspace, GroupTask
from stillroom.storage.shared_folder import SharedFolder

HELD_OUT_SET = "held-out"  # name of the evaluation set that is split off a source
INDEX_FILE = "contamination-index.pickle"


def drop_contaminated(
    workspace: CleaningWorkspace,
    index: ContaminationIndex,
    *,
    action: Literal["drop", "report"],
    guards: Collection[str] = (),
) -> Iterator[tuple[Shard, int, list[Hit]]]:
    """Drops contaminated pairs, conversations and passages, and evaluation texts as negatives.

    Args:
        action: `report` keeps contaminated pairs, except copies of held-out ones and of guards.
        guards: sets of which nothing may be trained on.

    Yields:
        Each shard of any kind. Of pairs, how many were checked, and the hits among them; else 0
        and the hits with guards.
    """
    content = pickle.dumps(index)
    workspace.files.folder.write(INDEX_FILE, content)
    digest = hashlib.sha256(content).hexdigest()
    always = frozenset({HELD_OUT_SET, *guards}) if action == "report" else None
    for kind in KINDS:
        for hits_of_group in workspace.map_groups(
            kind, _drop_from_group, digest=digest, always=always, guards=frozenset(guards)
        ):
            yield from hits_of_group


@functools.lru_cache(maxsize=1)
def load_contamination_index(folder: SharedFolder, digest: str) -> ContaminationIndex:
    """Unpickles the index, once a process.

    Args:
        digest: SHA-256 of the file as it was written. Nothing else is unpickled, because others
            may be able to write to the folder.

    Raises:
        UserError: when the file was altered.
    """
    content = folder.read(INDEX_FILE)
    if hashlib.sha256(content).hexdigest() != digest:
        where = f"{folder.location}/{INDEX_FILE}"
        raise UserError(where, "was altered after it was written", "Run the recipe again")
    index: ContaminationIndex = pickle.loads(content)
    return index


def _drop_from_group(
    task: GroupTask, *, digest: str, always: frozenset[str] | None, guards: frozenset[str]
) -> list[tuple[Shard, int, list[Hit]]]:
    """Drops rows of each shard; returns as `drop_contaminated`.

    Args:
        always: the sets whose hits are dropped; None: all.
    """
    index = load_contamination_index(task.files.folder, digest)
    found = []
    for shard, verdicts, negative_verdicts in task.shards():
        table = task.files.table(shard)
        if shard.kind == "pairs":
            checked, hits = _drop_pairs(table, verdicts, negative_verdicts, index, always)
        else:
            drop = _drop_passages if shard.kind == "passages" else _drop_conversations
            checked, hits = 0, drop(table, verdicts, index, guards)
        found.append((shard, checked, hits))
    return found


def _drop_passages(
    table: pa.Table, verdicts: np.ndarray, index: ContaminationIndex, guards: frozenset[str]
) -> list[Hit]:
    """Returns the hits with guards."""
    passages = table["passage"].to_pylist()
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
    table: pa.Table, verdicts: np.ndarray, index: ContaminationIndex, guards: frozenset[str]
) -> list[Hit]:
    """Returns the hits with guards."""
    texts = zip(table["question"].to_pylist(), table["completion"].to_pylist(), strict=True)
    pairs = [Pair(question, completion) for question, completion in texts]
    hits = decontaminate(pairs, index)[1]
    for hit in hits:
        verdicts[hit.pair] = Verdict.TESTED
    return [hit for hit in hits if hit.set in guards]


def _drop_pairs(
    table: pa.Table,
    verdicts: np.ndarray,
    negative_verdicts: np.ndarray,
    index: ContaminationIndex,
    always: frozenset[str] | None,
) -> tuple[int, list[Hit]]:
    """Returns how many pairs were checked, and the hits with given evaluation sets."""
    kept = np.flatnonzero(verdicts == Verdict.KEPT)
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
    for before, after, first in zip(pairs, clean, first_negative, strict=True):
        if len(after.negatives) < len(before.negatives):
            for number, text in enumerate(before.negatives, start=first):
                if text not in after.negatives and negative_verdicts[number] == Verdict.KEPT:
                    negative_verdicts[number] = Verdict.TESTED
    return len(pairs), [hit for hit in hits if hit.set != HELD_OUT_SET]
