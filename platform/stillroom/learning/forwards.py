"""A step's forwards and backwards: micro-batches under a token budget, and GradCache.

An objective asks for vectors of as many texts as it likes, and for the loss of predicted tokens.
How they are computed is decided here: in micro-batches of like length; and with GradCache (Gao et
al., 2021, arXiv 2101.06983) in two passes, so that memory is bound by one micro-batch however big
the contrastive batch is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from stillroom.encoders.encoder import micro_batches
from stillroom.encoders.tokens.prompter import Batch, Cloze, ClozeBatch, Tokens, pad, pad_clozes
from stillroom.learning.engine.base import Engine
from stillroom.learning.gather import world


@dataclass
class _Kept:
    """A micro-batch to run again with gradients, and what its outputs are to be weighed with."""

    batch: Batch | ClozeBatch
    seed: int
    weights: Callable[[], torch.Tensor]
    name: str = ""  # of a loss of predicted tokens


class Forwards:
    """What an objective may ask of the model within one step.

    Args:
        micro_tokens: the most tokens of one forward, padding counted.
        cached: GradCache: forwards without gradients first, then one micro-batch at a time.
        seed: of dropout; every micro-batch draws from a seed of its own, the same in both passes.
    """

    def __init__(self, engine: Engine, *, pad_id: int, micro_tokens: int, cached: bool, seed: int):
        self.engine, self.pad_id = engine, pad_id
        self.micro_tokens, self.cached, self.seed = micro_tokens, cached, seed
        self.tokens = 0  # of this worker, without padding
        self.padded = 0  # the same, padding counted
        self.lengths: list[int] = []  # of this worker's texts, in tokens
        self._kept: list[_Kept] = []
        self._forwards = 0

    @property
    def device(self) -> torch.device:
        return self.engine.device

    def vectors(self, tokens: Sequence[Tokens]) -> torch.Tensor:
        """Unit vectors of texts, in their order: float32, (n, d), with gradients."""
        found: list[torch.Tensor] = []
        chunks = self._chunks([len(one.ids) for one in tokens])
        kept = []
        for rows in chunks:
            batch = pad([tokens[row] for row in rows], self.pad_id)
            seed = self._next_seed()
            with torch.set_grad_enabled(not self.cached):
                found.append(self._forward(batch, seed))
            kept.append((batch, seed, rows))
        place = torch.from_numpy(np.argsort(np.concatenate(chunks))).to(found[0].device)
        vectors = torch.cat(found)[place]
        if self.cached:
            vectors.requires_grad_()
            for batch, seed, rows in kept:
                self._kept.append(_Kept(batch, seed, _gradient_of(vectors, rows)))
        return vectors

    def predict(self, name: str, clozes: Sequence[Cloze], weights: torch.Tensor) -> None:
        """Adds Σ weight × (negative log-likelihood of a text's targets) to the step's loss.

        It is computed in `backward`, a micro-batch at a time, for it is a plain sum.

        Args:
            name: of the figure that reports it.
            weights: one a text, (n,), float32.
        """
        for rows in self._chunks([len(one.ids) for one in clozes]):
            batch = pad_clozes([clozes[row] for row in rows], self.pad_id)
            of_rows = weights[torch.from_numpy(rows).to(weights.device)]
            self._kept.append(_Kept(batch, self._next_seed(), of_rows.clone, name))

    def backward(self, loss: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Leaves the gradients of `loss` and of everything predicted with the engine.

        Returns:
            The sum of each predicted loss, by its name.
        """
        if loss is not None:
            if self.cached:
                loss.backward()  # as far as the vectors
            else:
                self.engine.backward(loss, last=not self._kept)
        sums: dict[str, torch.Tensor] = {}
        for number, kept in enumerate(self._kept, start=1):
            out = self._forward(kept.batch, kept.seed)
            value = (out * kept.weights().to(out.device)).sum()
            if kept.name:
                sums[kept.name] = sums.get(kept.name, 0) + value.detach()
            self.engine.backward(value, last=number == len(self._kept))
        return sums

    def _forward(self, batch: Batch | ClozeBatch, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return self.engine.forward(batch)

    def _next_seed(self) -> int:
        self._forwards += 1
        return hash((self.seed, self._forwards)) & 0x7FFFFFFF

    def _chunks(self, lengths: list[int]) -> list[np.ndarray]:
        """Rows of each micro-batch; as many on every worker, since ZeRO's forwards and backwards
        are meetings of all."""
        chunks = micro_batches(lengths, self.micro_tokens)
        if world()[1] > 1:
            most = torch.tensor(len(chunks), device=self.engine.device)
            dist.all_reduce(most, op=dist.ReduceOp.MAX)
            chunks = micro_batches(lengths, self.micro_tokens, at_least=int(most))
        self.tokens += sum(lengths)
        self.lengths += lengths
        self.padded += sum(len(rows) * lengths[rows[0]] for rows in chunks)
        return chunks


def _gradient_of(vectors: torch.Tensor, rows: np.ndarray) -> Callable[[], torch.Tensor]:
    def gradient() -> torch.Tensor:
        assert vectors.grad is not None
        return vectors.grad[torch.from_numpy(rows).to(vectors.device)]

    return gradient
