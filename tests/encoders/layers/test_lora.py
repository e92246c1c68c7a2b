"""LoRA and its variants follow their papers' formulas, and are trained, saved and loaded."""

import dataclasses

import numpy as np
import pytest
import torch

from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.encoders.tokens.batch import pad
from support.make_encoder import make_encoder

TEXTS = ["a short text", "another text, which has quite a few more words than the first one"]
LORA = LoraOptions(rank=4, alpha=8)
VARIANTS = {
    "lora": {},
    "use_rslora": {"use_rslora": True},
    "use_dora": {"use_dora": True},
}


def encoder_with_adapter(folder, variant, precision="float32"):
    return make_encoder(
        folder,
        attention="bidirectional",
        precision=precision,
        lora=dataclasses.replace(LORA, **VARIANTS[variant]),
    )


def trained(model, steps=5):
    """The model after a few training steps, and their losses."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    batch = pad(model.prompter(TEXTS, "query"), model.pad_id)
    losses = []
    for _ in range(steps):
        first, second = model(batch)
        loss = first @ second
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def adapted_weight(layer, variant):
    """The weight that is equivalent to an adapted layer, by its paper's formula."""
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    scale = LORA.alpha / (LORA.rank**0.5 if variant == "use_rslora" else LORA.rank)
    weight = layer.base_layer.weight + scale * update
    if variant != "use_dora":
        return weight
    magnitude = layer.lora_magnitude_vector["default"].weight
    return magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapted_layer_computes_its_paper_s_formula(decoder, variant):
    model, _ = trained(encoder_with_adapter(decoder, variant))
    layer = model.backbone.base_model.model.layers[0].mlp.up_proj
    states = torch.randn(3, 64)
    expected = states @ adapted_weight(layer, variant).T
    torch.testing.assert_close(layer(states), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_lowers_the_loss_and_the_trained_adapter_loads_again(
    decoder, tmp_path, variant, precision
):
    model = encoder_with_adapter(decoder, variant, precision)
    before = model.encode(TEXTS, "query")
    model, losses = trained(model)
    assert losses[-1] < losses[0] - 0.01
    after = model.encode(TEXTS, "query")
    assert abs(after - before).max() > 0.01
    save_encoder(model, tmp_path)
    for trainable in (False, True):
        reloaded = load_encoder(tmp_path, trainable=trainable).encode(TEXTS, "query")
        if precision == "float32":
            np.testing.assert_allclose(reloaded, after, atol=1e-5)
        assert (reloaded * after).sum(1).min() > 0.999
