"""Step → ids → tensors. The order is a function of (seed, step), never a history."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from stillroom.encoders.prompt import Prompter, pad
from stillroom.learning.objectives import Pairs


def batch_ids(
    n: int, *, seed: int, step: int, global_batch: int, rank: int = 0, world: int = 1
) -> np.ndarray:
    """The rows, of n, that a worker takes at a step: int64, (global_batch / world,).

    Every epoch is a fresh permutation, cut to whole batches. The union over the workers does
    not depend on how many there are, so a run may resume on another number of them.
    """
    epoch, start = divmod(step * global_batch, n - n % global_batch)
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return order[start : start + global_batch][rank::world]


class Rows(Protocol):
    """Vectors by their rows: an array, or one that is read from disk."""

    def __getitem__(self, rows: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class PairData:
    """Training pairs in memory: row i is (queries[i], passages[positive[i]]).

    Equal passages must be one row. `negatives` holds passage rows, (pairs, per_query), -1 where
    there are fewer. Teacher vectors, float16 and usually
    memory-mapped, are in the order of `queries` and `passages`.
    """

    queries: Sequence[str]
    passages: Sequence[str]
    positive: np.ndarray
    negatives: np.ndarray | None = None
    teacher_queries: Rows | None = None
    teacher_passages: Rows | None = None


def draw_negatives(
    negatives: np.ndarray, rows: np.ndarray, count: int, passages: int, *, seed: int, step: int
) -> np.ndarray:
    """`count` passage rows for each pair in rows, (len(rows) × count,).

    Drawn from the pair's own without repetition; where it has too few, random passages fill
    the batch, for every worker must bring the same number of rows.
    """
    drawn = np.empty((len(rows), count), dtype=np.int64)
    for i, row in enumerate(rows):
        # Seeded by the pair, not by its place: other worker counts draw the same.
        rng = np.random.default_rng([seed, step, int(row)])
        own = rng.permutation(negatives[row][negatives[row] >= 0])[:count]
        drawn[i] = np.concatenate([own, rng.integers(passages, size=count - len(own))])
    return drawn.reshape(-1)


@dataclass(frozen=True)
class PairBatches:
    """step → this worker's `Pairs`, tokenised with the encoder's own prompter."""

    data: PairData
    prompter: Prompter
    pad_id: int
    seed: int
    global_batch: int
    hard_negatives: int
    query_tokens: int
    passage_tokens: int
    rank: int = 0
    world: int = 1

    def ids(self, step: int) -> np.ndarray:
        return batch_ids(
            len(self.data.queries),
            seed=self.seed,
            step=step,
            global_batch=self.global_batch,
            rank=self.rank,
            world=self.world,
        )

    def __call__(self, step: int) -> Pairs:
        data, rows = self.data, self.ids(step)
        passages = data.positive[rows]
        if self.hard_negatives:
            assert data.negatives is not None
            drawn = draw_negatives(
                data.negatives,
                rows,
                self.hard_negatives,
                len(data.passages),
                seed=self.seed,
                step=step,
            )
            passages = np.concatenate([passages, drawn])
        queries = self.prompter(
            [data.queries[i] for i in rows], "query", max_tokens=self.query_tokens
        )
        texts = self.prompter(
            [data.passages[i] for i in passages], "passage", max_tokens=self.passage_tokens
        )
        pool_prompt = self.prompter.contract.pool_prompt
        return Pairs(
            queries=pad(queries, self.pad_id, pool_prompt=pool_prompt),
            passages=pad(texts, self.pad_id, pool_prompt=pool_prompt),
            passage_ids=torch.from_numpy(passages),
            teacher_queries=_rows(data.teacher_queries, rows),
            teacher_passages=_rows(data.teacher_passages, passages),
        )


def _rows(vectors: Rows | None, rows: np.ndarray) -> torch.Tensor | None:
    return None if vectors is None else torch.from_numpy(vectors[rows].astype(np.float32))
