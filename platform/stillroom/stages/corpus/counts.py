"""How many rows of a corpus were kept, and how many were dropped and why."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stillroom.errors import UserError
from stillroom.stages.corpus.shards import KINDS, Shard
from stillroom.stages.corpus.verdicts import DROP_REASONS, Verdict
from stillroom.stages.corpus.workspace import CleaningWorkspace, GroupTask

Counts = dict[str, int]  # "read", reasons to drop, "kept"; "read" is the sum of the others


@dataclass(frozen=True)
class ShardCounts:
    """Rows and negatives of a shard by verdict, int64, (verdicts,)."""

    shard: Shard
    rows: np.ndarray
    negatives: np.ndarray

    @property
    def kept(self) -> int:
        """Kept rows."""
        return int(self.rows[Verdict.KEPT])

    @property
    def kept_bytes(self) -> int:
        """Size of the kept rows' texts, about."""
        return self.shard.size * self.kept // self.shard.rows


def count_rows(workspace: CleaningWorkspace) -> list[ShardCounts]:
    """Counts the rows of every shard of pairs, of passages and of conversations."""
    return [
        counts
        for kind in KINDS
        for of_group in workspace.map_groups(kind, _count_group)
        for counts in of_group
    ]


def _count_group(task: GroupTask) -> list[ShardCounts]:
    verdicts = len(Verdict)
    return [
        ShardCounts(
            shard, np.bincount(rows, minlength=verdicts), np.bincount(negatives, minlength=verdicts)
        )
        for shard, rows, negatives in task.shards()
    ]


def counts_by_source(
    shards: Iterable[ShardCounts], sources: Sequence[str]
) -> dict[str, dict[str, Counts]]:
    """Source → kind → counts by reason, as in counts.json.

    Raises:
        UserError: when no pair or no conversation of a source is left.
    """
    sums = {
        (source, kind): np.zeros(len(Verdict), dtype=np.int64)
        for source in range(len(sources))
        for kind in DROP_REASONS
    }
    for counts in shards:
        sums[counts.shard.source, counts.shard.kind] += counts.rows
        sums[counts.shard.source, "negatives"] += counts.negatives
    by_source = {
        name: {kind: _by_reason(kind, sums[number, kind]) for kind in DROP_REASONS}
        for number, name in enumerate(sources)
    }
    _require_kept_rows(by_source)
    return by_source


def _by_reason(kind: str, rows: np.ndarray) -> Counts:
    dropped = {reason.name.lower(): int(rows[reason]) for reason in DROP_REASONS[kind]}
    return {"read": int(rows.sum()), **dropped, "kept": int(rows[Verdict.KEPT])}


def _require_kept_rows(counts: Mapping[str, Mapping[str, Counts]]) -> None:
    for name, of_kinds in counts.items():
        for kind in ("pairs", "conversations"):
            rows = of_kinds[kind]
            if rows["read"] and not rows["kept"]:
                became = ", ".join(f"{count:,} {reason}" for reason, count in rows.items() if count)
                raise UserError(
                    f"corpus.sources.{name}",
                    f"none of its {kind} is left ({became})",
                    "Give others, or none",
                )
