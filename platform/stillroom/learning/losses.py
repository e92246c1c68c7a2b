"""Losses as pure functions of tensors.

Shapes: b queries of this worker, n candidate passages of all workers, d dims. Of texts without
labels: n of this worker, m of all.
Everything is computed in float32, whatever the model ran in.
"""

from typing import Any

import torch
import torch.nn.functional as F

Tensor = torch.Tensor

TRIPLES = 1 << 24  # the most that `order_hinge` compares at once


def info_nce(
    scores_bn: Tensor, positive_b: Tensor, *, temperature: float, ignore_bn: Tensor | None = None
) -> Tensor:
    """Mean InfoNCE (van den Oord et al., 2018) over the queries.

    Args:
        scores_bn: similarity of query and candidate, cosine for unit vectors.
        positive_b: the column of each query's positive.
        temperature: what scores are divided by.
        ignore_bn: True where a candidate is no negative (a copy of the positive, say).
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
    """Mean KL(teacher ‖ student) of the two softmaxes over each query's candidates."""
    student_bn = student_bn.float() / student_temperature
    teacher_bn = teacher_bn.float() / teacher_temperature
    if ignore_bn is not None:
        # A finite floor: -inf on both sides would make 0 × inf in the divergence.
        student_bn = student_bn.masked_fill(ignore_bn, -1e4)
        teacher_bn = teacher_bn.masked_fill(ignore_bn, -1e4)
    return F.kl_div(
        F.log_softmax(student_bn, -1),
        F.log_softmax(teacher_bn, -1),
        reduction="batchmean",
        log_target=True,
    )


def cosine_distance(student_nd: Tensor, teacher_nd: Tensor) -> Tensor:
    """Mean of 1 − cos between a text's two vectors, in [0, 2]."""
    return (1 - F.cosine_similarity(student_nd.float(), teacher_nd.float(), dim=-1)).mean()


def squared_error(student_nm: Tensor, teacher_nm: Tensor) -> Tensor:
    """Mean squared difference of two matrices of cosines (the similarity loss of Jasper,
    arXiv 2412.19048)."""
    return F.mse_loss(student_nm.float(), teacher_nm.float())


def margin_mse(
    student_bn: Tensor, teacher_bn: Tensor, positive_b: Tensor, *, ignore_bn: Tensor
) -> Tensor:
    """MarginMSE (arXiv 2010.02666): mean squared difference of student's and teacher's margins,
    by which the positive leads each other candidate; a mean over a query's, then over queries.

    Args:
        ignore_bn: True where a candidate is a copy of the positive.
    """
    error_bn = student_bn.float() - teacher_bn.float()
    margins_bn = error_bn.gather(1, positive_b[:, None]) - error_bn
    others_bn = (~ignore_bn).scatter(1, positive_b[:, None], False)
    of_query_b = (margins_bn.square() * others_bn).sum(1) / others_bn.sum(1).clamp(min=1)
    return of_query_b.mean()


def order_hinge(
    student_nm: Tensor, teacher_nm: Tensor, *, margin: float, ignore_nm: Tensor
) -> Tensor:
    """How far the student has the order of two texts wrong, as seen from a third (the relative
    similarity loss of Jasper, arXiv 2412.19048).

    Of each text, the mean of max(0, s_k - s_j + margin) over all j and k that the teacher has in
    this order, t_j > t_k; then the mean over texts. Takes n × m × m steps in the memory of n × m.

    Args:
        ignore_nm: True where the column is the row's own text.
    """
    loss: Tensor = _OrderHinge.apply(student_nm.float(), teacher_nm.float(), margin, ignore_nm)
    return loss


class _OrderHinge(torch.autograd.Function):
    """Its gradient is a count of the pairs that a column is on the wrong side of: it is taken on
    the way, so that no triples need be kept."""

    @staticmethod
    def forward(
        ctx: Any, student_nm: Tensor, teacher_nm: Tensor, margin: float, ignore_nm: Tensor
    ) -> Tensor:
        n, m = student_nm.shape
        total = student_nm.new_zeros(())
        gradient_nm = torch.empty_like(student_nm)
        rows = max(1, TRIPLES // (m * m))
        for start in range(0, n, rows):
            part = slice(start, start + rows)
            student, kept = student_nm[part], ~ignore_nm[part]
            # nearer[r, j, k]: the teacher has j nearer to r than k.
            nearer = teacher_nm[part, :, None] > teacher_nm[part, None, :]
            nearer &= kept[:, :, None] & kept[:, None, :]
            weight = 1 / (n * nearer.sum((1, 2)).clamp(min=1).float())
            late = student[:, None, :] - student[:, :, None] + margin
            wrong = nearer & (late > 0)
            total += ((late * wrong).sum((1, 2)) * weight).sum()
            gradient_nm[part] = (wrong.sum(1) - wrong.sum(2)) * weight[:, None]
        ctx.save_for_backward(gradient_nm)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        [gradient_nm] = ctx.saved_tensors
        return grads[0] * gradient_nm, None, None, None
