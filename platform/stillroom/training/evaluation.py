"""nDCG@10 while training: of the weights of the moment, by all workers together."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.encoder import Encoder, micro_batches
from stillroom.encoders.tokens.prompter import Tokens, pad
from stillroom.evaluation.evaluate import DEPTH, scored
from stillroom.evaluation.metrics import rank
from stillroom.learning.engine.base import Engine
from stillroom.learning.gather import world

BLOCK = 65536  # vectors that meet at once


class Evaluation:
    """The mean nDCG@10 over evaluation sets; made and called on every worker.

    The workers share the texts out, and take part in every forward alike: under ZeRO-3 each one
    is a meeting of all.

    Args:
        micro_tokens: the most tokens of one forward, padding counted.
    """

    def __init__(
        self,
        encoder: Encoder,
        engine: Engine,
        sets: Mapping[str, EvaluationSet],
        *,
        micro_tokens: int,
    ):
        self.encoder, self.engine, self.micro_tokens = encoder, engine, micro_tokens
        self.sets = list(sets.values())
        self.queries = [
            encoder.prompter(kept.judged_queries(), "query", prompt=kept.prompts.get("query"))
            for kept in self.sets
        ]
        self.passages = [
            encoder.prompter(
                list(kept.passages.values()), "passage", prompt=kept.prompts.get("passage")
            )
            for kept in self.sets
        ]

    def __call__(self) -> float:
        training = self.encoder.training
        self.encoder.eval()
        scores = []
        with torch.no_grad():
            for kept, queries, passages in zip(self.sets, self.queries, self.passages, strict=True):
                queries_qd, passages_pd = self._vectors(queries), self._vectors(passages)
                if world()[0] == 0:
                    found = scored(rank(queries_qd, passages_pd, DEPTH), kept)
                    scores.append(found["ndcg@10"])
        self.encoder.train(training)
        # One worker's word counts: rounding must not let two of them disagree on what is best.
        mean = torch.tensor(np.mean(scores or 0.0), device=self.engine.device)
        if world()[1] > 1:
            dist.broadcast(mean, src=0)
        return float(mean)

    def _vectors(self, tokens: Sequence[Tokens]) -> np.ndarray:
        """Vectors of texts, in their order: float32, (n, d), whole on the first worker."""
        place, workers = world()
        chunks = micro_batches([len(one.ids) for one in tokens], self.micro_tokens, workers)
        found = torch.zeros(len(tokens), self.encoder.contract.dims[0])
        for start in range(0, len(chunks), workers):
            mine = start + place
            # A worker for whom nothing is left comes along with a repetition.
            rows = chunks[min(mine, len(chunks) - 1)]
            batch = pad([tokens[row] for row in rows], self.encoder.pad_id)
            vectors = self.engine.forward(batch)
            if mine < len(chunks):
                found[torch.from_numpy(rows)] = vectors.cpu()
        if workers > 1:
            for block in found.split(BLOCK):
                moved = block.to(self.engine.device)
                dist.reduce(moved, dst=0)
                block.copy_(moved)
        return found.numpy()
