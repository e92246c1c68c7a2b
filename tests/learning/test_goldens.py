"""Losses of tiny trainings against golden files, to notice unintended changes of results.

The models depend on installed versions as little as possible: a tokenizer of fixed words, weights
from NumPy's generator. Dropout masks come from torch's own generator, because MKL's differs by
platform.
"""

import zlib

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.learning.batches import (
    GenerationBatches,
    JointBatches,
    MaskedBatches,
    PairBatches,
    PairData,
    TextBatches,
)
from stillroom.learning.engine.torch_engine import TorchEngine
from stillroom.learning.loop import TrainOptions, scheduled_learning_rate, train
from stillroom.learning.objectives.contrastive import Contrastive, Simcse
from stillroom.learning.objectives.distillation import Distillation
from stillroom.learning.objectives.token_prediction import Joint, Mntp
from stillroom.learning.order import BatchOrder
from support.goldens import Golden
from support.tiny_training import WORDS, texts

STEPS = 8

TEACHER_DIMS = 32


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A causal language model over fixed words."""
    folder = tmp_path_factory.mktemp("golden") / "base"
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


def tiny_encoder(base, *, lora_dropout=None, head=False, projection_dims=None):
    """An encoder in training mode; each weight is a function of its name."""
    encoder = create_encoder(
        str(base),
        space="golden",
        options=ContractOptions(
            attention="bidirectional",
            pooling="mean",
            precision="float32",
            prompts={"query": "find: ", "passage": ""},
        ),
        lora=None if lora_dropout is None else LoraOptions(4, 8, lora_dropout),
        head=head,
        projection_dims=projection_dims,
    )
    for name, weight in encoder.named_parameters():
        values = np.random.default_rng(zlib.crc32(name.encode())).normal(size=weight.shape)
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
        source=np.zeros(24, int),
        negatives=np.random.default_rng(3).integers(24, 30, size=(24, 3)),
        teacher_queries=unit_vectors(24, 4),
        teacher_passages=unit_vectors(30, 5),
        sampleable_rows=np.arange(30),
    )


def order(rows):
    return BatchOrder(np.zeros(rows, int), seed=6, global_batch=8)


def pair_batches(encoder, **options):
    return PairBatches(
        pair_data(), order(24), encoder.prompter, hard_negatives=1, query_tokens=16,
        passage_tokens=16, **options,
    )  # fmt: skip


def text_batches(encoder):
    return TextBatches(texts(30, 2), order(30), encoder.prompter, max_tokens=16)


def losses(encoder, objective, batches):
    """Small steps: AdamW magnifies rounding where a gradient is almost nothing."""
    return train(
        TorchEngine(encoder, weight_decay=0.01, max_grad_norm=1.0),
        objective,
        batches,
        TrainOptions(
            steps=STEPS,
            learning_rate=lambda step: scheduled_learning_rate(
                step, steps=STEPS, warmup=2, peak=2e-3
            ),
            seed=7,
            pad_id=encoder.pad_id,
            micro_batch_tokens=64,
            gradcache=True,
        ),
    )


def test_a_contrastive_teacher_reproduces_its_golden_losses(base, golden):
    encoder = tiny_encoder(base, lora_dropout=0.0)
    measured = losses(encoder, Contrastive(temperature=0.05), pair_batches(encoder))
    golden("losses/teacher_contrastive_float32_cpu.txt").check(measured, rtol=1e-4)


def test_a_masked_prediction_teacher_reproduces_its_golden_losses(base, golden):
    encoder = tiny_encoder(base, lora_dropout=0.0, head=True)
    batches = MaskedBatches(text_batches(encoder), mask_id=3, mask_probability=0.3)
    golden("losses/teacher_mntp_float32_cpu.txt").check(losses(encoder, Mntp(), batches), rtol=1e-4)


def test_a_simcse_teacher_reproduces_its_golden_losses(base, golden, monkeypatch):
    def dropout(states, p=0.5, training=True, inplace=False):
        return states * (torch.rand(states.shape) >= p) / (1 - p) if training else states

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    encoder = tiny_encoder(base, lora_dropout=0.2)
    measured = losses(encoder, Simcse(temperature=0.05), text_batches(encoder))
    golden("losses/teacher_simcse_float32_cpu.txt").check(measured, rtol=1e-4)


def test_a_joint_teacher_reproduces_its_golden_losses(base, golden):
    encoder = tiny_encoder(base, lora_dropout=0.0, head=True)
    examples = list(zip(texts(24, 1), texts(24, 2), strict=True))
    generation = GenerationBatches(examples, order(24), encoder.prompter, max_tokens=24)
    objective = Joint(Contrastive(temperature=0.05), weight=0.5, mean_over="token")
    measured = losses(encoder, objective, JointBatches(pair_batches(encoder), generation))
    golden("losses/teacher_joint_float32_cpu.txt").check(measured, rtol=1e-4)


def test_a_distilled_student_reproduces_its_golden_losses(base, golden):
    encoder = tiny_encoder(base, projection_dims=TEACHER_DIMS)
    objective = Distillation(
        cosine=1.0,
        pairwise_mse=20.0,
        similarity_order=10.0,
        ranking_kl=0.5,
        score_kl=0.5,
        margin_mse=1.0,
        contrastive=1.0,
        false_negative_margin=0.05,
        dims={TEACHER_DIMS: 1.0, 16: 0.5},
    )
    measured = losses(encoder, objective, pair_batches(encoder, sampled_passages=5))
    golden("losses/student_distillation_float32_cpu.txt").check(measured, rtol=1e-4)


def test_a_golden_file_accepts_its_own_values_and_refuses_others(tmp_path):
    Golden(tmp_path / "new.txt", update=True).check([1.0, 2.5], rtol=1e-4)
    golden_file = Golden(tmp_path / "new.txt", update=False)
    golden_file.check([1.00005, 2.5], rtol=1e-4)
    with pytest.raises(AssertionError, match=r"new\.txt: .* 2.0e-04 at step 2, 2\.5005 for 2\.5"):
        golden_file.check([1.0, 2.5005], rtol=1e-4)
    with pytest.raises(AssertionError, match="2 values, not these"):
        golden_file.check([1.0], rtol=1e-4)
