"""What a step minimises: a batch, and forwards to run it through → loss and figures.

Every loss is a mean over the worker's own queries or texts, taken against the passages of all
workers; gradients are averaged over the workers. That equals one process with the whole batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from stillroom.learning.batch_types import Figures, Pairs, Tensor, Texts
from stillroom.learning.forwards import Forwards
from stillroom.learning.gather import gather, world
from stillroom.learning.losses import info_nce


def positives(passage_ids: Tensor, queries: int) -> tuple[Tensor, Tensor]:
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


def own_passages(queries: int, passages: int, device: torch.device) -> Tensor:
    """Mask (b, n) of each query's own positive and hard negatives among all workers' passages."""
    own_bp = torch.eye(queries, dtype=torch.bool, device=device)
    hard = passages // queries - 1
    own_bp = torch.cat([own_bp, own_bp.repeat_interleave(hard, dim=1)], dim=1)
    rank, workers = world()
    everyone = torch.zeros(queries, workers * passages, dtype=torch.bool, device=device)
    everyone[:, rank * passages : (rank + 1) * passages] = own_bp
    return everyone


@dataclass(frozen=True)
class Contrastive:
    """InfoNCE over in-batch and hard negatives of all workers.

    Attributes:
        in_batch: False leaves a query its own hard negatives alone.
        query_query, passage_passage: other queries, and for the positive other passages, count
            as negatives as well (the improved loss of GTE, arXiv 2308.03281). In symmetric batches
            other queries always do (Gecko, arXiv 2403.20327).
        false_negative_margin: a candidate that scores above the positive + margin is ignored
            (Qwen3-Embedding, arXiv 2506.05176); None keeps all.
        dims: Matryoshka (arXiv 2205.13147): size → weight of the same loss on the vectors' first
            so many dims, brought to unit length again; None: the whole vectors alone.
    """

    temperature: float
    in_batch: bool = True
    query_query: bool = False
    passage_passage: bool = False
    false_negative_margin: float | None = None
    dims: Mapping[int, float] | None = None

    def __call__(self, forwards: Forwards, batch: Pairs) -> tuple[Tensor, Figures]:
        batch = batch.to(forwards.device)
        q_bd = forwards.vectors(batch.queries)
        p_md = forwards.vectors(batch.passages)
        # Gathered once, whatever is made of them: Matryoshka's sizes are prefixes of these.
        p_nd = gather(p_md)
        query_query = self.query_query or batch.symmetric
        q_nd = gather(q_bd) if query_query else None
        column_b, copies_bn = positives(batch.passage_ids, len(q_bd))
        ignore_bn = copies_bn
        if not self.in_batch:
            ignore_bn = copies_bn | ~own_passages(len(q_bd), len(p_md), q_bd.device)
        extra_ignore = self._ignored_extras(batch, query_query, copies_bn)
        total = torch.zeros((), device=q_bd.device)
        right = torch.zeros(len(q_bd), dtype=torch.bool, device=q_bd.device)
        for size, weight in (self.dims or {q_bd.shape[1]: 1.0}).items():
            q, p_all, p_own = (prefix(v, size) for v in (q_bd, p_nd, p_md[: len(q_bd)]))
            scores_bn = q @ p_all.T
            parts, masks = [scores_bn], [ignore_bn]
            if q_nd is not None:
                parts.append(q @ prefix(q_nd, size).T)
            if self.passage_passage:
                parts.append(p_own @ p_all.T)
            masks += extra_ignore
            all_bn, ignored = torch.cat(parts, 1), torch.cat(masks, 1)
            if self.false_negative_margin is not None:
                positive_b1 = all_bn.detach().gather(1, column_b[:, None])
                ignored = ignored | (all_bn.detach() > positive_b1 + self.false_negative_margin)
                ignored = ignored.scatter(1, column_b[:, None], False)
            total = total + weight * info_nce(
                all_bn, column_b, temperature=self.temperature, ignore_bn=ignored
            )
            if size == q_bd.shape[1] or not right.any():
                right = scores_bn.detach().masked_fill(ignore_bn, -2).argmax(-1) == column_b
        return total, {"accuracy": right.float().mean().item()}

    def _ignored_extras(self, batch: Pairs, query_query: bool, copies_bn: Tensor) -> list[Tensor]:
        """Masks of the columns that query_query and passage_passage add: never a text against
        itself or a copy, nor two queries of one positive."""
        masks, queries = [], len(copies_bn)
        if query_query:
            same_query = batch.query_ids[:, None] == gather(batch.query_ids)[None, :]
            positive = batch.passage_ids[:queries]
            masks.append(same_query | (positive[:, None] == gather(positive)[None, :]))
        if self.passage_passage:
            own = batch.passage_ids[:queries, None] == gather(batch.passage_ids)[None, :]
            masks.append(own | copies_bn)
        return masks


def prefix(vectors: Tensor, size: int) -> Tensor:
    """The first `size` dims of each vector (Matryoshka, arXiv 2205.13147), of unit length again."""
    return vectors if size == vectors.shape[1] else F.normalize(vectors[:, :size], dim=-1)


@dataclass(frozen=True)
class Simcse:
    """A text under two dropouts is its own positive (SimCSE, arXiv 2104.08821)."""

    temperature: float

    def __call__(self, forwards: Forwards, batch: Texts) -> tuple[Tensor, Figures]:
        first_bd = forwards.vectors(batch.tokens)
        second_nd = gather(forwards.vectors(batch.tokens))
        column_b, copies_bn = positives(batch.ids.to(forwards.device), len(first_bd))
        scores_bn = first_bd @ second_nd.T
        loss = info_nce(scores_bn, column_b, temperature=self.temperature, ignore_bn=copies_bn)
        right = scores_bn.masked_fill(copies_bn, -2).argmax(-1) == column_b
        return loss, {"accuracy": right.float().mean().item()}


Objective = Callable[..., tuple[Tensor | None, Figures]]  # (forwards, batch)
