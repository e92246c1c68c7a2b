"""Activation checkpointing gives the same gradients as keeping all activations."""

import pytest
import torch
from transformers import AutoTokenizer, MPNetConfig, MPNetModel

from stillroom.encoders.files.pretrained import load_backbone
from stillroom.encoders.layers.backbone import checkpoint_activations
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.encoders.tokens.batch import pad, pad_labelled
from stillroom.errors import UserError
from support.make_encoder import make_encoder

LORA = LoraOptions(rank=4, alpha=8, dropout=0.1)
TEXTS = ["a short text", "another text, which has quite a few more words than the first one"]


def encoder_and_calls(folder, *, checkpointed, **changes):
    model = make_encoder(folder, precision="float32", **changes).train()
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
    results = []
    for checkpointed in (False, True):
        model, calls = encoder_and_calls(folder, checkpointed=checkpointed, lora=lora)
        batch = pad(model.prompter(TEXTS, "query"), model.pad_id)
        torch.manual_seed(0)  # of dropout
        model(batch)[:, :7].sum().backward()
        assert len(calls) == 1 + checkpointed
        results.append(gradients(model))
    assert results[0].keys() == results[1].keys()
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("padded", [False, True])
def test_recomputed_layers_attend_as_in_the_first_pass(decoder, lora, padded):
    """Both attentions run before either's backward, as in a joint step."""
    results = []
    for checkpointed in (False, True):
        model, _ = encoder_and_calls(
            decoder, checkpointed=checkpointed, attention="bidirectional",
            lora=lora, head=True,
        )  # fmt: skip
        texts = TEXTS if padded else TEXTS[:1]
        pairs = [(text, " an answer") for text in texts]
        batch = pad(model.prompter(texts, "query"), model.pad_id)
        labelled = pad_labelled(
            model.prompter.label_completions(pairs, max_tokens=64), model.pad_id
        )
        assert batch.mask_bl.all() == labelled.mask_bl.all() == (not padded)
        torch.manual_seed(0)
        (model(labelled).sum() + model(batch)[:, :7].sum()).backward()
        results.append(gradients(model))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_vectors_can_be_encoded_during_training(decoder):
    model, _ = encoder_and_calls(decoder, checkpointed=True, lora=LORA)
    assert model.encode(TEXTS, "query").shape == (2, 64)
    assert model.training


def test_an_architecture_without_checkpointing_is_named(encoder, tmp_path):
    MPNetModel(MPNetConfig(vocab_size=1000, hidden_size=32, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=32)).save_pretrained(tmp_path)  # fmt: skip
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="MPNetModel cannot compute its activations again"):
        checkpoint_activations(load_backbone(tmp_path))
