"""Activations computed again give the gradients of activations kept."""

import pytest
import torch
from transformers import AutoTokenizer, MPNetConfig, MPNetModel

from stillroom.encoders.files.create import create
from stillroom.encoders.layers.backbone import checkpoint_activations, load_backbone
from stillroom.encoders.tokens.prompter import pad, pad_clozes
from stillroom.errors import UserError

LORA = {"rank": 4, "alpha": 8, "dropout": 0.1, "targets": "all-linear"}
TEXTS = ["a short text", "another text, which has quite a few more words than the first one"]


def trained(folder, *, checkpointed, **changes):
    model = create(str(folder), space="s", precision="float32", **changes).train()
    if checkpointed:
        checkpoint_activations(model.backbone)
    calls = []
    for name, module in model.backbone.named_modules():
        if name.endswith(("0.mlp", "0.intermediate")):
            module.register_forward_pre_hook(lambda *_: calls.append(1))
    return model, calls


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_checkpointing_computes_layers_twice_and_gives_the_same_gradients(request, kind, lora):
    folder = request.getfixturevalue(kind)
    found = []
    for checkpointed in (False, True):
        model, calls = trained(folder, checkpointed=checkpointed, pooling="mean", lora=lora)
        batch = pad(model.prompter(TEXTS, "query"), model.pad_id)
        torch.manual_seed(0)  # of dropout
        model(batch)[:, :7].sum().backward()
        assert len(calls) == 1 + checkpointed
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("padded", [False, True])
def test_what_is_computed_again_attends_as_it_did_at_first(decoder, lora, padded):
    """Both attentions run before either's backward, as in a joint step."""
    found = []
    for checkpointed in (False, True):
        model, _ = trained(
            decoder, checkpointed=checkpointed, attention="bidirectional", pooling="mean",
            lora=lora, head=True,
        )  # fmt: skip
        texts = TEXTS if padded else TEXTS[:1]
        pairs = [(text, " an answer") for text in texts]
        batch = pad(model.prompter(texts, "query"), model.pad_id)
        clozes = pad_clozes(model.prompter.to_generate(pairs, max_tokens=64), model.pad_id)
        assert batch.mask_bl.all() == clozes.mask_bl.all() == (not padded)
        torch.manual_seed(0)
        (model(clozes).sum() + model(batch)[:, :7].sum()).backward()
        found.append(gradients(model))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_vectors_can_be_made_in_the_midst_of_training(decoder):
    model, _ = trained(decoder, checkpointed=True, pooling="mean", lora=LORA)
    assert model.encode(TEXTS, "query").shape == (2, 64)
    assert model.training


def test_an_architecture_that_cannot_is_named(encoder, tmp_path):
    MPNetModel(MPNetConfig(vocab_size=1000, hidden_size=32, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=32)).save_pretrained(tmp_path)  # fmt: skip
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="MPNetModel cannot compute its activations again"):
        checkpoint_activations(load_backbone(tmp_path))
