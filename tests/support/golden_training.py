"""Tiny trainings whose losses depend on installed versions as little as possible: a tokenizer of
fixed words, and weights from NumPy's generator.
"""

import zlib

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.learning.batches import (
    DistillationTextBatches,
    GenerationBatches,
    JointBatches,
    MaskedBatches,
    PairBatches,
    PairData,
    TextBatches,
)
from stillroom.learning.engine.torch_engine import TorchEngine
from stillroom.learning.loop import TrainOptions, scheduled_learning_rate, train
from stillroom.learning.order import BatchOrder
from stillroom.learning.source_runs import SourceRuns
from support.tiny_training import WORDS, texts

STEPS = 8
TEACHER_DIMS = 32
MASK_ID = 3


def language_model(folder):
    """A causal language model over fixed words."""
    vocabulary = ["<s>", "</s>", "<pad>", "<mask>", "<unk>", "find", ":", *WORDS]
    ids = {word: id for id, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        mask_token="<mask>",
        unk_token="<unk>",
        model_max_length=64,
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


PLAIN = ContractOptions(
    attention="bidirectional",
    pooling="mean",
    precision="float32",
    prompts={"query": "find: ", "passage": ""},
)


def tiny_encoder(base, options=PLAIN, *, lora_dropout=None, head=False, projection_dims=None):
    """An encoder in training mode; each weight is a function of its name."""
    encoder = create_encoder(
        str(base),
        space="golden",
        options=options,
        lora=None if lora_dropout is None else LoraOptions(4, 8, lora_dropout),
        head=head,
        projection_dims=projection_dims,
    )
    for name, weight in encoder.named_parameters():
        seed = zlib.crc32(name.replace("projection.0", "projection").encode())
        values = np.random.default_rng(seed).normal(size=weight.shape)
        weight.data.copy_(torch.from_numpy(1 + 0 * values if weight.ndim == 1 else 0.1 * values))
    return encoder.train()


def unit_vectors(n, seed):
    values = np.random.default_rng(seed).normal(size=(n, TEACHER_DIMS))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def pair_data():
    return PairData(
        queries=texts(24, 1),
        passages=texts(30, 2),
        positive=np.arange(24),
        source=SourceRuns.single(24),
        negatives=np.random.default_rng(3).integers(24, 30, size=(24, 3)),
        teacher_queries=unit_vectors(24, 4),
        teacher_passages=unit_vectors(30, 5),
        sampleable_rows=np.arange(30),
    )


def order(rows):
    return BatchOrder(SourceRuns.single(rows), seed=6, global_batch=8)


def pair_batches(encoder, *, hard_negatives=1, **options):
    return PairBatches(
        pair_data(), order(24), encoder.prompter, hard_negatives=hard_negatives, query_tokens=48,
        passage_tokens=16, **options,
    )  # fmt: skip


def text_batches(encoder):
    return TextBatches(texts(30, 2), order(30), encoder.prompter, max_tokens=16)


def masked_batches(encoder):
    return MaskedBatches(text_batches(encoder), mask_id=MASK_ID, mask_probability=0.3)


def joint_batches(encoder, **options):
    examples = list(zip(texts(24, 1), texts(24, 2), strict=True))
    generation = GenerationBatches(examples, order(24), encoder.prompter, max_tokens=24)
    return JointBatches(pair_batches(encoder, **options), generation)


def distillation_text_batches(encoder, **options):
    return DistillationTextBatches(
        pair_data(), order(54), encoder.prompter, query_tokens=48, passage_tokens=16, **options
    )


def losses(encoder, objective, batches, steps=STEPS):
    """Small steps: AdamW magnifies rounding where a gradient is almost nothing."""
    return train(
        TorchEngine(encoder, weight_decay=0.01, max_grad_norm=1.0),
        objective,
        batches,
        TrainOptions(
            steps=steps,
            learning_rate=lambda step: scheduled_learning_rate(
                step, steps=steps, warmup=2, peak=2e-3
            ),
            seed=7,
            pad_id=encoder.pad_id,
            micro_batch_tokens=64,
            gradcache=True,
        ),
    )
