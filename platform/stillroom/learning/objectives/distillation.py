"""What a student's step minimises: its texts, and the teacher's vectors of them → loss, figures.

As in `objectives`, a loss is a mean over the worker's own rows against those of all workers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from stillroom.learning.batch_types import Figures, Pairs, Texts
from stillroom.learning.forwards import Forwards
from stillroom.learning.gather import gather, world
from stillroom.learning.losses import (
    cosine_distance,
    info_nce,
    margin_mse,
    order_hinge,
    score_kl,
    squared_error,
)
from stillroom.learning.objectives.contrastive import positives, prefix

Tensor = torch.Tensor

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Distillation:
    """A student from its teacher's vectors: the sum, each by its weight, of the losses below.

    Of texts, and of a pair's queries and passages alike:
      vector: cosine distance of a text's two vectors (both models write into one space);
      similarity: squared error of the cosines among the batch's texts (arXiv 2412.19048);
      order: hinge on the order of those cosines, with `order_margin` (same source);
      across: KL(teacher ‖ student) of the softmaxes of a text's cosines with the teacher's vectors
        of all texts, its own among them, and of passages that the batch draws from the corpus: the
        student's queries are to find the teacher's passages, and what `vector` leaves between the
        two matters where other texts lie.
    Of pairs, where each query's candidates are all passages of all workers:
      scores: KL(teacher ‖ student) of the softmaxes of their scores;
      margins: MarginMSE (arXiv 2010.02666);
      contrastive: InfoNCE on the pairs themselves, which a weak teacher cannot spoil.
    A loss of weight 0 is not computed.

    Attributes:
        false_negative_margin: a candidate that the teacher scores above the positive + margin is
            no negative of `contrastive`; None keeps all.
        dims: Matryoshka (arXiv 2205.13147): size → weight of the same losses on the vectors' first
            so many dims, brought to unit length again; None: the whole vectors alone. Vectors are
            compared with the teacher's prefix, cosines with those of its whole vectors.
    """

    vector: float = 0.0
    similarity: float = 0.0
    order: float = 0.0
    order_margin: float = 0.015
    across: float = 0.0
    scores: float = 0.0
    margins: float = 0.0
    contrastive: float = 0.0
    temperature: float = 0.05
    teacher_temperature: float = 0.05
    false_negative_margin: float | None = None
    dims: Mapping[int, float] | None = None

    def __call__(self, forwards: Forwards, batch: Texts | Pairs) -> tuple[Tensor, Figures]:
        candidates = None
        if isinstance(batch, Texts):
            student_nd = forwards.vectors(batch.tokens)
            teacher_nd = _given(batch.teacher, forwards.device)
        else:
            batch = batch.to(forwards.device)
            teacher_bd, teacher_pd = (
                _given(one, forwards.device)
                for one in (batch.teacher_queries, batch.teacher_passages)
            )
            q_bd, p_md = forwards.vectors(batch.queries), forwards.vectors(batch.passages)
            student_nd, teacher_nd = torch.cat([q_bd, p_md]), torch.cat([teacher_bd, teacher_pd])
            candidates = _Candidates(
                q_bd,
                gather(p_md),
                teacher_bd @ gather(teacher_pd).T,
                *positives(batch.passage_ids, len(q_bd)),
            )
        alike, ranked = None, None
        if self.similarity or self.order or self.across:
            teacher_md = gather(teacher_nd)
            if self.similarity or self.order:
                alike = _alike(student_nd, teacher_nd, teacher_md)
            if self.across:
                ranked = _ranked(teacher_nd, teacher_md, batch.teacher_drawn)
        total, figures = torch.zeros((), device=forwards.device), Figures()
        for size, weight in (self.dims or {student_nd.shape[1]: 1.0}).items():
            losses = self._of_texts(student_nd, teacher_nd, alike, ranked, size)
            if candidates is not None:
                losses |= self._of_candidates(candidates, size)
            for name, value in losses.items():
                total = total + weight * getattr(self, name) * value
                figures.setdefault(name, value.item())  # of the first size: the whole vectors
        return total, figures

    def _of_texts(
        self,
        student_nd: Tensor,
        teacher_nd: Tensor,
        alike: "_Alike | None",
        ranked: "_Ranked | None",
        size: int,
    ) -> Losses:
        losses: Losses = {}
        student_nd = prefix(student_nd, size)
        if self.vector:
            losses["vector"] = cosine_distance(student_nd, prefix(teacher_nd, size))
        if ranked is not None:
            losses["across"] = score_kl(
                student_nd @ prefix(ranked.teacher_kd, size).T,
                ranked.teacher_nk,
                student_temperature=self.temperature,
                teacher_temperature=self.teacher_temperature,
            )
        if alike is not None:
            student_nm = student_nd @ prefix(alike.student_md, size).T
            if self.similarity:
                losses["similarity"] = squared_error(student_nm, alike.teacher_nm)
            if self.order:
                losses["order"] = order_hinge(
                    student_nm,
                    alike.teacher_nm,
                    margin=self.order_margin,
                    ignore_nm=alike.itself_nm,
                )
        return losses

    def _of_candidates(self, of: "_Candidates", size: int) -> Losses:
        losses: Losses = {}
        student_bn = prefix(of.queries_bd, size) @ prefix(of.passages_nd, size).T
        if self.scores:
            losses["scores"] = score_kl(
                student_bn,
                of.teacher_bn,
                student_temperature=self.temperature,
                teacher_temperature=self.teacher_temperature,
                ignore_bn=of.copies_bn,
            )
        if self.margins:
            losses["margins"] = margin_mse(
                student_bn, of.teacher_bn, of.positive_b, ignore_bn=of.copies_bn
            )
        if self.contrastive:
            ignore_bn = of.copies_bn
            if self.false_negative_margin is not None:
                ignore_bn = ignore_bn | of.above_positive(self.false_negative_margin)
            losses["contrastive"] = info_nce(
                student_bn, of.positive_b, temperature=self.temperature, ignore_bn=ignore_bn
            )
        return losses


def _given(teacher: Tensor | None, device: torch.device) -> Tensor:
    if teacher is None:
        raise ValueError("distillation needs the teacher's vectors in the batch")
    return teacher.to(device)


@dataclass(frozen=True)
class _Candidates:
    """The worker's queries against all workers' passages.

    Gathered once, whatever is made of them: Matryoshka's sizes are prefixes of these.
    """

    queries_bd: Tensor
    passages_nd: Tensor
    teacher_bn: Tensor
    positive_b: Tensor
    copies_bn: Tensor

    def above_positive(self, margin: float) -> Tensor:
        """Mask (b, n) of other candidates that the teacher scores above the positive + margin."""
        column_b1 = self.positive_b[:, None]
        above_bn = self.teacher_bn > self.teacher_bn.gather(1, column_b1) + margin
        return above_bn.scatter(1, column_b1, False)


@dataclass(frozen=True)
class _Alike:
    """What losses on cosines among texts need: the texts of all workers, and the teacher's cosines.

    Attributes:
        itself_nm: where a column is the row's own text.
    """

    student_md: Tensor
    teacher_nm: Tensor
    itself_nm: Tensor


def _alike(student_nd: Tensor, teacher_nd: Tensor, teacher_md: Tensor) -> _Alike:
    student_md = gather(student_nd)
    own_n = torch.arange(len(student_nd), device=student_nd.device) + world()[0] * len(student_nd)
    column_m = torch.arange(len(student_md), device=student_nd.device)
    itself_nm = own_n[:, None] == column_m[None, :]
    return _Alike(student_md, teacher_nd @ teacher_md.T, itself_nm)


@dataclass(frozen=True)
class _Ranked:
    """What a text ranks in `across`: the teacher's vectors, and how the teacher ranks them."""

    teacher_kd: Tensor
    teacher_nk: Tensor


def _ranked(teacher_nd: Tensor, teacher_md: Tensor, drawn_kd: Tensor | None) -> _Ranked:
    teacher_kd = teacher_md
    if drawn_kd is not None:  # the same on all workers
        teacher_kd = torch.cat([teacher_md, drawn_kd.to(teacher_md.device)])
    return _Ranked(teacher_kd, teacher_nd @ teacher_kd.T)
