"""What tests of training train: a tiny encoder, on words in random order."""

import numpy as np

from stillroom.config.phases import Contrastive as Settings
from stillroom.encoders.files.create import create
from stillroom.learning.batches import PairBatches, PairData
from stillroom.learning.engine.torch_engine import TorchEngine
from stillroom.learning.loop import train
from stillroom.learning.objectives.contrastive import Contrastive
from stillroom.learning.order import Order

WORDS = ["river", "stone", "cloud", "paper", "glass", "iron", "moss", "salt", "wind", "clay"]


def texts(n, seed):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(3, 12))) for _ in range(n)]


def start(folder, dropout=0.2):
    lora = {"rank": 4, "alpha": 8, "dropout": dropout, "targets": ["q_proj", "down_proj"]}
    return create(
        str(folder), space="s", attention="bidirectional", pooling="mean", precision="float32",
        prompts={"query": "find: ", "passage": ""}, lora=lora, seed=3,
    )  # fmt: skip


def batches(encoder, place):
    data = PairData(texts(24, 8), texts(24, 9), np.arange(24), np.zeros(24, int))
    return PairBatches(
        data, Order(data.source, seed=1, global_batch=8), encoder.prompter, hard_negatives=0,
        query_tokens=16, passage_tokens=16, **place,
    )  # fmt: skip


def settings(steps, learning_rate=0.02):
    return Settings(
        objective="contrastive", steps=steps, global_batch=8, learning_rate=learning_rate,
        schedule="constant", warmup=0.0, query_tokens=16, passage_tokens=16,
    )  # fmt: skip


def uninterrupted(decoder, wanted):
    """Losses in one process."""
    encoder = start(decoder, dropout=0.0).train()
    engine = TorchEngine(encoder, weight_decay=wanted.weight_decay, clip=wanted.clip)
    return train(
        engine, Contrastive(temperature=0.05), batches(encoder, {}), steps=wanted.steps, seed=5,
        learning_rate=lambda step: wanted.learning_rate, pad_id=encoder.pad_id, micro_tokens=999,
        report=lambda figures: None, checkpoint=lambda step: None, checkpoint_every=wanted.steps,
    )  # fmt: skip
