"""Batches of one worker and step, and the type names that objectives and the loop share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from stillroom.encoders.tokens.batch import LabelledTokens, Tokens

Tensor = torch.Tensor
Metrics = dict[str, float]  # name → value of one step


class Batches(Protocol):
    """step → this worker's batch, the same at every call."""

    def __call__(self, step: int) -> Any: ...

    def ids(self, step: int) -> np.ndarray:
        """The rows of training data in the batch."""


@dataclass(frozen=True)
class PairBatch:
    """One worker's share of a step: b queries and b × (1 + h) passages.

    Attributes:
        passages: first the queries' b positives, in order; then the hard negatives, those of one
            query together.
        query_ids, passage_ids: equal ids are equal texts.
        symmetric: queries and passages are of one kind.
        teacher_queries, teacher_passages: the teacher's vectors, float32; None when no student is
            trained.
        teacher_sampled: the teacher's vectors of other passages, the same on every worker.
    """

    queries: Sequence[Tokens]
    passages: Sequence[Tokens]
    query_ids: Tensor
    passage_ids: Tensor
    symmetric: bool = False
    teacher_queries: Tensor | None = None
    teacher_passages: Tensor | None = None
    teacher_sampled: Tensor | None = None

    def to(self, device: torch.device) -> "PairBatch":
        """The same batch with its tensors on a device."""

        def moved(vectors: Tensor | None) -> Tensor | None:
            return None if vectors is None else vectors.to(device)

        return replace(
            self,
            query_ids=self.query_ids.to(device),
            passage_ids=self.passage_ids.to(device),
            teacher_queries=moved(self.teacher_queries),
            teacher_passages=moved(self.teacher_passages),
            teacher_sampled=moved(self.teacher_sampled),
        )


@dataclass(frozen=True)
class TextBatch:
    """One worker's share of texts without labels.

    Attributes:
        ids: equal ids are equal texts.
        teacher_vectors, teacher_sampled: as in `PairBatch`.
    """

    texts: Sequence[Tokens]
    ids: Tensor
    teacher_vectors: Tensor | None = None
    teacher_sampled: Tensor | None = None


@dataclass(frozen=True)
class RehearsalBatch:
    """One worker's share of a step on pairs, with texts of an earlier phase beside them."""

    pairs: PairBatch
    texts: TextBatch


@dataclass(frozen=True)
class JointBatch:
    """One worker's share of a joint step: pairs to embed, and texts whose tokens are predicted."""

    pairs: PairBatch
    generation: Sequence[LabelledTokens]
