"""Losses as pure functions of tensors.

Shapes: b queries of this worker, n candidate passages of all workers, d dims.
Everything is computed in float32, whatever the model ran in.
"""

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


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
