"""The arithmetic of FLOPs against a hand's and torch's counts, and MFU as a step's figure."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stillroom.encoders.files.create import create
from stillroom.encoders.layers import onednn_linear as cpu_linear
from stillroom.encoders.tokens.prompter import Tokens, pad
from stillroom.estimates.flops import PEAK, Flops, peak_flops, step
from stillroom.estimates.memory import GPUS, ONLY_EMULATE_BFLOAT16, Training
from stillroom.estimates.model_shape import Linear, Shape, shape_of

LENGTH, TEXTS = 24, 3
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear"}


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "every weight"])
def test_flops_are_those_that_torch_counts(decoder, lora, monkeypatch):
    monkeypatch.setattr(cpu_linear, "FASTER", False)  # the counter knows torch's own products only
    model = create(
        str(decoder), space="s", attention="bidirectional", pooling="mean", precision="float32",
        lora=lora,
    )  # fmt: skip
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
    flops = Flops.of(shape_of(model.backbone.config.to_dict()), adapters or None)
    scored = TEXTS * LENGTH**2 * flops.attention
    # Attention's kernels are left out: the counter has them compute the scores again.
    assert forward == flops.forward([LENGTH] * TEXTS) - 4 * scored
    assert backward == flops.backward([LENGTH] * TEXTS) - 8 * scored


def matrix_products(counter):
    found = counter.get_flop_counts()["Global"]
    return sum(found.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm))


def test_a_device_is_known_by_the_name_that_its_driver_gives_it():
    assert peak_flops("NVIDIA H100 80GB HBM3") == PEAK["H100"]
    assert peak_flops("NVIDIA H100 PCIe") == PEAK["H100PCIe"], "not the faster one's"
    assert peak_flops("NVIDIA L40S") == PEAK["L40S"], "not the L4's"
    assert peak_flops("an abacus") is None


# Two layers, each of one linear layer 3 → 5; attention is 4 wide.
SMALL = Shape(
    hidden=3, layers=2, vocabulary=10, linears=(Linear("only", 3, 5),), norms=0, outside=0,
    attention=4, mlp=5, gated=False, decoder=True,
)  # fmt: skip
FULL = Training(rank=None)
LORA = Training(rank=2)  # A: 2 layers of 2 (3 + 5) = 32


def planned(run):
    return Flops.planned(SMALL, run)


def test_a_text_s_forward_is_two_operations_a_weight_and_token_and_what_attention_takes():
    # 2 · 7 tokens · 30 weights + 4 · 2 layers · 7² · 4
    assert planned(FULL).forward([7]) == 2 * 7 * 30 + 4 * 2 * 49 * 4 == 1988
    assert planned(LORA).forward([7]) == 2 * 7 * (30 + 32) + 1568


def test_a_frozen_weight_s_backward_is_half_of_a_trained_one_s():
    assert planned(FULL).backward([7]) == 4 * 7 * 30 + 2 * 1568
    assert planned(LORA).backward([7]) == 2 * 7 * 30 + 4 * 7 * 32 + 2 * 1568


def test_a_step_is_all_that_it_embeds_there_and_back():
    run = Training(rank=None, embedded=((3, 7), (6, 2)))
    one = planned(FULL).forward([7]) + planned(FULL).backward([7])
    other = planned(FULL).forward([2]) + planned(FULL).backward([2])
    assert step(SMALL, run) == 3 * one + 6 * other


@pytest.mark.parametrize(("rank", "passes"), [(None, 3), (2, 2)])
def test_predicted_tokens_meet_the_head_too(rank, passes):
    run = Training(rank=rank, predicted=(3, 8, 0.25))
    body = planned(run).forward([8]) + planned(run).backward([8])
    assert step(SMALL, run) == 3 * body + 3 * 8 * 0.25 * 2 * passes * 10 * 3


def test_latent_attention_counts_what_every_token_meets():
    run = Training(rank=2, latents=(512, 2, 4))
    more = 2 * 7 * (2 * 3 * 2 * 4 + 12 * 9)
    assert planned(run).forward([7]) == planned(LORA).forward([7]) + more


def test_a_gpu_whose_memory_is_known_has_a_peak_where_it_knows_bfloat16():
    assert {gpu for gpu in GPUS if peak_flops(gpu) is None} == ONLY_EMULATE_BFLOAT16
