"""Step → rows → ids of tokens. The order is a function of (seed, step), never a history."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from stillroom.encoders.contract import Prompts, Role
from stillroom.encoders.tokens.prompter import NO_TARGET, Cloze, Prompter, Tokens
from stillroom.learning.batch_types import Pairs, PairsAndClozes, Texts
from stillroom.learning.order import Order


class Rows(Protocol):
    """Vectors by their rows: an array, or one that is read from disk."""

    def __getitem__(self, rows: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class PairData:
    """Training pairs in memory: row i is (queries[i], passages[positive[i]]).

    Equal passages must be one row. `negatives` holds passage rows, (pairs, per_query), -1 where
    there are fewer. `source` numbers each pair's source; `prompts` has what that source puts before
    its texts, None for the encoder's own; `symmetric` says of each source whether its queries and
    passages are of one kind. Teacher vectors, float16 and usually memory-mapped, are in the order
    of `queries` and `passages`. `drawable` are the passage rows that `drawn` may draw.
    """

    queries: Sequence[str]
    passages: Sequence[str]
    positive: np.ndarray
    source: np.ndarray
    prompts: Sequence[Prompts | None] = (None,)
    symmetric: Sequence[bool] = (False,)
    negatives: np.ndarray | None = None
    teacher_queries: Rows | None = None
    teacher_passages: Rows | None = None
    drawable: np.ndarray | None = None

    def drawn(self, count: int, *, seed: int, step: int) -> torch.Tensor | None:
        """The teacher's vectors of passages of the corpus, drawn without repetition: float32,
        (count, dims), or all where there are fewer; None where none are asked for."""
        if not count:
            return None
        assert self.drawable is not None
        rng = np.random.default_rng([seed, 3, step])
        rows = rng.choice(self.drawable, min(count, len(self.drawable)), replace=False)
        return _vectors(self.teacher_passages, np.sort(rows))


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


class _Shared:
    """What a worker takes of an order."""

    order: Order
    rank: int
    world: int

    def ids(self, step: int) -> np.ndarray:
        """Rows of the step that this worker takes."""
        return self.order.at(step, self.rank, self.world)


@dataclass(frozen=True)
class PairBatches(_Shared):
    """step → this worker's `Pairs`, tokenised with the encoder's own prompter."""

    data: PairData
    order: Order
    prompter: Prompter
    hard_negatives: int
    query_tokens: int
    passage_tokens: int
    drawn: int = 0  # of the teacher's passages, beside the batch's own
    rank: int = 0
    world: int = 1

    def __call__(self, step: int) -> Pairs:
        data, rows = self.data, self.ids(step)
        passages, source = data.positive[rows], data.source[rows]
        if self.hard_negatives:
            assert data.negatives is not None
            drawn = draw_negatives(
                data.negatives, rows, self.hard_negatives, len(data.passages),
                seed=self.order.seed, step=step,
            )  # fmt: skip
            passages = np.concatenate([passages, drawn])
            source = np.concatenate([source, source.repeat(self.hard_negatives)])
        queries = [data.queries[i] for i in rows]
        return Pairs(
            queries=self._tokens(queries, "query", data.source[rows], self.query_tokens),
            passages=self._tokens(
                [data.passages[i] for i in passages], "passage", source, self.passage_tokens
            ),
            query_ids=torch.tensor([_text_id(query) for query in queries]),
            passage_ids=torch.from_numpy(passages),
            # Asked of the whole batch: every worker must have the same negatives.
            symmetric=all(data.symmetric[s] for s in data.source[self.order.at(step)]),
            teacher_queries=_vectors(data.teacher_queries, rows),
            teacher_passages=_vectors(data.teacher_passages, passages),
            teacher_drawn=data.drawn(self.drawn, seed=self.order.seed, step=step),
        )

    def _tokens(
        self, texts: Sequence[str], role: Role, source: np.ndarray, most: int
    ) -> list[Tokens]:
        found: dict[int, Tokens] = {}
        for one in np.unique(source):
            prompts = self.data.prompts[one]
            places = np.flatnonzero(source == one)
            made = self.prompter(
                [texts[int(place)] for place in places],
                role,
                max_tokens=most,
                prompt=None if prompts is None else getattr(prompts, role),
            )
            found |= dict(zip(places.tolist(), made, strict=True))
        return [found[place] for place in range(len(texts))]


def _text_id(text: str) -> int:
    """Equal for equal texts, in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def _vectors(vectors: Rows | None, rows: np.ndarray) -> torch.Tensor | None:
    return None if vectors is None else torch.from_numpy(vectors[rows].astype(np.float32))


