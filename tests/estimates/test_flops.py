"""FLOP estimates against counts by hand and by torch, and the peaks that MFU divides by."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.layers import onednn_linear as cpu_linear
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.encoders.tokens.batch import Tokens, pad
from stillroom.estimates.flops import PEAK_FLOPS, FlopCounter, peak_flops, step_flops
from stillroom.estimates.memory import GPU_MEMORY_GIB, WITHOUT_NATIVE_BFLOAT16, TrainingSetup
from stillroom.estimates.model_shape import Linear, ModelShape, model_shape

LENGTH, TEXTS = 24, 3
LORA = LoraOptions(rank=4, alpha=8)


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "every weight"])
def test_flops_equal_torch_s_own_count(decoder, lora, monkeypatch):
    monkeypatch.setattr(
        cpu_linear, "ONEDNN_IS_FASTER", False
    )  # the counter knows only torch's own products
    model = create_encoder(
        str(decoder),
        space="s",
        options=ContractOptions(attention="bidirectional", pooling="mean", precision="float32"),
        lora=lora,
    )
    if lora is None:
        model.backbone.requires_grad_(True)
    model.backbone.enable_input_require_grads()  # else the first block's backward has less to do
    counter = FlopCounterMode(display=False)
    with counter:
        vectors = model(pad([Tokens([5] * LENGTH)] * TEXTS, 0))
        forward = matrix_products(counter)
        vectors.sum().backward()
        backward = matrix_products(counter) - forward

    adapters = sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)
    flops = FlopCounter.of(model_shape(model.backbone.config.to_dict()), adapters or None)
    scored = TEXTS * LENGTH**2 * flops.attention
    # Without attention's kernels: the counter assumes that they recompute the scores.
    assert forward == flops.forward([LENGTH] * TEXTS) - 4 * scored
    assert backward == flops.backward([LENGTH] * TEXTS) - 8 * scored


def matrix_products(counter):
    counts = counter.get_flop_counts()["Global"]
    return sum(counts.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm))


def test_a_device_is_known_by_its_driver_s_name():
    assert peak_flops("NVIDIA H100 80GB HBM3") == PEAK_FLOPS["H100"]
    assert peak_flops("NVIDIA H100 PCIe") == PEAK_FLOPS["H100PCIe"], "not the faster one's"
    assert peak_flops("NVIDIA L40S") == PEAK_FLOPS["L40S"], "not the L4's"
    assert peak_flops("an abacus") is None


# Two layers, each of one linear layer 3 → 5; attention is 4 wide.
SMALL = ModelShape(
    hidden=3, layers=2, vocabulary=10, linears=(Linear("only", 3, 5),), norms=0, outside=0,
    attention=4, mlp=5, gated=False, decoder=True,
)  # fmt: skip
FULL = TrainingSetup(lora_rank=None)
LORA = TrainingSetup(lora_rank=2)  # A: 2 layers of 2 (3 + 5) = 32


def planned(run):
    return FlopCounter.planned(SMALL, run)


def test_a_forward_takes_two_operations_per_weight_and_token_plus_attention():
    # 2 · 7 tokens · 30 weights + 4 · 2 layers · 7² · 4
    assert planned(FULL).forward([7]) == 2 * 7 * 30 + 4 * 2 * 49 * 4 == 1988
    assert planned(LORA).forward([7]) == 2 * 7 * (30 + 32) + 1568


def test_a_frozen_weight_s_backward_costs_half_of_a_trained_one_s():
    assert planned(FULL).backward([7]) == 4 * 7 * 30 + 2 * 1568
    assert planned(LORA).backward([7]) == 2 * 7 * 30 + 4 * 7 * 32 + 2 * 1568


def test_a_step_is_the_forward_and_backward_of_all_embedded_texts():
    run = TrainingSetup(lora_rank=None, embedded=((3, 7), (6, 2)))
    first_text = planned(FULL).forward([7]) + planned(FULL).backward([7])
    second_text = planned(FULL).forward([2]) + planned(FULL).backward([2])
    assert step_flops(SMALL, run) == 3 * first_text + 6 * second_text


@pytest.mark.parametrize(("rank", "passes"), [(None, 3), (2, 2)])
def test_predicted_tokens_also_pass_the_head(rank, passes):
    run = TrainingSetup(lora_rank=rank, predicted=(3, 8, 0.25))
    body = planned(run).forward([8]) + planned(run).backward([8])
    assert step_flops(SMALL, run) == 3 * body + 3 * 8 * 0.25 * 2 * passes * 10 * 3


def test_latent_attention_counts_the_weights_that_every_token_passes():
    run = TrainingSetup(lora_rank=2, latents=(512, 2, 4))
    extra = 2 * 7 * (2 * 3 * 2 * 4 + 12 * 9)
    assert planned(run).forward([7]) == planned(LORA).forward([7]) + extra


def test_every_listed_gpu_with_bfloat16_has_a_peak():
    assert {gpu for gpu in GPU_MEMORY_GIB if peak_flops(gpu) is None} == WITHOUT_NATIVE_BFLOAT16
