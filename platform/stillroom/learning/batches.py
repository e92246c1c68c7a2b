"""Training data → each step's batch of token ids.

`order` decides which rows a step takes; texts are tokenised when the batch is made.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from stillroom.encoders.contract import Prompts, Role
from stillroom.encoders.tokens.batch import IGNORE_INDEX, LabelledTokens, Tokens
from stillroom.encoders.tokens.prompter import Prompter
from stillroom.learning.batch_types import JointBatch, PairBatch, RehearsalBatch, TextBatch
from stillroom.learning.order import SINGLE_WORKER, BatchOrder, RowNumbers, WorkerShard
from stillroom.learning.source_runs import SourceRuns


class VectorRows(Protocol):
    """Vectors by their rows: an array, or one that is read from disk."""

    def __getitem__(self, rows: np.ndarray) -> np.ndarray: ...


# The passage rows of each pair's negatives, -1 for none: int64 (pairs, per_query), or a list of
# rows for each pair.
RowLists = np.ndarray | Sequence[np.ndarray]


class SampledFrom(RowNumbers, Protocol):
    """Rows by rank: an array, or a function of ranks."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class PairData:
    """Training pairs: row i is (queries[i], passages[positive[i]]). Texts may be mapped files.

    Attributes:
        passages: equal passages must be one row.
        source: the number of each pair's source.
        prompts: of each source, the prefix of its texts; None: the encoder's prompt.
        symmetric: of each source, whether its queries and passages are of one kind.
        negatives: of each pair.
        teacher_queries, teacher_passages: float16 and usually memory-mapped, in the order of
            `queries` and `passages`.
        sampleable_rows: the passage rows that `sample_teacher_passages` may take.
    """

    queries: Sequence[str]
    passages: Sequence[str]
    positive: np.ndarray
    source: SourceRuns
    prompts: Sequence[Prompts | None] = (None,)
    symmetric: Sequence[bool] = (False,)
    negatives: RowLists | None = None
    teacher_queries: VectorRows | None = None
    teacher_passages: VectorRows | None = None
    sampleable_rows: SampledFrom | None = None

    def sample_teacher_passages(self, count: int, *, seed: int, step: int) -> torch.Tensor | None:
        """The teacher's vectors of passages of the corpus, sampled without replacement.

        Returns:
            float32, (count, dims), or all if there are fewer; None when count is 0.
        """
        if not count:
            return None
        assert self.sampleable_rows is not None
        rng = np.random.default_rng([seed, 3, step])
        rows = len(self.sampleable_rows)
        ranks = rng.choice(rows, min(count, rows), replace=False)
        return _vectors(self.teacher_passages, np.sort(self.sampleable_rows[ranks]))


def sample_negatives(
    negatives: RowLists, rows: np.ndarray, count: int, passages: int, *, seed: int, step: int
) -> np.ndarray:
    """`count` passage rows for each pair, (len(rows) × count,).

    Sampled from the pair's own without replacement. If it has too few, random passages fill the
    batch, because every worker must have the same number of rows.

    Args:
        negatives: of all pairs.
        rows: of the pairs.
        passages: how many passages there are.
    """
    sampled = np.empty((len(rows), count), dtype=np.int64)
    for i, row in enumerate(rows):
        # Seeded by the pair, not by its position, so that samples do not depend on the number of
        # workers.
        rng = np.random.default_rng([seed, step, int(row)])
        of_pair = np.asarray(negatives[row])
        provided = rng.permutation(of_pair[of_pair >= 0])[:count]
        sampled[i] = np.concatenate([provided, rng.integers(passages, size=count - len(provided))])
    return sampled.reshape(-1)


class _ShardedBatches:
    """Batches of which each worker takes its shard."""

    order: BatchOrder
    shard: WorkerShard

    def ids(self, step: int) -> np.ndarray:
        """The rows that this worker takes."""
        return self.order.rows_at(step, self.shard)