@dataclass(frozen=True)
class TextBatches(_Shared):
    """step → this worker's `Texts`."""

    texts: Sequence[str]
    order: Order
    prompter: Prompter
    tokens: int
    rank: int = 0
    world: int = 1

    def __call__(self, step: int) -> Texts:
        rows = self.ids(step)
        made = self.prompter([self.texts[i] for i in rows], "passage", max_tokens=self.tokens)
        return Texts(made, torch.from_numpy(rows))


@dataclass(frozen=True)
class TaughtTextBatches(_Shared):
    """step → this worker's passages and queries, each in its role, with the teacher's vectors.

    Rows count the passages first, then the queries. A student is not told its task: its prompts
    are its own.
    """

    data: PairData
    order: Order
    prompter: Prompter
    query_tokens: int
    passage_tokens: int
    drawn: int = 0  # of the teacher's passages, beside the batch's own
    rank: int = 0
    world: int = 1

    def __call__(self, step: int) -> Texts:
        rows, data = self.ids(step), self.data
        passages = rows[rows < len(data.passages)]
        queries = rows[rows >= len(data.passages)] - len(data.passages)
        made: list[Tokens] = []
        if len(passages):
            texts = [data.passages[i] for i in passages]
            made += self.prompter(texts, "passage", max_tokens=self.passage_tokens)
        if len(queries):
            texts = [data.queries[i] for i in queries]
            made += self.prompter(texts, "query", max_tokens=self.query_tokens)
        parts = ((data.teacher_passages, passages), (data.teacher_queries, queries))
        vectors = [_vectors(teacher, of) for teacher, of in parts if len(of)]
        return Texts(
            made,
            torch.from_numpy(np.concatenate([passages, queries + len(data.passages)])),
            torch.cat([one for one in vectors if one is not None]),
            data.drawn(self.drawn, seed=self.order.seed, step=step),
        )


@dataclass(frozen=True)
class MaskedBatches:
    """step → this worker's texts with some tokens masked, each predicted by the state before it.

    Args:
        mask_id: what masked tokens are replaced by.
        mask_share: how likely a token is masked; at least one of each text is.
    """

    texts: TextBatches
    mask_id: int
    mask_share: float

    def ids(self, step: int) -> np.ndarray:
        return self.texts.ids(step)

    def __call__(self, step: int) -> list[Cloze]:
        rows = self.ids(step)
        return [
            masked(
                one.ids, self.mask_id, self.mask_share,
                np.random.default_rng([self.texts.order.seed, 2, step, int(row)]),
            )
            for row, one in zip(rows, self.texts(step).tokens, strict=True)
        ]  # fmt: skip


def masked(ids: list[int], mask_id: int, share: float, rng: np.random.Generator) -> Cloze:
    """A text with some tokens masked: the state at i - 1 predicts the token that was at i, for
    the language model's head was trained on such shifted targets (LLM2Vec, arXiv 2404.05961)."""
    targets = [NO_TARGET] * len(ids)
    if len(ids) < 2:
        return Cloze(ids, targets, "bidirectional")
    # The first token has no state before it.
    chosen = 1 + np.flatnonzero(rng.random(len(ids) - 1) < share)
    if not len(chosen):
        chosen = np.array([rng.integers(1, len(ids))])
    hidden = list(ids)
    for place in chosen:
        targets[place - 1], hidden[place] = ids[place], mask_id
    return Cloze(hidden, targets, "bidirectional")


@dataclass(frozen=True)
class GenerationBatches(_Shared):
    """step → this worker's prompts and completions; only completions are predicted.

    Args:
        told: prompt and completion, n of each; EOS is put after a completion.
        tokens: the most of prompt and completion together.
    """

    told: Sequence[tuple[str, str]]
    order: Order
    prompter: Prompter
    tokens: int
    rank: int = 0
    world: int = 1

    def __call__(self, step: int) -> list[Cloze]:
        told = [self.told[i] for i in self.ids(step)]
        return self.prompter.to_generate(told, max_tokens=self.tokens)


@dataclass(frozen=True)
class JointBatches:
    """step → pairs to embed and completions to generate."""

    pairs: PairBatches
    generation: GenerationBatches

    def ids(self, step: int) -> np.ndarray:
        return self.pairs.ids(step)

    def __call__(self, step: int) -> PairsAndClozes:
        return PairsAndClozes(self.pairs(step), self.generation(step))
