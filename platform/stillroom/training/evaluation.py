"""nDCG@10 of the current weights during training, computed by all workers together.

Shapes: q queries, p passages, n texts, d dims.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.micro_batches import micro_batches
from stillroom.encoders.tokens.batch import Tokens, pad
from stillroom.evaluation.evaluate import RANKING_DEPTH, score_ranking
from stillroom.evaluation.metrics import rank_passages
from stillroom.learning.engine.interface import Engine
from stillroom.learning.gather import current_shard
from stillroom.learning.loop import SCORE_METRIC

REDUCE_BLOCK = 65536  # vectors that are summed over the workers at once


class Evaluator:
    """The mean nDCG@10 over evaluation sets; made and called on every worker.

    The workers share the texts, and run equally many forwards: under ZeRO-3 each forward is a
    collective.

    Args:
        micro_batch_tokens: at most in one forward, padding included.
    """

    def __init__(
        self,
        encoder: Encoder,
        engine: Engine,
        sets: Mapping[str, EvaluationSet],
        *,
        micro_batch_tokens: int,
    ):
        self.encoder, self.engine, self.micro_batch_tokens = encoder, engine, micro_batch_tokens
        self.sets = list(sets.values())
        self.queries = [
            encoder.prompter(dataset.judged_queries(), "query", prompt=dataset.prompts.get("query"))
            for dataset in self.sets
        ]
        self.passages = [
            encoder.prompter(
                list(dataset.passages.values()), "passage", prompt=dataset.prompts.get("passage")
            )
            for dataset in self.sets
        ]

    def __call__(self) -> float:
        training = self.encoder.training
        self.encoder.eval()
        scores = []
        with torch.no_grad():
            for dataset, queries, passages in zip(
                self.sets, self.queries, self.passages, strict=True
            ):
                queries_qd, passages_pd = self._encode(queries), self._encode(passages)
                if current_shard().rank == 0:
                    ranking = rank_passages(queries_qd, passages_pd, RANKING_DEPTH)
                    scores.append(score_ranking(ranking, dataset)[SCORE_METRIC])
        self.encoder.train(training)
        # All use one worker's value: rounding must not make them disagree on the best.
        mean = torch.tensor(np.mean(scores or 0.0), device=self.engine.device)
        if current_shard().world > 1:
            dist.broadcast(mean, src=0)
        return float(mean)

    def _encode(self, tokens: Sequence[Tokens]) -> np.ndarray:
        """Vectors of texts in their order, float32 (n, d); complete on the first worker only."""
        shard = current_shard()
        batches = micro_batches(
            [len(text.ids) for text in tokens], self.micro_batch_tokens, shard.world
        )
        vectors_nd = torch.zeros(len(tokens), self.encoder.contract.dims[0])
        for start in range(0, len(batches), shard.world):
            number = start + shard.rank
            # A worker without a batch repeats the last one.
            rows = batches[min(number, len(batches) - 1)]
            batch = pad([tokens[row] for row in rows], self.encoder.pad_id)
            batch_vectors = self.engine.forward(batch)
            if number < len(batches):
                vectors_nd[torch.from_numpy(rows)] = batch_vectors.cpu()
        if shard.world > 1:
            for block in vectors_nd.split(REDUCE_BLOCK):
                on_device = block.to(self.engine.device)
                dist.reduce(on_device, dst=0)
                block.copy_(on_device)
        return vectors_nd.numpy()