@dataclass(frozen=True)
class PairBatches(_ShardedBatches):
    """step → this worker's `PairBatch`, tokenised with the encoder's own prompter."""

    data: PairData
    order: BatchOrder
    prompter: Prompter
    hard_negatives: int
    query_tokens: int
    passage_tokens: int
    sampled_passages: int = 0  # of the corpus, whose teacher vectors are added to the batch's
    shard: WorkerShard = SINGLE_WORKER

    def __call__(self, step: int) -> PairBatch:
        data, rows = self.data, self.ids(step)
        passages, source = data.positive[rows], data.source[rows]
        if self.hard_negatives:
            assert data.negatives is not None
            negatives = sample_negatives(
                data.negatives, rows, self.hard_negatives, len(data.passages),
                seed=self.order.seed, step=step,
            )  # fmt: skip
            passages = np.concatenate([passages, negatives])
            source = np.concatenate([source, source.repeat(self.hard_negatives)])
        queries = [data.queries[i] for i in rows]
        return PairBatch(
            queries=self._tokens(queries, "query", data.source[rows], self.query_tokens),
            passages=self._tokens(
                [data.passages[i] for i in passages], "passage", source, self.passage_tokens
            ),
            query_ids=torch.tensor([_text_id(query) for query in queries]),
            passage_ids=torch.from_numpy(passages),
            # Computed for the whole batch: every worker must have the same negatives.
            symmetric=all(data.symmetric[s] for s in data.source[self.order.rows_at(step)]),
            teacher_queries=_vectors(data.teacher_queries, rows),
            teacher_passages=_vectors(data.teacher_passages, passages),
            teacher_sampled=data.sample_teacher_passages(
                self.sampled_passages, seed=self.order.seed, step=step
            ),
        )

    def _tokens(
        self, texts: Sequence[str], role: Role, sources: np.ndarray, max_tokens: int
    ) -> list[Tokens]:
        """Tokens of texts, in their order, each with its source's prompt."""
        tokens: dict[int, Tokens] = {}
        for source in np.unique(sources):
            prompts = self.data.prompts[source]
            positions = np.flatnonzero(sources == source)
            tokenised = self.prompter(
                [texts[int(position)] for position in positions],
                role,
                max_tokens=max_tokens,
                prompt=None if prompts is None else getattr(prompts, role),
            )
            tokens |= dict(zip(positions.tolist(), tokenised, strict=True))
        return [tokens[position] for position in range(len(texts))]


def _text_id(text: str) -> int:
    """A number that is equal for equal texts, in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def _vectors(vectors: VectorRows | None, rows: np.ndarray) -> torch.Tensor | None:
    """Some rows as float32."""
    return None if vectors is None else torch.from_numpy(vectors[rows].astype(np.float32))


@dataclass(frozen=True)
class TextBatches(_ShardedBatches):
    """step → this worker's `TextBatch`, every text in the passage role."""

    texts: Sequence[str]
    order: BatchOrder
    prompter: Prompter
    max_tokens: int
    shard: WorkerShard = SINGLE_WORKER

    def __call__(self, step: int) -> TextBatch:
        rows = self.ids(step)
        texts = [self.texts[i] for i in rows]
        tokens = self.prompter(texts, "passage", max_tokens=self.max_tokens)
        return TextBatch(tokens, torch.from_numpy(rows))


