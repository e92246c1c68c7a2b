"""The student's objective: a batch's texts and the teacher's vectors of them → loss, metrics.

Shapes: n texts of this worker, m of all workers; of pairs, b queries of this worker, p passages of
this worker and n candidates of all workers; k vectors of the teacher to rank; d dims.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from stillroom.learning.batch_types import Metrics, PairBatch, RehearsalBatch, TextBatch
from stillroom.learning.gather import all_gather_with_grad, current_shard
from stillroom.learning.losses import (
    cosine,
    info_nce,
    margin_mse,
    pairwise_mse,
    ranking_kl,
    score_kl,
    similarity_order,
    squared_l2,
)
from stillroom.learning.micro_batch_runner import MicroBatchRunner
from stillroom.learning.objectives.contrastive import (
    matryoshka_prefix,
    positive_columns,
    temperature_or_default,
)

Tensor = torch.Tensor
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Distillation:
    """Distils a teacher's vectors: the weighted sum of the losses below.

    A model's score of two texts is the inner product of its vectors: their cosine, where the model
    makes vectors of unit length. Student and teacher each have their own scores.

    On all texts, queries and passages of pairs included:
      cosine: distance of the directions of a text's two vectors; both models encode into one space.
      squared_l2: squared distance of a text's two vectors in one space, so of their lengths too.
      pairwise_mse: squared error of the scores among the batch's texts.
      similarity_order: hinge on the order of those scores, with `similarity_order_margin`.
      ranking_kl: KL(teacher ‖ student) of how a text ranks the teacher's vectors of all texts, its
        own included, and of passages sampled from the corpus. The student's queries have to find
        the teacher's passages: the distance that `cosine` leaves between the two matters in
        directions where other texts are.
    On pairs, where each query's candidates are all passages of all workers:
      score_kl: KL(teacher ‖ student) of the softmaxes of their scores.
      margin_mse: MarginMSE.
      contrastive: InfoNCE on the pairs themselves, independent of the teacher's quality.
    A loss of weight 0 is not computed. Formulas and papers: `learning.losses`.

    Attributes:
        false_negative_margin: a candidate that the teacher scores above the positive + margin is
            not a negative of `contrastive`; None keeps all.
        dims: Matryoshka (arXiv 2205.13147): size → weight of the same losses on the vectors' first
            `size` dims; None: only the full vectors. Vectors are compared with the teacher's
            prefix, scores with those of its whole vectors.
        temperature, teacher_temperature: divisors of the student's and the teacher's scores before
            a softmax. None: .05 for a model of unit vectors, 1 for one of raw vectors.
        normalise, teacher_normalise: whether the student's and the teacher's vectors, and their
            prefixes, are of unit length. Equal where both encode into one space.
    """

    cosine: float = 0.0
    squared_l2: float = 0.0
    pairwise_mse: float = 0.0
    similarity_order: float = 0.0
    similarity_order_margin: float = 0.015
    ranking_kl: float = 0.0
    score_kl: float = 0.0
    margin_mse: float = 0.0
    contrastive: float = 0.0
    temperature: float | None = None
    teacher_temperature: float | None = None
    false_negative_margin: float | None = None
    dims: Mapping[int, float] | None = None
    normalise: bool = True
    teacher_normalise: bool = True

    @property
    def _temperatures(self) -> tuple[float, float]:
        """The student's and the teacher's."""
        return (
            temperature_or_default(self.temperature, 0.05, self.normalise),
            temperature_or_default(self.teacher_temperature, 0.05, self.teacher_normalise),
        )

    def __call__(
        self, runner: MicroBatchRunner, batch: TextBatch | PairBatch
    ) -> tuple[Tensor, Metrics]:
        candidates = None
        if isinstance(batch, TextBatch):
            student_nd = runner.embed(batch.texts)
            teacher_nd = _require_teacher(batch.teacher_vectors, runner.device)
        else:
            batch = batch.to(runner.device)
            teacher_bd = _require_teacher(batch.teacher_queries, runner.device)
            teacher_pd = _require_teacher(batch.teacher_passages, runner.device)
            q_bd, p_pd = runner.embed(batch.queries), runner.embed(batch.passages)
            student_nd, teacher_nd = torch.cat([q_bd, p_pd]), torch.cat([teacher_bd, teacher_pd])
            candidates = _Candidates(
                q_bd,
                all_gather_with_grad(p_pd),
                teacher_bd @ all_gather_with_grad(teacher_pd).T,
                *positive_columns(batch.passage_ids, len(q_bd)),
            )
        text_scores, ranking = None, None
        if self.pairwise_mse or self.similarity_order or self.ranking_kl:
            teacher_md = all_gather_with_grad(teacher_nd)
            if self.pairwise_mse or self.similarity_order:
                text_scores = _TextScores.gather(student_nd, teacher_nd, teacher_md)
            if self.ranking_kl:
                ranking = _TeacherRanking.of(teacher_nd, teacher_md, batch.teacher_sampled)
        total, metrics = torch.zeros((), device=runner.device), Metrics()
        for size, weight in (self.dims or {student_nd.shape[1]: 1.0}).items():
            losses = self._text_losses(student_nd, teacher_nd, text_scores, ranking, size)
            if candidates is not None:
                losses |= self._pair_losses(candidates, size)
            for name, value in losses.items():
                total = total + weight * getattr(self, name) * value
                metrics.setdefault(name, value.item())  # of the first size: the whole vectors
        return total, metrics

    def _text_losses(
        self,
        student_nd: Tensor,
        teacher_nd: Tensor,
        text_scores: "_TextScores | None",
        ranking: "_TeacherRanking | None",
        size: int,
    ) -> Losses:
        losses: Losses = {}
        student_nd = matryoshka_prefix(student_nd, size, self.normalise)
        if self.cosine or self.squared_l2:
            target_nd = matryoshka_prefix(teacher_nd, size, self.teacher_normalise)
            if self.cosine:
                losses["cosine"] = cosine(student_nd, target_nd)
            if self.squared_l2:
                losses["squared_l2"] = squared_l2(student_nd, target_nd)
        if ranking is not None:
            temperature, teacher_temperature = self._temperatures
            losses["ranking_kl"] = ranking_kl(
                student_nd,
                matryoshka_prefix(ranking.targets_kd, size, self.teacher_normalise),
                ranking.teacher_nk,
                student_temperature=temperature,
                teacher_temperature=teacher_temperature,
            )
        if text_scores is not None:
            all_md = matryoshka_prefix(text_scores.student_md, size, self.normalise)
            student_nm = student_nd @ all_md.T
            if self.pairwise_mse:
                losses["pairwise_mse"] = pairwise_mse(student_nm, text_scores.teacher_nm)
            if self.similarity_order:
                losses["similarity_order"] = similarity_order(
                    student_nm,
                    text_scores.teacher_nm,
                    margin=self.similarity_order_margin,
                    ignore_nm=text_scores.itself_nm,
                )
        return losses

    def _pair_losses(self, pairs: "_Candidates", size: int) -> Losses:
        losses: Losses = {}
        q_bd, p_nd = (
            matryoshka_prefix(v, size, self.normalise)
            for v in (pairs.queries_bd, pairs.passages_nd)
        )
        student_bn = q_bd @ p_nd.T
        temperature, teacher_temperature = self._temperatures
        if self.score_kl:
            losses["score_kl"] = score_kl(
                student_bn,
                pairs.teacher_bn,
                student_temperature=temperature,
                teacher_temperature=teacher_temperature,
                ignore_bn=pairs.copies_bn,
            )
        if self.margin_mse:
            losses["margin_mse"] = margin_mse(
                student_bn, pairs.teacher_bn, pairs.positive_b, ignore_bn=pairs.copies_bn
            )
        if self.contrastive:
            ignore_bn = pairs.copies_bn
            if self.false_negative_margin is not None:
                ignore_bn = ignore_bn | pairs.above_positive(self.false_negative_margin)
            losses["contrastive"] = info_nce(
                student_bn, pairs.positive_b, temperature=temperature, ignore_bn=ignore_bn
            )
        return losses


@dataclass(frozen=True)
class Rehearsal:
    """Distillation on pairs + weight × distillation on texts, each with its own losses."""

    pairs: Distillation
    texts: Distillation
    weight: float

    def __call__(self, runner: MicroBatchRunner, batch: RehearsalBatch) -> tuple[Tensor, Metrics]:
        pairs_loss, metrics = self.pairs(runner, batch.pairs)
        texts_loss, texts_metrics = self.texts(runner, batch.texts)
        rehearsed = {f"rehearsed_{name}": value for name, value in texts_metrics.items()}
        return pairs_loss + self.weight * texts_loss, metrics | rehearsed


def _require_teacher(vectors: Tensor | None, device: torch.device) -> Tensor:
    if vectors is None:
        raise ValueError("distillation needs the teacher's vectors in the batch")
    return vectors.to(device)


@dataclass(frozen=True)
class _Candidates:
    """The worker's queries against all workers' passages.

    Gathered once for all uses: Matryoshka's sizes are prefixes of these.
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
class _TextScores:
    """Inputs of the losses on scores among texts.

    Attributes:
        student_md: the student's vectors of all workers' texts.
        teacher_nm: the teacher's scores.
        itself_nm: True where a column is the row's own text.
    """

    student_md: Tensor
    teacher_nm: Tensor
    itself_nm: Tensor

    @classmethod
    def gather(cls, student_nd: Tensor, teacher_nd: Tensor, teacher_md: Tensor) -> "_TextScores":
        student_md = all_gather_with_grad(student_nd)
        first = current_shard().rank * len(student_nd)
        local_n = torch.arange(len(student_nd), device=student_nd.device) + first
        column_m = torch.arange(len(student_md), device=student_nd.device)
        itself_nm = local_n[:, None] == column_m[None, :]
        return cls(student_md, teacher_nd @ teacher_md.T, itself_nm)


@dataclass(frozen=True)
class _TeacherRanking:
    """The teacher's vectors that `ranking_kl` ranks, and the teacher's scores of them."""

    targets_kd: Tensor
    teacher_nk: Tensor

    @classmethod
    def of(
        cls, teacher_nd: Tensor, teacher_md: Tensor, sampled_kd: Tensor | None
    ) -> "_TeacherRanking":
        targets_kd = teacher_md
        if sampled_kd is not None:  # the same on all workers
            targets_kd = torch.cat([teacher_md, sampled_kd.to(teacher_md.device)])
        return cls(targets_kd, teacher_nd @ targets_kd.T)
