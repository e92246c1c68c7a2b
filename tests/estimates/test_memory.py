"""Memory estimates against torch's own counts, on models small enough to build."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaModel,
)

from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.layers.backbone import checkpoint_activations, set_dropout
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.encoders.tokens.batch import Tokens, pad
from stillroom.estimates import memory
from stillroom.estimates.memory import (
    GIB,
    GPU_MEMORY_GIB,
    TrainingSetup,
    estimate_memory,
    suggest_settings,
)
from stillroom.estimates.model_shape import ModelShape, model_shape, resized_config
from support.make_encoder import make_encoder
from support.tiny_models import byte_pair_tokenizer, roberta_tokenizer, word_piece_tokenizer

DECODER = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
ENCODER = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**DECODER)),
    "llama-tied": lambda: LlamaForCausalLM(LlamaConfig(**DECODER, tie_word_embeddings=True)),
    "llama-biases": lambda: LlamaForCausalLM(
        LlamaConfig(**DECODER, attention_bias=True, mlp_bias=True)
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**DECODER)),
    "mistral-wide-heads": lambda: MistralForCausalLM(MistralConfig(**DECODER, head_dim=24)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**DECODER)),
    "qwen2-tied": lambda: Qwen2ForCausalLM(Qwen2Config(**DECODER, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**DECODER, head_dim=16)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**DECODER, head_dim=24)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**DECODER, head_dim=24)),
    "bert": lambda: BertModel(BertConfig(**ENCODER)),
    "roberta": lambda: RobertaModel(RobertaConfig(**ENCODER, pad_token_id=0)),
    "modernbert": lambda: ModernBertModel(
        ModernBertConfig(**{**ENCODER, "pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3})
    ),
    "mpnet": lambda: MPNetModel(MPNetConfig(**ENCODER)),
}
MISTRAL_7B = {
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
LORA = LoraOptions(rank=8, alpha=16)
# 2,048 pairs with a hard negative each over 8 workers, all of 512 tokens.
E5_MISTRAL = TrainingSetup(
    lora_rank=16,
    embedded=((256, 512), (512, 512)),
    candidates=4096,
    workers=8,
    deepspeed=True,
    zero_stage=1,
    gradcache=True,
    gradient_checkpointing=True,
)


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = MODELS[request.param]()
    model.save_pretrained(path)
    decodes = hasattr(model, "lm_head")
    (byte_pair_tokenizer() if decodes else word_piece_tokenizer()).save_pretrained(path)
    return path


def shape_of(folder: Path) -> ModelShape:
    shape = model_shape(json.loads((folder / "config.json").read_text()))
    assert shape is not None
    return shape


def encoder(folder, **changes):
    return make_encoder(folder, precision="float32", **changes)


def numel(module, *, trained=False):
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def test_weight_counts_equal_torch_s(folder):
    shape = shape_of(folder)
    assert shape.weights == numel(encoder(folder))
    if shape.decoder:
        with_head = encoder(folder, head=True)
        assert memory.frozen_and_trained_parameters(shape, TrainingSetup(lm_head=True)) == (
            0,
            numel(with_head),
        )


@pytest.mark.parametrize("name", ["bert", "roberta", "mpnet", "modernbert"])
@pytest.mark.parametrize(
    "changes",
    [
        {"layers": [0, 2], "vocabulary_size": 900},
        {"size": {"layers": 4, "hidden": 48, "heads": 3}},
    ],
    ids=["cut", "random"],
)
def test_a_student_s_weights_are_known_before_it_is_created(name, changes, tmp_path):
    MODELS[name]().save_pretrained(tmp_path)
    roberta_tokenizer().save_pretrained(tmp_path)
    student = make_encoder(tmp_path, **changes)
    layers = len(changes["layers"]) if "layers" in changes else None
    config = json.loads((tmp_path / "config.json").read_text())
    shape = model_shape(resized_config(config, **{**changes, "layers": layers}))
    assert shape.weights == student.parameters_total


@pytest.mark.parametrize(
    ("targets", "use_dora"), [("all-linear", False), ("some", False), ("all-linear", True)]
)
def test_adapter_counts_equal_peft_s(folder, targets, use_dora):
    shape = shape_of(folder)
    if targets == "some":
        targets = (shape.linears[0].name.rpartition(".")[2], shape.linears[-1].name)
    model = encoder(folder, lora=replace(LORA, target_modules=targets, use_dora=use_dora))
    run = TrainingSetup(lora_rank=8, targets=targets, use_dora=use_dora)
    assert memory.adapter_parameters(shape, run) == numel(model, trained=True)


@pytest.mark.parametrize("model", ["mistral", "bert"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_estimated_activations_equal_what_autograd_keeps(
    model, precision, lora, checkpointing, tmp_path
):
    MODELS[model]().save_pretrained(tmp_path)
    tokenizer = byte_pair_tokenizer() if model == "mistral" else word_piece_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    network = create_encoder(
        str(tmp_path),
        space="s",
        options=ContractOptions(
            attention="bidirectional", pooling="mean", precision=precision, max_tokens=128
        ),
        lora=lora,
    ).train()
    set_dropout(network.backbone, 0.0)  # a CPU's dropout masks differ from a GPU's
    if checkpointing:
        checkpoint_activations(network.backbone)
    # One text is shorter, so that there is a mask.
    batch = pad([Tokens([7] * 96), *[Tokens([7] * 128)] * 15], pad_id=0)
    parameter_storages = {p.untyped_storage().data_ptr() for p in network.parameters()}
    saved = {}

    def record_saved(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameter_storages:
            saved[storage.data_ptr()] = storage.nbytes(), tensor  # kept alive: no reuse
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record_saved, lambda tensor: tensor):
        network(batch)
    measured = sum(size for size, _ in saved.values())

    run = TrainingSetup(
        precision=precision, lora_rank=None if lora is None else 8, embedded=((16, 128),),
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    shape = shape_of(tmp_path)
    # The forward only: without the gradients in flight and without one recomputed layer.
    estimated = memory.activations(shape, run)
    estimated -= 16 * 128 * 2 * run.number_bytes * (shape.mlp + shape.hidden)
    if checkpointing:
        estimated -= 16 * 128 * memory.per_layer(shape, run)
    else:
        estimated += memory.rounded_weights(shape, run)
    assert 0.85 < measured / estimated < 1.15


def test_mistral_7b_with_adapters_by_hand():
    shape = model_shape(MISTRAL_7B)
    assert shape is not None
    # 32 × (4096 × (4096 + 1024 + 1024 + 4096) + 3 × 4096 × 14336 + 2 × 4096) + 32001 × 4096
    assert shape.weights == 7_110_660_096
    # 32 × 16 × (q 8192 + k, v 2 × 5120 + o 8192 + gate, up, down 3 × 18432): "42M" in E5-mistral
    assert memory.adapter_parameters(shape, E5_MISTRAL) == 41_943_040
    parts = estimate_memory(shape, E5_MISTRAL).parts
    assert parts["weights"] == 2 * 7_110_660_096 + 4 * 41_943_040
    assert parts["gradients"] == 4 * 41_943_040
    assert parts["optimizer"] == (8 + 4) * 41_943_040 / 8
    assert parts["exchange"] == 4 * 41_943_040
    assert parts["gathered weights"] == parts["logits"] == 0
    # 16,384 tokens: the inputs of 32 layers, one layer's inside, the last norm, one layer's
    # gradients.
    inside_one_layer = 2 * 4 * 4096 + 2 * (3 * 4096 + 14336) + 2 * (4 * 4096 + 512) + 3 * 2 * 14336
    expected = 16384 * (32 * 2 * 4096 + inside_one_layer + 4 * 4096 + 2 * 2 * (14336 + 4096))
    assert parts["activations"] == expected
    assert parts["scores"] == 8 * 4096 * 4096 + 256 * 4096 * 18
    assert 22 < estimate_memory(shape, E5_MISTRAL).total / GIB < 27


def test_latent_attention_of_nv_embed_by_hand():
    shape = model_shape(MISTRAL_7B)
    # 512 latents; 8 heads as wide as the states: queries, keys, values and back; GEGLU of 4 × 4096.
    latents = 512 * 4096 + 4 * 4096 * 8 * 4096 + 12 * 4096**2 + 15 * 4096
    pooled = replace(E5_MISTRAL, latents=(512, 8, None))
    assert memory.latent_attention_parameters(shape, pooled) == latents == 740_356_096
    growth = estimate_memory(shape, pooled).total - estimate_memory(shape, E5_MISTRAL).total
    # Float32 weights and gradients, an eighth of AdamW's state and of the clone, a bfloat16 copy;
    # and gradients now need a whole bucket.
    parameter_bytes = latents * (4 + 4 + 12 / 8 + 2) + 4 * (500_000_000 - 41_943_040)
    assert growth == parameter_bytes + 16384 * 2 * (2 * 8 * 4096 + 20 * 4096)


FULL = replace(E5_MISTRAL, lora_rank=None)


@pytest.mark.parametrize("run", [E5_MISTRAL, FULL], ids=["lora", "full"])
def test_every_setting_that_should_save_memory_does(run):
    shape = model_shape(MISTRAL_7B)

    def total(**changes):
        return estimate_memory(shape, replace(run, **changes)).total

    assert total(micro_batch_tokens=8192) < total()
    assert total(gradient_checkpointing=True) < total(gradient_checkpointing=False)
    assert total(gradcache=True) < total(gradcache=False)
    assert total(offload="optimizer") < total()
    assert total(zero_stage=3, offload="parameters") < total(zero_stage=3, offload="optimizer")
    sharded = [total(zero_stage=stage) for stage in (1, 2)]
    assert sharded == sorted(sharded, reverse=True)
    assert total(zero_stage=3, workers=64) < total(zero_stage=3, workers=8)


def test_zero_splits_everything_but_the_activations():
    shape = model_shape(MISTRAL_7B)
    totals = [estimate_memory(shape, replace(FULL, zero_stage=stage)).total for stage in range(4)]
    assert totals == sorted(totals, reverse=True)


def test_offloaded_parts_are_counted_in_main_memory():
    shape = model_shape(MISTRAL_7B)
    run = replace(E5_MISTRAL, zero_stage=3)
    on_gpu = estimate_memory(shape, run)
    offloading = estimate_memory(shape, replace(run, offload="parameters"))
    assert {**offloading.parts, **offloading.offloaded} == on_gpu.parts


def test_without_gradcache_all_of_a_worker_s_tokens_wait_for_the_backward():
    assert E5_MISTRAL.waiting_tokens() == 16384
    assert replace(E5_MISTRAL, gradcache=False).waiting_tokens() == (256 + 512) * 512
    # A text is never cut to fit a micro-batch, nor is there more than the batch.
    assert replace(E5_MISTRAL, micro_batch_tokens=100).forward_tokens() == 512
    assert replace(E5_MISTRAL, embedded=((2, 512), (4, 512))).forward_tokens() == 4 * 512


NO_SAVINGS = replace(
    E5_MISTRAL, gradcache=False, gradient_checkpointing=False, zero_stage=0, deepspeed=False
)


@pytest.mark.parametrize(
    ("run", "gpu", "expected"),
    [
        (NO_SAVINGS, "H200-141G", ["gradient_checkpointing=true"]),
        (NO_SAVINGS, "H100-80G", ["gradient_checkpointing=true", "gradcache=true"]),
        (replace(FULL, zero_stage=1), "H100-80G", ["zero_stage=2"]),
        (replace(E5_MISTRAL, micro_batch_tokens=131072), "H100-80G", ["micro_batch_tokens=65536"]),
    ],
)
def test_suggested_settings_are_the_fewest_that_fit(run, gpu, expected):
    shape = model_shape(MISTRAL_7B)
    assert estimate_memory(shape, run).total > GPU_MEMORY_GIB[gpu] * GIB
    advised = suggest_settings(shape, run, GPU_MEMORY_GIB[gpu] * GIB)
    assert [setting for setting in advised if setting != "engine=deepspeed"] == expected


def test_nothing_is_suggested_where_nothing_helps():
    assert suggest_settings(model_shape(MISTRAL_7B), FULL, GPU_MEMORY_GIB["T4-16G"] * GIB) == []


def test_an_unknown_architecture_has_no_shape():
    assert model_shape({"model_type": "mamba"}) is None