@dataclass(frozen=True)
class DistillationTextBatches(_ShardedBatches):
    """step → this worker's passages and queries, each in its role, with the teacher's vectors.

    Rows number the passages first, then the queries. A student gets no task prompt; it uses its own
    prompts.
    """

    data: PairData
    order: BatchOrder
    prompter: Prompter
    query_tokens: int
    passage_tokens: int
    sampled_passages: int = 0  # of the corpus, whose teacher vectors are added to the batch's
    shard: WorkerShard = SINGLE_WORKER

    def __call__(self, step: int) -> TextBatch:
        rows, data = self.ids(step), self.data
        passages = rows[rows < len(data.passages)]
        queries = rows[rows >= len(data.passages)] - len(data.passages)
        tokens: list[Tokens] = []
        vectors: list[torch.Tensor | None] = []
        if len(passages):
            texts = [data.passages[i] for i in passages]
            tokens += self.prompter(texts, "passage", max_tokens=self.passage_tokens)
            vectors.append(_vectors(data.teacher_passages, passages))
        if len(queries):
            texts = [data.queries[i] for i in queries]
            tokens += self.prompter(texts, "query", max_tokens=self.query_tokens)
            vectors.append(_vectors(data.teacher_queries, queries))
        return TextBatch(
            tokens,
            torch.from_numpy(np.concatenate([passages, queries + len(data.passages)])),
            torch.cat([part for part in vectors if part is not None]),
            data.sample_teacher_passages(self.sampled_passages, seed=self.order.seed, step=step),
        )


@dataclass(frozen=True)
class RehearsalBatches:
    """step → pairs, and texts of an earlier phase beside them."""

    pairs: PairBatches
    texts: DistillationTextBatches

    def ids(self, step: int) -> np.ndarray:
        return self.pairs.ids(step)

    def __call__(self, step: int) -> RehearsalBatch:
        return RehearsalBatch(self.pairs(step), self.texts(step))


@dataclass(frozen=True)
class MaskedBatches:
    """step → this worker's texts with some tokens masked, each predicted by the state before it.

    Args:
        mask_id: the replacement of masked tokens.
        mask_probability: the probability of masking a token; at least one token of each text is
            masked.
    """

    texts: TextBatches
    mask_id: int
    mask_probability: float

    def ids(self, step: int) -> np.ndarray:
        return self.texts.ids(step)

    def __call__(self, step: int) -> list[LabelledTokens]:
        rows = self.ids(step)
        return [
            mask_tokens(
                text.ids, self.mask_id, self.mask_probability,
                np.random.default_rng([self.texts.order.seed, 2, step, int(row)]),
            )
            for row, text in zip(rows, self.texts(step).texts, strict=True)
        ]  # fmt: skip


def mask_tokens(
    ids: list[int], mask_id: int, probability: float, rng: np.random.Generator
) -> LabelledTokens:
    """A text with some tokens masked.

    The state at i - 1 predicts the original token at i: the language model's head was trained on
    such shifted targets (LLM2Vec, arXiv 2404.05961).
    """
    targets = [IGNORE_INDEX] * len(ids)
    if len(ids) < 2:
        return LabelledTokens(ids, targets, "bidirectional")
    # The first token has no state before it.
    positions = 1 + np.flatnonzero(rng.random(len(ids) - 1) < probability)
    if not len(positions):
        positions = np.array([rng.integers(1, len(ids))])
    masked = list(ids)
    for position in positions:
        targets[position - 1], masked[position] = ids[position], mask_id
    return LabelledTokens(masked, targets, "bidirectional")


@dataclass(frozen=True)
class GenerationBatches(_ShardedBatches):
    """step → this worker's prompts and completions; only completions are predicted.

    Args:
        examples: (prompt, completion), n of them; EOS is put after a completion.
        max_tokens: of prompt and completion together.
    """

    examples: Sequence[tuple[str, str]]
    order: BatchOrder
    prompter: Prompter
    max_tokens: int
    shard: WorkerShard = SINGLE_WORKER

    def __call__(self, step: int) -> list[LabelledTokens]:
        examples = [self.examples[i] for i in self.ids(step)]
        return self.prompter.label_completions(examples, max_tokens=self.max_tokens)


@dataclass(frozen=True)
class JointBatches:
    """step → pairs to embed and completions to generate."""

    pairs: PairBatches
    generation: GenerationBatches

    def ids(self, step: int) -> np.ndarray:
        return self.pairs.ids(step)

    def __call__(self, step: int) -> JointBatch:
        return JointBatch(self.pairs(step), self.generation(step))
