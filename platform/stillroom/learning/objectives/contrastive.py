"""Contrastive objectives: InfoNCE on pairs, and SimCSE on texts without labels.

Shapes: b queries of this worker, m passages of this worker, n candidates of all workers, d dims.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from stillroom.learning.batch_types import Metrics, PairBatch, Tensor, TextBatch
from stillroom.learning.gather import all_gather_with_grad, current_shard
from stillroom.learning.losses import info_nce
from stillroom.learning.micro_batch_runner import MicroBatchRunner


def positive_columns(passage_ids: Tensor, queries: int) -> tuple[Tensor, Tensor]:
    """The column of each query's positive among all workers' passages, and the positive's copies.

    Args:
        passage_ids: of this worker's passages, the queries' positives first.
        queries: how many queries this worker has.

    Returns:
        The positive's column, (b,), and a mask (b, n), True on other columns with its text:
        a passage that is in the batch twice must not be its own negative.
    """
    start = current_shard().rank * len(passage_ids)
    column_b = torch.arange(start, start + queries, device=passage_ids.device)
    id_n = all_gather_with_grad(passage_ids)
    copies_bn = id_n[None, :] == id_n[column_b][:, None]
    copies_bn[torch.arange(queries, device=passage_ids.device), column_b] = False
    return column_b, copies_bn


def own_passage_mask(queries: int, passages: int, device: torch.device) -> Tensor:
    """Mask (b, n) of each query's own positive and hard negatives among all workers' passages."""
    own_bp = torch.eye(queries, dtype=torch.bool, device=device)
    hard = passages // queries - 1
    own_bp = torch.cat([own_bp, own_bp.repeat_interleave(hard, dim=1)], dim=1)
    shard = current_shard()
    own_bn = torch.zeros(queries, shard.world * passages, dtype=torch.bool, device=device)
    own_bn[:, shard.rank * passages : (shard.rank + 1) * passages] = own_bp
    return own_bn


@dataclass(frozen=True)
class Contrastive:
    """InfoNCE over in-batch and hard negatives of all workers.

    Attributes:
        in_batch_negatives: False: a query's only negatives are its own hard negatives.
        query_to_query: other queries are negatives too; in symmetric batches they always are
            (Gecko, arXiv 2403.20327).
        passage_to_passage: other passages are negatives of the positive, too. With both, this is
            the improved loss of GTE (arXiv 2308.03281).
        temperature: None: .03 for unit vectors, 1 for raw ones.
        false_negative_margin: a candidate that scores above the positive + margin is ignored
            (Qwen3-Embedding, arXiv 2506.05176); None keeps all. On the scale of the scores.
        dims: Matryoshka (arXiv 2205.13147): size → weight of the same loss on the vectors' first
            `size` dims; None: only the full vectors.
        normalise: whether vectors, and their prefixes, are of unit length, so that scores are
            cosines; otherwise they are inner products of raw vectors.
    """

    temperature: float | None
    in_batch_negatives: bool = True
    query_to_query: bool = False
    passage_to_passage: bool = False
    false_negative_margin: float | None = None
    dims: Mapping[int, float] | None = None
    normalise: bool = True

    def __call__(self, runner: MicroBatchRunner, batch: PairBatch) -> tuple[Tensor, Metrics]:
        batch = batch.to(runner.device)
        q_bd = runner.embed(batch.queries)
        p_md = runner.embed(batch.passages)
        # Gathered once for all uses: Matryoshka's sizes are prefixes of these.
        p_nd = all_gather_with_grad(p_md)
        query_to_query = self.query_to_query or batch.symmetric
        q_nd = all_gather_with_grad(q_bd) if query_to_query else None
        column_b, copies_bn = positive_columns(batch.passage_ids, len(q_bd))
        ignore_bn = copies_bn
        if not self.in_batch_negatives:
            ignore_bn = copies_bn | ~own_passage_mask(len(q_bd), len(p_md), q_bd.device)
        extra_ignore = self._extra_masks(batch, query_to_query, copies_bn)
        total = torch.zeros((), device=q_bd.device)
        correct_b = torch.zeros(len(q_bd), dtype=torch.bool, device=q_bd.device)
        for size, weight in (self.dims or {q_bd.shape[1]: 1.0}).items():
            q, p_all, p_own = (
                matryoshka_prefix(v, size, self.normalise) for v in (q_bd, p_nd, p_md[: len(q_bd)])
            )
            scores_bn = q @ p_all.T
            columns = [scores_bn]
            if q_nd is not None:
                columns.append(q @ matryoshka_prefix(q_nd, size, self.normalise).T)
            if self.passage_to_passage:
                columns.append(p_own @ p_all.T)
            all_bn, all_ignore_bn = torch.cat(columns, 1), torch.cat([ignore_bn, *extra_ignore], 1)
            if self.false_negative_margin is not None:
                all_ignore_bn = self._ignore_false_negatives(all_bn, all_ignore_bn, column_b)
            total = total + weight * info_nce(
                all_bn,
                column_b,
                temperature=temperature_or_default(self.temperature, 0.03, self.normalise),
                ignore_bn=all_ignore_bn,
            )
            if size == q_bd.shape[1] or not correct_b.any():
                correct_b = best_columns(scores_bn, ignore_bn) == column_b
        return total, {"accuracy": correct_b.float().mean().item()}

    def _ignore_false_negatives(
        self, scores_bn: Tensor, ignore_bn: Tensor, column_b: Tensor
    ) -> Tensor:
        """The mask, with candidates that score above the positive + margin added."""
        assert self.false_negative_margin is not None
        positive_b1 = scores_bn.detach().gather(1, column_b[:, None])
        ignore_bn = ignore_bn | (scores_bn.detach() > positive_b1 + self.false_negative_margin)
        return ignore_bn.scatter(1, column_b[:, None], False)

    def _extra_masks(
        self, batch: PairBatch, query_to_query: bool, copies_bn: Tensor
    ) -> list[Tensor]:
        """Masks of the columns that query_to_query and passage_to_passage add: never a text against
        itself or a copy, nor two queries of one positive."""
        masks = []
        positive_b = batch.passage_ids[: len(copies_bn)]
        if query_to_query:
            same_query = batch.query_ids[:, None] == all_gather_with_grad(batch.query_ids)[None, :]
            same_positive = positive_b[:, None] == all_gather_with_grad(positive_b)[None, :]
            masks.append(same_query | same_positive)
        if self.passage_to_passage:
            same = positive_b[:, None] == all_gather_with_grad(batch.passage_ids)[None, :]
            masks.append(same | copies_bn)
        return masks


def matryoshka_prefix(vectors: Tensor, size: int, normalise: bool) -> Tensor:
    """The first `size` dims of each vector (Matryoshka, arXiv 2205.13147).

    Args:
        normalise: whether the vectors are of unit length, and a prefix is scaled to it again.
    """
    if size == vectors.shape[1] or not normalise:
        return vectors[:, :size]
    return F.normalize(vectors[:, :size], dim=-1)


def temperature_or_default(temperature: float | None, of_cosines: float, normalise: bool) -> float:
    """The divisor of scores before a softmax.

    Raw inner products are not divided: they reach 30 to 100, and DPR (arXiv 2004.04906) and
    multi-qa-mpnet-base-dot-v1 were trained so. A temperature for cosines would make their softmax
    one-hot.

    Args:
        of_cosines: the default for unit vectors.
    """
    return temperature or (of_cosines if normalise else 1.0)


def best_columns(scores_bn: Tensor, ignore_bn: Tensor) -> Tensor:
    """The column of each query's best candidate, (b,)."""
    return scores_bn.detach().masked_fill(ignore_bn, float("-inf")).argmax(-1)


@dataclass(frozen=True)
class Simcse:
    """SimCSE (Gao et al., 2021, arXiv 2104.08821): a text under another dropout is its positive.

    Attributes:
        temperature: None: .05 for unit vectors, 1 for raw ones.
        normalise: as in `Contrastive`.
    """

    temperature: float | None
    normalise: bool = True

    def __call__(self, runner: MicroBatchRunner, batch: TextBatch) -> tuple[Tensor, Metrics]:
        first_bd = runner.embed(batch.texts)
        second_nd = all_gather_with_grad(runner.embed(batch.texts))
        column_b, copies_bn = positive_columns(batch.ids.to(runner.device), len(first_bd))
        scores_bn = first_bd @ second_nd.T
        temperature = temperature_or_default(self.temperature, 0.05, self.normalise)
        loss = info_nce(scores_bn, column_b, temperature=temperature, ignore_bn=copies_bn)
        correct_b = best_columns(scores_bn, copies_bn) == column_b
        return loss, {"accuracy": correct_b.float().mean().item()}
