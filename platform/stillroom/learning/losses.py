"""Losses as pure functions of tensors, under the names that the literature gives them.

Shapes: for pairs, b queries of this worker and n candidate passages of all workers; for texts
without labels, n of this worker and m of all; k vectors to rank; d dims.
Everything is computed in float32, independent of the model's precision.
"""

from typing import Any

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
MAX_TRIPLES = 1 << 24  # that `similarity_order` compares at once


def info_nce(
    scores_bn: Tensor, positive_b: Tensor, *, temperature: float, ignore_bn: Tensor | None = None
) -> Tensor:
    """InfoNCE (van den Oord et al., 2018, arXiv 1807.03748), mean over the queries.

    -log(exp(s_positive / τ) / Σ_candidates exp(s / τ)), with τ the temperature.

    Args:
        scores_bn: inner products of query and candidate, which are cosines for unit vectors.
        positive_b: the column of each query's positive.
        ignore_bn: True where a candidate is not a negative (for example a copy of the positive).
    """
    logits_bn = scores_bn.float() / temperature
    if ignore_bn is not None:
        logits_bn = logits_bn.masked_fill(ignore_bn, float("-inf"))
    return F.cross_entropy(logits_bn, positive_b)


def score_kl(
    student_bn: Tensor,
    teacher_bn: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    ignore_bn: Tensor | None = None,
) -> Tensor:
    """KL divergence of the softmaxes over each query's candidates, mean over the queries.

    Σ_candidates p_teacher log(p_teacher / p_student); as DistillKLDivLoss of sentence-transformers
    (Hinton et al., 2015, arXiv 1503.02531, without its factor of temperature²).

    Args:
        student_bn, teacher_bn: each model's scores of query and candidate.
        ignore_bn: True where a candidate does not count.
    """
    student_bn = student_bn.float() / student_temperature
    teacher_bn = teacher_bn.float() / teacher_temperature
    return F.kl_div(
        _log_shares(student_bn, ignore_bn),
        _log_shares(teacher_bn, ignore_bn),
        reduction="batchmean",
        log_target=True,
    )


def _log_shares(scores_bn: Tensor, ignore_bn: Tensor | None) -> Tensor:
    """The log-softmax over each row; 0 where a candidate is ignored.

    Two zeros add nothing to a divergence, where two of -inf would make 0 × inf. No low score could
    stand for an ignored candidate: raw inner products may be of any size.
    """
    if ignore_bn is None:
        return F.log_softmax(scores_bn, -1)
    shares_bn = F.log_softmax(scores_bn.masked_fill(ignore_bn, float("-inf")), -1)
    return shares_bn.masked_fill(ignore_bn, 0)


def ranking_kl(
    student_nd: Tensor,
    targets_kd: Tensor,
    teacher_nk: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """`score_kl` of how a text ranks the teacher's vectors, mean over the texts.

    The student's scores are inner products of its own vectors with the teacher's: its queries have
    to find the passages in an index made by the teacher.

    Args:
        targets_kd: the teacher's vectors that are ranked.
        teacher_nk: the teacher's inner products of the texts with them.
    """
    return score_kl(
        student_nd @ targets_kd.T,
        teacher_nk,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
    )


def cosine(student_nd: Tensor, teacher_nd: Tensor) -> Tensor:
    """Cosine distance of a text's two vectors, 1 − cos, in [0, 2]; mean over the texts.

    Jasper's first loss (arXiv 2412.19048). It does not depend on the vectors' lengths.
    """
    return (1 - F.cosine_similarity(student_nd.float(), teacher_nd.float(), dim=-1)).mean()


def squared_l2(student_nd: Tensor, teacher_nd: Tensor) -> Tensor:
    """Squared distance of a text's two vectors, |s − t|²; mean over the texts.

    LEAF's loss (arXiv 2509.12539). Of unit vectors it is twice `cosine`; of raw ones it also fits
    the lengths. MSELoss of sentence-transformers (arXiv 2004.09813) is this divided by the dims.
    """
    return (student_nd.float() - teacher_nd.float()).square().sum(-1).mean()


def pairwise_mse(student_nm: Tensor, teacher_nm: Tensor) -> Tensor:
    """Mean squared error of the scores among texts, (s − t)²; of cosines, Jasper's similarity loss
    (arXiv 2412.19048).

    Args:
        student_nm, teacher_nm: each model's inner products of the worker's texts with all texts,
            on one scale.
    """
    return F.mse_loss(student_nm.float(), teacher_nm.float())


def margin_mse(
    student_bn: Tensor, teacher_bn: Tensor, positive_b: Tensor, *, ignore_bn: Tensor
) -> Tensor:
    """MarginMSE (Hofstätter et al., 2020, arXiv 2010.02666).

    ((s_positive − s_other) − (t_positive − t_other))², mean over a query's other candidates, then
    over the queries.

    Args:
        student_bn, teacher_bn: each model's scores of query and candidate, on one scale.
        positive_b: the column of each query's positive.
        ignore_bn: True where a candidate is a copy of the positive.
    """
    error_bn = student_bn.float() - teacher_bn.float()
    margins_bn = error_bn.gather(1, positive_b[:, None]) - error_bn
    others_bn = (~ignore_bn).scatter(1, positive_b[:, None], False)
    loss_b = (margins_bn.square() * others_bn).sum(1) / others_bn.sum(1).clamp(min=1)
    return loss_b.mean()


def similarity_order(
    student_nm: Tensor, teacher_nm: Tensor, *, margin: float, ignore_nm: Tensor
) -> Tensor:
    """Hinge on which of two texts is nearer to a third: the relative similarity loss of Jasper
    (arXiv 2412.19048).

    max(0, s_k − s_j + margin), mean over all j and k of a text that the teacher orders t_j > t_k,
    then over the texts. Takes n × m × m steps in the memory of n × m. Of the teacher only the order
    counts, so its scores may have any scale; the margin is on that of the student's.

    Args:
        student_nm, teacher_nm: each model's inner products of the worker's texts with all texts.
        ignore_nm: True where the column is the row's own text.
    """
    loss: Tensor = _SimilarityOrder.apply(student_nm.float(), teacher_nm.float(), margin, ignore_nm)
    return loss


class _SimilarityOrder(torch.autograd.Function):
    """The gradient counts the pairs that a column is on the wrong side of.

    The forward computes the gradient too, so that no triples are stored.
    """

    @staticmethod
    def forward(
        ctx: Any, student_nm: Tensor, teacher_nm: Tensor, margin: float, ignore_nm: Tensor
    ) -> Tensor:
        n, m = student_nm.shape
        total = student_nm.new_zeros(())
        gradient_nm = torch.empty_like(student_nm)
        rows = max(1, MAX_TRIPLES // (m * m))
        for start in range(0, n, rows):
            part = slice(start, start + rows)
            student, counted = student_nm[part], ~ignore_nm[part]
            # nearer[r, j, k]: by the teacher, j is nearer to r than k is.
            nearer = teacher_nm[part, :, None] > teacher_nm[part, None, :]
            nearer &= counted[:, :, None] & counted[:, None, :]
            weight = 1 / (n * nearer.sum((1, 2)).clamp(min=1).float())
            violation = student[:, None, :] - student[:, :, None] + margin
            wrong = nearer & (violation > 0)
            total += ((violation * wrong).sum((1, 2)) * weight).sum()
            gradient_nm[part] = (wrong.sum(1) - wrong.sum(2)) * weight[:, None]
        ctx.save_for_backward(gradient_nm)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        [gradient_nm] = ctx.saved_tensors
        return grads[0] * gradient_nm, None, None, None
