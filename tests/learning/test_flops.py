"""The arithmetic of FLOPs against what torch counts, and MFU as a step's figure."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stillroom.encoders.prompt import Tokens, pad
from stillroom.encoders.store import create
from stillroom.learning.flops import PEAK, Flops, peak_flops
from stillroom.learning.shape import shape_of

LENGTH, TEXTS = 24, 3
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear"}


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "every weight"])
def test_flops_are_those_that_torch_counts(decoder, lora):
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
    assert peak_flops("NVIDIA H100 PCIe") == PEAK["H100 PCIe"], "not the faster one's"
    assert peak_flops("NVIDIA L40S") == PEAK["L40S"], "not the L4's"
    assert peak_flops("an abacus") is None
