"""TODO docstring: learning/batch_types.py."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from stillroom.encoders.tokens.prompter import Cloze, Tokens

Tensor = torch.Tensor

Figures = dict[str, float]


@dataclass(frozen=True)
class Pairs:
    """One worker's share of a step: b queries and b × (1 + h) passages.

    The first b passages are the queries' positives, in order; hard negatives follow, those of one
    query together. Equal ids in `passage_ids`, and in `query_ids`, are equal texts. In a symmetric
    batch queries and passages are of one kind. The teacher's vectors, float32 with unit rows, are
    there when a student is trained; `teacher_drawn` are of other passages, every worker's the same.
    """

    queries: Sequence[Tokens]
    passages: Sequence[Tokens]
    query_ids: Tensor
    passage_ids: Tensor
    symmetric: bool = False
    teacher_queries: Tensor | None = None
    teacher_passages: Tensor | None = None
    teacher_drawn: Tensor | None = None

    def to(self, device: torch.device) -> "Pairs":
        def moved(vectors: Tensor | None) -> Tensor | None:
            return None if vectors is None else vectors.to(device)

        return replace(
            self,
            query_ids=self.query_ids.to(device),
            passage_ids=self.passage_ids.to(device),
            teacher_queries=moved(self.teacher_queries),
            teacher_passages=moved(self.teacher_passages),
            teacher_drawn=moved(self.teacher_drawn),
        )


@dataclass(frozen=True)
class Texts:
    """One worker's share of texts without labels; equal ids are equal texts.

    The teacher's vectors are there as in `Pairs`.
    """

    tokens: Sequence[Tokens]
    ids: Tensor
    teacher: Tensor | None = None
    teacher_drawn: Tensor | None = None


@dataclass(frozen=True)
class PairsAndClozes:
    """What one step of a joint objective takes."""

    pairs: Pairs
    clozes: Sequence[Cloze]
