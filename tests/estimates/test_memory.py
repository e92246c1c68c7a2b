"""The estimate against what torch itself counts, on models small enough to build."""

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

from stillroom.encoders.files.create import create
from stillroom.encoders.layers.backbone import checkpoint_activations, set_dropout
from stillroom.encoders.tokens.prompter import Tokens, pad
from stillroom.estimates import memory
from stillroom.estimates.memory import GIB, GPUS, Training, advice, estimate
from stillroom.estimates.model_shape import Shape, resized, shape_of
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
LORA = {"rank": 8, "alpha": 16, "dropout": 0.0, "targets": "all-linear"}
# 2,048 pairs with a hard negative each over 8 workers, all of 512 tokens.
E5_MISTRAL = Training(
    rank=16,
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


def shape(folder: Path) -> Shape:
    found = shape_of(json.loads((folder / "config.json").read_text()))
    assert found is not None
    return found


def encoder(folder, **changes):
    return create(str(folder), space="s", pooling="mean", precision="float32", **changes)


def numel(module, *, trained=False):
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def test_weights_are_counted_as_torch_counts_them(folder):
    found = shape(folder)
    assert found.weights == numel(encoder(folder))
    if found.decoder:
        with_head = encoder(folder, head=True)
        assert memory.frozen_and_trained(found, Training(head=True)) == (0, numel(with_head))


@pytest.mark.parametrize("name", ["bert", "roberta", "mpnet", "modernbert"])
@pytest.mark.parametrize(
    "made",
    [
        {"layers": [0, 2], "vocabulary": 900},
        {"size": {"layers": 4, "hidden": 48, "heads": 3}},
    ],
    ids=["cut", "random"],
)
def test_a_student_s_weights_are_counted_before_it_is_made(name, made, tmp_path):
    MODELS[name]().save_pretrained(tmp_path)
    roberta_tokenizer().save_pretrained(tmp_path)
    student = create(str(tmp_path), space="s", pooling="mean", **made)
    layers = len(made["layers"]) if "layers" in made else None
    config = json.loads((tmp_path / "config.json").read_text())
    found = shape_of(resized(config, **{**made, "layers": layers}))
    assert found.weights == student.parameters_total


@pytest.mark.parametrize(
    ("targets", "decomposed"), [("all-linear", False), ("some", False), ("all-linear", True)]
)
def test_adapters_are_counted_as_peft_makes_them(folder, targets, decomposed):
    found = shape(folder)
    if targets == "some":
        targets = (found.linears[0].name.rpartition(".")[2], found.linears[-1].name)
    made = encoder(folder, lora={**LORA, "targets": targets, "decomposed": decomposed})
    run = Training(rank=8, targets=targets, decomposed=decomposed)
    assert memory.adapters(found, run) == numel(made, trained=True)


@pytest.mark.parametrize("model", ["mistral", "bert"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_autograd_keeps(model, precision, lora, checkpointing, tmp_path):
    MODELS[model]().save_pretrained(tmp_path)
    tokenizer = byte_pair_tokenizer() if model == "mistral" else word_piece_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    made = create(
        str(tmp_path), space="s", attention="bidirectional", pooling="mean",
        precision=precision, lora=lora, max_tokens=128,
    ).train()  # fmt: skip
    set_dropout(made.backbone, 0.0)  # its masks are of another kind on a CPU
    if checkpointing:
        checkpoint_activations(made.backbone)
    # One text is shorter, so that there is a mask.
    batch = pad([Tokens([7] * 96), *[Tokens([7] * 128)] * 15], pad_id=0)
    own = {p.untyped_storage().data_ptr() for p in made.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # alive, so that no other takes it
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made(batch)
    measured = sum(size for size, _ in kept.values())

    run = Training(
        precision=precision, rank=None if lora is None else 8, embedded=((16, 128),),
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    found = shape(tmp_path)
    # The forward alone: not yet the gradients on their way, nor one layer's insides anew.
    estimated = memory.activations(found, run)
    estimated -= 16 * 128 * 2 * run.compute * (found.mlp + found.hidden)
    if checkpointing:
        estimated -= 16 * 128 * memory.per_layer(found, run)
    else:
        estimated += memory.rounded(found, run)
    assert 0.85 < measured / estimated < 1.15


def test_mistral_7b_with_adapters_by_hand():
    found = shape_of(MISTRAL_7B)
    assert found is not None
    # 32 × (4096 × (4096 + 1024 + 1024 + 4096) + 3 × 4096 × 14336 + 2 × 4096) + 32001 × 4096
    assert found.weights == 7_110_660_096
    # 32 × 16 × (q 8192 + k, v 2 × 5120 + o 8192 + gate, up, down 3 × 18432): "42M" in E5-mistral
    assert memory.adapters(found, E5_MISTRAL) == 41_943_040
    parts = estimate(found, E5_MISTRAL).parts
    assert parts["weights"] == 2 * 7_110_660_096 + 4 * 41_943_040
    assert parts["gradients"] == 4 * 41_943_040
    assert parts["optimizer"] == (8 + 4) * 41_943_040 / 8
    assert parts["exchange"] == 4 * 41_943_040
    assert parts["gathered weights"] == parts["logits"] == 0
    # 16,384 tokens: inputs of 32 layers, insides of one, the last norm, gradients of one layer.
    inside = 2 * 4 * 4096 + 2 * (3 * 4096 + 14336) + 2 * (4 * 4096 + 512) + 3 * 2 * 14336
    expected = 16384 * (32 * 2 * 4096 + inside + 4 * 4096 + 2 * 2 * (14336 + 4096))
    assert parts["activations"] == expected
    assert parts["scores"] == 8 * 4096 * 4096 + 256 * 4096 * 18
    assert 22 < estimate(found, E5_MISTRAL).total / GIB < 27


def test_latent_attention_of_nv_embed_by_hand():
    found = shape_of(MISTRAL_7B)
    # 512 latents; 8 heads as wide as the states: queries, keys, values and back; GEGLU of 4 × 4096.
    latents = 512 * 4096 + 4 * 4096 * 8 * 4096 + 12 * 4096**2 + 15 * 4096
    pooled = replace(E5_MISTRAL, latents=(512, 8, None))
    assert memory.latent_attention(found, pooled) == latents == 740_356_096
    grown = estimate(found, pooled).total - estimate(found, E5_MISTRAL).total
    # In float32 with gradients, an eighth of AdamW's and of the clone, and a copy in bfloat16; and
    # now gradients go through a whole bucket.
    held = latents * (4 + 4 + 12 / 8 + 2) + 4 * (500_000_000 - 41_943_040)
    assert grown == held + 16384 * 2 * (2 * 8 * 4096 + 20 * 4096)


FULL = replace(E5_MISTRAL, rank=None)


@pytest.mark.parametrize("run", [E5_MISTRAL, FULL], ids=["lora", "full"])
def test_every_saving_saves(run):
    found = shape_of(MISTRAL_7B)

    def total(**changes):
        return estimate(found, replace(run, **changes)).total

    assert total(micro_tokens=8192) < total()
    assert total(gradient_checkpointing=True) < total(gradient_checkpointing=False)
    assert total(gradcache=True) < total(gradcache=False)
    assert total(offload="optimizer") < total()
    assert total(zero_stage=3, offload="parameters") < total(zero_stage=3, offload="optimizer")
    sharded = [total(zero_stage=stage) for stage in (1, 2)]
    assert sharded == sorted(sharded, reverse=True)
    assert total(zero_stage=3, workers=64) < total(zero_stage=3, workers=8)


def test_zero_shares_out_all_but_the_activations_of_full_fine_tuning():
    found = shape_of(MISTRAL_7B)
    totals = [estimate(found, replace(FULL, zero_stage=stage)).total for stage in range(4)]
    assert totals == sorted(totals, reverse=True)


def test_what_is_offloaded_is_not_lost():
    found = shape_of(MISTRAL_7B)
    run = replace(E5_MISTRAL, zero_stage=3)
    here, away = estimate(found, run), estimate(found, replace(run, offload="parameters"))
    assert {**away.parts, **away.offloaded} == here.parts


def test_without_gradcache_a_worker_s_whole_share_waits():
    assert E5_MISTRAL.kept() == 16384
    assert replace(E5_MISTRAL, gradcache=False).kept() == (256 + 512) * 512
    # A text is never cut to fit a micro-batch, nor is there more than the batch.
    assert replace(E5_MISTRAL, micro_tokens=100).at_once() == 512
    assert replace(E5_MISTRAL, embedded=((2, 512), (4, 512))).at_once() == 4 * 512


BARE = replace(
    E5_MISTRAL, gradcache=False, gradient_checkpointing=False, zero_stage=0, deepspeed=False
)


@pytest.mark.parametrize(
    ("run", "gpu", "expected"),
    [
        (BARE, "H200-141G", ["gradient_checkpointing=true"]),
        (BARE, "H100-80G", ["gradient_checkpointing=true", "gradcache=true"]),
        (replace(FULL, zero_stage=1), "H100-80G", ["zero_stage=2"]),
        (replace(E5_MISTRAL, micro_tokens=131072), "H100-80G", ["micro_tokens=65536"]),
    ],
)
def test_advice_is_no_more_than_what_makes_a_run_fit(run, gpu, expected):
    found = shape_of(MISTRAL_7B)
    assert estimate(found, run).total > GPUS[gpu] * GIB
    advised = advice(found, run, GPUS[gpu] * GIB)
    assert [setting for setting in advised if setting != "engine=deepspeed"] == expected


def test_where_nothing_helps_there_is_no_advice():
    assert advice(shape_of(MISTRAL_7B), FULL, GPUS["T4-16G"] * GIB) == []


def test_an_architecture_that_is_not_known_has_no_shape():
    assert shape_of({"model_type": "mamba"}) is None
