"""LoRA and its variants: what an adapted layer computes, trained, saved and loaded."""

import numpy as np
import pytest
import torch

from stillroom.encoders.files.create import create
from stillroom.encoders.files.load import load
from stillroom.encoders.files.save import save
from stillroom.encoders.tokens.prompter import pad

TEXTS = ["a short text", "another text, which has quite a few more words than the first one"]
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear"}
VARIANTS = {
    "lora": {},
    "rank_stabilised": {"rank_stabilised": True},
    "decomposed": {"decomposed": True},
}


def adapted(folder, variant, precision="float32"):
    return create(
        str(folder), space="s", attention="bidirectional", pooling="mean", precision=precision,
        lora={**LORA, **VARIANTS[variant]},
    )  # fmt: skip


def trained(model, steps=5):
    """A few steps away from where it began; (model, losses)."""
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
    """The weight that an adapted layer stands for, by its paper's formula."""
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    scale = LORA["alpha"] / (LORA["rank"] ** 0.5 if variant == "rank_stabilised" else LORA["rank"])
    whole = layer.base_layer.weight + scale * update
    if variant != "decomposed":
        return whole
    magnitude = layer.lora_magnitude_vector["default"].weight
    return magnitude[:, None] * whole / whole.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapted_layer_computes_what_its_paper_says(decoder, variant):
    model, _ = trained(adapted(decoder, variant))
    layer = model.backbone.base_model.model.layers[0].mlp.up_proj
    states = torch.randn(3, 64)
    expected = states @ adapted_weight(layer, variant).T
    torch.testing.assert_close(layer(states), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_lowers_the_loss_and_what_it_changed_is_loaded_again(
    decoder, tmp_path, variant, precision
):
    model = adapted(decoder, variant, precision)
    before = model.encode(TEXTS, "query")
    model, losses = trained(model)
    assert losses[-1] < losses[0] - 0.01
    after = model.encode(TEXTS, "query")
    assert abs(after - before).max() > 0.01
    save(model, tmp_path)
    for trainable in (False, True):
        again = load(tmp_path, trainable=trainable).encode(TEXTS, "query")
        if precision == "float32":
            np.testing.assert_allclose(again, after, atol=1e-5)
        assert (again * after).sum(1).min() > 0.999
