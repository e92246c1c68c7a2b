"""A tiny training for tests: an encoder, batches of random words, and a phase's settings."""

import numpy as np

from stillroom.config.phases import ContrastivePhase as Settings
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.learning.batches import PairBatches, PairData
from stillroom.learning.engine.torch_engine import TorchEngine
from stillroom.learning.loop import TrainOptions, train
from stillroom.learning.objectives.contrastive import Contrastive
from stillroom.learning.order import SINGLE_WORKER, BatchOrder
from stillroom.learning.source_runs import SourceRuns

WORDS = ["river", "stone", "cloud", "paper", "glass", "iron", "moss", "salt", "wind", "clay"]


def texts(n, seed):
    """n texts of 3 to 11 random words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(3, 12))) for _ in range(n)]


def start(folder, dropout=0.2):
    """A new bidirectional encoder with LoRA, on the model in a folder."""
    lora = LoraOptions(4, 8, dropout, target_modules=["q_proj", "down_proj"])
    return create_encoder(
        str(folder),
        space="s",
        options=ContractOptions(
            attention="bidirectional",
            pooling="mean",
            precision="float32",
            prompts={"query": "find: ", "passage": ""},
        ),
        lora=lora,
        seed=3,
    )


def batches(encoder, shard=SINGLE_WORKER):
    """Batches of 8 of 24 pairs."""
    data = PairData(texts(24, 8), texts(24, 9), np.arange(24), SourceRuns.single(24))
    return PairBatches(
        data, BatchOrder(data.source, seed=1, global_batch=8), encoder.prompter, hard_negatives=0,
        query_tokens=16, passage_tokens=16, shard=shard,
    )  # fmt: skip


def settings(steps, learning_rate=0.02):
    """A contrastive phase with a constant learning rate."""
    return Settings(
        objective="contrastive", steps=steps, global_batch=8, learning_rate=learning_rate,
        schedule="constant", warmup_ratio=0.0, query_tokens=16, passage_tokens=16,
    )  # fmt: skip


def uninterrupted(decoder, phase):
    """The losses of a phase in one process, without interruption."""
    encoder = start(decoder, dropout=0.0).train()
    engine = TorchEngine(
        encoder, weight_decay=phase.weight_decay, max_grad_norm=phase.max_grad_norm
    )
    return train(
        engine, Contrastive(temperature=0.05), batches(encoder),
        TrainOptions(
            steps=phase.steps, seed=5, learning_rate=lambda step: phase.learning_rate,
            pad_id=encoder.pad_id, micro_batch_tokens=999,
        ),
    )  # fmt: skip
