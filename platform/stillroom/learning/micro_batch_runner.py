"""A step's forwards and backwards: micro-batches under a token budget, and GradCache.

An objective requests the vectors of any number of texts, and the loss of predicted tokens. This
file decides how they are computed: in micro-batches of texts of similar length; and with GradCache
(Gao et al., 2021, arXiv 2101.06983) in two passes, so that memory depends on one micro-batch, not
on the size of the contrastive batch.

Shapes: n texts of this worker, d dims.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from stillroom.encoders.micro_batches import micro_batches
from stillroom.encoders.tokens.batch import (
    Batch,
    LabelledBatch,
    LabelledTokens,
    Tokens,
    pad,
    pad_labelled,
)
from stillroom.learning.engine.interface import Engine
from stillroom.learning.gather import current_shard


@dataclass(frozen=True)
class DeferredBackward:
    """A micro-batch whose forward runs again, with gradients, when its backward is due.

    Attributes:
        seed: of dropout, so that both forwards have the same dropout.
        weights: returns the factors of the outputs before they are summed. For vectors that
            is the loss's gradient, which exists only after the loss's own backward.
        loss_name: of a loss of predicted tokens; empty for vectors.
    """

    batch: Batch | LabelledBatch
    seed: int
    weights: Callable[[], torch.Tensor]
    loss_name: str = ""


class MicroBatchRunner:
    """Runs one step's forwards and backwards for an objective.

    Args:
        micro_batch_tokens: the most tokens of one forward, padding counted.
        cached: GradCache: forwards without gradients first, then one micro-batch at a time.
        seed: of dropout; every micro-batch has a separate seed, the same in both passes.

    Attributes:
        tokens, padded_tokens: of this worker's texts so far, without and with padding.
        lengths: of this worker's texts so far, in tokens.
    """

    def __init__(
        self, engine: Engine, *, pad_id: int, micro_batch_tokens: int, cached: bool, seed: int
    ):
        self.engine, self.pad_id = engine, pad_id
        self.micro_batch_tokens, self.cached, self.seed = micro_batch_tokens, cached, seed
        self.tokens = 0
        self.padded_tokens = 0
        self.lengths: list[int] = []
        self._deferred: list[DeferredBackward] = []
        self._forward_count = 0

    @property
    def device(self) -> torch.device:
        return self.engine.device

    def embed(self, texts: Sequence[Tokens]) -> torch.Tensor:
        """The model's vectors of texts, in their order: float32, (n, d), with gradients."""
        chunks = self._split([len(text.ids) for text in texts])
        parts: list[torch.Tensor] = []
        micro: list[tuple[Batch, int]] = []  # each micro-batch and its seed
        for rows in chunks:
            batch, seed = pad([texts[row] for row in rows], self.pad_id), self._next_seed()
            with torch.set_grad_enabled(not self.cached):
                parts.append(self._forward(batch, seed))
            micro.append((batch, seed))
        text_order = torch.from_numpy(np.argsort(np.concatenate(chunks))).to(parts[0].device)
        vectors_nd = torch.cat(parts)[text_order]
        if self.cached:
            vectors_nd.requires_grad_()
            self._deferred += [
                DeferredBackward(batch, seed, _gradient_of(vectors_nd, rows))
                for (batch, seed), rows in zip(micro, chunks, strict=True)
            ]
        return vectors_nd

    def add_token_loss(
        self, name: str, texts: Sequence[LabelledTokens], weights: torch.Tensor
    ) -> None:
        """Adds Σ weight × (negative log-likelihood of a text's targets) to the step's loss.

        It is computed in `backward`, one micro-batch at a time: it is a plain sum.

        Args:
            name: of the metric that reports it.
            weights: one a text, (n,), float32.
        """
        for rows in self._split([len(text.ids) for text in texts]):
            batch = pad_labelled([texts[row] for row in rows], self.pad_id)
            chunk_weights = weights[torch.from_numpy(rows).to(weights.device)]
            self._deferred.append(
                DeferredBackward(batch, self._next_seed(), chunk_weights.clone, name)
            )

    def backward(self, loss: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Leaves the gradients of `loss` and of every token loss with the engine.

        Returns:
            The sum of each token loss, by its name.
        """
        if loss is not None:
            if self.cached:
                loss.backward()  # as far as the vectors
            else:
                self.engine.backward(loss, last=not self._deferred)
        sums: dict[str, torch.Tensor] = {}
        for number, deferred in enumerate(self._deferred, start=1):
            outputs = self._forward(deferred.batch, deferred.seed)
            value = (outputs * deferred.weights().to(outputs.device)).sum()
            if deferred.loss_name:
                sums[deferred.loss_name] = sums.get(deferred.loss_name, 0) + value.detach()
            self.engine.backward(value, last=number == len(self._deferred))
        return sums

    def _forward(self, batch: Batch | LabelledBatch, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return self.engine.forward(batch)

    def _next_seed(self) -> int:
        self._forward_count += 1
        return hash((self.seed, self._forward_count)) & 0x7FFFFFFF

    def _split(self, lengths: list[int]) -> list[np.ndarray]:
        """Rows of each micro-batch, the longest text first.

        Under ZeRO every forward and backward is a collective, so all workers need the same count.
        """
        chunks = micro_batches(lengths, self.micro_batch_tokens)
        if current_shard().world > 1:
            most = torch.tensor(len(chunks), device=self.engine.device)
            dist.all_reduce(most, op=dist.ReduceOp.MAX)
            chunks = micro_batches(lengths, self.micro_batch_tokens, min_count=int(most))
        self.tokens += sum(lengths)
        self.lengths += lengths
        self.padded_tokens += sum(len(rows) * lengths[rows[0]] for rows in chunks)
        return chunks


def _gradient_of(vectors_nd: torch.Tensor, rows: np.ndarray) -> Callable[[], torch.Tensor]:
    """The gradient of some rows, once it exists."""

    def gradient() -> torch.Tensor:
        assert vectors_nd.grad is not None
        return vectors_nd.grad[torch.from_numpy(rows).to(vectors_nd.device)]

    return gradient
