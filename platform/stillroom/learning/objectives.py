"""What a step minimises: a batch and a way to encode it → loss and figures."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from stillroom.encoders.prompt import Batch
from stillroom.learning.gather import gather, world
from stillroom.learning.losses import cosine_distance, info_nce, score_kl

Encode = Callable[[Batch], torch.Tensor]  # → (b, d), float32, normalised
Figures = dict[str, float]


@dataclass(frozen=True)
class Pairs:
    """One worker's share of a step: b queries and b × (1 + h) passages.

    The first b passages are the queries' positives, in order; hard negatives follow.
    Equal ids in `passage_ids` are equal texts. The teacher's vectors, float32 with unit
    rows, are there when a student is trained.
    """

    queries: Batch
    passages: Batch
    passage_ids: torch.Tensor
    teacher_queries: torch.Tensor | None = None
    teacher_passages: torch.Tensor | None = None


def positives(passage_ids: torch.Tensor, queries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each query's positive stands among all workers' passages, and its copies.

    Returns:
        The positive's column, (b,), and a mask (b, n), True on other columns with its text:
        a passage that is in the batch twice must not be its own negative.
    """
    start = world()[0] * len(passage_ids)
    column_b = torch.arange(start, start + queries, device=passage_ids.device)
    everyone_n = gather(passage_ids)
    copies_bn = everyone_n[None, :] == everyone_n[column_b][:, None]
    copies_bn[torch.arange(queries, device=passage_ids.device), column_b] = False
    return column_b, copies_bn


@dataclass(frozen=True)
class Contrastive:
    """InfoNCE over in-batch and hard negatives of all workers."""

    temperature: float

    def __call__(self, encode: Encode, batch: Pairs) -> tuple[torch.Tensor, Figures]:
        q_bd = encode(batch.queries)
        scores_bn = q_bd @ gather(encode(batch.passages)).T
        column_b, copies_bn = positives(batch.passage_ids, len(q_bd))
        loss = info_nce(scores_bn, column_b, temperature=self.temperature, ignore_bn=copies_bn)
        right = scores_bn.masked_fill(copies_bn, -2).argmax(-1) == column_b
        return loss, {"accuracy": right.float().mean().item()}


@dataclass(frozen=True)
class Distillation:
    """A student from its teacher's vectors and from mined hard negatives.

    The weighted sum of
      vector: cosine distance of student's and teacher's vectors, of queries and passages
        (needs equal dims: the student then writes into the teacher's space);
      scores: KL of the teacher's score list over each query's candidates;
      contrastive: InfoNCE on the pairs themselves, which a weak teacher cannot spoil.
    A loss of weight 0 is not computed.
    """

    vector: float
    scores: float
    contrastive: float
    temperature: float
    teacher_temperature: float

    def __call__(self, encode: Encode, batch: Pairs) -> tuple[torch.Tensor, Figures]:
        if batch.teacher_queries is None or batch.teacher_passages is None:
            raise ValueError("distillation needs the teacher's vectors in the batch")
        q_bd, p_md = encode(batch.queries), encode(batch.passages)
        losses: dict[str, torch.Tensor] = {}
        if self.vector:
            losses["vector"] = cosine_distance(
                torch.cat([q_bd, p_md]),
                torch.cat([batch.teacher_queries, batch.teacher_passages]),
            )
        if self.scores or self.contrastive:
            column_b, copies_bn = positives(batch.passage_ids, len(q_bd))
            student_bn = q_bd @ gather(p_md).T
        if self.contrastive:
            losses["contrastive"] = info_nce(
                student_bn, column_b, temperature=self.temperature, ignore_bn=copies_bn
            )
        if self.scores:
            losses["scores"] = score_kl(
                student_bn,
                batch.teacher_queries @ gather(batch.teacher_passages).T,
                student_temperature=self.temperature,
                teacher_temperature=self.teacher_temperature,
                ignore_bn=copies_bn,
            )
        loss = torch.stack([getattr(self, name) * value for name, value in losses.items()]).sum()
        return loss, {name: value.item() for name, value in losses.items()}
